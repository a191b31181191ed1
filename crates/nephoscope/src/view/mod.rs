//! Reports in words, for `ps`, `top`, `findings` and `why`. Everything that leaves this module is escaped.

mod candidates;
mod coverage;
mod ended;
mod files;
mod findings;
mod spaces;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use candidates::alternatives;
pub(crate) use coverage::{gaps, headline, watched_ns};
pub(crate) use ended::{ended_table, summarised};
pub(crate) use files::{file_table, files_missing};
pub(crate) use findings::{line, plain_line, severity_tone, tally};
pub(crate) use spaces::{
    Row, active_table, module_table, page_table, rows, space_name, space_table, vm_line,
};
