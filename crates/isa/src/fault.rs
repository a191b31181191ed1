//! Why an address has no translation.

use nephoscope_guest::{Gpa, Gva};
use thiserror::Error;

/// The guest's tables say no. Copied and counted, not logged: a guest can raise millions.
///
/// `level` counts from the leaf as the manuals do: 1 is the last level (x86 PT, AArch64 level 3), then upwards.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Error)]
#[non_exhaustive]
pub enum Fault {
    /// The mode has no such address (not canonical, or above 4 GiB in a 32-bit mode).
    #[error("{va} is no address in this paging mode")]
    NoSuchAddress {
        /// The address asked for.
        va: Gva,
    },
    /// An entry on the way is not present.
    #[error("the level {level} entry at {at} is not present")]
    NotPresent {
        /// Where in the walk.
        level: u8,
        /// The entry.
        at: Gpa,
    },
    /// An entry on the way sets bits that must be zero, or names an address above MAXPHYADDR.
    #[error("the level {level} entry at {at} sets reserved bits")]
    Reserved {
        /// Where in the walk.
        level: u8,
        /// The entry.
        at: Gpa,
    },
    /// An entry on the way does not lie in readable memory.
    #[error("the level {level} entry at {at} cannot be read")]
    Unreadable {
        /// Where in the walk.
        level: u8,
        /// The first byte that could not be read.
        at: Gpa,
    },
}
