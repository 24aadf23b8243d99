//! `networking.k8s.io/v1 ServiceCIDR`.

use k8s_openapi::api::networking::v1 as networking;

use super::sloppy::parse_cidr;
use super::{Converted, Faults, object_name};
use crate::state::event::Kind;
use crate::state::objects::ServiceCidr;
use crate::state::text::Quoted;

/// Converts a ServiceCIDR; there is always one, perhaps of no ranges. A range of length zero is ignored with a fault: every
/// address in it that is no ClusterIP would be dropped.
pub fn service_cidr(object: &networking::ServiceCIDR) -> Converted<ServiceCidr> {
    let mut name = object_name(&object.metadata);
    name.namespace = "".into();
    let mut faults = Faults::of(Kind::ServiceCidr, &name);
    let mut cidrs = Vec::new();
    for text in object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten()) {
        match parse_cidr(text) {
            Some(cidr) if cidr.prefix_len() > 0 => cidrs.push(cidr),
            Some(cidr) => faults.add(format_args!("cidr {cidr} ignored: it holds every address")),
            None => faults.add(format_args!("cidr {} ignored: not a CIDR such as 10.96.0.0/16", Quoted(text))),
        }
    }
    faults.converted(Some(ServiceCidr { name: name.name, cidrs }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bad_ranges_are_left_out() {
        let object = json!({"metadata": {"name": "kubernetes"},
            "spec": {"cidrs": ["10.96.000.0/16", "fd00:96::/112", "10.96/16", "0.0.0.0/0"]}});
        let got = service_cidr(&serde_json::from_value(object).unwrap());
        let cidrs: Vec<String> = got.object.unwrap().cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(cidrs, ["10.96.0.0/16", "fd00:96::/112"]);
        assert_eq!(got.faults.len(), 2);
    }
}
