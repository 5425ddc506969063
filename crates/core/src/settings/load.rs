//! Which of the values wins, and what is wrong with those that do.

use std::{ffi::OsStr, time::Duration};

use figment::{Figment, value::Value};

use super::{
    ApiKey, Effective, Loaded, Origin, Problem, RuntimeDir, SPECS, SettingError, Settings, SettingsErrors,
    SettingsFile, Sources, Spec,
    gather::{RUNTIME_DIRECTORY, variable},
    limits, text,
    value::{self, Expected},
};

/// The longest that `shutdown_spread = "auto"` makes the closing take.
const MAX_AUTO_SPREAD: Duration = Duration::from_secs(60);

impl Settings {
    /// Reads all sources; each wins over those before it: defaults, settings file, `.env`, environment,
    /// command line. RUST_LOG wins over every `log_level`.
    ///
    /// # Errors
    /// All that is wrong, not only the first.
    pub fn load(sources: &Sources) -> Result<Loaded, SettingsErrors> {
        let mut reader = Reader::default();
        reader.runtime_directory(&sources.environment);
        reader.file(sources);
        reader.dot_env(&sources.working_dir);
        reader.environment(&sources.environment);
        for (key, text) in &sources.command_line {
            let flag = key.replace('_', "-");
            reader.set(Origin::Flag(flag), key, Value::from(text.as_str()));
        }
        reader.rust_log(&sources.environment);
        reader.finish(variable(&sources.environment, "XDG_RUNTIME_DIR"))
    }
}

/// Gathers values, and everything that is wrong.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) figment: Figment,
    /// Where each layer came from; figment knows them by their words.
    pub(super) origins: Vec<Origin>,
    pub(super) errors: Vec<SettingError>,
    pub(super) warnings: Vec<String>,
    /// The files that were read.
    pub(super) files: Vec<SettingsFile>,
}

impl Reader {
    /// The value that won, and where it came from.
    fn winner(&self, key: &str) -> Option<(Value, Origin)> {
        let value = self.figment.find_value(key).ok()?;
        let words = self.figment.get_metadata(value.tag()).map(|metadata| metadata.name.to_string());
        let origin = self.origins.iter().rev().find(|origin| words.as_ref() == Some(&origin.to_string()));
        Some((value, origin.cloned().unwrap_or(Origin::Default)))
    }

    fn origin(&self, key: &str) -> Origin {
        self.winner(key).map_or(Origin::Default, |(_, origin)| origin)
    }

    /// Reads one setting with `read`; what is wrong is noted, and `otherwise` stands in for it.
    fn read<T>(
        &mut self,
        key: &'static str,
        otherwise: T,
        read: impl FnOnce(&Value) -> Result<T, Expected>,
    ) -> T {
        let (value, origin) = match self.winner(key) {
            Some(winner) => winner,
            None => match default(key) {
                Some(value) => (value, Origin::Default),
                None => return otherwise,
            },
        };
        text::check(&value).and_then(|()| read(&value)).unwrap_or_else(|expected| {
            self.wrong(key, Some(&value), origin, expected);
            otherwise
        })
    }

    fn wrong(&mut self, key: &'static str, value: Option<&Value>, origin: Origin, expected: Expected) {
        let secret = SPECS.iter().any(|spec| spec.key == key && spec.secret);
        let value = value.filter(|_| !secret).map(value::shown);
        self.errors.push(SettingError {
            key: key.into(),
            origin,
            problem: Problem::Wrong { value, expected },
        });
    }

    fn finish(mut self, xdg_runtime_dir: Option<&OsStr>) -> Result<Loaded, SettingsErrors> {
        use value::{
            client_messages, connections, duration, folder, host, interval, keys, log_format, log_level,
            origins, port, rate, size, some_time, spread,
        };
        let most = limits::most_connections();
        let shutdown_timeout = self.read("shutdown_timeout", Duration::ZERO, duration);
        // The values after the keys only matter while errors are gathered, or where there is no default.
        let settings = Settings {
            host: self.read("host", String::new(), host),
            port: self.read("port", 0, port),
            templates_dir: self.read("templates_dir", None, folder),
            keep_alive_timeout: self.read("keep_alive_timeout", Duration::ZERO, some_time),
            notification_interval: self.read("notification_interval", None, interval),
            client_messages: self.read("client_messages", super::ClientMessages::Broadcast, client_messages),
            shutdown_timeout,
            shutdown_delay: self.read("shutdown_delay", Duration::ZERO, duration),
            shutdown_spread: self
                .read("shutdown_spread", None, spread)
                .unwrap_or_else(|| (shutdown_timeout / 3).min(MAX_AUTO_SPREAD)),
            close_timeout: self.read("close_timeout", Duration::ZERO, some_time),
            upgrade_timeout: self.read("upgrade_timeout", Duration::ZERO, some_time),
            runtime_dir: match self.read("runtime_dir", None, folder) {
                Some(path) if self.origin("runtime_dir") == Origin::Variable(RUNTIME_DIRECTORY.into()) => {
                    RuntimeDir::Service(path)
                }
                Some(path) => RuntimeDir::Chosen(path),
                None => RuntimeDir::default(xdg_runtime_dir),
            },
            max_connections: self.read("max_connections", most.0, |value| connections(value, most)),
            max_message_size: self.read("max_message_size", 1, size),
            max_queue: self.read("max_queue", usize::MAX, size),
            max_client_rate: self.read("max_client_rate", None, rate),
            max_total_rate: self.read("max_total_rate", None, rate),
            ping_interval: self.read("ping_interval", None, interval),
            pong_timeout: self.read("pong_timeout", Duration::ZERO, some_time),
            allowed_origins: self.read("allowed_origins", super::AllowedOrigins::SameHost, origins),
            api_keys: self.read("api_keys", Vec::<ApiKey>::new(), keys),
            log_level: self.read("log_level", String::new(), log_level),
            log_format: self.read("log_format", super::LogFormat::Auto, log_format),
            log_dir: self.read("log_dir", None, folder),
        };
        self.check_together(&settings);
        if settings.max_connections == most.0 {
            self.warnings.extend(limits::few_connections());
        }
        if !self.errors.is_empty() {
            return Err(SettingsErrors(self.errors));
        }
        let effective = SPECS.iter().map(|spec| self.effective(spec, &settings)).collect();
        Ok(Loaded { settings, effective, warnings: self.warnings, files: self.files })
    }

    /// What is right by itself but not beside the others.
    fn check_together(&mut self, settings: &Settings) {
        if let Some(interval) = settings.ping_interval
            && settings.pong_timeout > interval
        {
            let expected = format!(
                "at most ping_interval, which is {interval:?}: a pong must come before the next ping"
            );
            self.contradicts("pong_timeout", expected);
        }
        if settings.shutdown_spread > settings.shutdown_timeout {
            let expected = format!(
                "at most shutdown_timeout, which is {:?}: the closes are spread over the end of the drain",
                settings.shutdown_timeout
            );
            self.contradicts("shutdown_spread", expected);
        }
        if settings.max_queue < settings.max_message_size {
            let expected = format!(
                "at least max_message_size, which is {} bytes: one message must fit",
                settings.max_message_size
            );
            self.contradicts("max_queue", expected);
        }
    }

    fn contradicts(&mut self, key: &'static str, expected: Expected) {
        let (value, origin) = match self.winner(key) {
            Some((value, origin)) => (Some(value), origin),
            None => (default(key), Origin::Default),
        };
        self.wrong(key, value.as_ref(), origin, expected);
    }

    fn effective(&self, spec: &Spec, settings: &Settings) -> Effective {
        let (value, origin) = match self.winner(spec.key) {
            Some((_, origin)) if spec.secret => (format!("({} hidden)", settings.api_keys.len()), origin),
            Some((Value::String(_, text), origin)) => (text, origin),
            Some((value, origin)) => (value::shown(&value), origin),
            None => match (spec.default, spec.key) {
                (Some(default), _) => (default.trim_matches('"').to_owned(), Origin::Default),
                (None, "max_connections") => {
                    (settings.max_connections.to_string(), Origin::OpenFiles(limits::most_connections().1))
                }
                (None, "runtime_dir") => (settings.runtime_dir.path().display().to_string(), Origin::Default),
                (None, "allowed_origins") => ("(same host)".to_owned(), Origin::Default),
                (None, _) => ("(none)".to_owned(), Origin::Default),
            },
        };
        Effective { key: spec.key, value, origin }
    }
}

/// The default, as a value.
fn default(key: &str) -> Option<Value> {
    let default = SPECS.iter().find(|spec| spec.key == key)?.default?;
    // Numbers and quoted words: nothing else stands in the list.
    Some(match default.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(word) => Value::from(word),
        None => default.parse().map_or_else(|_| Value::from(default), |number: i64| Value::from(number)),
    })
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
