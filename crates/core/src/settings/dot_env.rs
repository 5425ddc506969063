//! The `.env` file.
//!
//! There is no standard for `.env`: shells, Docker, systemd and the libraries of each language differ in what
//! `$`, `\` and quotes inside of a value mean. Only what all of them read alike is understood here: a bare
//! word, or a value in quotes on one line. Another line is only wrong if it is about a setting, as the file
//! may be shared with other programs.

use std::{io::ErrorKind, path::Path};

use super::{
    SettingsFile, Source,
    environment::{Meaning, is_setting},
    layer::Kind,
    loader::Loader,
    settings_file::place,
    text_file::{self, Content},
};

/// Variables that are read from a file.
const DOT_ENV: &str = ".env";

impl Loader {
    /// Reads `.env`. It may be another program's, or shared with one: only a line about a setting can be
    /// wrong.
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
        for line in lines(text.strip_prefix('\u{feff}').unwrap_or(&text)) {
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
                Err(why) if is_setting(&name) => {
                    self.reject_source(at(Some(number)), format!("{name} is not understood: {why}"));
                }
                // The value does not matter.
                Err(_) => variables.push((name, "?".into())),
            }
        }
        let has_settings = variables.iter().any(|(name, value)| is_setting(name) && !value.is_empty());
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
}

/// A line that is neither empty nor a comment.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// `NAME=value`, perhaps with `export` before it.
    Variable {
        /// Counted from 1.
        number: usize,
        name: String,
        /// The value, or why it is not understood.
        value: Result<String, String>,
    },
    /// Anything else.
    Other {
        /// Counted from 1.
        number: usize,
        /// The word that it begins with; may be empty.
        word: String,
    },
}

/// Returns all lines of a file.
fn lines(text: &str) -> Vec<Line> {
    let lines = (1..).zip(text.lines().map(str::trim));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let read = |(number, line): (usize, &str)| {
        let (word, rest) = split_name(line.strip_prefix("export ").map_or(line, str::trim_start));
        match rest.trim_start().strip_prefix('=') {
            Some(value) if !word.is_empty() => {
                Line::Variable { number, name: word.to_owned(), value: read(value.trim_start()) }
            }
            _ => Line::Other { number, word: word.to_owned() },
        }
    };
    lines.map(read).collect()
}

/// Returns the name that a line begins with, as in a shell, and what follows it.
fn split_name(line: &str) -> (&str, &str) {
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'));
    line.split_at(end.unwrap_or(line.len()))
}

fn read(text: &str) -> Result<String, String> {
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Err("it is not UTF-8".into());
    }
    const QUOTE: &str = "put the whole value in single quotes: NAME='value'";
    let special = |text: &str, marks: &[char]| text.chars().find(|c| marks.contains(c));
    match text.chars().next() {
        Some(quote @ ('"' | '\'')) => {
            let (value, rest) = text[1..].split_once(quote).ok_or_else(|| {
                format!("its value begins with {quote} and does not end with it on that line")
            })?;
            if !rest.is_empty() && !rest.trim_start().starts_with('#') {
                return Err(format!("more follows after the closing {quote}"));
            }
            match special(value, &['$', '\\', '`']).filter(|_| quote == '"') {
                Some(c) => Err(format!("{c} has more than one meaning in double quotes; {QUOTE}")),
                None => Ok(value.to_owned()),
            }
        }
        _ => {
            // A # is a comment's only after a space.
            let value = match text.char_indices().find(|&(index, c)| {
                c == '#' && text[..index].chars().next_back().is_none_or(char::is_whitespace)
            }) {
                Some((index, _)) => text[..index].trim_end(),
                None => text,
            };
            match special(value, &['$', '\\', '`', '"', '\'']) {
                Some(c) => Err(format!("{c} has more than one meaning outside of single quotes; {QUOTE}")),
                None if value.contains(char::is_whitespace) => {
                    Err(format!("its value has a space and no quotes; {QUOTE}"))
                }
                None => Ok(value.to_owned()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the value of a file's only line.
    fn value(line: &str) -> Result<String, String> {
        match lines(line).pop() {
            Some(Line::Variable { value, .. }) => value,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn a_value_is_taken_as_written() {
        for (line, meant) in [
            ("A=b", "b"),
            ("  A = b  ", "b"),
            ("export A=b", "b"),
            ("export  A='b'", "b"),
            ("A=b\r", "b"),
            ("A=", ""),
            ("A= # a comment", ""),
            ("A=b # a comment", "b"),
            ("A=b#c", "b#c"),
            ("A='b # c' # a comment", "b # c"),
            ("A=\"b c\"", "b c"),
            ("A='b c'", "b c"),
            ("A='a$b\\c`d\"e'", "a$b\\c`d\"e"),
            ("A=\"it's\"", "it's"),
            ("A=a=b==", "a=b=="),
            ("export=b", "b"),
        ] {
            assert_eq!(value(line).as_deref(), Ok(meant), "{line}");
        }
    }

    #[test]
    fn a_value_with_more_than_one_meaning_is_not_understood() {
        for (line, why) in [
            ("A=a$b", "$ has more than one meaning"),
            ("A=${b}", "$ has"),
            ("A=a$", "$ has"),
            ("A=\"a$b\"", "$ has more than one meaning in double quotes"),
            ("A=a\\$b", "\\ has"),
            ("A=\"a\\nb\"", "\\ has"),
            ("A=`b`", "` has"),
            ("A=\"`b`\"", "` has"),
            ("A=it's", "' has"),
            ("A=[\"b\"]", "\" has"),
            ("A=b c", "has a space and no quotes"),
            ("A=\"b", "does not end with it on that line"),
            ("A=b\u{fffd}", "it is not UTF-8"),
            ("A='b' 'c'", "more follows after the closing '"),
            ("A='b'c", "more follows"),
            ("A=\"\"b\"\"", "more follows"),
        ] {
            let error = value(line).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn a_line_is_read_by_itself() {
        let found = lines("A='one\nB=2\n# comment\n\nC=it's\nD: 4\n= 5\n");
        let names: Vec<_> = found
            .iter()
            .map(|line| match line {
                Line::Variable { name, .. } => name.as_str(),
                Line::Other { word, .. } => word.as_str(),
            })
            .collect();
        assert_eq!(names, ["A", "B", "C", "D", ""]);
        assert_eq!(found[1], Line::Variable { number: 2, name: "B".into(), value: Ok("2".into()) });
        assert_eq!(lines("D: 4"), [Line::Other { number: 1, word: "D".into() }]);
    }
}
