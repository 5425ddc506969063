//! From all sources to the settings in force, with the source of each.

use std::{ffi::OsStr, fmt::Display, net::IpAddr, path::Path, time::Duration};

use super::{
    Problem, RuntimeDir, SPECS, SettingError, Settings, SettingsErrors, SettingsFile, Source, Sources, Spec,
    environment::{RUNTIME_DIRECTORY, variable},
    loader::Loader,
    parse,
};
use crate::{AllowedOrigins, ApiKey, ClientMessages, Retention, process::OpenFileLimit};

/// The settings in force, and where each came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// One entry for each of [`SPECS`](super::SPECS), in that order; then one for each setting of each
    /// namespace.
    pub effective: Vec<EffectiveSetting>,
    /// Sentences that an operator should read although they do not stop the start. They are found before
    /// there is a log: the caller logs them once there is one.
    pub warnings: Vec<String>,
    /// The files that were read.
    pub files: Vec<SettingsFile>,
}

impl Loaded {
    /// Returns the source of the setting with this key; `None` if there is no such setting.
    pub fn source(&self, key: &str) -> Option<&Source> {
        self.effective.iter().find(|one| one.key == key).map(|one| &one.source)
    }

    /// Returns the error that the value of this setting cannot be used on this machine.
    pub fn unusable_error(&self, key: &str, reason: &dyn Display) -> SettingError {
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
    /// The place that it came from.
    pub source: Source,
}

/// The least `history_bytes` while there is history: with less, busy channels would have next to none.
const MIN_HISTORY_BYTES: usize = 1 << 20;

/// The longest that `shutdown_spread = "auto"` makes the closing take.
const MAX_AUTO_SPREAD: Duration = Duration::from_secs(60);

impl Settings {
    /// Reads all sources; each wins over those before it: defaults, settings file, `.env`, environment,
    /// command line. RUST_LOG wins over every `log_level`.
    ///
    /// # Errors
    /// All that is wrong, not only the first.
    pub fn load(sources: &Sources) -> Result<Loaded, SettingsErrors> {
        let mut loader = Loader::new();
        loader.runtime_directory(&sources.environment);
        loader.file(sources);
        loader.dot_env(&sources.working_dir);
        loader.environment(&sources.environment);
        loader.command_line(&sources.command_line);
        loader.rust_log(&sources.environment);
        loader.finish(&sources.working_dir, variable(&sources.environment, "XDG_RUNTIME_DIR"))
    }
}

impl Loader {
    /// Reads every setting, and checks the settings together.
    fn finish(
        mut self,
        working_dir: &Path,
        xdg_runtime_dir: Option<&OsStr>,
    ) -> Result<Loaded, SettingsErrors> {
        use parse::{
            parse_api_keys, parse_client_messages, parse_duration, parse_duration_or_auto, parse_file,
            parse_folder, parse_history_bytes, parse_history_size, parse_host, parse_interval,
            parse_log_format, parse_log_level, parse_max_connections, parse_max_http_connections,
            parse_nonzero_duration, parse_origins, parse_port, parse_rate, parse_size,
        };
        let open_files = OpenFileLimit::current();
        let shutdown_timeout = self.read("shutdown_timeout", Duration::ZERO, parse_duration);
        let max_http_connections =
            self.read("max_http_connections", open_files.default_http_connections(), |value| {
                parse_max_http_connections(value, open_files)
            });
        // The values after the keys only matter while errors are gathered, or where there is no default.
        let retention = Retention {
            size: self.read("history_size", 1, parse_history_size),
            ttl: self.read("history_ttl", Duration::ZERO, parse_nonzero_duration),
        };
        let settings = Settings {
            host: self.read("host", IpAddr::from([127, 0, 0, 1]).into(), parse_host),
            port: self.read("port", 0, parse_port),
            templates_dir: self.read("templates_dir", None, parse_folder),
            keep_alive_timeout: self.read("keep_alive_timeout", Duration::ZERO, parse_nonzero_duration),
            notification_interval: self.read("notification_interval", None, parse_interval),
            client_messages: self.read("client_messages", ClientMessages::Broadcast, parse_client_messages),
            retention,
            history_bytes: self.read("history_bytes", usize::MAX, parse_history_bytes),
            // Absolute, as the folder of the control socket.
            history_file: self.read("history_file", None, parse_file).map(|path| working_dir.join(path)),
            namespaces: self.namespaces(retention),
            shutdown_timeout,
            shutdown_delay: self.read("shutdown_delay", Duration::ZERO, parse_duration),
            shutdown_spread: self
                .read("shutdown_spread", None, parse_duration_or_auto)
                .unwrap_or_else(|| (shutdown_timeout / 3).min(MAX_AUTO_SPREAD)),
            close_timeout: self.read("close_timeout", Duration::ZERO, parse_nonzero_duration),
            upgrade_timeout: self.read("upgrade_timeout", Duration::ZERO, parse_nonzero_duration),
            runtime_dir: match self.read("runtime_dir", None, parse_folder) {
                Some(path) if self.source("runtime_dir") == Source::Variable(RUNTIME_DIRECTORY.into()) => {
                    RuntimeDir::Service(path)
                }
                // Absolute: the kernel lists a socket under the path by which it was bound.
                Some(path) => RuntimeDir::Chosen(working_dir.join(path)),
                None => RuntimeDir::default(xdg_runtime_dir),
            },
            max_connections: self.read(
                "max_connections",
                open_files.max_connections(max_http_connections),
                |value| parse_max_connections(value, open_files, max_http_connections),
            ),
            max_http_connections,
            max_message_size: self.read("max_message_size", 1, parse_size),
            max_queue: self.read("max_queue", usize::MAX, parse_size),
            max_client_rate: self.read("max_client_rate", None, parse_rate),
            max_total_rate: self.read("max_total_rate", None, parse_rate),
            ping_interval: self.read("ping_interval", None, parse_interval),
            pong_timeout: self.read("pong_timeout", Duration::ZERO, parse_nonzero_duration),
            allowed_origins: self.read("allowed_origins", AllowedOrigins::SameHost, parse_origins),
            api_keys: self.read("api_keys", Vec::<ApiKey>::new(), parse_api_keys),
            log_level: self.read("log_level", String::new(), parse_log_level),
            log_format: self.read("log_format", super::LogFormat::Auto, parse_log_format),
            log_dir: self.read("log_dir", None, parse_folder),
        };
        self.check_conflicts(&settings);
        if settings.max_connections == open_files.max_connections(max_http_connections) {
            self.warnings.extend(open_files.warning(max_http_connections));
        }
        if !self.errors.is_empty() {
            return Err(SettingsErrors(self.errors));
        }
        let mut effective: Vec<_> = SPECS.iter().map(|spec| self.effective(spec, &settings)).collect();
        effective.extend(self.effective_namespaces(&effective));
        Ok(Loaded { settings, effective, warnings: self.warnings, files: self.files })
    }

    /// Rejects values that are right each by itself, but not together.
    fn check_conflicts(&mut self, settings: &Settings) {
        if let Some(interval) = settings.ping_interval
            && settings.pong_timeout > interval
        {
            let expected = format!(
                "at most ping_interval, which is {interval:?}: a pong must come before the next ping"
            );
            self.conflict("pong_timeout", expected);
        }
        if settings.shutdown_spread > settings.shutdown_timeout {
            let expected = format!(
                "at most shutdown_timeout, which is {:?}: the closes are spread over the end of the drain",
                settings.shutdown_timeout
            );
            self.conflict("shutdown_spread", expected);
        }
        if settings.max_queue < settings.max_message_size {
            let expected = format!(
                "at least max_message_size, which is {} bytes: one message must fit",
                settings.max_message_size
            );
            self.conflict("max_queue", expected);
        }
        self.check_history(settings);
    }

    fn check_history(&mut self, settings: &Settings) {
        let sizes = settings.namespaces.iter().map(|namespace| namespace.retention.size);
        if sizes.chain([settings.retention.size]).all(|size| size == 0) {
            if settings.history_file.is_some() {
                let expected = "no file: history_size is 0 for all channels, so there is no history to write";
                self.conflict("history_file", expected.into());
            }
        } else if settings.history_bytes < MIN_HISTORY_BYTES {
            let expected = "at least 1MiB, or history_size = 0, which turns history off";
            self.conflict("history_bytes", expected.into());
        } else if settings.history_bytes < settings.max_message_size {
            let expected = format!(
                "at least max_message_size, which is {} bytes: one publication must fit",
                settings.max_message_size
            );
            self.conflict("history_bytes", expected);
        }
    }

    fn effective(&self, spec: &Spec, settings: &Settings) -> EffectiveSetting {
        let (value, source) = match self.resolve(spec.key) {
            Some((_, source)) if spec.secret => (format!("({} hidden)", settings.api_keys.len()), source),
            Some((value, source)) => (parse::plain(&value), source),
            None => match spec.key {
                "max_connections" => {
                    let limit = OpenFileLimit::current().get();
                    (settings.max_connections.to_string(), Source::OpenFiles(limit))
                }
                "max_http_connections" => {
                    let limit = OpenFileLimit::current().get();
                    (settings.max_http_connections.to_string(), Source::OpenFiles(limit))
                }
                "runtime_dir" => (settings.runtime_dir.path().display().to_string(), Source::Default),
                "allowed_origins" => ("(same host)".to_owned(), Source::Default),
                _ => ("(none)".to_owned(), Source::Default),
            },
        };
        EffectiveSetting { key: spec.key.to_owned(), value, source }
    }
}
