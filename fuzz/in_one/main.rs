//! Every parser in one program, which is built in a fraction of the time that all take: for `cargo xtask fuzz parsers --short`.

#![no_main]

use std::sync::LazyLock;

use kubeferry::fuzzing::{TARGETS, Target};

/// Names the parser.
const VARIABLE: &str = "KUBEFERRY_FUZZ_PARSER";

static CHOSEN: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var(VARIABLE).unwrap_or_else(|error| panic!("{VARIABLE}: {error}"));
    TARGETS
        .iter()
        .find(|target| target.name == name)
        .unwrap_or_else(|| panic!("{VARIABLE}: there is no parser {name:?}"))
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (CHOSEN.run)(bytes));
