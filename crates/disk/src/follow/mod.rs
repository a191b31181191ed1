//! Follows pieces of files into the guest's memory.
//!
//! ```text
//!  transfer ─► layout: which file, which piece ─► is that file followed? ─► digest
//!                                                        │
//!  plugin ◄── memory that was written to, and what it holds ◄┘   … and waits, then the guest is answered
//! ```
//!
//! The plugin has to know before the guest does: it throws away what QEMU translated of that memory, and has accesses to it told from then
//! on.

mod installed;
mod kinds;
mod link;
mod table;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use nephoscope_wire::{DiskMessage, FileHeld, Frame, LandedPart, Region, Stamp, UNSEEN_NAMES};

pub use kinds::Kinds;
pub use link::Link;
pub use table::Skipped;

use crate::device::{Transfer, Transfers};
use crate::image::{Image, SECTOR};
use table::{Said, Table};

/// Bytes that are zeroed at once, as far as files go: whole blocks of every size.
const ZEROS: usize = 64 << 10;

/// What is to be followed, and whom to tell.
pub struct Follower {
    /// The disk, counted from 0.
    disk: u16,
    table: Mutex<Table>,
    link: Arc<Link>,
    /// What was said of what is not seen.
    said: Mutex<[u64; UNSEEN_NAMES.len()]>,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower")
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

impl Follower {
    /// Follows files of these kinds on the disk with this number and image. All that is on it is read for that.
    #[must_use]
    pub fn new(disk: u16, kinds: Kinds, image: Arc<Image>, link: Arc<Link>) -> Self {
        Self {
            disk,
            table: Mutex::new(Table::read(disk, kinds, image)),
            link,
            said: Mutex::default(),
        }
    }

    /// What is not followed although it may be what is looked for.
    #[must_use]
    pub fn skipped(&self) -> Skipped {
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .skipped()
    }

    fn told(&self, transfer: &Transfer<'_>) -> DiskMessage {
        let (mut frames, mut frame) = (Vec::new(), Vec::new());
        let mut parts: Vec<LandedPart> = Vec::new();
        let part = |gpa, len, follow| LandedPart { gpa, len, follow };
        if !transfer.is_write {
            parts.extend(transfer.frames.iter().map(|(gpa, len)| part(gpa.0, *len, false)));
        }
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.transfer(transfer, |said: &Said<'_>| {
            let of = match *said {
                Said::File(file, path) => Frame::File(file, path),
                Said::Package(package, name, version) => Frame::Package(package, name, version),
                Said::Held { file, at, held } => {
                    parts.push(part(held.gpa, held.len.into(), true));
                    Frame::FileHeld(FileHeld {
                        file,
                        at,
                        gpa: held.gpa,
                        len: held.len,
                        written: transfer.is_write,
                        digest: held.digest,
                    })
                }
            };
            of.encode(Stamp::default(), &mut frame);
            frames.extend_from_slice(&frame);
        });
        let unseen = self.unseen(table.skipped());
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if *said != unseen {
            *said = unseen;
            let (disk, counts) = (self.disk, unseen);
            Frame::FilesUnseen { disk, counts }.encode(Stamp::default(), &mut frame);
            frames.extend_from_slice(&frame);
        }
        DiskMessage::Landed { parts, frames }
    }

    /// In the order of [`UNSEEN_NAMES`].
    fn unseen(&self, skipped: Skipped) -> [u64; UNSEEN_NAMES.len()] {
        let Skipped {
            volumes,
            inodes,
            files,
            pieces,
            transactions,
        } = skipped;
        [volumes, inodes, files, pieces, transactions, self.link.unheard()]
    }
}

/// Where in memory these bytes of a transfer are, if they are in one piece there.
fn place(frames: &[(nephoscope_guest::Gpa, u32)], from: usize, len: usize) -> Option<u64> {
    let mut from = u64::try_from(from).ok()?;
    for (gpa, has) in frames {
        let has = u64::from(*has);
        if from < has {
            let whole = from.checked_add(len as u64)? <= has;
            return whole.then(|| gpa.0.wrapping_add(from));
        }
        from -= has;
    }
    None
}

impl Transfers for Follower {
    fn memory(&self, regions: &[Region]) {
        self.link.regions(regions);
    }

    fn moved(&self, transfer: Transfer<'_>) {
        let message = self.told(&transfer);
        if matches!(&message, DiskMessage::Landed { parts, frames } if !parts.is_empty() || !frames.is_empty())
        {
            self.link.ask(&message);
        }
    }

    fn zeroed(&self, sector: u64, sectors: u64) {
        let zeros = [0; ZEROS];
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut sector, mut left) = (sector, sectors);
        while left > 0 {
            let now = left.min(ZEROS as u64 / SECTOR);
            let bytes = zeros
                .get(..usize::try_from(now * SECTOR).unwrap_or(0))
                .unwrap_or_default();
            table.zeroed(sector, bytes);
            (sector, left) = (sector.saturating_add(now), left - now);
        }
    }
}

#[cfg(test)]
mod tests {
    use nephoscope_guest::Gpa;

    use super::*;

    #[test]
    fn a_piece_is_where_its_bytes_are_if_they_are_together() {
        let frames = [(Gpa(0x1000), 4096), (Gpa(0x9000), 8192), (Gpa(0x5000), 512)];
        let at = |from, len| place(&frames, from, len);
        assert_eq!(at(0, 4096), Some(0x1000));
        assert_eq!(at(4096, 4096), Some(0x9000));
        assert_eq!(at(8192, 4096), Some(0xa000));
        assert_eq!(at(12288, 512), Some(0x5000));
        assert_eq!(at(2048, 4096), None, "in two pieces");
        assert_eq!(at(12288, 4096), None, "beyond the end");
        assert_eq!(at(99999, 1), None);
    }
}
