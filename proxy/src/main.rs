//! The binary: reads the command line, starts the log, runs one command.

use std::process::ExitCode;

use kubeferry::args::{self, Cli, Command, ConfigCommand, ServeArgs};
use kubeferry::commands::output::{self, OutputError};
use kubeferry::commands::{cleanup, config, live, manual, plan, trace};
use kubeferry::config::table;
use kubeferry::run::Ended;
use kubeferry::settings::reload::Reload;
use kubeferry::settings::{Loaded, Settings};
use kubeferry::start::{self, Next};
use kubeferry::{log, memory, run, status, top};

/// The exit code of `run` when its configuration file says something that only a start takes.
const RECONFIGURED: u8 = 3;

fn main() -> ExitCode {
    let cli = match args::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match begin(cli) {
        Ok(code) => code,
        // As a reader like `head` wants it: it has what it wanted.
        Err(error) if matches!(error.downcast_ref(), Some(OutputError::ReaderGone)) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&format!("kubeferry: {}", output::whole(&error)));
            ExitCode::FAILURE
        }
    }
}

/// Does what has to be done before there are threads, then the rest on a runtime.
fn begin(cli: Cli) -> anyhow::Result<ExitCode> {
    memory::bound();
    let next = match &cli.command {
        Command::Run(args) => start::start(args)?,
        _ => Next::Done,
    };
    tokio::runtime::Runtime::new()?.block_on(command(cli, next))
}

async fn command(cli: Cli, next: Next) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Run(args) => match next {
            Next::Serve(loaded, begun) => {
                let Loaded { settings, warnings, file, .. } = *loaded;
                // What a pipe said is said once: there is nothing to follow.
                let file = file.filter(|file| !settings.once && file.path.is_file());
                let reload = file.map(|file| Reload::start(*args, file, warnings)).transpose()?;
                return Ok(match run::run(settings, reload, begun).await? {
                    Ended::Done => ExitCode::SUCCESS,
                    Ended::Reconfigured => ExitCode::from(RECONFIGURED),
                });
            }
            Next::Cleanup(settings) => cleanup::as_kube_proxy(&settings).await?,
            Next::Done => {}
        },
        Command::Plan(args) => {
            let (settings, warnings) = Settings::from_args(&args.common, &ServeArgs::default())?;
            log::start(&settings.log);
            warnings.iter().for_each(|warning| output::complain(&format!("warning: {warning}")));
            plan::plan(&args, &settings).await?;
        }
        Command::Trace(args) if args.live => {
            return Ok(if live::live(&args).await? { ExitCode::SUCCESS } else { ExitCode::from(1) });
        }
        Command::Trace(args) => {
            let (settings, warnings) = Settings::from_args(&args.common, &ServeArgs::default())?;
            log::start(&settings.log);
            warnings.iter().for_each(|warning| output::complain(&format!("warning: {warning}")));
            trace::trace(&args, &settings).await?;
        }
        Command::Status(args) => match tokio::task::block_in_place(|| status::fetch(&args)) {
            Ok((text, well)) => {
                match output::say(&text) {
                    // The exit code says it without a reader, too.
                    Ok(()) | Err(OutputError::ReaderGone) => {}
                    Err(error) => return Err(error.into()),
                }
                return Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(1) });
            }
            Err(error) => {
                output::complain(&format!("kubeferry: {error}"));
                return Ok(ExitCode::from(2));
            }
        },
        Command::Top(args) => tokio::task::block_in_place(|| top::top(&args))?,
        Command::Cleanup(args) => cleanup::cleanup(&args).await?,
        Command::Config(ConfigCommand::Check(args)) => return config::check(&args),
        Command::Config(ConfigCommand::Fields) => output::say(&table::markdown())?,
        Command::Completion(args) => manual::completion(&args)?,
        Command::Man(args) => manual::man(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}
