//! XFS, versions 4 and 5 (`fs/xfs/libxfs/xfs_format.h`, `xfs_da_format.h` of Linux 6.12; "XFS Algorithms & Data Structures").
//!
//! ```text
//!  superblock ─► allocation groups ─► tree of inode chunks ─► inodes ─► extents, in the inode or a tree ─► blocks
//! ```
//!
//! All numbers are big-endian. A block has two numbers: its place on the disk, and the one that inodes and trees use, in which the group
//! stands above a power of two. Here a block is always its place on the disk, except where a name says `packed`.

mod chunks;
mod current;
mod directory;
mod extents;
mod files;
mod inode;
mod log;
mod superblock;
mod tree;

pub use super::InodeKind;
pub use current::{Current, Missed};
pub use directory::{DirectoryBlock, Name, Names, ShortForm};
pub use extents::{Extent, Extents};
pub use files::{Files, Node, Skipped};
pub use inode::{Fork, Inode};
pub use superblock::Superblock;
