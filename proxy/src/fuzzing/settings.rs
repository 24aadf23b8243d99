//! The configuration file and the command line.

use std::path::PathBuf;

use super::objects::text;
use crate::args::{CommonArgs, ServeArgs, parse};
use crate::backend::nftables::skeleton;
use crate::config;
use crate::desired::node_view::NodeView;
use crate::settings::{ConfigFile, Settings};

/// A KubeProxyConfiguration. What is written of the settings that it comes to gives the same ones.
pub fn file(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let load = |text: &str| {
        let file = ConfigFile { path: PathBuf::from("config.conf"), text: text.to_owned() };
        Settings::resolve(&CommonArgs::default(), &ServeArgs::default(), Some(file), "worker-1")
    };
    let decoded = config::decode(text);
    let Ok(loaded) = load(text) else { return };
    assert!(decoded.problems.is_empty(), "{:?}", decoded.problems);
    program(&loaded.settings);
    let Ok(written) = loaded.effective() else { panic!("settings in force cannot be written") };
    match load(&written) {
        Ok(again) => assert_eq!(again.settings, loaded.settings, "{written}"),
        Err(error) => panic!("{error}\n{written}"),
    }
}

/// Words in lines, after the program's name.
pub fn command_line(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let words = std::iter::once("kubeferry").chain(text.lines());
    let cli = match parse(words) {
        Ok(cli) => cli,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    if let crate::args::Command::Run(run) = cli.command
        && let Ok(loaded) = Settings::resolve(&run.common, &run.serve, None, "worker-1")
    {
        program(&loaded.settings);
    }
}

/// The fixed program has the same lines for whatever settings: no word of theirs begins another.
fn program(settings: &Settings) {
    let lines = |settings| {
        let node = NodeView::new("worker-1".into(), settings, None, &std::collections::BTreeSet::new());
        skeleton::text(&node).lines().count()
    };
    assert_eq!(lines(&settings.datapath), lines(&crate::settings::DatapathSettings::default()));
}
