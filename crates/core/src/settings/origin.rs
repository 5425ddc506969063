//! Where a value came from.

use std::fmt;

use super::{limits::RESERVE, variable::PREFIX};

/// Where a value came from, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// Nobody set it, and it follows from this limit of open files.
    OpenFiles(usize),
    /// A settings file, and the line in it if it was found.
    File {
        /// As it was named.
        path: String,
        /// Counted from 1.
        line: Option<usize>,
    },
    /// A line of the `.env` file.
    DotEnv(String),
    /// An environment variable.
    Variable(String),
    /// The command line; the flag without its dashes.
    Flag(String),
}

impl Origin {
    /// The variable that set the value, if its name is one that other programs may use, too: `HOST`, but not
    /// `LASTCALL_HOST`.
    pub fn shared_variable(&self) -> Option<&str> {
        match self {
            Self::Variable(name) | Self::DotEnv(name) => Some(name).filter(|name| !name.starts_with(PREFIX)),
            _ => None,
        }
        .map(String::as_str)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::OpenFiles(limit) => {
                write!(f, "default (file descriptor limit {limit}, less {RESERVE} in reserve)")
            }
            Self::File { path, line: None } => f.write_str(path),
            Self::File { path, line: Some(line) } => write!(f, "{path}:{line}"),
            Self::DotEnv(variable) => write!(f, "{variable} in .env"),
            Self::Variable(variable) => write!(f, "environment variable {variable}"),
            Self::Flag(flag) => write!(f, "command line --{flag}"),
        }
    }
}
