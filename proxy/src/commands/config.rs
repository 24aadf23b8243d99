//! `kubeferry config`: looks at a configuration file. Also `--write-config-to`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::args::ConfigCheckArgs;
use crate::commands::output;
use crate::settings::{Loaded, Settings, SettingsError};

/// The exit code for a file with something wrong in it.
const WRONG: u8 = 1;
/// The exit code for a file that cannot be read; clap's for a wrong command line, too.
const UNREADABLE: u8 = 2;

/// Checks the file as `run` would and prints the configuration in force.
///
/// # Errors
/// Standard output takes nothing. What is wrong with the file is said on standard error, and by the exit code.
pub fn check(args: &ConfigCheckArgs) -> anyhow::Result<ExitCode> {
    let mut common = args.common.clone();
    common.source.config = Some(args.file.clone());
    match Settings::load(&common, &args.serve) {
        Ok(loaded) => {
            warn(&loaded.warnings);
            output::say(&format!("# beside the file: {}\n{}", loaded.beside(), loaded.effective()?))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            if let SettingsError::Wrong { warnings, .. } = &error {
                warn(warnings);
            }
            output::complain(&format!("kubeferry: {error}"));
            Ok(ExitCode::from(match error {
                SettingsError::Wrong { .. } => WRONG,
                SettingsError::File { .. } => UNREADABLE,
            }))
        }
    }
}

fn warn(warnings: &[String]) {
    warnings.iter().for_each(|warning| output::complain(&format!("warning: {warning}")));
}

/// Writes the configuration in force.
///
/// # Errors
/// The file cannot be written.
pub fn write(loaded: &Loaded, path: &Path) -> anyhow::Result<()> {
    let text = loaded.effective()?;
    std::fs::write(path, text).with_context(|| format!("--write-config-to {}", path.display()))?;
    tracing::info!(path = %path.display(), "wrote the configuration in force");
    Ok(())
}
