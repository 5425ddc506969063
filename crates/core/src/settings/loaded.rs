//! The result of loading: the settings, and where each came from.

use std::{fmt::Display, path::PathBuf};

use super::{Problem, SettingError, Settings, Source};

/// The settings in force, and where each came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// One entry for each of [`SPECS`](super::SPECS), in that order; then one for each setting of each namespace.
    pub effective: Vec<EffectiveSetting>,
    /// What an operator should know although it does not stop the start, a sentence each. They are found
    /// before there is a log: the caller logs them once there is one.
    pub warnings: Vec<String>,
    /// The files that were read.
    pub files: Vec<SettingsFile>,
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsFile {
    /// Its path: absolute if the working directory is known.
    pub path: PathBuf,
    /// True if there is a setting in it.
    pub has_settings: bool,
    /// True if it can be read again: not so for a FIFO or a device, such as the `<(…)` of a shell.
    pub stays: bool,
}

impl Loaded {
    /// Returns the source of the setting with this key; `None` if there is no such setting.
    pub fn source(&self, key: &str) -> Option<&Source> {
        self.effective.iter().find(|one| one.key == key).map(|one| &one.source)
    }

    /// Returns the error that the value of this setting cannot be used on this machine.
    pub fn unusable(&self, key: &str, reason: &dyn Display) -> SettingError {
        let setting = self.effective.iter().find(|one| one.key == key);
        SettingError {
            key: key.to_owned(),
            source: setting.map_or(Source::Default, |one| one.source.clone()),
            problem: Problem::Unusable {
                value: setting.map(|one| one.value.clone()),
                reason: reason.to_string(),
            },
        }
    }
}

/// One setting in force, to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveSetting {
    /// Its key; `namespace.NAME.KEY` for a setting of a namespace.
    pub key: String,
    /// Its value as it was written; hidden if secret.
    pub value: String,
    /// Where it came from.
    pub source: Source,
}
