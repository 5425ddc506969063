//! Where values are looked for: the settings file, `.env`, the environment and the command line.

use std::{
    ffi::{OsStr, OsString},
    io::ErrorKind,
    path::Path,
};

use figment::{
    providers::{Format, Toml},
    value::{Dict, Value},
};

use super::{
    SettingsFile, Source, Sources,
    dot_env::{self, Line},
    key_lines::{key_lines, line_at},
    layer::{Kind, Layer},
    loader::Loader,
    parse, spec,
    text_file::{self, Content},
    variable::{Meaning, PREFIX, is_service_link},
};

/// The file that is read when no other is named, if it is there.
pub(super) const CONFIG_FILE: &str = "config/lastcall.toml";

/// Variables that are read from a file.
const DOT_ENV: &str = ".env";

/// The usual variable for the level of a log in Rust.
const RUST_LOG: &str = "RUST_LOG";

/// Where systemd says which folder it made (systemd.exec(5), `RuntimeDirectory=`).
pub(super) const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";

impl Loader {
    /// Reads the settings file.
    pub(super) fn file(&mut self, sources: &Sources) {
        let (path, shown) = match &sources.config_file {
            Some(path) => (sources.working_dir.join(path), path.display().to_string()),
            None => (sources.working_dir.join(CONFIG_FILE), CONFIG_FILE.to_owned()),
        };
        let whole = Source::File(shown.clone());
        let is_named = sources.config_file.is_some();
        let content = if is_named { text_file::read_named(&path) } else { text_file::read_found(&path) };
        let Content { bytes, stays } = match content {
            Ok(content) => content,
            // NotADirectory: a file is called `config`.
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) && !is_named =>
            {
                return self.warn_if_dangling(&path, &whole);
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::IsADirectory) && !is_named =>
            {
                return self.warnings.push(format!("{whole}: not read, as {error}"));
            }
            Err(error) => return self.reject_source(whole, format!("cannot be read: {error}")),
        };
        let Some(text) = text_file::decode(bytes) else {
            return self.reject_source(whole, "cannot be read: it is not UTF-8 text".into());
        };
        match <Toml as Format>::from_str::<Dict>(&text) {
            Ok(dict) => {
                let has_settings = dict.values().any(|value| !parse::is_blank(value));
                if !has_settings && is_named {
                    self.warnings.push(format!("{whole}: there is no setting in it"));
                }
                self.add_file(SettingsFile { path, has_settings, stays }, &whole);
                let mut layer = Layer::new(Kind::File);
                for (key, value) in dict {
                    layer.insert(&key, shown.as_str(), value);
                }
                for (path, line) in key_lines(&text) {
                    layer.insert_place(path, place(&shown, Some(line)));
                }
                self.merge(layer);
            }
            Err(error) => {
                // Its `Display` quotes the line, which may hold a key.
                let what = error.message().trim().replace('\n', ", ");
                let line = error.span().map(|span| line_at(&text, span.start));
                self.reject_source(Source::File(place(&shown, line)), format!("is not valid TOML: {what}"));
            }
        }
    }

    /// `.env` may be another program's, or shared with one: only a line about a setting can be wrong.
    pub(super) fn dot_env(&mut self, working_dir: &Path) {
        let at = |line| Source::File(place(DOT_ENV, line));
        let path = working_dir.join(DOT_ENV);
        let Content { bytes, stays } = match text_file::read_found(&path) {
            Ok(content) => content,
            // A folder of that name is usually a virtual environment of Python.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => {
                return self.warn_if_dangling(&path, &at(None));
            }
            Err(error) => return self.warnings.push(format!("{}: not read, as {error}", at(None))),
        };
        if bytes.contains(&0) {
            return self.warnings.push(format!("{}: not read, as it is not UTF-8 text", at(None)));
        }
        // A line that is not UTF-8 may be another program's.
        let text = String::from_utf8_lossy(&bytes);
        let mut others = Vec::new();
        let mut variables = Vec::new();
        for line in dot_env::lines(text.strip_prefix('\u{feff}').unwrap_or(&text)) {
            let (number, name, value) = match line {
                Line::Variable { number, name, value } => (number, name, value),
                Line::Other { number, word } if Meaning::of(&word) == Meaning::Foreign => {
                    others.push(number);
                    continue;
                }
                Line::Other { number, word } => (number, word, Err("expected NAME=value".into())),
            };
            match value {
                Ok(value) => variables.push((name, value)),
                Err(why) if matches!(Meaning::of(&name), Meaning::Setting(_)) => {
                    self.reject_source(at(Some(number)), format!("{name} is not understood: {why}"));
                }
                // The value does not matter.
                Err(_) => variables.push((name, "?".into())),
            }
        }
        let has_settings = variables
            .iter()
            .any(|(name, value)| matches!(Meaning::of(name), Meaning::Setting(_)) && !value.is_empty());
        self.add_file(SettingsFile { path, has_settings, stays }, &at(None));
        self.variables(&variables, Kind::DotEnv, Source::DotEnv);
        if let [first, more @ ..] = others.as_slice() {
            let more = match more.len() {
                0 => String::new(),
                1 => ", nor is one more line".to_owned(),
                count => format!(", nor are {count} more lines"),
            };
            self.warnings.push(format!("{}: not read, as it is not NAME=value{more}", at(Some(*first))));
        }
    }

    /// Notes a file that was read.
    fn add_file(&mut self, file: SettingsFile, source: &Source) {
        if file.has_settings && !file.stays {
            self.warnings.push(format!(
                "{source}: it can be read only once, so upgrades will be refused; a file can be read again"
            ));
        }
        self.files.push(file);
    }

    /// Warns of a file that is not there if a link should lead to it.
    fn warn_if_dangling(&mut self, path: &Path, source: &Source) {
        if text_file::is_dangling(path) {
            self.warnings
                .push(format!("{source}: not read, as a symbolic link on the way to it leads nowhere"));
        }
    }

    pub(super) fn environment(&mut self, environment: &[(OsString, OsString)]) {
        let mut variables = Vec::new();
        for (name, text) in environment {
            // What is not UTF-8 by name is not ours.
            let Some(name) = name.to_str() else { continue };
            match text.to_str() {
                Some(text) => variables.push((name.to_owned(), text.to_owned())),
                None if matches!(Meaning::of(name), Meaning::Setting(_)) => {
                    self.reject_source(Source::Variable(name.to_owned()), "is not UTF-8".into());
                }
                None => {}
            }
        }
        self.variables(&variables, Kind::Environment, Source::Variable);
    }

    /// Merges the variables that are settings: first those without the prefix, so that the others win.
    fn variables(&mut self, variables: &[(String, String)], kind: Kind, source: fn(String) -> Source) {
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

    /// Warns of a variable with the prefix that is no setting. It is no error: other programs that build, package
    /// or deploy this one may use its name as a prefix, too.
    fn no_setting(&mut self, source: &Source) {
        self.warnings.push(format!(
            "{source}: there is no such setting, so it does nothing; `lastcall --help` lists all"
        ));
    }

    /// Merges the values of the command line.
    pub(super) fn command_line(&mut self, command_line: &[(&'static str, String)]) {
        let mut layer = Layer::new(Kind::CommandLine);
        for (key, text) in command_line {
            layer.insert(key, key.replace('_', "-"), Value::from(text.as_str()));
        }
        self.merge(layer);
    }

    /// The folder that systemd made, below every other choice.
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

    /// RUST_LOG is for all programs that are written in Rust, and may be meant for another one.
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

/// Returns a place in a file, in words.
fn place(path: &str, line: Option<usize>) -> String {
    match line {
        Some(line) => format!("{path}:{line}"),
        None => path.to_owned(),
    }
}
