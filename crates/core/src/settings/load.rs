//! Where settings are looked for, which of them wins, and what is wrong with them.

use std::{
    ffi::{OsStr, OsString},
    fmt, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use figment::{
    Figment, Metadata, Profile, Provider,
    providers::{Format, Toml},
    value::{Dict, Map, Value},
};

use super::{
    ApiKey, Origin, Problem, RuntimeDir, SPECS, SettingError, Settings, SettingsErrors, Spec, limits,
    value::{self, Expected},
};

/// The file that is read when no other is named, if it is there.
const CONFIG_FILE: &str = "config/lastcall.toml";

/// Variables that are read from a file.
const DOT_ENV: &str = ".env";

/// The usual variable for the level of a log in Rust.
const RUST_LOG: &str = "RUST_LOG";

/// Where systemd says which folder it made (systemd.exec(5), `RuntimeDirectory=`).
const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";

/// What a new process finds in its environment when it is to take over from the one that runs: the path of
/// that one's socket. No setting.
pub const TAKE_OVER: &str = "LASTCALL_TAKE_OVER";

/// The longest that `shutdown_pace = "auto"` makes the closing take.
const MOST_PACE: Duration = Duration::from_secs(60);

/// What a variable may start with; it then wins over the one without.
const PREFIX: &str = "LASTCALL_";

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

/// The settings in force, and where each came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// One entry for each of [`SPECS`], in that order.
    pub effective: Vec<Effective>,
}

/// One setting in force, to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// Its key.
    pub key: &'static str,
    /// Its value as it was written; hidden if secret.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

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

/// One value and where it came from, for figment to merge and to remember.
struct Layer {
    origin: Origin,
    key: &'static str,
    value: Value,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.to_string())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        // Written anew: a value that was read from a file is marked with that reading, not with this layer.
        let value = Value::serialize(&self.value)?;
        let dict = Dict::from([(self.key.to_owned(), value)]);
        Ok(Map::from([(Profile::Default, dict)]))
    }
}

/// Gathers values, and everything that is wrong.
#[derive(Default)]
struct Reader {
    figment: Figment,
    /// Where each layer came from; figment knows them by their words.
    origins: Vec<Origin>,
    errors: Vec<SettingError>,
}

impl Reader {
    /// Takes a value in; a later one for the same key wins.
    fn set(&mut self, origin: Origin, key: &str, value: Value) {
        match SPECS.iter().find(|spec| spec.key == key) {
            Some(spec) => {
                self.origins.push(origin.clone());
                let figment = std::mem::take(&mut self.figment);
                self.figment = figment.merge(Layer { origin, key: spec.key, value });
            }
            None => self.errors.push(SettingError {
                key: key.to_owned(),
                origin,
                problem: Problem::Unknown { nearest: nearest(key) },
            }),
        }
    }

    fn file(&mut self, sources: &Sources) {
        let (path, shown) = match &sources.config_file {
            Some(path) => (sources.working_dir.join(path), path.display().to_string()),
            None => (sources.working_dir.join(CONFIG_FILE), CONFIG_FILE.to_owned()),
        };
        let whole = Origin::File { path: shown.clone(), line: None };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // NotADirectory: a file is called `config`.
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
                    && sources.config_file.is_none() =>
            {
                return;
            }
            Err(error) => return self.wrong_file(whole, format!("cannot be read: {error}")),
        };
        match <Toml as Format>::from_str::<Dict>(&text) {
            Ok(dict) => {
                for (key, value) in dict {
                    let line = line_of(&text, &key);
                    self.set(Origin::File { path: shown.clone(), line }, &key, value);
                }
            }
            Err(error) => {
                // Its `Display` quotes the line, which may hold a key.
                let what = error.message().trim().replace('\n', ", ");
                let line = error.span().map(|span| line_at(&text, span.start));
                self.wrong_file(Origin::File { path: shown, line }, format!("is not valid TOML: {what}"));
            }
        }
    }

    fn dot_env(&mut self, working_dir: &Path) {
        let at = |line| Origin::File { path: DOT_ENV.into(), line };
        let text = match fs::read_to_string(working_dir.join(DOT_ENV)) {
            Ok(text) => text,
            // A folder of that name is somebody's virtual environment.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => return,
            Err(error) => return self.wrong_file(at(None), format!("cannot be read: {error}")),
        };
        match dotenvy::from_read_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>() {
            Ok(variables) => self.variables(&variables, Origin::DotEnv),
            // The line itself stays out: it may hold a key.
            Err(dotenvy::Error::LineParse(bad, _)) => {
                let line = text.find(bad.trim()).map(|index| line_at(&text, index));
                let what = "is not understood: expected NAME=value, in quotes if it has spaces";
                self.wrong_file(at(line), what.into());
            }
            Err(error) => self.wrong_file(at(None), format!("cannot be read: {error}")),
        }
    }

    fn environment(&mut self, environment: &[(OsString, OsString)]) {
        let mut variables = Vec::new();
        for (name, text) in environment {
            // What is not UTF-8 by name is not ours.
            let Some(name) = name.to_str() else { continue };
            match text.to_str() {
                Some(text) => variables.push((name.to_owned(), text.to_owned())),
                None if key_of(name).is_some() => {
                    self.wrong_file(Origin::Variable(name.to_owned()), "is not UTF-8".into());
                }
                None => {}
            }
        }
        self.variables(&variables, Origin::Variable);
    }

    /// Takes in the variables that are settings: first those without the prefix, so that the others win.
    fn variables(&mut self, variables: &[(String, String)], origin: fn(String) -> Origin) {
        for prefixed in [false, true] {
            for (name, text) in variables {
                // An empty variable is the usual way to unset one.
                if name.starts_with(PREFIX) == prefixed
                    && !text.is_empty()
                    && !is_service_link(name, text)
                    && let Some(key) = key_of(name)
                {
                    self.set(origin(name.clone()), &key, Value::from(text.as_str()));
                }
            }
        }
    }

    /// The folder that systemd made, below every other choice.
    fn runtime_directory(&mut self, environment: &[(OsString, OsString)]) {
        let folders = variable(environment, RUNTIME_DIRECTORY).and_then(OsStr::to_str).unwrap_or("");
        // Of several, the first one is ours.
        if let Some(folder) = folders.split(':').next().filter(|folder| !folder.is_empty()) {
            self.set(Origin::Variable(RUNTIME_DIRECTORY.into()), "runtime_dir", Value::from(folder));
        }
    }

    fn rust_log(&mut self, environment: &[(OsString, OsString)]) {
        let Some(text) = variable(environment, RUST_LOG) else { return };
        let origin = Origin::Variable(RUST_LOG.into());
        match text.to_str() {
            Some("") => {}
            Some(text) => self.set(origin, "log_level", Value::from(text)),
            None => self.wrong_file(origin, "is not UTF-8".into()),
        }
    }

    fn wrong_file(&mut self, origin: Origin, what: String) {
        self.errors.push(SettingError { key: String::new(), origin, problem: Problem::File(what) });
    }

    /// The value that won, and where it came from.
    fn winner(&self, key: &str) -> Option<(Value, Origin)> {
        let value = self.figment.find_value(key).ok()?;
        let words = self.figment.get_metadata(value.tag()).map(|metadata| metadata.name.to_string());
        let origin = self.origins.iter().rev().find(|origin| words.as_ref() == Some(&origin.to_string()));
        Some((value, origin.cloned().unwrap_or(Origin::Default)))
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
        read(&value).unwrap_or_else(|expected| {
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
            origins, pace, port, size, some_time,
        };
        let most = limits::most_connections();
        let shutdown_timeout = self.read("shutdown_timeout", Duration::ZERO, duration);
        // The values after the keys only matter while errors are gathered, or where there is no default.
        let settings = Settings {
            host: self.read("host", String::new(), host),
            port: self.read("port", 0, port),
            templates_dir: self.read("templates_dir", None, folder),
            notification_interval: self.read("notification_interval", None, interval),
            client_messages: self.read("client_messages", super::ClientMessages::Broadcast, client_messages),
            shutdown_timeout,
            shutdown_delay: self.read("shutdown_delay", Duration::ZERO, duration),
            shutdown_pace: self
                .read("shutdown_pace", None, pace)
                .unwrap_or_else(|| (shutdown_timeout / 3).min(MOST_PACE)),
            close_timeout: self.read("close_timeout", Duration::ZERO, some_time),
            upgrade_timeout: self.read("upgrade_timeout", Duration::ZERO, some_time),
            runtime_dir: self
                .read("runtime_dir", None, folder)
                .map_or_else(|| RuntimeDir::default(xdg_runtime_dir), RuntimeDir::Chosen),
            max_connections: self.read("max_connections", most.0, |value| connections(value, most)),
            max_message_size: self.read("max_message_size", 1, size),
            max_queue: self.read("max_queue", usize::MAX, size),
            ping_interval: self.read("ping_interval", None, interval),
            pong_timeout: self.read("pong_timeout", Duration::ZERO, some_time),
            allowed_origins: self.read("allowed_origins", super::AllowedOrigins::SameHost, origins),
            api_keys: self.read("api_keys", Vec::<ApiKey>::new(), keys),
            log_level: self.read("log_level", String::new(), log_level),
            log_format: self.read("log_format", super::LogFormat::Auto, log_format),
            log_dir: self.read("log_dir", None, folder),
        };
        self.check_together(&settings);
        if !self.errors.is_empty() {
            return Err(SettingsErrors(self.errors));
        }
        let effective = SPECS.iter().map(|spec| self.effective(spec, &settings)).collect();
        Ok(Loaded { settings, effective })
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
        if settings.shutdown_pace > settings.shutdown_timeout {
            let expected = format!(
                "at most shutdown_timeout, which is {:?}: the closes are spread over the end of the drain",
                settings.shutdown_timeout
            );
            self.contradicts("shutdown_pace", expected);
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

/// Whether Kubernetes has set this variable for a Service named `lastcall` or `lastcall-…`, as it does in every
/// pod beside that Service: LASTCALL_PORT=tcp://10.0.0.1:80, LASTCALL_CANARY_SERVICE_HOST and the like.
fn is_service_link(variable: &str, text: &str) -> bool {
    variable.starts_with(PREFIX)
        && (variable.ends_with("_SERVICE_HOST")
            || variable.contains("_SERVICE_PORT")
            || variable.contains("_PORT_")
            || variable.ends_with("_PORT") && text.contains("://"))
}

/// The setting that a variable is about, known or not; `None`: it is not about us.
fn key_of(variable: &str) -> Option<String> {
    if variable == TAKE_OVER {
        return None;
    }
    match variable.strip_prefix(PREFIX) {
        Some(rest) => Some(rest.to_ascii_lowercase()),
        None => SPECS.iter().find(|spec| spec.variable() == variable).map(|spec| spec.key.to_owned()),
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

fn variable<'a>(environment: &'a [(OsString, OsString)], name: &str) -> Option<&'a OsStr> {
    environment.iter().find(|(other, _)| other == name).map(|(_, text)| text.as_os_str())
}

fn nearest(key: &str) -> Option<&'static str> {
    let similar = |spec: &Spec| (strsim::jaro_winkler(spec.key, &key.to_ascii_lowercase()), spec.key);
    let (similarity, nearest) = SPECS.iter().map(similar).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (similarity > 0.8).then_some(nearest)
}

/// The line that the byte at `index` is on, counted from 1.
fn line_at(text: &str, index: usize) -> usize {
    text.bytes().take(index).filter(|byte| *byte == b'\n').count() + 1
}

/// The line on which a key of a flat TOML file is set, counted from 1.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let sets = |line: &str| {
        let (name, _) = line.split_once('=').unwrap_or((line, ""));
        name.trim().trim_matches(['[', ']', '"', '\'']) == key
    };
    text.lines().position(sets).map(|index| index + 1)
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
