//! The settings file: its values, with the line of each.

use std::{collections::BTreeMap, io::ErrorKind, path::Path};

use figment::{
    providers::{Format, Toml},
    value::Dict,
};
use toml_edit::{ArrayOfTables, ImDocument, Item, TableLike, Value};

use super::{
    SettingsFile, Source, Sources,
    layer::{Kind, Layer},
    loader::Loader,
    parse,
    text_file::{self, Content},
};

/// The file that is read when no other is named, if it is there.
pub(super) const CONFIG_FILE: &str = "config/lastcall.toml";

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
        let Ok(text) = text_file::decode(bytes) else {
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

    /// Notes a file that was read.
    pub(super) fn add_file(&mut self, file: SettingsFile, source: &Source) {
        if file.has_settings && !file.stays {
            self.warnings.push(format!(
                "{source}: it can be read only once, so upgrades will be refused; a file can be read again"
            ));
        }
        self.files.push(file);
    }

    /// Warns of a file that is not there if a link should lead to it.
    pub(super) fn warn_if_dangling(&mut self, path: &Path, source: &Source) {
        if text_file::is_dangling(path) {
            self.warnings
                .push(format!("{source}: not read, as a symbolic link on the way to it leads nowhere"));
        }
    }
}

/// Returns a place in a file, in words.
pub(super) fn place(path: &str, line: Option<usize>) -> String {
    match line {
        Some(line) => format!("{path}:{line}"),
        None => path.to_owned(),
    }
}

/// Returns the line of each key of a TOML file, counted from 1. A key in a table comes after the key of the
/// table, with a dot between them; for a list, the number of the member, counted from 0, is a key:
/// `namespace.0.name`.
fn key_lines(text: &str) -> BTreeMap<String, usize> {
    let mut lines = KeyLines { text, lines: BTreeMap::new() };
    // figment's provider has no places; it has read the same text with the same parser.
    if let Ok(document) = ImDocument::parse(text) {
        lines.add_table("", document.as_table());
    }
    lines.lines
}

/// Returns the line that the byte at `index` is on, counted from 1.
fn line_at(text: &str, index: usize) -> usize {
    text.bytes().take(index).filter(|byte| *byte == b'\n').count() + 1
}

struct KeyLines<'a> {
    text: &'a str,
    lines: BTreeMap<String, usize>,
}

impl KeyLines<'_> {
    fn add_table(&mut self, path: &str, table: &dyn TableLike) {
        for (name, item) in table.iter() {
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            if let Some(span) = table.key(name).and_then(|key| key.span()) {
                self.lines.insert(path.clone(), line_at(self.text, span.start));
            }
            self.add_item(&path, item);
        }
    }

    fn add_item(&mut self, path: &str, item: &Item) {
        match item {
            Item::ArrayOfTables(tables) => self.add_tables(path, tables),
            Item::Value(Value::Array(members)) => {
                for (index, table) in
                    members.iter().enumerate().filter_map(|(i, v)| Some((i, v.as_inline_table()?)))
                {
                    self.add_member(&format!("{path}.{index}"), table.span(), table);
                }
            }
            item => {
                if let Some(table) = item.as_table_like() {
                    self.add_table(path, table);
                }
            }
        }
    }

    fn add_tables(&mut self, path: &str, tables: &ArrayOfTables) {
        for (index, table) in tables.iter().enumerate() {
            self.add_member(&format!("{path}.{index}"), table.span(), table);
        }
    }

    fn add_member(&mut self, path: &str, span: Option<std::ops::Range<usize>>, table: &dyn TableLike) {
        if let Some(span) = span {
            self.lines.insert(path.to_owned(), line_at(self.text, span.start));
        }
        self.add_table(path, table);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_line_in_every_form_of_toml() {
        let text = "# a comment\nport = 1\n'host' = \"\"\"\nport = 2\n\"\"\"\na.b = 1\nlist = [\n  { x = 1 }, 2,\n\n  \
                    { y = 1 },\n]\n\n[table.inner]\nkey = 1\n\n[[rule]]\n# another\nname = 'a'\n[[ rule ]]\n\
                    size = 1\n";
        let lines = key_lines(text);
        let lines: Vec<_> = lines.iter().map(|(path, line)| (path.as_str(), *line)).collect();
        assert_eq!(
            lines,
            [
                ("a", 6),
                ("a.b", 6),
                ("host", 3),
                ("list", 7),
                ("list.0", 8),
                ("list.0.x", 8),
                ("list.2", 10),
                ("list.2.y", 10),
                ("port", 2),
                ("rule", 16),
                ("rule.0", 16),
                ("rule.0.name", 18),
                ("rule.1", 19),
                ("rule.1.size", 20),
                ("table", 13),
                ("table.inner", 13),
                ("table.inner.key", 14),
            ]
        );
    }
}
