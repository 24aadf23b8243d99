//! Reads the command line, and says more than clap does about flags that come from a kube-proxy command line.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches};

use super::{Cli, Command, ConfigCommand, go};
use crate::config::flags::FLAGS;

/// Reads the command line, the program's name first.
///
/// # Errors
/// clap's error, `--help` and `--version` included: [`clap::Error::exit`] prints it to the right place and ends the process
/// with the right code. A flag that kube-proxy once had, or one without its command, is explained.
pub fn parse<I, T>(args: I) -> Result<Cli, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString>,
{
    let arguments = go::normalized(args.into_iter().map(Into::into).collect());
    let mut command = of_one_name(Cli::command());
    let matches = command.try_get_matches_from_mut(arguments).map_err(explain)?;
    let mut cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    forget_empty(&mut cli.command);
    Ok(cli)
}

/// Has `--version` after any command say the program's name, and not `kubeferry-run`. Manual pages keep the commands' names.
fn of_one_name(command: clap::Command) -> clap::Command {
    command.mut_subcommands(|command| of_one_name(command.display_name("kubeferry")))
}

fn forget_empty(command: &mut Command) {
    let (common, serve) = match command {
        Command::Run(args) => (&mut args.common, Some(&mut args.serve)),
        Command::Config(ConfigCommand::Check(args)) => (&mut args.common, Some(&mut args.serve)),
        Command::Plan(args) => (&mut args.common, None),
        Command::Trace(args) => (&mut args.common, None),
        _ => return,
    };
    common.source.forget_empty();
    if let Some(serve) = serve {
        serve.forget_empty();
    }
}

fn explain(error: clap::Error) -> clap::Error {
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else { return error };
    let argument = argument.split('=').next().unwrap_or_default().to_owned();
    let Some(name) = argument.strip_prefix("--") else { return error };
    if let Some(flag) = FLAGS.iter().find(|flag| flag.refused && flag.name == name) {
        return unknown(&format!("{argument} is not accepted: {}; remove it", flag.note));
    }
    // A flag of ours that stands before the command, or without one, as in kube-proxy's command lines.
    let commands = Cli::command();
    let knows = |command: &&clap::Command| {
        command.get_arguments().any(|a| {
            let names = a.get_long_and_visible_aliases().unwrap_or_default();
            names.contains(&name)
        })
    };
    match commands.get_subcommands().find(knows) {
        Some(command) if is_top_level(&error) => {
            unknown(&format!("{argument} belongs after a command: kubeferry {} {argument} ...", command.get_name()))
        }
        _ => error,
    }
}

/// Whether the argument was met before any command: the usage line then names none.
fn is_top_level(error: &clap::Error) -> bool {
    match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => usage.to_string().contains("<COMMAND>"),
        _ => false,
    }
}

fn unknown(message: &str) -> clap::Error {
    Cli::command().error(ErrorKind::UnknownArgument, message)
}
