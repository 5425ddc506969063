//! Which variables are settings, in the environment and in `.env`.

use super::{SPECS, spec};

/// What a variable may start with; it then wins over the one without.
pub(super) const PREFIX: &str = "LASTCALL_";

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

/// Returns true if Kubernetes has set this variable for a Service named `lastcall` or `lastcall-…`, as it does in every
/// pod beside that Service: LASTCALL_PORT=tcp://10.0.0.1:80, LASTCALL_CANARY_SERVICE_HOST and the like.
pub(super) fn is_service_link(variable: &str, text: &str) -> bool {
    variable.starts_with(PREFIX)
        && (variable.ends_with("_SERVICE_HOST")
            || variable.contains("_SERVICE_PORT")
            || variable.contains("_PORT_")
            || variable.ends_with("_PORT") && text.contains("://"))
}

/// Returns the one of these keys that a misspelt key was meant to be. `None`: it is another program's, or of another
/// version. Misspelt is a key with one wrong, missing, additional or transposed letter (optimal string alignment),
/// and longer ones with one in every four letters.
pub(super) fn similar(key: &str, keys: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let key = key.to_ascii_lowercase();
    let (distance, nearest) = keys.map(|known| (strsim::osa_distance(known, &key), known)).min()?;
    (distance <= (nearest.len() / 4).max(1)).then_some(nearest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_distinguished_from_a_foreign_one() {
        for (key, meant) in [
            ("prot", "port"),
            ("hostt", "host"),
            ("api_key", "api_keys"),
            ("apikeys", "api_keys"),
            ("loglevel", "log_level"),
            ("logdir", "log_dir"),
            ("shutdown_timout", "shutdown_timeout"),
            ("shutdowntimeout", "shutdown_timeout"),
            ("ping_timeout", "pong_timeout"),
            ("allow_origins", "allowed_origins"),
            ("allowed_origin", "allowed_origins"),
            ("max_connection", "max_connections"),
        ] {
            assert_eq!(similar(key, spec::keys()), Some(meant), "{key}");
        }
        for key in [
            "version",
            "image",
            "home",
            "root",
            "user",
            "env",
            "debug",
            "url",
            "path",
            "pid",
            "config",
            "tag",
            "tls_cert",
            "replicas",
            "release",
            "commit",
            "canary_port",
            "database_url",
            "",
        ] {
            assert_eq!(similar(key, spec::keys()), None, "{key}");
        }
    }

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
