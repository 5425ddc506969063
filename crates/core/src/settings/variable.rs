//! Which variables are settings, in the environment and in `.env`.

use super::SPECS;

/// What a variable may start with; it then wins over the one without.
pub(super) const PREFIX: &str = "LASTCALL_";

/// Returns the setting that a variable is about, known or not; `None`: it is not about this program.
pub(super) fn key_of(variable: &str) -> Option<String> {
    match variable.strip_prefix(PREFIX) {
        Some(rest) => Some(rest.to_ascii_lowercase()),
        None => SPECS.iter().find(|spec| spec.variable() == variable).map(|spec| spec.key.to_owned()),
    }
}

/// Returns true if a variable is a setting.
pub(super) fn is_setting(variable: &str) -> bool {
    key_of(variable).is_some_and(|key| SPECS.iter().any(|spec| spec.key == key))
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

/// Returns the variable that was meant when only the case of the letters is wrong: `lastcall_port`.
pub(super) fn in_capitals(variable: &str) -> Option<String> {
    let capitals = variable.to_ascii_uppercase();
    let key = capitals.strip_prefix(PREFIX)?.to_ascii_lowercase();
    (capitals != variable && SPECS.iter().any(|spec| spec.key == key)).then_some(capitals)
}

/// Returns the setting that a misspelt key was meant to be. `None`: it is another program's, or of another version.
/// Misspelt is a key with one wrong, missing, additional or transposed letter (optimal string alignment),
/// and longer ones with one in every four letters.
pub(super) fn misspelt(key: &str) -> Option<&'static str> {
    let distance = |spec: &super::Spec| (strsim::osa_distance(spec.key, key), spec.key);
    let (distance, nearest) = SPECS.iter().map(distance).min()?;
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
            assert_eq!(misspelt(key), Some(meant), "{key}");
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
            assert_eq!(misspelt(key), None, "{key}");
        }
    }

    #[test]
    fn a_variable_in_small_letters_is_distinguished_from_a_foreign_one() {
        assert_eq!(in_capitals("lastcall_port"), Some("LASTCALL_PORT".into()));
        assert_eq!(in_capitals("Lastcall_Log_Dir"), Some("LASTCALL_LOG_DIR".into()));
        for foreign in ["LASTCALL_PORT", "port", "lastcall_version", "äöü"] {
            assert_eq!(in_capitals(foreign), None, "{foreign}");
        }
    }
}
