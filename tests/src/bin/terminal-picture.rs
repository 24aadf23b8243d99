//! A picture of a program in a terminal, for the README: starts it, presses keys, waits for a text, and writes the screen as SVG.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use clap::Parser;
use kubeferry_tests::terminal::Terminal;

#[derive(Parser)]
struct Args {
    /// Rows of the terminal.
    #[arg(long, default_value_t = 14)]
    rows: u16,
    /// Its columns.
    #[arg(long, default_value_t = 116)]
    columns: u16,
    /// Wait until the screen has each of these texts.
    #[arg(long, required = true)]
    until: Vec<String>,
    /// And none of these.
    #[arg(long)]
    without: Vec<String>,
    /// Where the picture goes.
    #[arg(long)]
    picture: PathBuf,
    /// The program with its arguments.
    #[arg(last = true, required = true)]
    program: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let [program, arguments @ ..] = args.program.as_slice() else { unreachable!("clap asks for one") };
    let terminal = Terminal::start_here(Command::new(program).args(arguments), args.rows, args.columns)?;
    terminal.until("the screen", |screen| {
        let has = |text: &String| screen.contains(text.as_str());
        args.until.iter().all(has) && !args.without.iter().any(has)
    })?;
    std::fs::write(&args.picture, terminal.svg()).with_context(|| args.picture.display().to_string())
}
