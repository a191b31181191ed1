//! Text for terminals: whatever a guest, a package or a peer had a say in is escaped, everything fits its columns, and
//! colour is used only where somebody sees it.

mod escape;
mod output;
mod style;
mod table;
mod units;
mod width;

pub(crate) use escape::{escape, escape_lines};
pub(crate) use output::{Closed, print, print_json, width as output_width};
pub(crate) use style::{Paint, Tone};
pub(crate) use table::{Cell, Column, Table};
pub(crate) use units::{age, bytes, count, plural, seconds};
#[cfg(fuzzing)]
pub(crate) use width::width as shown_width;
#[cfg(test)]
pub(crate) use width::width;
pub(crate) use width::{alternatives, fit_end, wrap};
