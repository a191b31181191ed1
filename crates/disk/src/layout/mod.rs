//! Which file a sector belongs to, from the disk's own structures.
//!
//! What is on a disk is what the guest wrote there: every parser takes bytes and gives what they say or what is wrong with them, reads within
//! bounds, and does a bounded amount of work. Blocks have their meaning by where they are, reached from the superblock, never by what they
//! hold: a user of the guest can write a perfect inode into a file.

mod bytes;
mod contents;
pub mod ext4;
mod file_system;
mod owners;
mod partitions;
mod paths;
pub mod xfs;

use std::io;

pub use file_system::{About, FileSystem, Unseen};
pub use owners::{Owner, Owners};
pub use partitions::{Partition, partitions};

/// Where bytes are read from: a disk, or a part of one.
pub trait Blocks {
    /// Reads as many bytes as there is room for, from this offset on.
    ///
    /// # Errors
    /// If they are not there, or cannot be read.
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()>;
    /// How many bytes there are.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What has an inode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum InodeKind {
    /// A file with contents.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A device, a socket, a pipe: without blocks.
    Other,
}

impl InodeKind {
    /// By its mode (`S_IFMT` of `inode(7)`).
    fn of_mode(mode: u16) -> Self {
        match mode >> 12 {
            0x8 => Self::File,
            0x4 => Self::Directory,
            0xa => Self::Link,
            _ => Self::Other,
        }
    }
}

/// A structure that cannot be right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what} at byte {at}")]
pub struct Malformed {
    /// What is wrong.
    pub what: &'static str,
    /// Where, in bytes from the beginning of the file system.
    pub at: u64,
}

/// A layout cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The disk.
    #[error("the disk cannot be read at byte {at}")]
    Read {
        /// Where.
        at: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is on it.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It is not known how to read that.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
}
