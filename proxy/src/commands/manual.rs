//! `kubeferry completion` and `kubeferry man`: what is said about the command line to shells and to `man`.

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::output;
use crate::args::{Cli, CompletionArgs, ManArgs};

/// Prints a shell's completions.
///
/// # Errors
/// Standard output does not take them.
pub fn completion(args: &CompletionArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "kubeferry", &mut script);
    Ok(output::say(&String::from_utf8(script).context("completions that are no text")?)?)
}

/// Writes a manual page for the program and for each command that `--help` names.
///
/// # Errors
/// A file cannot be written.
pub fn man(args: &ManArgs) -> anyhow::Result<()> {
    let folder = &args.folder;
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    clap_mangen::generate_to(Cli::command(), folder).with_context(|| folder.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_its_page() {
        let folder = tempfile::tempdir().unwrap();
        man(&ManArgs { folder: folder.path().join("man1") }).unwrap();
        let page = |name: &str| std::fs::read_to_string(folder.path().join("man1").join(name));
        for command in ["run", "plan", "trace", "status", "cleanup", "completion"] {
            let text = page(&format!("kubeferry-{command}.1")).unwrap();
            assert!(text.contains(".TH") && text.contains(command), "{text}");
        }
        assert!(page("kubeferry.1").unwrap().contains("Carries packets"));
        assert!(page("kubeferry-run.1").unwrap().contains("cluster\\-cidr"));
        assert!(page("kubeferry-man.1").is_err(), "it is hidden");
    }

    #[test]
    fn every_shell_has_completions_with_the_flags() {
        for shell in <clap_complete::Shell as clap::ValueEnum>::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "kubeferry", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("nodeport-addresses"), "{shell}: {script}");
        }
    }
}
