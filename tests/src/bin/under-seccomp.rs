//! Runs a program under the filter of system calls that a container with the same capabilities has: `under-seccomp PROGRAM …`.

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().context("which program?")?;
    kubeferry_tests::seccomp::exec(&program, arguments)
}
