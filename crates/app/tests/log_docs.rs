//! docs/operations.md and the log lines in the source agree: every field is listed there, and every line that
//! is a warning or an error.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{collections::BTreeSet, fs, path::Path};

const DOCS: &str = include_str!("../../../docs/operations.md");

/// The crate whose lines no operator of the server sees.
const BENCH: &str = "bench";

/// One call of a macro of `tracing`.
#[derive(Debug)]
struct Line {
    level: String,
    fields: Vec<String>,
    /// With `…` in place of what is only known when it is logged.
    message: String,
}

/// Returns the rows of the tables of a section, by their cells.
fn rows(section: &str) -> Vec<Vec<&'static str>> {
    let (_, rest) = DOCS.split_once(&format!("\n## {section}\n")).unwrap();
    let rows = rest.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with("| "));
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// Returns what a cell has in backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            sources(&path, found);
        } else if name.ends_with(".rs") && name != "tests.rs" && !name.ends_with("_tests.rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push(text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned());
        }
    }
}

/// Returns the arguments of a call, from behind its parenthesis on: what is before its first string, and that
/// string.
fn arguments(text: &str) -> Option<(&str, &str)> {
    let (mut depth, mut start) = (0, None);
    let mut previous = ' ';
    for (at, c) in text.char_indices() {
        match (c, start) {
            ('"', None) if depth == 0 => start = Some(at + 1),
            ('"', Some(start)) if previous != '\\' => return Some((&text[..start - 1], &text[start..at])),
            ('(' | '[' | '{', None) => depth += 1,
            (')' | ']' | '}', None) if depth == 0 => return None,
            (')' | ']' | '}', None) => depth -= 1,
            _ => {}
        }
        previous = c;
    }
    None
}

/// Returns the names of the fields in front of a message: `name = value`, `%name`, `?name` or `name`.
fn fields(text: &str) -> Vec<String> {
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for c in text.chars() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => parts.push(String::new()),
            c => parts.last_mut().unwrap().push(c),
        }
    }
    let name = |part: &String| {
        let part = part.trim().trim_start_matches(['%', '?']);
        let end = part.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(part.len());
        part[..end].to_owned()
    };
    parts.iter().map(name).filter(|name| !name.is_empty()).collect()
}

/// Returns a message as the documentation has it.
fn normalized(literal: &str) -> String {
    let one_line: Vec<_> = literal.split("\\\n").map(str::trim_start).collect();
    let mut rest = one_line.concat();
    let mut message = String::new();
    while let Some((before, after)) = rest.split_once('{') {
        message += before;
        message += "…";
        rest = after.split_once('}').unwrap().1.to_owned();
    }
    (message + &rest).replace("… …", "…")
}

fn lines() -> Vec<Line> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut texts = Vec::new();
    for folder in fs::read_dir(crates).unwrap().map(|entry| entry.unwrap()) {
        if folder.file_name() != BENCH {
            sources(&folder.path().join("src"), &mut texts);
        }
    }
    let mut lines = Vec::new();
    for text in texts {
        for level in ["trace", "debug", "info", "warn", "error", "$level"] {
            for (at, call) in text.match_indices(&format!("{level}!(")) {
                let is_word = text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$');
                let Some((before, literal)) = arguments(&text[at + call.len()..]) else { continue };
                if !is_word {
                    lines.push(Line {
                        level: level.to_owned(),
                        fields: fields(before),
                        message: normalized(literal),
                    });
                }
            }
        }
    }
    assert!(lines.len() > 70, "only {} lines were found", lines.len());
    lines
}

#[test]
fn every_field_is_documented_once_and_no_other() {
    let logged: BTreeSet<_> = lines().into_iter().flat_map(|line| line.fields).collect();
    let rows = rows("The log");
    let table = rows.iter().skip_while(|row| row[0] != "field").skip(1);
    let listed: Vec<_> = table.flat_map(|row| quoted(row[0])).map(str::to_owned).collect();
    let unique: BTreeSet<_> = listed.iter().cloned().collect();
    assert_eq!(unique.len(), listed.len(), "a field is listed twice: {listed:?}");
    assert_eq!(unique, logged);
}

#[test]
fn every_warning_and_error_is_documented_and_every_message_that_is_documented_is_there() {
    let lines = lines();
    let begins = |start: &str, message: &str| message.starts_with(start.trim_end());
    let alerts = rows("What to alert on");
    let alerts: Vec<_> = alerts.iter().filter(|row| ["ERROR", "WARN"].contains(&row[0])).collect();
    for row in &alerts {
        for start in quoted(row[1]) {
            // A cause may stand where the source has only a place for it.
            let start = start.split("; the server").next().unwrap();
            assert!(lines.iter().any(|line| begins(start, &line.message)), "no line begins with {start:?}");
        }
    }
    let mut starts = alerts.iter().flat_map(|row| quoted(row[1])).collect::<Vec<_>>();
    starts.extend(["the upgrade failed; "]);
    for line in lines.iter().filter(|line| ["warn", "error"].contains(&line.level.as_str())) {
        let is_listed = line.message == "…" || starts.iter().any(|start| begins(start, &line.message));
        assert!(is_listed, "docs/operations.md does not list {line:?}");
    }
    let rows = rows("The log");
    let ordinary = rows.iter().skip(1).take_while(|row| row[0] != "field").flat_map(|row| quoted(row[0]));
    for start in ordinary {
        assert!(lines.iter().any(|line| begins(start, &line.message)), "no line begins with {start:?}");
    }
}
