//! The values of one source, as a provider for figment: it merges them and knows the source of each value
//! that wins.

use std::collections::BTreeMap;

use figment::{
    Error, Metadata, Profile, Provider,
    providers::{Format, Toml},
    value::{Dict, Map, Value},
};

use super::{
    SPECS, Source, parse,
    spec::{self, NAMESPACE},
};

/// The kind of source that a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Defaults,
    File,
    DotEnv,
    Environment,
    CommandLine,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Defaults, Self::File, Self::DotEnv, Self::Environment, Self::CommandLine];

    /// Returns the name of the provider in figment's metadata.
    fn name(self) -> &'static str {
        match self {
            Self::Defaults => "defaults",
            Self::File => "settings file",
            Self::DotEnv => ".env",
            Self::Environment => "environment",
            Self::CommandLine => "command line",
        }
    }

    /// Returns the source of a value at `place` in a layer of this kind.
    fn source(self, place: String) -> Source {
        match self {
            Self::Defaults => Source::Default,
            Self::File => Source::File(place),
            Self::DotEnv => Source::DotEnv(place),
            Self::Environment => Source::Variable(place),
            Self::CommandLine => Source::Flag(place),
        }
    }
}

/// The values of one source.
#[derive(Debug)]
pub(super) struct Layer {
    kind: Kind,
    values: Dict,
    /// The place of each value in the source: a line, a variable, a flag. The key of a value in a table has
    /// dots.
    places: BTreeMap<String, String>,
}

impl Layer {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, values: Dict::new(), places: BTreeMap::new() }
    }

    /// Returns a layer with one value.
    pub(super) fn of(kind: Kind, key: &str, place: &str, value: Value) -> Self {
        let mut layer = Self::new(kind);
        layer.insert(key, place, value);
        layer
    }

    /// Returns the default values of all settings that have one.
    pub(super) fn defaults() -> Self {
        let lines = SPECS.iter().filter_map(|spec| Some(format!("{} = {}\n", spec.key, spec.default?)));
        let text = lines.collect::<String>();
        // They are constants, and a test reads them.
        let values = Toml::from_str::<Dict>(&text).unwrap_or_default();
        Self { values, ..Self::new(Kind::Defaults) }
    }

    /// Adds a value. A later one for the same key replaces it.
    pub(super) fn insert(&mut self, key: &str, place: impl Into<String>, value: Value) {
        self.values.insert(key.to_owned(), value);
        self.places.insert(key.to_owned(), place.into());
    }

    /// Says where the value at this path is: a setting, or a part of one.
    pub(super) fn insert_place(&mut self, path: String, place: String) {
        self.places.insert(path, place);
    }

    /// Returns true if a key of this layer may be one that only a settings file has.
    pub(super) fn is_file(&self) -> bool {
        self.kind == Kind::File
    }

    /// Removes the values whose keys are no settings, and returns their keys and sources.
    pub(super) fn take_unknown(&mut self) -> Vec<(String, Source)> {
        let in_file = self.is_file();
        let is_known = |key: &String| spec::find(key).is_some() || in_file && key == NAMESPACE;
        self.take(|key, _| !is_known(key))
    }

    /// Removes the values that have nothing in them and must have, and returns their keys and sources.
    pub(super) fn take_empty(&mut self) -> Vec<(String, Source)> {
        self.take(|key, value| spec::needs_content(key) && parse::is_blank(value))
    }

    fn take(&mut self, is_wanted: impl Fn(&String, &Value) -> bool) -> Vec<(String, Source)> {
        let metadata = self.metadata();
        let (taken, kept) =
            std::mem::take(&mut self.values).into_iter().partition(|(key, value)| is_wanted(key, value));
        self.values = kept;
        let taken: Dict = taken;
        let with_source = |key: String| {
            let source = source(&metadata, &key);
            (key, source)
        };
        taken.into_keys().map(with_source).collect()
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        let places = self.places.clone();
        let place = move |keys: &[&str]| places.get(&keys.concat()).cloned().unwrap_or_default();
        Metadata::named(self.kind.name()).interpolater(move |_, keys| place(keys))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

/// Returns the source of the value of `key` that a layer with this metadata has.
pub(super) fn source(metadata: &Metadata, key: &str) -> Source {
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == metadata.name);
    let place = metadata.interpolate(&Profile::Default, &[key]);
    kind.map_or(Source::Default, |kind| kind.source(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_valid_toml() {
        let defaults = Layer::defaults();
        for spec in SPECS {
            assert_eq!(defaults.values.contains_key(spec.key), spec.default.is_some(), "{}", spec.key);
        }
    }

    #[test]
    fn the_metadata_of_a_layer_leads_back_to_the_source_of_each_value() {
        for (kind, expected) in [
            (Kind::Defaults, Source::Default),
            (Kind::File, Source::File("place".into())),
            (Kind::DotEnv, Source::DotEnv("place".into())),
            (Kind::Environment, Source::Variable("place".into())),
            (Kind::CommandLine, Source::Flag("place".into())),
        ] {
            let layer = Layer::of(kind, "port", "place", Value::from(1));
            assert_eq!(source(&layer.metadata(), "port"), expected);
        }
    }
}
