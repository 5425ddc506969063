//! Variables, of the environment and of `.env`: which of them are settings.

use std::ffi::{OsStr, OsString};

use figment::value::Value;

use super::{
    SPECS, Source,
    layer::{Kind, Layer},
    loader::Loader,
    parse,
    spec::{self, PREFIX, similar},
};

/// The usual variable for the level of a log in Rust.
const RUST_LOG: &str = "RUST_LOG";

/// The variable in which systemd says which folder it made (systemd.exec(5), `RuntimeDirectory=`).
pub(super) const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";

impl Loader {
    /// Merges the variables of the environment that are settings.
    pub(super) fn environment(&mut self, environment: &[(OsString, OsString)]) {
        let mut variables = Vec::new();
        for (name, text) in environment {
            // What is not UTF-8 by name is not ours.
            let Some(name) = name.to_str() else { continue };
            match text.to_str() {
                Some(text) => variables.push((name.to_owned(), text.to_owned())),
                None if is_setting(name) => {
                    self.reject_source(Source::Variable(name.to_owned()), "is not UTF-8".into());
                }
                None => {}
            }
        }
        self.variables(&variables, Kind::Environment, Source::Variable);
    }

    /// Merges the variables that are settings: first those without the prefix, so that the others win.
    pub(super) fn variables(
        &mut self,
        variables: &[(String, String)],
        kind: Kind,
        source: fn(String) -> Source,
    ) {
        for prefixed in [false, true] {
            let mut layer = Layer::new(kind);
            for (name, text) in variables {
                let meaning = Meaning::of(name);
                // To leave a variable empty is the usual way to unset it.
                let is_unset = text.is_empty() && !meaning.key().is_some_and(spec::needs_content);
                if name.starts_with(PREFIX) != prefixed || is_service_link(name, text) || is_unset {
                    continue;
                }
                let value = Value::from(text.as_str());
                match meaning {
                    Meaning::Setting(key) => layer.insert(key, name, value),
                    // Rejected when the layer is merged.
                    Meaning::Misspelt { key, .. } => layer.insert(&key, name, value),
                    Meaning::NotInCapitals(_) => {
                        let meant = name.to_ascii_uppercase();
                        let what = format!("did you mean {meant}? Only capitals count");
                        self.reject_source(source(name.clone()), what);
                    }
                    Meaning::NoSetting => self.no_setting(&source(name.clone())),
                    Meaning::Foreign => {}
                }
            }
            self.merge(layer);
        }
    }

    /// Warns of a variable with the prefix that is no setting. It is no error: other programs that build,
    /// package or deploy this one may use its name as a prefix, too.
    fn no_setting(&mut self, source: &Source) {
        self.warnings.push(format!(
            "{source}: there is no such setting, so it does nothing; `lastcall --help` lists all"
        ));
    }

    /// Merges the folder that systemd made, below every other choice.
    pub(super) fn runtime_directory(&mut self, environment: &[(OsString, OsString)]) {
        let Some(folders) = variable(environment, RUNTIME_DIRECTORY) else { return };
        let Some(folders) = folders.to_str() else {
            return self.reject_source(Source::Variable(RUNTIME_DIRECTORY.into()), "is not UTF-8".into());
        };
        // Of several, the first one is ours.
        if let Some(folder) = folders.split(':').next().filter(|folder| !folder.is_empty()) {
            self.merge(Layer::of(Kind::Environment, "runtime_dir", RUNTIME_DIRECTORY, Value::from(folder)));
        }
    }

    /// Merges RUST_LOG, which is for all programs that are written in Rust, and may be meant for another one.
    pub(super) fn rust_log(&mut self, environment: &[(OsString, OsString)]) {
        let Some(text) = variable(environment, RUST_LOG).filter(|text| !text.is_empty()) else { return };
        let value = Value::from(&*text.to_string_lossy());
        match parse::check(&value).and_then(|()| parse::parse_log_level(&value)) {
            Ok(_) => self.merge(Layer::of(Kind::Environment, "log_level", RUST_LOG, value)),
            Err(expected) => {
                let source = Source::Variable(RUST_LOG.into());
                self.warnings.push(format!("{source}: left out, as it is not {expected}"));
            }
        }
    }
}

/// Returns the value of an environment variable.
pub(super) fn variable<'a>(environment: &'a [(OsString, OsString)], name: &str) -> Option<&'a OsStr> {
    environment.iter().find(|(other, _)| other == name).map(|(_, text)| text.as_os_str())
}

/// Returns true if a variable of this name is a setting.
pub(super) fn is_setting(variable: &str) -> bool {
    matches!(Meaning::of(variable), Meaning::Setting(_))
}

/// The meaning of the name of a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It is a setting: its key.
    Setting(&'static str),
    /// It is none, and the nearest setting was meant.
    Misspelt {
        /// The key as it was written.
        key: String,
        /// That of the setting that was meant.
        meant: &'static str,
    },
    /// It would be a setting in capitals.
    NotInCapitals(&'static str),
    /// It has our prefix, and may be of another version, or of a program that packages or deploys this one.
    NoSetting,
    /// It is another program's.
    Foreign,
}

impl Meaning {
    /// Returns the meaning of a variable of this name.
    pub(super) fn of(variable: &str) -> Self {
        if let Some(spec) = SPECS.iter().find(|spec| spec.variable() == variable) {
            return Self::Setting(spec.key);
        }
        let capitals = variable.to_ascii_uppercase();
        let Some(key) = capitals.strip_prefix(PREFIX).map(str::to_ascii_lowercase) else {
            return Self::Foreign;
        };
        match (spec::find(&key), capitals == variable) {
            (Some(spec), true) => Self::Setting(spec.key),
            (Some(spec), false) => Self::NotInCapitals(spec.key),
            (None, true) => match similar(&key, spec::keys()) {
                Some(meant) => Self::Misspelt { key, meant },
                None => Self::NoSetting,
            },
            (None, false) => Self::Foreign,
        }
    }

    /// Returns the key of the setting that it is, or was meant to be. `None`: there is no such setting.
    pub(super) fn key(&self) -> Option<&'static str> {
        match self {
            Self::Setting(key) | Self::Misspelt { meant: key, .. } | Self::NotInCapitals(key) => Some(key),
            Self::NoSetting | Self::Foreign => None,
        }
    }
}

/// Returns true if Kubernetes has set this variable for a Service named `lastcall` or `lastcall-…`, as it
/// does in every pod beside that Service: LASTCALL_PORT=tcp://10.0.0.1:80, LASTCALL_CANARY_SERVICE_HOST and
/// the like.
fn is_service_link(variable: &str, text: &str) -> bool {
    variable.starts_with(PREFIX)
        && (variable.ends_with("_SERVICE_HOST")
            || variable.contains("_SERVICE_PORT")
            || variable.contains("_PORT_")
            || variable.ends_with("_PORT") && text.contains("://"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_in_small_letters_is_distinguished_from_a_foreign_one() {
        assert_eq!(Meaning::of("lastcall_port"), Meaning::NotInCapitals("port"));
        assert_eq!(Meaning::of("Lastcall_Log_Dir"), Meaning::NotInCapitals("log_dir"));
        for foreign in ["port", "lastcall_version", "äöü", "LASTCALL", "VERSION"] {
            assert_eq!(Meaning::of(foreign), Meaning::Foreign, "{foreign}");
        }
        assert_eq!(Meaning::of("PORT"), Meaning::Setting("port"));
        assert_eq!(Meaning::of("LASTCALL_PORT"), Meaning::Setting("port"));
        assert_eq!(Meaning::of("LASTCALL_VERSION"), Meaning::NoSetting);
        let misspelt = Meaning::Misspelt { key: "prot".into(), meant: "port" };
        assert_eq!(Meaning::of("LASTCALL_PROT"), misspelt);
    }
}
