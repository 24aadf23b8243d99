//! `kubeferry config`: looks at a configuration file. Also `--write-config-to`.

use std::fs::{self, File};
use std::io::{self, Write};
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

/// Writes the configuration in force: whole, or not at all.
///
/// # Errors
/// The file cannot be written; what was there before stays.
pub fn write(loaded: &Loaded, path: &Path) -> anyhow::Result<()> {
    let text = loaded.effective()?;
    replace(path, &text).with_context(|| format!("--write-config-to {}", path.display()))?;
    tracing::info!(path = %path.display(), "wrote the configuration in force");
    Ok(())
}

/// Puts a new file in the place of what is there. What is no file, such as /dev/stdout, is written to.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let (path, is_file) = match fs::canonicalize(path) {
        Ok(path) => (path.clone(), path.is_file()),
        // Nothing is there, or what a link names is not.
        Err(_) => (path.to_owned(), !path.is_symlink()),
    };
    let Some(name) = path.file_name().filter(|_| is_file) else { return fs::write(path, text) };
    let new = path.with_file_name(format!(".{}.new", name.to_string_lossy()));
    let written = File::create(&new)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| match fs::metadata(&path) {
            Ok(old) => fs::set_permissions(&new, old.permissions()),
            Err(_) => Ok(()),
        })
        .and_then(|()| fs::rename(&new, &path));
    if written.is_err() {
        // It may not be there.
        drop(fs::remove_file(&new));
    }
    written
}
