//! The places where settings are looked for, and that of a value that was found.

use std::{ffi::OsString, fmt, path::PathBuf};

use super::spec::PREFIX;

/// The places where settings are looked for. Plain data: a test needs no environment of its own.
#[derive(Clone, Default)]
pub struct Sources {
    /// The folder in which `config/lastcall.toml` and `.env` are looked for.
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

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsFile {
    /// Its path: absolute if the working directory is known.
    pub path: PathBuf,
    /// True if there is a setting in it.
    pub has_settings: bool,
    /// True if it can be read again: not so for a pipe, such as the `<(…)` of a shell.
    pub stays: bool,
}

/// The place that a value came from. Displayed in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// It was not set.
    Default,
    /// It was not set, and follows from this limit of open files.
    OpenFiles(usize),
    /// A settings file as it was named, with the line if it was found: `config/lastcall.toml:4`.
    File(String),
    /// A variable in the `.env` file.
    DotEnv(String),
    /// An environment variable.
    Variable(String),
    /// The command line; the flag without its dashes.
    Flag(String),
}

impl Source {
    /// Returns the variable that set the value, if other programs may use its name, too: `HOST`, but not
    /// `LASTCALL_HOST`.
    pub fn shared_variable(&self) -> Option<&str> {
        match self {
            Self::Variable(name) | Self::DotEnv(name) => Some(name).filter(|name| !name.starts_with(PREFIX)),
            _ => None,
        }
        .map(String::as_str)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::OpenFiles(limit) => write!(f, "default, from the limit of {limit} open files"),
            Self::File(place) => f.write_str(place),
            Self::DotEnv(variable) => write!(f, "{variable} in .env"),
            Self::Variable(variable) => write!(f, "environment variable {variable}"),
            Self::Flag(flag) => write!(f, "command line --{flag}"),
        }
    }
}
