//! Looking at memory from time to time: a running VM's, or a dump's.

mod pass;
mod progress;
mod source;

pub(crate) use pass::Scan;
pub(crate) use progress::Progress;
pub(crate) use source::{Source, What};
