//! Disks that are served here, so that every transfer is seen.

mod command_line;
mod memory;
mod options;
mod servers;

pub(crate) use command_line::{Disk, Rewritten, rewrite};
pub(crate) use servers::Servers;
