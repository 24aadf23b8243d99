//! `cargo xtask fuzz`: what chance makes up, for as long as one likes. Each kind is a file here.

mod cargo_fuzz;
mod differential;
mod libfuzzer;
mod parsers;

/// Attack with what chance makes up, until the time is over
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(clap::Subcommand)]
enum Kind {
    Differential(differential::Args),
    Parsers(parsers::Args),
}

/// Runs one kind; it fails where something was found.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.kind {
        Kind::Differential(args) => differential::run(&args),
        Kind::Parsers(args) => parsers::run(&args),
    }
}
