//! The flow table: every folder of `flows/` is a case and a test, run by all executors.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kubeferry_tests::executors::assert_agreement;
use kubeferry_tests::flows::Case;

/// Makes a test of each case.
macro_rules! cases {
    ($($name:ident,)*) => {
        const CASES: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                assert_agreement(&Case::read(&folder().join(stringify!($name))).unwrap());
            }
        )*
    };
}

cases! {
    both_traffic_policies_local,
    cluster_ip,
    dual_stack,
    duplicate_endpoints,
    endpoint_conditions,
    endpoints_in_the_host_network,
    endpoint_at_its_own_service,
    endpoints_that_are_service_addresses,
    endpoints_where_a_service_answers,
    external_ips,
    external_traffic_policy_local,
    external_traffic_policy_local_without_detector,
    forbidden_addresses,
    hairpin,
    internal_traffic_policy_local,
    leading_zeros,
    load_balancer,
    load_balancer_never_takes_a_cluster_ip,
    load_balancer_source_ranges,
    load_balancer_source_ranges_of_the_other_family,
    many_endpoints,
    masquerade_all,
    masquerade_all_without_detector,
    masquerade_by_bridge_interface,
    masquerade_by_cluster_cidr_of_one_family,
    masquerade_by_interface_name_prefix,
    masquerade_by_node_cidr,
    masquerade_with_another_mark_bit,
    named_ports_and_several_slices,
    no_endpoints,
    node_address_in_the_pod_range,
    node_port,
    node_port_addresses_all,
    node_port_addresses_cidrs,
    node_port_addresses_one_family,
    scheduler_hashed,
    scheduler_weights,
    scheduler_weights_beside_hints,
    service_cidrs,
    services_come_and_go,
    session_affinity,
    session_affinity_with_local_policy,
    skipped_services,
    terminating_endpoints,
    topology_hints,
    two_services_claim_one_address,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("flows")
}

#[test]
fn every_folder_is_a_test() {
    let entries = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name().into_string().unwrap());
    let listed = CASES.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    assert_eq!(folders.collect::<BTreeSet<_>>(), listed, "left: folders of tests/flows; right: `cases!` in this file");
}
