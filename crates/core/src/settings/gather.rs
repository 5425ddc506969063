//! Where values are looked for: the settings file, `.env`, the environment and the command line.

use std::{
    ffi::{OsStr, OsString},
    io::ErrorKind,
    path::Path,
    time::Duration,
};

use figment::{
    Metadata, Profile, Provider,
    providers::{Format, Toml},
    value::{Dict, Map, Value},
};

use super::{
    Origin, Problem, SPECS, SettingError, SettingsFile, Sources, Spec,
    dot_env::{self, Line},
    load::Reader,
    text, text_file, value,
    variable::{PREFIX, in_capitals, is_service_link, is_setting, key_of, misspelt},
};

/// The file that is read when no other is named, if it is there.
pub(super) const CONFIG_FILE: &str = "config/lastcall.toml";

/// Variables that are read from a file.
const DOT_ENV: &str = ".env";

/// The usual variable for the level of a log in Rust.
const RUST_LOG: &str = "RUST_LOG";

/// Where systemd says which folder it made (systemd.exec(5), `RuntimeDirectory=`).
pub(super) const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";

/// How long a FIFO or a device that was named as the settings file may take to give them all: a program may
/// be decrypting them.
const WAIT_FOR_NAMED: Duration = Duration::from_secs(30);

/// The same where nobody has asked for the file: something else may have its name.
const WAIT_FOR_FOUND: Duration = Duration::from_secs(1);

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

impl Reader {
    /// Takes a value in; a later one for the same key wins.
    pub(super) fn set(&mut self, origin: Origin, key: &str, value: Value) {
        match SPECS.iter().find(|spec| spec.key == key) {
            Some(spec) => {
                self.origins.push(origin.clone());
                let figment = std::mem::take(&mut self.figment);
                self.figment = figment.merge(Layer { origin, key: spec.key, value });
            }
            None => self.errors.push(SettingError {
                key: key.to_owned(),
                origin,
                problem: Problem::Unknown { nearest: misspelt(key).or_else(|| similar(key)) },
            }),
        }
    }

    pub(super) fn file(&mut self, sources: &Sources) {
        let (path, shown) = match &sources.config_file {
            Some(path) => (sources.working_dir.join(path), path.display().to_string()),
            None => (sources.working_dir.join(CONFIG_FILE), CONFIG_FILE.to_owned()),
        };
        let whole = Origin::File { path: shown.clone(), line: None };
        let is_named = sources.config_file.is_some();
        let bytes = match text_file::read(&path, if is_named { WAIT_FOR_NAMED } else { WAIT_FOR_FOUND }) {
            Ok(bytes) => bytes,
            // NotADirectory: a file is called `config`.
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) && !is_named =>
            {
                return;
            }
            Err(error) => return self.wrong_file(whole, format!("cannot be read: {error}")),
        };
        self.files.push(SettingsFile { path, needed: true });
        let Some(text) = text_file::decode(bytes) else {
            return self.wrong_file(whole, "cannot be read: it is not UTF-8 text".into());
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

    /// `.env` may be another program's, or shared with one: only a line about a setting can be wrong.
    pub(super) fn dot_env(&mut self, working_dir: &Path) {
        let at = |line| Origin::File { path: DOT_ENV.into(), line };
        let bytes = match text_file::read(&working_dir.join(DOT_ENV), WAIT_FOR_FOUND) {
            Ok(bytes) => bytes,
            // A folder of that name is usually a virtual environment of Python.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => return,
            Err(error) => return self.warnings.push(format!("{}: not read, as {error}", at(None))),
        };
        if bytes.contains(&0) {
            return self.warnings.push(format!("{}: not read, as it is not UTF-8 text", at(None)));
        }
        // A line that is not UTF-8 may be another program's. In a value, the character that stands for it is refused.
        let text = String::from_utf8_lossy(&bytes);
        let mut others = Vec::new();
        let mut variables = Vec::new();
        for line in dot_env::lines(text.strip_prefix('\u{feff}').unwrap_or(&text)) {
            let (number, name, value) = match line {
                Line::Variable { number, name, value } => (number, name, value),
                Line::Other { number, word } if key_of(&word).is_none() => {
                    others.push(number);
                    continue;
                }
                Line::Other { number, word } => (number, word, Err("expected NAME=value".into())),
            };
            match value {
                Ok(value) => variables.push((name, value)),
                Err(why) if is_setting(&name) => {
                    self.wrong_file(at(Some(number)), format!("{name} is not understood: {why}"));
                }
                // The value does not matter.
                Err(_) => variables.push((name, "?".into())),
            }
        }
        let needed = variables.iter().any(|(name, _)| is_setting(name));
        self.files.push(SettingsFile { path: working_dir.join(DOT_ENV), needed });
        self.variables(&variables, Origin::DotEnv);
        if let [first, more @ ..] = others.as_slice() {
            let more =
                if more.is_empty() { String::new() } else { format!(", nor are {} more lines", more.len()) };
            self.warnings.push(format!("{}: not read, as it is not NAME=value{more}", at(Some(*first))));
        }
    }

    pub(super) fn environment(&mut self, environment: &[(OsString, OsString)]) {
        let mut variables = Vec::new();
        for (name, text) in environment {
            // What is not UTF-8 by name is not ours.
            let Some(name) = name.to_str() else { continue };
            match text.to_str() {
                Some(text) => variables.push((name.to_owned(), text.to_owned())),
                None if is_setting(name) => {
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
                if name.starts_with(PREFIX) == prefixed && !text.is_empty() && !is_service_link(name, text) {
                    self.variable(name, text, origin(name.clone()));
                }
            }
        }
    }

    fn variable(&mut self, name: &str, text: &str, origin: Origin) {
        match key_of(name) {
            Some(key) if is_setting(name) || misspelt(&key).is_some() => {
                self.set(origin, &key, Value::from(text));
            }
            // Whoever builds, packages or deploys this program may use its name as a prefix, too.
            Some(_) => self.warnings.push(format!(
                "{origin}: there is no such setting, so it does nothing; `lastcall --help` lists all"
            )),
            None => {
                if let Some(meant) = in_capitals(name) {
                    self.wrong_file(origin, format!("did you mean {meant}? Only capitals count"));
                }
            }
        }
    }

    /// The folder that systemd made, below every other choice.
    pub(super) fn runtime_directory(&mut self, environment: &[(OsString, OsString)]) {
        let Some(folders) = variable(environment, RUNTIME_DIRECTORY) else { return };
        let origin = Origin::Variable(RUNTIME_DIRECTORY.into());
        let Some(folders) = folders.to_str() else { return self.wrong_file(origin, "is not UTF-8".into()) };
        // Of several, the first one is ours.
        if let Some(folder) = folders.split(':').next().filter(|folder| !folder.is_empty()) {
            self.set(origin, "runtime_dir", Value::from(folder));
        }
    }

    /// RUST_LOG is for all programs that are written in Rust, and may be meant for another one.
    pub(super) fn rust_log(&mut self, environment: &[(OsString, OsString)]) {
        let Some(text) = variable(environment, RUST_LOG).filter(|text| !text.is_empty()) else { return };
        let origin = Origin::Variable(RUST_LOG.into());
        let value = Value::from(&*text.to_string_lossy());
        match text::check(&value).and_then(|()| value::log_level(&value)) {
            Ok(_) => self.set(origin, "log_level", value),
            Err(expected) => self.warnings.push(format!("{origin}: left out, as it is not {expected}")),
        }
    }

    fn wrong_file(&mut self, origin: Origin, what: String) {
        self.errors.push(SettingError { key: String::new(), origin, problem: Problem::File(what) });
    }
}

pub(super) fn variable<'a>(environment: &'a [(OsString, OsString)], name: &str) -> Option<&'a OsStr> {
    environment.iter().find(|(other, _)| other == name).map(|(_, text)| text.as_os_str())
}

/// The setting that an operator may have had in mind.
fn similar(key: &str) -> Option<&'static str> {
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
