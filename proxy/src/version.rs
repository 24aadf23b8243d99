//! Which build this is.

/// The version of the package: `0.1.0`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that it was built from, by its first twelve digits, with `, dirty` behind them where the sources differed from it.
/// Or `unknown commit`, where neither git nor the source archive told the build; `debug build` in all but release builds.
pub const COMMIT: &str = env!("KUBEFERRY_COMMIT");

/// What `--version` says behind the name: `0.1.0 (0123456789ab)`.
pub const TEXT: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("KUBEFERRY_COMMIT"), ")");
