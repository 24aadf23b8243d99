//! Resolves the kustomizations of `deploy/` as `kubectl kustomize` does, as far as they go: resources, components, generated
//! ConfigMaps, patches, images. What is not known here is refused. Where `KUBEFERRY_TEST_KUBECTL` names a kubectl, each
//! result is held against its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// A `kustomization.yaml`, the fields that are used.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kustomization {
    api_version: String,
    kind: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    components: Vec<String>,
    #[serde(default)]
    config_map_generator: Vec<Generator>,
    #[serde(default)]
    generator_options: Options,
    #[serde(default)]
    patches: Vec<Patch>,
    #[serde(default)]
    images: Vec<Image>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Generator {
    name: String,
    namespace: String,
    /// `merge`: more keys for one that is there.
    #[serde(default)]
    behavior: Option<String>,
    /// `PATH` or `KEY=PATH`.
    #[serde(default)]
    files: Vec<String>,
    /// Files of `KEY=VALUE`.
    #[serde(default)]
    envs: Vec<String>,
    #[serde(default)]
    literals: Vec<String>,
    #[serde(default)]
    options: Options,
}

#[derive(Deserialize, Clone, Default, Debug)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct Options {
    disable_name_suffix_hash: bool,
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Patch {
    target: Target,
    path: String,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Target {
    kind: String,
    name: String,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Image {
    name: String,
    new_name: String,
    new_tag: String,
}

/// The objects of a kustomization, by kind and name.
pub type Objects = BTreeMap<(String, String), Value>;

/// Resolves a folder.
pub fn build(folder: &Path) -> Result<Objects> {
    let mut objects = Objects::new();
    add(folder, &mut objects).with_context(|| folder.display().to_string())?;
    match std::env::var_os("KUBEFERRY_TEST_KUBECTL") {
        None => println!("{}: KUBEFERRY_TEST_KUBECTL names no kubectl to compare with", folder.display()),
        Some(kubectl) => {
            let output = Command::new(kubectl).arg("kustomize").arg(folder).output()?;
            ensure!(output.status.success(), "kubectl kustomize: {}", String::from_utf8_lossy(&output.stderr));
            let theirs = by_name(documents(std::str::from_utf8(&output.stdout)?)?)?;
            assert_eq!(objects, theirs, "{}: ours, and what kubectl says", folder.display());
            println!("{}: as kubectl resolves it", folder.display());
        }
    }
    Ok(objects)
}

/// The YAML documents of a text.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    serde_yaml_ng::Deserializer::from_str(text).map(|document| Ok(Value::deserialize(document)?)).collect()
}

/// The objects of a file, or of a text of several.
pub fn by_name(values: Vec<Value>) -> Result<Objects> {
    let mut objects = Objects::new();
    for value in values {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let key = (text("/kind").context("no kind")?, text("/metadata/name").context("no name")?);
        ensure!(objects.insert(key.clone(), value).is_none(), "{key:?} is there twice");
    }
    Ok(objects)
}

fn add(folder: &Path, objects: &mut Objects) -> Result<()> {
    let read =
        |name: &str| fs::read_to_string(folder.join(name)).with_context(|| folder.join(name).display().to_string());
    let it: Kustomization = serde_yaml_ng::from_str(&read("kustomization.yaml")?)?;
    match (it.kind.as_str(), it.api_version.as_str()) {
        ("Kustomization", "kustomize.config.k8s.io/v1beta1") | ("Component", "kustomize.config.k8s.io/v1alpha1") => {}
        other => bail!("{other:?}"),
    }
    for resource in &it.resources {
        if folder.join(resource).is_dir() {
            add(&folder.join(resource), objects).with_context(|| resource.clone())?;
        } else {
            let more = by_name(documents(&read(resource)?)?).with_context(|| resource.clone())?;
            for (key, value) in more {
                ensure!(objects.insert(key.clone(), value).is_none(), "{key:?} is there twice");
            }
        }
    }
    for generator in &it.config_map_generator {
        generate(generator, &it.generator_options, &read, objects).with_context(|| generator.name.clone())?;
    }
    for component in &it.components {
        add(&folder.join(component), objects).with_context(|| component.clone())?;
    }
    for patch in &it.patches {
        let key = (patch.target.kind.clone(), patch.target.name.clone());
        let change = documents(&read(&patch.path)?)?.pop().context("an empty patch")?;
        let object =
            objects.get_mut(&key).with_context(|| format!("{} is for {key:?}, which is not there", patch.path))?;
        if change["$patch"] == "delete" {
            objects.remove(&key);
        } else {
            let operations: json_patch::Patch = serde_json::from_value(change).with_context(|| patch.path.clone())?;
            json_patch::patch(object, &operations).with_context(|| patch.path.clone())?;
        }
    }
    for image in &it.images {
        objects.values_mut().for_each(|object| name_image(object, image));
    }
    Ok(())
}

fn generate(
    it: &Generator,
    options: &Options,
    read: &dyn Fn(&str) -> Result<String>,
    objects: &mut Objects,
) -> Result<()> {
    ensure!(options.disable_name_suffix_hash || it.options.disable_name_suffix_hash, "names have no hashes here");
    let mut data = Map::new();
    for file in &it.files {
        let (key, path) = file.split_once('=').unwrap_or((file, file));
        data.insert(key.to_owned(), read(path)?.into());
    }
    let mut lines = it.literals.clone();
    for path in &it.envs {
        let text = read(path)?;
        lines.extend(text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned));
    }
    for line in lines {
        let (key, value) = line.split_once('=').with_context(|| format!("{line:?} has no value"))?;
        data.insert(key.to_owned(), value.into());
    }
    let key = ("ConfigMap".to_owned(), it.name.clone());
    match it.behavior.as_deref() {
        None => {
            let mut object = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "data": data,
                "metadata": {"name": it.name, "namespace": it.namespace},
            });
            let labels: BTreeMap<_, _> = options.labels.iter().chain(&it.options.labels).collect();
            if !labels.is_empty() {
                object["metadata"]["labels"] = json!(labels);
            }
            ensure!(objects.insert(key, object).is_none(), "it is there twice");
        }
        Some("merge") => {
            let object = objects.get_mut(&key).context("there is nothing to merge with")?;
            object["data"].as_object_mut().context("it has no data")?.extend(data);
        }
        Some(other) => bail!("behavior {other}"),
    }
    Ok(())
}

/// Names the image of every container.
fn name_image(object: &mut Value, image: &Image) {
    for list in ["initContainers", "containers"] {
        let containers = object.pointer_mut(&format!("/spec/template/spec/{list}")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if container["image"].as_str() == Some(&image.name) {
                container["image"] = format!("{}:{}", image.new_name, image.new_tag).into();
            }
        }
    }
}
