//! ext2, ext3 and ext4 (`fs/ext4/ext4.h`, `fs/ext4/ext4_extents.h` of Linux 6.12; Documentation/filesystems/ext4).
//!
//! ```text
//!  superblock ─► group descriptors ─► inode tables ─► inodes ─► extents or indirect blocks ─► blocks
//! ```

mod current;
mod directory;
mod extents;
mod files;
mod group;
mod inode;
mod journal;
mod superblock;

pub use super::InodeKind;
pub use current::{Current, Missed};
pub use directory::{Name, Names};
pub use extents::{Extent, Extents};
pub use files::{Files, Node, Skipped};
pub use group::Group;
pub use inode::{Contents, Inode};
pub use journal::{JournalBlock, JournalSuperblock, Tag};
pub use superblock::Superblock;
