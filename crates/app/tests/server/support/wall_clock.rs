//! A time of day that a test sets, for one server and the processes that it starts.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::{SystemTime, UNIX_EPOCH},
};

use tempfile::NamedTempFile;

use super::Start;

/// A time of day.
pub(crate) struct WallClock(NamedTempFile);

impl WallClock {
    /// Returns a clock that is right.
    pub(crate) fn right() -> Self {
        Self(NamedTempFile::new().unwrap())
    }

    /// Sets it forwards by so many seconds, from the right time on, or backwards.
    pub(crate) fn shift(&self, seconds: i64) {
        // In one step: it may be read at any moment.
        let new = self.0.path().with_extension("new");
        std::fs::write(&new, seconds.to_string()).unwrap();
        std::fs::rename(&new, self.0.path()).unwrap();
    }

    /// Sets it to a moment in seconds since 1970. It goes on from there.
    pub(crate) fn set(&self, moment: i64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        self.shift(moment - now.as_secs().cast_signed());
    }

    /// Gives it to what is started.
    pub(crate) fn of(&self, start: Start) -> Start {
        start.env("LD_PRELOAD", SHIM.display()).env("WALL_CLOCK_FILE", self.0.path().display())
    }
}

/// The library that shifts the clock. The compiler is there, as the tests were built with it.
static SHIM: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(folder).unwrap();
    let built = NamedTempFile::new_in(folder).unwrap();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/server/support/wall_clock/shim.rs");
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition", "2024", "--crate-type", "cdylib", "-C", "panic=abort", "-o"]);
    let built_by =
        rustc.arg(built.path()).arg(source).status().expect("rustc, which built this test, is found");
    assert!(built_by.success());
    let library = folder.join("wall_clock.so");
    // In one step: other tests may be about to load it.
    std::fs::rename(built.into_temp_path().keep().unwrap(), &library).unwrap();
    library
});
