//! The version of the program.

use std::sync::LazyLock;

/// The version of the package.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that the program was built from, if it was built in a git repository (`build.rs`).
pub(crate) const COMMIT: Option<&str> = option_env!("COMMIT");

/// Returns the version, with the commit if it is known: `0.1.0 (0123456789ab)`.
pub(crate) fn full() -> &'static str {
    static FULL: LazyLock<String> = LazyLock::new(|| match COMMIT {
        Some(commit) => format!("{VERSION} ({commit})"),
        None => VERSION.to_owned(),
    });
    &FULL
}
