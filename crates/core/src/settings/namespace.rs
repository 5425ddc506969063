//! Settings for the channels whose names begin alike, from the `[[namespace]]` tables of the settings file.
//!
//! A variable and the command line have no tables, so these settings are in the file only, and only one file is read.
//! If there were more, figment would take the tables of the last one that has any.

use std::{collections::BTreeMap, time::Duration};

use figment::value::{Dict, Value};

use super::{
    EffectiveSetting, Problem, SPECS, SettingError, Source,
    loader::Loader,
    spec,
    text::{self, Expected},
    value,
    variable::similar,
};
use crate::{NAMESPACE_NAME_RULE, Namespace, Retention};

/// The key of the tables.
pub(super) const NAMESPACE: &str = "namespace";

/// A key that a `[[namespace]]` table may have.
#[derive(Debug, Clone, Copy)]
pub struct NamespaceSpec {
    /// The key. Except for `name`, it is one of [`SPECS`], which has the value where the namespace has none.
    pub key: &'static str,
    /// A value, as one would write it in TOML.
    pub example: &'static str,
    /// One line on what it does.
    pub help: &'static str,
}

/// Every key that a `[[namespace]]` table may have.
pub const NAMESPACE_SPECS: [NamespaceSpec; 3] = [
    NamespaceSpec {
        key: NAME,
        example: "\"chat\"",
        help: "What the channels' names have before their first colon: chat for chat:lobby",
    },
    NamespaceSpec { key: "history_size", example: "1000", help: "history_size for these channels" },
    NamespaceSpec { key: "history_ttl", example: "\"1h\"", help: "history_ttl for these channels" },
];

const NAME: &str = "name";

/// A `[[namespace]]` table as it was written.
struct Table {
    /// Counted from 0.
    index: usize,
    values: Dict,
    /// Where it begins.
    source: Source,
}

impl Table {
    /// Returns the name, if it has a right one.
    fn name(&self) -> Option<&str> {
        name(self.values.get(NAME)?).ok()
    }

    /// Returns the name by which operators are told of one of its keys.
    fn full_key(&self, key: &str) -> String {
        match self.name() {
            Some(name) => format!("{NAMESPACE}.{name}.{key}"),
            None => format!("{NAMESPACE}.{key}"),
        }
    }

    /// Returns the keys other than the name that may be in a table.
    fn setting_keys() -> impl Iterator<Item = &'static str> {
        NAMESPACE_SPECS.iter().map(|spec| spec.key).filter(|key| *key != NAME)
    }
}

impl Loader {
    /// Reads every namespace. What a namespace does not set is as for all channels.
    pub(super) fn namespaces(&mut self, general: Retention) -> Vec<Namespace> {
        let Some(tables) = self.tables() else {
            self.conflict(
                NAMESPACE,
                format!("each namespace in a table of its own, which [[{NAMESPACE}]] begins"),
            );
            return Vec::new();
        };
        self.check_names(&tables);
        let namespace = |table: &Table| {
            self.check_keys(table);
            Namespace {
                name: table.name().unwrap_or_default().to_owned(),
                // As elsewhere, the last value only matters while errors are gathered.
                retention: Retention {
                    size: self.read_key(table, "history_size", value::history_size, general.size, 1),
                    ttl: self.read_key(
                        table,
                        "history_ttl",
                        value::nonzero_duration,
                        general.ttl,
                        Duration::ZERO,
                    ),
                },
            }
        };
        tables.iter().map(namespace).collect()
    }

    /// Returns every setting of every namespace. `global` has those for all channels.
    pub(super) fn effective_namespaces(&self, global: &[EffectiveSetting]) -> Vec<EffectiveSetting> {
        let effective = |table: &Table, key: &str| {
            let full_key = table.full_key(key);
            match table.values.get(key) {
                Some(value) => {
                    let source = self.source_in(table, key);
                    Some(EffectiveSetting { key: full_key, value: text::plain(value), source })
                }
                None => {
                    let inherited = global.iter().find(|one| one.key == key)?;
                    Some(EffectiveSetting { key: full_key, ..inherited.clone() })
                }
            }
        };
        let tables = self.tables().unwrap_or_default();
        tables
            .iter()
            .flat_map(|table| Table::setting_keys().filter_map(|key| effective(table, key)))
            .collect()
    }

    /// Returns all tables; `None` if something else was written in their place.
    fn tables(&self) -> Option<Vec<Table>> {
        let Some((value, source)) = self.resolve(NAMESPACE) else { return Some(Vec::new()) };
        let table = |(index, member): (usize, &Value)| {
            let source = self.source_of(member, &format!("{NAMESPACE}.{index}")).unwrap_or(source.clone());
            Some(Table { index, values: member.as_dict()?.clone(), source })
        };
        value.as_array()?.iter().enumerate().map(table).collect()
    }

    /// Rejects names that are missing, wrong or repeated.
    fn check_names(&mut self, tables: &[Table]) {
        let mut sources = BTreeMap::new();
        for table in tables {
            let Some(value) = table.values.get(NAME) else {
                self.reject_in(
                    table,
                    NAME,
                    format!("a name, such as {NAME} = \"chat\" for the channels chat:…"),
                );
                continue;
            };
            match name(value) {
                Err(expected) => self.reject_in(table, NAME, expected),
                Ok(name) => match sources.get(name) {
                    Some(first) => {
                        let expected =
                            format!("a name that no other namespace has; that at {first} has it, too");
                        self.reject_in(table, NAME, expected);
                    }
                    None => {
                        sources.insert(name, &table.source);
                    }
                },
            }
        }
    }

    /// Rejects unknown keys, and a table without any setting.
    fn check_keys(&mut self, table: &Table) {
        let known = || NAMESPACE_SPECS.iter().map(|spec| spec.key);
        for key in table.values.keys().filter(|key| known().all(|known| known != **key)) {
            let advice = if SPECS.iter().any(|spec| spec.key == key) {
                format!("a namespace has none of this name: write {key} above the first [[{NAMESPACE}]]")
            } else if let Some(nearest) = similar(key, known()) {
                format!("did you mean {nearest}?")
            } else {
                format!("a namespace has {}", known().collect::<Vec<_>>().join(", "))
            };
            let (key, source) = (table.full_key(key), self.source_in(table, key));
            self.errors.push(SettingError { key, source, problem: Problem::Unknown { advice } });
        }
        if table.values.keys().all(|key| key == NAME) {
            let keys = Table::setting_keys().collect::<Vec<_>>().join(" or ");
            let expected = format!("a setting for these channels, {keys}, and not the name alone");
            self.errors.push(SettingError {
                key: table.name().map_or(NAMESPACE.to_owned(), |name| format!("{NAMESPACE}.{name}")),
                source: table.source.clone(),
                problem: Problem::Invalid { value: None, expected },
            });
        }
    }

    /// Reads one setting of a namespace. Returns `inherited` if it is not set, and `fallback` if its value is wrong and
    /// so rejected.
    fn read_key<T>(
        &mut self,
        table: &Table,
        key: &str,
        read: fn(&Value) -> Result<T, Expected>,
        inherited: T,
        fallback: T,
    ) -> T {
        let Some(value) = table.values.get(key) else { return inherited };
        if spec::needs_content(key) && text::is_blank(value) {
            let (key, source) = (table.full_key(key), self.source_in(table, key));
            self.errors.push(SettingError { key, source, problem: Problem::Empty });
            return fallback;
        }
        text::check(value).and_then(|()| read(value)).unwrap_or_else(|expected| {
            self.reject_in(table, key, expected);
            fallback
        })
    }

    /// Rejects the value of a key, or that there is none.
    fn reject_in(&mut self, table: &Table, key: &str, expected: Expected) {
        let (full_key, source) = (table.full_key(key), self.source_in(table, key));
        let value = table.values.get(key).map(text::display);
        self.errors.push(SettingError {
            key: full_key,
            source,
            problem: Problem::Invalid { value, expected },
        });
    }

    /// Returns the source of a key, or that of the table if it has no such key.
    fn source_in(&self, table: &Table, key: &str) -> Source {
        let value = table.values.get(key);
        let source =
            value.and_then(|value| self.source_of(value, &format!("{NAMESPACE}.{}.{key}", table.index)));
        source.unwrap_or_else(|| table.source.clone())
    }
}

/// Reads a name.
fn name(value: &Value) -> Result<&str, Expected> {
    let name = value.as_str().filter(|name| Namespace::is_name(name));
    name.ok_or_else(|| format!("{NAMESPACE_NAME_RULE}, such as \"chat\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_of_a_namespace_is_a_setting_for_all_channels_too() {
        for key in Table::setting_keys() {
            assert!(SPECS.iter().any(|spec| spec.key == key), "{key}");
        }
    }
}
