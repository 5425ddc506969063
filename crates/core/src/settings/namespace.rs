//! Settings for the channels whose names begin alike, from the `[[namespace]]` tables of the settings file.
//!
//! A variable and the command line have no tables, so these settings are in the file only, and only one file
//! is read. If there were more, figment would take the tables of the last one that has any.

use std::{
    collections::btree_map::{BTreeMap, Entry},
    time::Duration,
};

use figment::value::{Dict, Value};

use super::{
    EffectiveSetting, Source,
    loader::Loader,
    parse::{self, Expected, parse_history_size, parse_nonzero_duration},
    spec::{self, NAMESPACE, NAMESPACE_NAME, similar},
};
use crate::{NAMESPACE_NAME_RULE, Namespace, Retention};

/// A `[[namespace]]` table as it was written.
struct Table {
    /// Counted from 0.
    index: usize,
    values: Dict,
    /// The place where it begins.
    source: Source,
}

impl Table {
    /// Returns the name, if it has a right one.
    fn name(&self) -> Option<&str> {
        parse_name(self.values.get(NAMESPACE_NAME)?).ok()
    }

    /// Returns the name by which operators are told of one of its keys.
    fn full_key(&self, key: &str) -> String {
        match self.name() {
            Some(name) => format!("{NAMESPACE}.{name}.{key}"),
            None => format!("{NAMESPACE}.{key}"),
        }
    }
}

impl Loader {
    /// Reads every namespace. What a namespace does not set is as for all channels.
    pub(super) fn namespaces(&mut self, general: Retention) -> Vec<Namespace> {
        let Ok(tables) = self.tables() else {
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
                // As elsewhere, the value after the general one only matters while errors are gathered.
                retention: Retention {
                    size: self.read_in(table, "history_size", general.size, 1, parse_history_size),
                    ttl: self.read_in(
                        table,
                        "history_ttl",
                        general.ttl,
                        Duration::ZERO,
                        parse_nonzero_duration,
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
                    Some(EffectiveSetting { key: full_key, value: parse::plain(value), source })
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
            .flat_map(|table| spec::namespace_keys().filter_map(|key| effective(table, key)))
            .collect()
    }

    /// Returns all tables.
    ///
    /// # Errors
    /// When something else was written in their place.
    fn tables(&self) -> Result<Vec<Table>, NoTables> {
        let Some((value, source)) = self.resolve(NAMESPACE) else { return Ok(Vec::new()) };
        let table = |(index, member): (usize, &Value)| {
            let source = self.source_of(member, &format!("{NAMESPACE}.{index}")).unwrap_or(source.clone());
            Ok(Table { index, values: member.as_dict().ok_or(NoTables)?.clone(), source })
        };
        value.as_array().ok_or(NoTables)?.iter().enumerate().map(table).collect()
    }

    /// Rejects names that are missing, wrong or repeated.
    fn check_names(&mut self, tables: &[Table]) {
        let mut sources = BTreeMap::new();
        for table in tables {
            let value = table.values.get(NAMESPACE_NAME);
            let expected = match value.map(parse_name) {
                None => {
                    format!("a name, such as {NAMESPACE_NAME} = \"chat\" for the channels chat:…")
                }
                Some(Err(expected)) => expected,
                Some(Ok(name)) => match sources.entry(name) {
                    Entry::Vacant(entry) => {
                        entry.insert(&table.source);
                        continue;
                    }
                    Entry::Occupied(first) => {
                        format!("a name that no other namespace has; that at {} has it, too", first.get())
                    }
                },
            };
            let source = self.source_in(table, NAMESPACE_NAME);
            self.reject(&table.full_key(NAMESPACE_NAME), value, source, expected);
        }
    }

    /// Rejects unknown keys, and a table without any setting.
    fn check_keys(&mut self, table: &Table) {
        let known = || [NAMESPACE_NAME].into_iter().chain(spec::namespace_keys());
        for key in table.values.keys().filter(|key| known().all(|known| known != **key)) {
            let advice = if spec::find(key).is_some() {
                format!("a namespace has none of this name: write {key} above the first [[{NAMESPACE}]]")
            } else if let Some(nearest) = similar(key, known()) {
                format!("did you mean {nearest}?")
            } else {
                format!("a namespace has {}", known().collect::<Vec<_>>().join(", "))
            };
            self.reject_unknown(table.full_key(key), self.source_in(table, key), advice);
        }
        if table.values.keys().all(|key| key == NAMESPACE_NAME) {
            let key = table.name().map_or(NAMESPACE.to_owned(), |name| format!("{NAMESPACE}.{name}"));
            let keys = spec::namespace_keys().collect::<Vec<_>>().join(" or ");
            let expected = format!("a setting for these channels, {keys}, and not the name alone");
            self.reject(&key, None, table.source.clone(), expected);
        }
    }

    /// Reads one setting of a namespace. Returns `general` if it is not set, and `fallback` if it is wrong
    /// and so rejected.
    fn read_in<T>(
        &mut self,
        table: &Table,
        key: &str,
        general: T,
        fallback: T,
        parse: fn(&Value) -> Result<T, Expected>,
    ) -> T {
        match table.values.get(key) {
            Some(value) => {
                let source = self.source_in(table, key);
                self.parse(&table.full_key(key), value, source, fallback, parse)
            }
            None => general,
        }
    }

    /// Returns the source of a key, or that of the table if it has no such key.
    fn source_in(&self, table: &Table, key: &str) -> Source {
        let value = table.values.get(key);
        let source =
            value.and_then(|value| self.source_of(value, &format!("{NAMESPACE}.{}.{key}", table.index)));
        source.unwrap_or_else(|| table.source.clone())
    }
}

/// Something other than a list of tables was written.
struct NoTables;

/// Returns a namespace's name.
fn parse_name(value: &Value) -> Result<&str, Expected> {
    let name = value.as_str().filter(|name| Namespace::is_name(name));
    name.ok_or_else(|| format!("{NAMESPACE_NAME_RULE}, such as \"chat\""))
}
