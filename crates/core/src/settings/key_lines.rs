//! On which line of a TOML file each key is.

use std::collections::BTreeMap;

use toml_edit::{ArrayOfTables, ImDocument, Item, TableLike, Value};

/// Returns the line of each key of a TOML file, counted from 1. A key in a table comes after the key of the table, with
/// a dot between them; for a list, the number of the member, counted from 0, is a key: `namespace.0.name`.
pub(super) fn key_lines(text: &str) -> BTreeMap<String, usize> {
    let mut lines = KeyLines { text, lines: BTreeMap::new() };
    // figment's provider has no places; it has read the same text with the same parser.
    if let Ok(document) = ImDocument::parse(text) {
        lines.add_table("", document.as_table());
    }
    lines.lines
}

/// Returns the line that the byte at `index` is on, counted from 1.
pub(super) fn line_at(text: &str, index: usize) -> usize {
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
