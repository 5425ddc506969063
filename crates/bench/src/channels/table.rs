//! The figures as a table.

use std::fmt::Write as _;

use super::Figures;
use crate::compare::{number, spread};

/// Returns a Markdown table: the median, the least and the most of each figure.
pub(super) fn markdown(figures: &Figures) -> Result<String, std::fmt::Error> {
    let mut text = String::from("| figure | median | least – most |\n|---|---|---|\n");
    for (name, values) in figures {
        let [median, least, most] = spread(values).map(number);
        writeln!(text, "| {name} | {median} | {least} – {most} |")?;
    }
    Ok(text)
}
