//! The errors in the settings: all of them, at once.

use std::fmt;

use super::{Source, spec::PREFIX};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingError {
    /// The setting; empty when it is about a whole file.
    pub key: String,
    /// The place where it was set.
    pub source: Source,
    /// The kind of error.
    pub problem: Problem,
}

/// The kinds of error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// The value is not one that this setting may have.
    Invalid {
        /// As it was written; `None` for a secret.
        value: Option<String>,
        /// The words for what would be right.
        expected: String,
    },
    /// The setting is there, has nothing in it, and must not be without.
    Empty,
    /// There is no such setting.
    Unknown {
        /// The key to write instead, or where the settings that exist are listed.
        advice: String,
    },
    /// The value is one that this setting may have, but this machine does not allow what it says: why.
    Unusable {
        /// As it is shown; `None` for a secret.
        value: Option<String>,
        /// Why it cannot be used, and what would be right.
        reason: String,
    },
    /// A file could not be read or understood.
    File(String),
}

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, source, problem } = self;
        match problem {
            Problem::Invalid { value, expected } => {
                write_setting(f, key, value.as_deref(), source)?;
                write!(f, "expected {expected}")?;
                write_hint(f, key, source)
            }
            Problem::Unusable { value, reason } => {
                write_setting(f, key, value.as_deref(), source)?;
                f.write_str(reason)?;
                write_hint(f, key, source)
            }
            Problem::Empty => {
                write!(
                    f,
                    "{key} ({source}): it is there and has nothing in it; give it a value, or remove it"
                )
            }
            Problem::Unknown { advice } => write!(f, "{key} ({source}): unknown setting; {advice}"),
            Problem::File(what) => write!(f, "{source}: {what}"),
        }
    }
}

fn write_setting(f: &mut fmt::Formatter<'_>, key: &str, value: Option<&str>, source: &Source) -> fmt::Result {
    match value {
        Some(value) => write!(f, "{key} = {value} ({source}): "),
        None => write!(f, "{key} ({source}): "),
    }
}

/// Says what to do if the variable is not meant for lastcall: HOST, PORT, LOG_LEVEL … are the variables of
/// many programs.
fn write_hint(f: &mut fmt::Formatter<'_>, key: &str, source: &Source) -> fmt::Result {
    let Some(name) = source.shared_variable() else { return Ok(()) };
    let example = if name == "HOST" { " (conda and csh set HOST)" } else { "" };
    let own = key.to_ascii_uppercase();
    write!(f, "; if {name} is another program's{example}, set {PREFIX}{own}, which wins")
}

/// Everything that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsErrors(pub Vec<SettingError>);

impl fmt::Display for SettingsErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "1 setting is wrong")?,
            n => write!(f, "{n} settings are wrong")?,
        }
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl std::error::Error for SettingsErrors {}
