//! `docs/troubleshooting.md` is true: its commands are taken, what it asks for is answered, its metrics are there, what it says of
//! packets is said of packets, and each of its problems, brought about, shows what the page shows.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

mod answered;
mod bridged;
mod late;
mod page;
mod places;
mod served;
mod spread;
mod strangers;

use page::{code, page};

#[test]
fn the_commands_are_taken() {
    let page = page();
    let mut commands = 0;
    for command in code(&page).iter().filter(|code| code.starts_with("kubeferry ")) {
        let parsed = kubeferry::args::parse(command.split(' '));
        parsed.unwrap_or_else(|error| panic!("{command}: {error}"));
        commands += 1;
    }
    assert!(commands >= 15, "only {commands} found");
    let problems = page.lines().filter(|line| line.starts_with("## ")).count();
    assert_eq!(problems, 10);
}
