//! Standard output that may be closed at any time: `nephoscope ps | head`.

use std::fmt;
use std::io::{ErrorKind, IsTerminal, Write};

use anyhow::Context;

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

/// Columns of a pipe.
const COLUMNS: u16 = 100;
/// The most that lines grow to: longer ones are hard to follow.
const MAX_COLUMNS: u16 = 160;
/// The least that tables are laid out for; a narrower terminal wraps them.
const MIN_COLUMNS: u16 = 80;

/// Columns to fill on standard output.
#[must_use]
pub(crate) fn width() -> usize {
    let columns = if std::io::stdout().is_terminal() {
        crossterm::terminal::size().map_or(COLUMNS, |(columns, _)| columns)
    } else {
        COLUMNS
    };
    usize::from(columns.clamp(MIN_COLUMNS, MAX_COLUMNS))
}
