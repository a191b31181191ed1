//! A file system, whichever it is.

use super::bytes::index;
use super::{Blocks, LayoutError, ext4, xfs};

/// A file system that is kept current.
#[derive(Debug)]
pub enum FileSystem {
    /// ext2, ext3 and ext4.
    Ext4(Box<ext4::Current>),
    /// XFS.
    Xfs(Box<xfs::Current>),
}

/// What is known of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct About {
    /// Tells it from the one that had its number before.
    pub generation: u32,
    /// Bytes of its contents.
    pub bytes: u64,
}

/// What was not understood, or not followed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Unseen {
    /// Inodes, and groups of them.
    pub inodes: u64,
    /// Blocks that more than one file has.
    pub shared: u64,
    /// Transactions, and journals that are not understood at all.
    pub transactions: u64,
}

impl FileSystem {
    /// Reads what is there.
    ///
    /// # Errors
    /// If it is none that is understood.
    pub fn read(disk: &impl Blocks) -> Result<Self, LayoutError> {
        match ext4::Current::read(disk) {
            Ok(found) => Ok(Self::Ext4(Box::new(found))),
            Err(LayoutError::Malformed(_)) => Ok(Self::Xfs(Box::new(xfs::Current::read(disk)?))),
            Err(error) => Err(error),
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_bytes(&self) -> u32 {
        match self {
            Self::Ext4(current) => current.files().superblock().block_bytes,
            Self::Xfs(current) => current.files().superblock().block_bytes,
        }
    }

    /// The inode that has this block, and which block of its contents it is.
    #[must_use]
    pub fn owner(&self, block: u64) -> Option<(u64, u32)> {
        match self {
            Self::Ext4(current) => {
                let (inode, file_block) = current.files().owner(block)?;
                Some((inode.into(), file_block))
            }
            Self::Xfs(current) => current.files().owner(block),
        }
    }

    /// A file, if this is one with contents of its own.
    #[must_use]
    pub fn file(&self, inode: u64) -> Option<About> {
        match self {
            Self::Ext4(current) => {
                let node = current.files().node(u32::try_from(inode).ok()?)?;
                (node.kind == ext4::InodeKind::File).then_some(About {
                    generation: node.generation,
                    bytes: node.bytes,
                })
            }
            Self::Xfs(current) => {
                let node = current.files().node(inode)?;
                (node.kind == xfs::InodeKind::File).then_some(About {
                    generation: node.generation,
                    bytes: node.bytes,
                })
            }
        }
    }

    /// Whether this file is the file system's own, and has no name.
    #[must_use]
    pub fn is_own(&self, inode: u64) -> bool {
        match self {
            Self::Ext4(current) => u64::from(current.files().superblock().journal_inode) == inode,
            Self::Xfs(_) => false,
        }
    }

    /// A path of an inode, from the root of the file system; `None` if it has no name that is known.
    ///
    /// # Errors
    /// If its directory cannot be read.
    pub fn path(&self, inode: u64, disk: &impl Blocks) -> Result<Option<Vec<u8>>, LayoutError> {
        match self {
            Self::Ext4(current) => match u32::try_from(inode) {
                Ok(inode) => current.path(inode, disk),
                Err(_) => Ok(None),
            },
            Self::Xfs(current) => current.path(inode, disk),
        }
    }

    /// The inode at a path, from the root of the file system; links are not followed.
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn find(&self, path: &[&[u8]], disk: &impl Blocks) -> Result<Option<u64>, LayoutError> {
        match self {
            Self::Ext4(current) => Ok(current.find(path, disk)?.map(u64::from)),
            Self::Xfs(current) => current.find(path, disk),
        }
    }

    /// What a file holds; `None` if this is none, or has more than `most` bytes.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn contents(
        &self,
        inode: u64,
        most: u64,
        disk: &impl Blocks,
    ) -> Result<Option<Vec<u8>>, LayoutError> {
        match self {
            Self::Ext4(current) => match u32::try_from(inode) {
                Ok(inode) => current.contents(inode, most, disk),
                Err(_) => Ok(None),
            },
            Self::Xfs(current) => current.contents(inode, most, disk),
        }
    }

    /// Bytes were written from this one on, which `disk` reads already. The inodes are given that are others now, or have another name.
    pub fn written(&mut self, at: u64, bytes: &[u8], disk: &impl Blocks) -> Vec<u64> {
        match self {
            Self::Ext4(current) => {
                // But for the superblock, it is written in whole blocks.
                let each = u64::from(current.files().superblock().block_bytes).max(1);
                let before = index(at.next_multiple_of(each) - at);
                let whole = bytes.get(before..).unwrap_or_default();
                let touched = current.written(at.div_ceil(each), whole, disk);
                touched.into_iter().map(u64::from).collect()
            }
            Self::Xfs(current) => current.written(at, bytes, disk),
        }
    }

    /// What was not understood, or not followed.
    #[must_use]
    pub fn unseen(&self) -> Unseen {
        match self {
            Self::Ext4(current) => {
                let (skipped, missed) = (current.files().skipped(), current.missed());
                Unseen {
                    inodes: skipped.groups + skipped.inodes + skipped.left_out,
                    shared: 0,
                    transactions: missed.transactions + u64::from(missed.journal),
                }
            }
            Self::Xfs(current) => {
                let (skipped, missed) = (current.files().skipped(), current.missed());
                Unseen {
                    inodes: skipped.groups + skipped.inodes + skipped.left_out,
                    shared: skipped.shared,
                    transactions: missed.transactions + missed.blocks + u64::from(missed.log),
                }
            }
        }
    }
}
