//! Merges the values of all sources, reads each value that wins, and collects every error.

use figment::{Figment, value::Value};

use super::{
    Problem, SettingError, SettingsFile, Source,
    layer::{self, Kind, Layer},
    parse::{self, Expected, display},
    spec::{self, NAMESPACE, similar},
};

/// Merges values, and collects errors.
pub(super) struct Loader {
    figment: Figment,
    pub(super) errors: Vec<SettingError>,
    pub(super) warnings: Vec<String>,
    /// The files that were read.
    pub(super) files: Vec<SettingsFile>,
}

impl Loader {
    /// Returns a loader that has the defaults only.
    pub(super) fn new() -> Self {
        Self {
            figment: Figment::from(Layer::defaults()),
            errors: Vec::new(),
            warnings: Vec::new(),
            files: Vec::new(),
        }
    }

    /// Merges the values of a source, which win over those that were merged before. Rejects unknown settings,
    /// and those that must not be empty, also where another source would win.
    pub(super) fn merge(&mut self, mut layer: Layer) {
        for (key, source) in layer.take_unknown() {
            let in_file = layer.is_file().then_some(NAMESPACE);
            let keys = spec::keys().chain(in_file);
            let advice = match similar(&key, keys) {
                Some(nearest) => format!("did you mean {nearest}?"),
                None => "`lastcall --help` lists all".to_owned(),
            };
            self.reject_unknown(key, source, advice);
        }
        for (key, source) in layer.take_empty() {
            self.errors.push(SettingError { key, source, problem: Problem::Empty });
        }
        let figment = std::mem::take(&mut self.figment);
        self.figment = figment.merge(layer);
    }

    /// Merges the values of the command line.
    pub(super) fn command_line(&mut self, command_line: &[(&'static str, String)]) {
        let mut layer = Layer::new(Kind::CommandLine);
        for (key, text) in command_line {
            layer.insert(key, key.replace('_', "-"), Value::from(text.as_str()));
        }
        self.merge(layer);
    }

    /// Returns the value that wins, and its source; `None` if there is no value and no default.
    pub(super) fn resolve(&self, key: &str) -> Option<(Value, Source)> {
        let value = self.figment.find_value(key).ok()?;
        let source = self.source_of(&value, key)?;
        Some((value, source))
    }

    /// Returns the source of a value that is at `path`: a setting, or a part of one.
    pub(super) fn source_of(&self, value: &Value, path: &str) -> Option<Source> {
        self.figment.get_metadata(value.tag()).map(|metadata| layer::source(metadata, path))
    }

    /// Returns the source of the value that wins.
    pub(super) fn source(&self, key: &str) -> Source {
        self.resolve(key).map_or(Source::Default, |(_, source)| source)
    }

    /// Reads one setting with `read`. Returns `fallback` if there is no value, or a wrong one, which is
    /// rejected.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        fallback: T,
        read: impl FnOnce(&Value) -> Result<T, Expected>,
    ) -> T {
        match self.resolve(key) {
            Some((value, source)) => self.parse(key, &value, source, fallback, read),
            None => fallback,
        }
    }

    /// Parses a value. Returns `fallback` if it is wrong, and rejects it as that of `key`.
    pub(super) fn parse<T>(
        &mut self,
        key: &str,
        value: &Value,
        source: Source,
        fallback: T,
        parse: impl FnOnce(&Value) -> Result<T, Expected>,
    ) -> T {
        parse::check(value).and_then(|()| parse(value)).unwrap_or_else(|expected| {
            self.reject(key, Some(value), source, expected);
            fallback
        })
    }

    /// Rejects the value of a setting that does not fit to another setting.
    pub(super) fn conflict(&mut self, key: &str, expected: Expected) {
        match self.resolve(key) {
            Some((value, source)) => self.reject(key, Some(&value), source, expected),
            None => self.reject(key, None, Source::Default, expected),
        }
    }

    /// Rejects a source as a whole, or a part of it that is no setting.
    pub(super) fn reject_source(&mut self, source: Source, what: String) {
        self.errors.push(SettingError { key: String::new(), source, problem: Problem::File(what) });
    }

    /// Rejects a key that there is not.
    pub(super) fn reject_unknown(&mut self, key: String, source: Source, advice: String) {
        self.errors.push(SettingError { key, source, problem: Problem::Unknown { advice } });
    }

    /// Rejects a value, or that there is none.
    pub(super) fn reject(&mut self, key: &str, value: Option<&Value>, source: Source, expected: Expected) {
        let is_secret = spec::find(key).is_some_and(|spec| spec.secret);
        let value = value.filter(|_| !is_secret).map(display);
        self.errors.push(SettingError {
            key: key.into(),
            source,
            problem: Problem::Invalid { value, expected },
        });
    }
}
