//! The output of the commands.

use std::io::{self, Write};

use anyhow::Context;

/// Prints a line to stdout.
///
/// # Errors
/// When stdout takes nothing.
pub(super) fn print_line(line: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}").context("cannot write to stdout")
}
