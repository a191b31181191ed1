//! What can go wrong, and what to do about it.

use std::io;
use std::path::PathBuf;

/// A catalog could not be opened. Each message is one line that says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is nothing at this place.
    #[error("no catalog at {}: make one with `nephoscope catalog add --catalog {} PATH…`", .0.display(), .0.display())]
    Missing(PathBuf),
    /// There is something, and it is not a catalog.
    #[error("{} is not a catalog: give the directory that `nephoscope catalog add` made, or an empty one to add to", .0.display())]
    NotACatalog(PathBuf),
    /// A catalog in a format that this program does not read.
    #[error("the catalog at {} has format {found}, this program reads {reads}: add its sources again into a new directory", dir.display())]
    OtherVersion {
        /// Where.
        dir: PathBuf,
        /// What the catalog says.
        found: String,
        /// What this program reads.
        reads: u32,
    },
    /// A part of it is missing or not what was written.
    #[error("the catalog at {} is damaged ({what}): see `nephoscope catalog verify`, then add its sources again into a new directory", dir.display())]
    Damaged {
        /// Where.
        dir: PathBuf,
        /// What was found.
        what: String,
    },
    /// The operating system refused.
    #[error("the catalog at {} cannot be read: give a directory that this user may read", dir.display())]
    Io {
        /// Where.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A record of an open catalog cannot be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The bytes are not those that were written.
    #[error("damaged catalog: {what} at byte {at} of {segment}; see `nephoscope catalog verify`")]
    Damaged {
        /// File name of the segment.
        segment: String,
        /// Which table or record.
        what: &'static str,
        /// Byte offset in the segment.
        at: u64,
    },
    /// The caller asked for an object or part that this catalog does not have: an id of another catalog.
    #[error("no such {0} in this catalog")]
    NoSuch(&'static str),
}
