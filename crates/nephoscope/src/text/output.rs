//! Standard output that may be closed at any time: `nephoscope ps | head`.

use std::fmt;
use std::io::{ErrorKind, IsTerminal, Write};

use anyhow::Context;
use serde::Serialize;

use super::escape::escape_json;

/// Nobody reads any more: the program ends, and that is no error.
#[derive(Debug)]
pub(crate) struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output is closed")
    }
}

impl std::error::Error for Closed {}

/// Writes text to standard output, at once.
///
/// # Errors
/// [`Closed`] if nobody reads it any more.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(anyhow::Error::new(Closed)),
        other => other.context("writing to standard output"),
    }
}

/// Writes one line of JSON to standard output. On a terminal, what it would obey or hide is written as JSON escapes.
///
/// # Errors
/// [`Closed`] if nobody reads it any more.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut json = serde_json::to_string(value).context("writing JSON")?;
    if std::io::stdout().is_terminal() {
        json = escape_json(&json).into_owned();
    }
    json.push('\n');
    print(&json)
}

/// Columns of a pipe.
const COLUMNS: u16 = 100;
/// The most that lines grow to: longer ones are hard to follow.
const MOST_COLUMNS: u16 = 160;
/// The least that tables are laid out for; a narrower terminal wraps them.
const LEAST_COLUMNS: u16 = 80;

/// Columns to fill on standard output.
#[must_use]
pub(crate) fn width() -> usize {
    let columns = if std::io::stdout().is_terminal() {
        crossterm::terminal::size().map_or(COLUMNS, |(columns, _)| columns)
    } else {
        COLUMNS
    };
    usize::from(columns.clamp(LEAST_COLUMNS, MOST_COLUMNS))
}
