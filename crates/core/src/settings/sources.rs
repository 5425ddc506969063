//! Where settings are looked for.

use std::{ffi::OsString, fmt, path::PathBuf};

/// Where settings are looked for. Plain data: a test needs no environment of its own.
#[derive(Clone, Default)]
pub struct Sources {
    /// Where `config/lastcall.toml` and `.env` are looked for.
    pub working_dir: PathBuf,
    /// The settings file that was asked for; it must exist.
    pub config_file: Option<PathBuf>,
    /// The environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Keys and values from the command line.
    pub command_line: Vec<(&'static str, String)>,
}

/// Without the values of variables and flags: among them are keys, ours and those of others.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variables: Vec<_> = self.environment.iter().map(|(name, _)| name).collect();
        let flags: Vec<_> = self.command_line.iter().map(|(key, _)| key).collect();
        f.debug_struct("Sources")
            .field("working_dir", &self.working_dir)
            .field("config_file", &self.config_file)
            .field("environment", &variables)
            .field("command_line", &flags)
            .finish()
    }
}
