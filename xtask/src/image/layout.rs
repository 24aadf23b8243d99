//! Layers and a configuration as an OCI image layout: a folder of blobs by digest, and an index. Or as an archive of that.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::str::FromStr as _;

use anyhow::Context as _;
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, DescriptorBuilder, HistoryBuilder, ImageConfigurationBuilder, ImageIndexBuilder,
    ImageManifestBuilder, MediaType, OciLayoutBuilder, Os, PlatformBuilder, RootFsBuilder, Sha256Digest,
};
use serde::Serialize;
use serde_json::Value;

use crate::release::tree::{Tree, gzip, sha256};
use crate::release::{self, VERSION};

/// What an image is made of, lowest layer first, each with a word of what it is.
#[derive(Debug)]
pub struct Image {
    pub name: String,
    pub arch: release::Arch,
    pub layers: Vec<(String, Tree)>,
    pub entrypoint: String,
    pub path: String,
    pub labels: BTreeMap<String, String>,
    /// Of everything in it, in seconds since 1970.
    pub time: u64,
}

/// A layout in memory: its files by path. The same image gives the same bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    files: BTreeMap<String, Vec<u8>>,
    /// Of the manifest, in hexadecimal digits.
    pub digest: String,
    /// What a registry stores, in bytes.
    pub compressed: usize,
    /// What a node stores, in bytes.
    pub unpacked: usize,
}

impl Layout {
    /// Packs an image.
    pub fn of(image: &Image) -> anyhow::Result<Self> {
        let mut layout = Self { files: BTreeMap::new(), digest: String::new(), compressed: 0, unpacked: 0 };
        let created = rfc3339(image.time);
        let (mut layers, mut contents, mut history) = (Vec::new(), Vec::new(), Vec::new());
        for (what, tree) in &image.layers {
            let tar = tree.tar(image.time)?;
            layout.unpacked += tar.len();
            contents.push(format!("sha256:{}", sha256(&tar)));
            layers.push(layout.blob(MediaType::ImageLayerGzip, gzip(&tar)?)?);
            history.push(HistoryBuilder::default().created(created.clone()).created_by(what.clone()).build()?);
        }
        let arch = Arch::from(match image.arch {
            release::Arch::X86_64 => "amd64",
            release::Arch::Aarch64 => "arm64",
        });
        let config = ConfigBuilder::default()
            .user("0:0")
            .env(vec![format!("PATH={}", image.path)])
            .entrypoint(vec![image.entrypoint.clone()])
            .working_dir("/")
            .labels(image.labels.clone().into_iter().collect::<HashMap<_, _>>())
            .build()?;
        let configuration = ImageConfigurationBuilder::default()
            .created(created)
            .architecture(arch.clone())
            .os(Os::Linux)
            .config(config)
            .rootfs(RootFsBuilder::default().typ("layers").diff_ids(contents).build()?)
            .history(history)
            .build()?;
        let config = layout.blob(MediaType::ImageConfig, json(&configuration)?)?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers(layers)
            .build()?;
        let mut manifest = layout.blob(MediaType::ImageManifest, json(&manifest)?)?;
        manifest.digest().digest().clone_into(&mut layout.digest);
        manifest.set_platform(Some(PlatformBuilder::default().architecture(arch).os(Os::Linux).build()?));
        // The names that podman and containerd take from an archive.
        let names = [("org.opencontainers.image.ref.name", VERSION), ("io.containerd.image.name", &image.name)];
        manifest.set_annotations(Some(names.into_iter().map(|(name, value)| (name.into(), value.into())).collect()));
        let index = ImageIndexBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageIndex)
            .manifests(vec![manifest])
            .build()?;
        layout.files.insert("index.json".into(), json(&index)?);
        let version = OciLayoutBuilder::default().image_layout_version("1.0.0".to_owned()).build()?;
        layout.files.insert("oci-layout".into(), json(&version)?);
        Ok(layout)
    }

    fn blob(&mut self, kind: MediaType, content: Vec<u8>) -> anyhow::Result<Descriptor> {
        let sum = sha256(&content);
        let digest = Sha256Digest::from_str(&sum)?;
        let descriptor =
            DescriptorBuilder::default().media_type(kind).size(content.len() as u64).digest(digest).build()?;
        self.compressed += content.len();
        self.files.insert(format!("blobs/sha256/{sum}"), content);
        Ok(descriptor)
    }

    /// Writes the layout into a folder, in place of what was there.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        for (name, content) in &self.files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap_or(folder))?;
            fs::write(&path, content).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// The same as one file.
    pub fn archive(&self, time: u64) -> anyhow::Result<Vec<u8>> {
        let mut tree = Tree::default();
        for (path, content) in &self.files {
            tree.file(path, content.clone());
        }
        tree.tar(time)
    }
}

/// Unpacks the layers of a layout on the disk, as a container runtime does, checking every sum on the way.
pub fn unpack(folder: &Path, root: &Path) -> anyhow::Result<()> {
    let read = |descriptor: &Descriptor| -> anyhow::Result<Vec<u8>> {
        let path = folder.join("blobs/sha256").join(descriptor.digest().digest());
        let content = fs::read(&path).with_context(|| path.display().to_string())?;
        anyhow::ensure!(sha256(&content) == descriptor.digest().digest(), "{} has another sum", path.display());
        anyhow::ensure!(content.len() as u64 == descriptor.size(), "{} has another size", path.display());
        Ok(content)
    };
    let index = oci_spec::image::ImageIndex::from_file(folder.join("index.json"))?;
    let manifest = index.manifests().first().context("an index of nothing")?;
    let manifest = oci_spec::image::ImageManifest::from_reader(read(manifest)?.as_slice())?;
    let configuration = oci_spec::image::ImageConfiguration::from_reader(read(manifest.config())?.as_slice())?;
    anyhow::ensure!(configuration.rootfs().diff_ids().len() == manifest.layers().len(), "layers without their sums");
    for (layer, sum) in manifest.layers().iter().zip(configuration.rootfs().diff_ids()) {
        let mut tar = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(read(layer)?.as_slice()), &mut tar)?;
        anyhow::ensure!(*sum == format!("sha256:{}", sha256(&tar)), "a layer has another sum when it is unpacked");
        tar::Archive::new(tar.as_slice()).unpack(root)?;
    }
    Ok(())
}

/// JSON whose keys are in order, whatever kind of map they come from.
fn json(value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    fn sorted(value: Value) -> Value {
        match value {
            Value::Object(map) => {
                let map: BTreeMap<_, _> = map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
                Value::Object(map.into_iter().collect())
            }
            Value::Array(list) => Value::Array(list.into_iter().map(sorted).collect()),
            other => other,
        }
    }
    Ok(serde_json::to_vec(&sorted(serde_json::to_value(value)?))?)
}

/// Seconds since 1970 as `2026-11-21T13:42:00Z`.
pub fn rfc3339(time: u64) -> String {
    let (days, seconds) = ((time / 86_400) as i64, time % 86_400);
    // Days to a date, by Howard Hinnant's `civil_from_days`: eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(content: &str) -> Image {
        let mut tree = Tree::default();
        tree.program("usr/bin/it", content);
        Image {
            name: "localhost/it:1".into(),
            arch: release::Arch::X86_64,
            layers: vec![("its files".into(), tree)],
            entrypoint: "/usr/bin/it".into(),
            path: "/usr/bin".into(),
            // Many, so that an order by chance would show.
            labels: (0..20).map(|n| (format!("label-{n}"), n.to_string())).collect(),
            time: 1_700_000_000,
        }
    }

    #[test]
    fn the_same_input_is_the_same_digest() {
        let (one, same, other) = (image("1"), image("1"), image("2"));
        let digest = |image: &Image| Layout::of(image).unwrap().digest;
        assert_eq!(Layout::of(&one).unwrap(), Layout::of(&same).unwrap());
        assert_ne!(digest(&one), digest(&other));
        assert_ne!(digest(&one), digest(&Image { time: 1, ..same }));
    }

    #[test]
    fn a_layout_is_unpacked_as_it_was_packed_unless_a_blob_is_broken() {
        let place = tempfile::tempdir().unwrap();
        let (folder, root) = (place.path().join("layout"), place.path().join("root"));
        let layout = Layout::of(&image("content")).unwrap();
        layout.write(&folder).unwrap();
        unpack(&folder, &root).unwrap();
        assert_eq!(fs::read(root.join("usr/bin/it")).unwrap(), b"content");
        let blob = layout.files.keys().find(|path| path.starts_with("blobs")).unwrap();
        fs::write(folder.join(blob), "x").unwrap();
        unpack(&folder, &root).unwrap_err();
    }

    #[test]
    fn times_are_dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_795_268_520), "2026-11-21T13:42:00Z");
    }
}
