//! `cargo xtask test miri`: the tests of `proxy-ebpf/common`, what the BPF programs and userspace share, in Rust's interpreter,
//! which sees every access to memory.

use crate::{nightly, step};

/// Runs them.
pub fn run(pass_on: &[String]) -> anyhow::Result<()> {
    let mut test = nightly::command("cargo", &["miri", "rust-src"])?;
    step::start("testing in Miri");
    test.args(["miri", "test", "--package", "kubeferry-ebpf-common", "--lib", "--target-dir", "target/miri", "--"]);
    step::run(test.args(pass_on))
}
