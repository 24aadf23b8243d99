//! The bill of materials of a binary, and of the image that it is in, as CycloneDX 1.5 has it.

use cyclonedx_bom::external_models::uri::Purl;
use cyclonedx_bom::models::component::{Classification, Component, Components};
use cyclonedx_bom::models::dependency::{Dependencies, Dependency};
use cyclonedx_bom::models::hash::{Hash, HashAlgorithm, HashValue, Hashes};
use cyclonedx_bom::models::license::{LicenseChoice, Licenses};
use cyclonedx_bom::models::metadata::Metadata;
use cyclonedx_bom::prelude::{Bom, DateTime, NormalizedString, SpecVersion, Validate as _};

use anyhow::{Context as _, bail};

use crate::dependencies::{Crate, Crates};
use crate::image::debian::Package;

/// The bill of a binary with this content, made at this time; `beside` is what of Debian is with it.
pub fn write(crates: &Crates, binary_sha256: &str, time: &str, beside: &[Package]) -> anyhow::Result<Vec<u8>> {
    let main = crates.values().find(|it| it.name == "kubeferry").context("there is no kubeferry among the crates")?;
    let mut whole = component(main, Classification::Application)?;
    whole.hashes = Some(sha256(binary_sha256));
    let others = crates.values().filter(|it| it.name != "kubeferry");
    let parts = others.map(|it| component(it, Classification::Library)).chain(beside.iter().map(of_debian));
    let parts = parts.collect::<anyhow::Result<_>>()?;
    let uses = crates.values().map(|it| Dependency {
        dependency_ref: reference(&it.name, &it.version),
        dependencies: it.uses.iter().map(|(name, version)| reference(name, version)).collect(),
    });
    let bom = Bom {
        version: 1,
        // A number by chance would make each build another one.
        serial_number: None,
        metadata: Some(Metadata {
            timestamp: Some(DateTime::try_from(time.to_owned())?),
            component: Some(whole),
            ..Metadata::default()
        }),
        components: Some(Components(parts)),
        dependencies: Some(Dependencies(uses.collect())),
        spec_version: SpecVersion::V1_5,
        ..Bom::default()
    };
    let checked = bom.validate();
    if !checked.passed() {
        bail!("the bill of materials is not as CycloneDX wants it: {checked:?}");
    }
    let mut text = Vec::new();
    bom.output_as_json_v1_5(&mut text)?;
    text.push(b'\n');
    Ok(text)
}

fn reference(name: &str, version: &str) -> String {
    format!("pkg:cargo/{name}@{version}")
}

/// The package URL. Its specification has `+` escaped, which the library does not do.
fn purl(kind: &str, name: &str, version: &str) -> anyhow::Result<String> {
    Ok(Purl::new(kind, name, version)?.to_string().replace('+', "%2B"))
}

fn component(it: &Crate, kind: Classification) -> anyhow::Result<Component> {
    let mut component = Component::new(kind, &it.name, &it.version, Some(reference(&it.name, &it.version)));
    component.purl = purl("cargo", &it.name, &it.version)?.parse().ok();
    component.licenses = Some(Licenses(vec![LicenseChoice::expression(&it.licence)]));
    component.hashes = it.sha256.as_deref().map(sha256);
    // Which half of the binary it is in.
    let places = [(it.in_proxy, "proxy"), (it.in_programs, "BPF programs")];
    let places: Vec<_> = places.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect();
    component.description = Some(NormalizedString::new(&places.join(", ")));
    Ok(component)
}

/// A package of Debian 12; its sum is that of the `.deb`.
fn of_debian(package: &Package) -> anyhow::Result<Component> {
    let Package { name, version, sha256 } = package;
    let purl = purl("deb", name, version)?.replacen("pkg:deb/", "pkg:deb/debian/", 1);
    let purl = format!("{purl}?arch=amd64&distro=debian-12");
    let mut component = Component::new(Classification::Library, name, version, Some(purl.clone()));
    component.purl = purl.parse().ok();
    component.hashes = Some(self::sha256(sha256));
    component.description = Some(NormalizedString::new("Debian's, in the image"));
    Ok(component)
}

fn sha256(digits: &str) -> Hashes {
    Hashes(vec![Hash { alg: HashAlgorithm::SHA_256, content: HashValue(digits.to_owned()) }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dependencies;

    #[test]
    fn the_bill_can_be_read_and_is_the_same_each_time() {
        let crates = dependencies::shipped().unwrap();
        let time = crate::image::layout::rfc3339(0);
        let text = write(&crates, &"0".repeat(64), &time, &[]).unwrap();
        assert_eq!(text, write(&crates, &"0".repeat(64), &time, &[]).unwrap());
        let read = Bom::parse_from_json_v1_5(text.as_slice()).unwrap();
        assert!(read.validate().passed());
        let components = read.components.unwrap().0;
        assert_eq!(components.len(), crates.len() - 1);
        let tokio = components.iter().find(|it| it.name.to_string() == "tokio").unwrap();
        assert!(tokio.hashes.is_some() && tokio.licenses.is_some());
        assert_eq!(read.dependencies.unwrap().0.len(), crates.len());
    }

    #[test]
    fn the_bill_of_an_image_has_debians_packages() {
        let crates = dependencies::shipped().unwrap();
        let (sum, time) = ("0123456789abcdef".repeat(4), crate::image::layout::rfc3339(0));
        let package = Package { name: "libgmp10".into(), version: "2:6.2.1+dfsg1-1.1".into(), sha256: sum.clone() };
        let text = write(&crates, &"0".repeat(64), &time, &[package]).unwrap();
        let read = Bom::parse_from_json_v1_5(text.as_slice()).unwrap();
        assert!(read.validate().passed());
        let components = read.components.unwrap().0;
        assert_eq!(components.len(), crates.len());
        let gmp = components.iter().find(|it| it.name.to_string() == "libgmp10").unwrap();
        let purl = gmp.purl.as_ref().unwrap().to_string();
        assert_eq!(purl, "pkg:deb/debian/libgmp10@2:6.2.1%2Bdfsg1-1.1?arch=amd64&distro=debian-12");
        assert_eq!(gmp.hashes, Some(sha256(&sum)));
    }
}
