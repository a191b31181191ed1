//! Which files there are on a disk, which of them are followed, and what was said of each.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;

use nephoscope_wire::{FileFrame, PackageFrame};

use nephoscope_guest::is_script;

use super::installed::Installed;
use super::kinds::Kinds;
use super::place;
use crate::device::Transfer;
use crate::image::{Image, SECTOR};
use crate::layout::{Blocks, FileSystem, Partition, partitions};

/// Inodes that are remembered, some 200 bytes each; then their names are looked up anew.
const MAX_KNOWN: usize = 1 << 20;
/// Blocks that were written and are nobody's: 256 MiB. Their owner is said when the file system's next transaction is committed.
const MAX_NOBODYS: usize = 64 << 10;
/// Bits of a file's number that are the disk's own.
const NUMBER_BITS: u32 = 24;
/// Partitions that are looked into.
const MAX_VOLUMES: usize = 128;

/// What there is to say of followed files, and of what they may be of.
pub(super) enum Said<'a> {
    /// What a file is, and its name: before anything else of it, and when it has another name.
    File(FileFrame, &'a [u8]),
    /// What the disk's own package manager says of a package: its name, and the version that is installed.
    Package(PackageFrame, &'a [u8], &'a [u8]),
    /// A piece of it is in guest memory.
    Held {
        /// The file.
        file: u32,
        /// Where in the file.
        at: u64,
        /// Where it is, and what.
        held: Held,
    },
}

/// What a transfer has left in guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Held {
    pub(super) gpa: u64,
    pub(super) len: u16,
    pub(super) digest: [u8; 32],
    /// It begins as scripts do.
    is_script: bool,
}

impl Held {
    fn of(bytes: &[u8], gpa: u64) -> Self {
        Self {
            gpa,
            len: u16::try_from(bytes.len()).unwrap_or(u16::MAX),
            digest: *blake3::hash(bytes).as_bytes(),
            is_script: is_script(bytes),
        }
    }
}

/// A file system on the disk.
struct Volume {
    partition: u16,
    /// Its first byte.
    at: u64,
    bytes: u64,
    files: FileSystem,
    /// By inode.
    known: HashMap<u64, Known>,
    nobodys: Nobodys,
    installed: Installed,
    /// Whether what is installed was looked for.
    is_looked_at: bool,
}

/// Blocks that were written and are nobody's yet.
#[derive(Debug, Default)]
struct Nobodys {
    blocks: HashMap<u64, Held>,
    /// In the order in which they were written; some are not here any more.
    order: VecDeque<u64>,
}

impl Nobodys {
    /// One more. How many had to go for it.
    fn add(&mut self, block: u64, held: Held) -> u64 {
        if self.blocks.insert(block, held).is_none() {
            self.order.push_back(block);
        }
        let mut gone = 0;
        while self.blocks.len() > MAX_NOBODYS {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            gone += u64::from(self.blocks.remove(&oldest).is_some());
        }
        gone
    }

    /// What is not here any more takes no place.
    fn tidy(&mut self) {
        if self.order.len() > 2 * MAX_NOBODYS {
            let blocks = &self.blocks;
            self.order.retain(|block| blocks.contains_key(block));
        }
    }
}

/// What is known of an inode that was read or written.
struct Known {
    generation: u32,
    path: Vec<u8>,
    /// Its name says that it is followed.
    is_kind: bool,
    /// Its number, and whether it was said.
    followed: Option<(u32, bool)>,
}

/// All of a disk.
pub(super) struct Table {
    disk: u16,
    kinds: Kinds,
    image: Arc<Image>,
    volumes: Vec<Volume>,
    numbers: u32,
    skipped: Skipped,
}

/// What is not followed although it may be what is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Skipped {
    /// Volumes that are not understood.
    pub volumes: u64,
    /// Inodes, groups of them, and blocks that are not.
    pub inodes: u64,
    /// Files for which there was no room or that have no name.
    pub files: u64,
    /// Pieces that lie in memory in more than one place, or for which there was no room until it is known whose they are.
    pub pieces: u64,
    /// Transactions of journals, and journals.
    pub transactions: u64,
}

/// A part of an image.
struct Part<'a> {
    image: &'a Image,
    at: u64,
    bytes: u64,
}

impl Blocks for Part<'_> {
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(into.len() as u64).filter(|end| *end <= self.bytes);
        end.ok_or_else(|| io::Error::other("beyond the end of the volume"))?;
        Blocks::read(self.image, self.at.saturating_add(at), into)
    }

    fn len(&self) -> u64 {
        self.bytes
    }
}

impl Table {
    /// Reads what there is on a disk.
    pub(super) fn read(disk: u16, kinds: Kinds, image: Arc<Image>) -> Self {
        let mut table = Self {
            disk,
            kinds,
            volumes: Vec::new(),
            // Numbers of one disk are no other's.
            numbers: u32::from(disk) << NUMBER_BITS,
            skipped: Skipped::default(),
            image,
        };
        let whole = Partition {
            number: 0,
            at: 0,
            bytes: Blocks::len(&*table.image),
        };
        let parts = partitions(&*table.image).unwrap_or_default();
        let parts = if parts.is_empty() { vec![whole] } else { parts };
        let (looked_at, rest) = looked_at(&parts);
        for part in looked_at {
            table.volume(part);
        }
        table.skipped.volumes += rest;
        table
    }

    fn volume(&mut self, part: &Partition) {
        let of = Part {
            image: &self.image,
            at: part.at,
            bytes: part.bytes,
        };
        match FileSystem::read(&of) {
            Ok(files) => {
                self.volumes.push(Volume {
                    partition: u16::try_from(part.number).unwrap_or(u16::MAX),
                    at: part.at,
                    bytes: part.bytes,
                    files,
                    known: HashMap::new(),
                    nobodys: Nobodys::default(),
                    installed: Installed::default(),
                    is_looked_at: false,
                });
            }
            Err(_) => self.skipped.volumes += 1,
        }
    }

    /// What is not followed, and what was missed.
    pub(super) fn skipped(&self) -> Skipped {
        let unseen = self.volumes.iter().map(|volume| volume.files.unseen());
        unseen.fold(self.skipped, |mut all, unseen| {
            all.inodes += unseen.inodes;
            all.pieces += unseen.shared;
            all.transactions += unseen.transactions;
            all
        })
    }

    /// Gives the pieces of followed files that are in guest memory now: those of a transfer, and those of which a write says whose they
    /// are; the names that files have from now on; and which packages are installed, as far as that was not said.
    pub(super) fn transfer(&mut self, transfer: &Transfer<'_>, mut give: impl FnMut(&Said<'_>)) {
        self.take(transfer, &mut give);
        for volume in &mut self.volumes {
            let partition = volume.partition;
            for (name, version) in volume.installed.changes() {
                let frame = PackageFrame {
                    disk: self.disk,
                    partition,
                    installed: version.is_some(),
                };
                let version = version.unwrap_or_default();
                give(&Said::Package(frame, &name, &version));
            }
        }
    }

    fn take(&mut self, transfer: &Transfer<'_>, give: &mut impl FnMut(&Said<'_>)) {
        let begin = transfer.sector.saturating_mul(SECTOR);
        let end = begin.saturating_add(transfer.bytes.len() as u64);
        let mut numbers = self.numbers;
        let mut say = Saying {
            disk: self.disk,
            kinds: &self.kinds,
            numbers: &mut numbers,
            skipped: &mut self.skipped,
            give,
        };
        for volume in &mut self.volumes {
            let of = Part {
                image: &self.image,
                at: volume.at,
                bytes: volume.bytes,
            };
            if !std::mem::replace(&mut volume.is_looked_at, true) {
                volume.installed.look(&volume.files, &of);
            }
            let each = volume.files.block_bytes() as usize;
            for (block, from) in blocks(volume.at, volume.bytes, each, begin, end) {
                let Some(piece) = transfer.bytes.get(from..from + each) else {
                    continue;
                };
                let is_owned = volume.files.owner(block).is_some();
                // What is zeroed is in no memory.
                if transfer.frames.is_empty() || !is_owned && !transfer.is_write {
                    continue;
                }
                match place(transfer.frames, from, each) {
                    Some(gpa) if is_owned => {
                        let is_named = volume.one(block, || Held::of(piece, gpa), &of, &mut say);
                        if !is_named && transfer.is_write {
                            say.skipped.pieces += volume.nobodys.add(block, Held::of(piece, gpa));
                        } else if !is_named {
                            say.skipped.files += 1;
                        }
                    }
                    Some(gpa) => say.skipped.pieces += volume.nobodys.add(block, Held::of(piece, gpa)),
                    None => say.skipped.pieces += 1,
                }
            }
            let within = within(volume.at, volume.bytes, begin, end).filter(|_| transfer.is_write);
            if let Some((at, bytes)) =
                within.and_then(|(at, from, to)| Some((at, transfer.bytes.get(from..to)?)))
            {
                let touched = volume.files.written(at, bytes, &of);
                volume.touched(&touched, &of, &mut say);
            }
        }
        self.numbers = numbers;
    }

    /// These bytes of the disk are zeros now, and are in no memory.
    pub(super) fn zeroed(&mut self, sector: u64, zeros: &[u8]) {
        let transfer = Transfer {
            is_write: true,
            sector,
            frames: &[],
            bytes: zeros,
        };
        self.take(&transfer, &mut |_| ());
    }
}

/// What is needed to say something of a file.
struct Saying<'a, G> {
    disk: u16,
    kinds: &'a Kinds,
    numbers: &'a mut u32,
    skipped: &'a mut Skipped,
    give: &'a mut G,
}

impl Volume {
    /// A block of a file is in memory; `held` says where, if somebody wants to know. False if the file has no name yet, by which it may be
    /// one that is followed: an inode can be written before the directory that names it.
    fn one<G: FnMut(&Said<'_>)>(
        &mut self,
        block: u64,
        held: impl FnOnce() -> Held,
        of: &Part<'_>,
        say: &mut Saying<'_, G>,
    ) -> bool {
        let Some((inode, file_block)) = self.files.owner(block) else {
            return true;
        };
        let Some(about) = self.files.file(inode) else {
            return true;
        };
        let is_new = self
            .known
            .get(&inode)
            .is_none_or(|known| known.generation != about.generation);
        if is_new {
            let path = self.files.path(inode, of).ok().flatten();
            if path.is_none() && !self.files.is_own(inode) {
                return false;
            }
            let path = path.unwrap_or_default();
            let known = Known {
                generation: about.generation,
                is_kind: say.kinds.has(&path),
                path,
                followed: None,
            };
            remember(&mut self.known, inode, known);
        }
        let Some(known) = self.known.get_mut(&inode) else {
            return true;
        };
        if known.followed.is_none() && !known.is_kind && file_block != 0 {
            return true;
        }
        let held = held();
        if known.followed.is_none() {
            if !known.is_kind && !held.is_script {
                return true;
            }
            known.followed = Some((*say.numbers, false));
            *say.numbers = next_number(*say.numbers);
        }
        let Some((file, said)) = &mut known.followed else {
            return true;
        };
        let frame = FileFrame {
            file: *file,
            disk: say.disk,
            partition: self.partition,
            inode,
            generation: known.generation,
            bytes: about.bytes,
        };
        let block_bytes = u64::from(self.files.block_bytes());
        if !std::mem::replace(said, true) {
            (say.give)(&Said::File(frame, &known.path));
        }
        (say.give)(&Said::Held {
            file: *file,
            at: u64::from(file_block) * block_bytes,
            held,
        });
        true
    }

    /// An inode is another now than what was known of it. If it is a file that was spoken of and has another name, that is said; one
    /// that has none any more keeps the one it had.
    fn renamed<G: FnMut(&Said<'_>)>(
        &mut self,
        inode: u64,
        was: Known,
        of: &Part<'_>,
        say: &mut Saying<'_, G>,
    ) {
        let (Some((file, true)), Some(about)) = (was.followed, self.files.file(inode)) else {
            return;
        };
        let path = self.files.path(inode, of).ok().flatten().unwrap_or_default();
        if about.generation != was.generation || path.is_empty() || path == was.path {
            return;
        }
        let frame = FileFrame {
            file,
            disk: say.disk,
            partition: self.partition,
            inode,
            generation: was.generation,
            bytes: about.bytes,
        };
        (say.give)(&Said::File(frame, &path));
        let is_kind = say.kinds.has(&path);
        remember(&mut self.known, inode, Known { path, is_kind, ..was });
    }

    /// These inodes are others now, or have another name.
    fn touched<G: FnMut(&Said<'_>)>(&mut self, inodes: &[u64], of: &Part<'_>, say: &mut Saying<'_, G>) {
        if inodes.is_empty() {
            return;
        }
        for inode in inodes {
            if let Some(was) = self.known.remove(inode) {
                self.renamed(*inode, was, of, say);
            }
        }
        self.installed.look(&self.files, of);
        let files = &self.files;
        let owned: Vec<u64> = self
            .nobodys
            .blocks
            .keys()
            .copied()
            .filter(|block| files.owner(*block).is_some())
            .collect();
        for block in owned {
            let held = self.nobodys.blocks.get(&block).copied();
            if held.is_some_and(|held| self.one(block, || held, of, say)) {
                self.nobodys.blocks.remove(&block);
            }
        }
        self.nobodys.tidy();
    }
}

/// The partitions that are looked into, and how many are not.
fn looked_at(parts: &[Partition]) -> (&[Partition], u64) {
    let (looked_at, rest) = parts.split_at(parts.len().min(MAX_VOLUMES));
    (looked_at, rest.len() as u64)
}

/// If there is no room, all others are looked up anew.
fn remember(all: &mut HashMap<u64, Known>, inode: u64, known: Known) {
    if all.len() >= MAX_KNOWN {
        all.clear();
    }
    all.insert(inode, known);
}

/// The number after this one, of the same disk's.
fn next_number(number: u32) -> u32 {
    let mask = (1 << NUMBER_BITS) - 1;
    number & !mask | number.wrapping_add(1) & mask
}

/// The whole blocks of a volume that are between two bytes of the disk, each with where it begins behind the first of those. File
/// systems read and write whole blocks.
fn blocks(
    at: u64,
    bytes: u64,
    block_bytes: usize,
    begin: u64,
    end: u64,
) -> impl Iterator<Item = (u64, usize)> {
    let each = block_bytes.max(1) as u64;
    let from = begin.max(at).saturating_sub(at).div_ceil(each);
    let to = end.min(at.saturating_add(bytes)).saturating_sub(at) / each;
    (from..to).filter_map(move |block| {
        let offset = at.checked_add(block.checked_mul(each)?)?.checked_sub(begin)?;
        Some((block, usize::try_from(offset).ok()?))
    })
}

/// Which bytes between two of the disk are a volume's: where the first is in it, and where they are behind the first of those.
fn within(at: u64, bytes: u64, begin: u64, end: u64) -> Option<(u64, usize, usize)> {
    let (from, to) = (begin.max(at), end.min(at.checked_add(bytes)?));
    let place = |of: u64| usize::try_from(of.checked_sub(begin)?).ok();
    (from < to).then_some((from - at, place(from)?, place(to)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_of_a_volume_need_not_be_whole_blocks() {
        let of = |begin, end| within(1 << 20, 1 << 16, begin, end);
        assert_eq!(of(0, 1 << 20), None);
        assert_eq!(of((1 << 20) - 512, (1 << 20) + 1024), Some((0, 512, 1536)));
        assert_eq!(of((1 << 20) + 512, (1 << 20) + 1024), Some((512, 0, 512)));
        assert_eq!(of((1 << 20) + 0xfe00, 1 << 30), Some((0xfe00, 0, 512)));
    }

    #[test]
    fn only_whole_blocks_of_a_volume_are_in_a_transfer() {
        let of = |begin, end| blocks(1 << 20, 1 << 16, 4096, begin, end).collect::<Vec<_>>();
        assert_eq!(of(0, 1 << 20), []);
        assert_eq!(of((1 << 20) - 512, (1 << 20) + 8192), [(0, 512), (1, 4608)]);
        assert_eq!(of((1 << 20) + 512, (1 << 20) + 8192), [(1, 3584)]);
        assert_eq!(of((1 << 20) + 0xf000, 1 << 30), [(15, 0)]);
        assert_eq!(of(1 << 30, 1 << 31), []);
    }

    fn held(gpa: u64) -> Held {
        Held::of(&[1; 4096], gpa)
    }

    #[test]
    fn max_nobodys_bounds_what_waits_for_an_owner_and_the_oldest_go() {
        let mut nobodys = Nobodys::default();
        let most = MAX_NOBODYS as u64;
        let gone: u64 = (0..most).map(|block| nobodys.add(block, held(0))).sum();
        assert_eq!(
            (gone, nobodys.add(0, held(1)), nobodys.add(most, held(2))),
            (0, 0, 1)
        );
        assert!(!nobodys.blocks.contains_key(&0) && nobodys.blocks.len() == MAX_NOBODYS);
        for block in 0..5 * most {
            nobodys.blocks.remove(&block);
            nobodys.add(block, held(3));
            nobodys.tidy();
        }
        assert!(nobodys.order.len() <= 2 * MAX_NOBODYS + 1);
    }

    #[test]
    fn max_known_bounds_what_is_remembered_of_inodes() {
        let mut all = HashMap::new();
        for inode in 0..=MAX_KNOWN as u64 {
            let known = Known {
                generation: 0,
                path: Vec::new(),
                is_kind: false,
                followed: None,
            };
            remember(&mut all, inode, known);
        }
        assert_eq!(all.len(), 1);
    }

    #[test]
    fn max_volumes_bounds_what_is_looked_into_and_the_rest_is_counted() {
        let part = Partition {
            number: 1,
            at: 0,
            bytes: 1,
        };
        let of = |count: usize| {
            let parts = vec![part; count];
            let (looked_at, rest) = looked_at(&parts);
            (looked_at.len(), rest)
        };
        assert_eq!(
            (of(MAX_VOLUMES), of(MAX_VOLUMES + 3)),
            ((MAX_VOLUMES, 0), (MAX_VOLUMES, 3))
        );
    }

    #[test]
    fn a_disk_that_is_not_understood_is_counted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let image = Image::open(file.path(), crate::image::Format::Raw, true).unwrap();
        let table = Table::read(3, Kinds::default(), Arc::new(image));
        assert_eq!((table.skipped().volumes, table.numbers >> NUMBER_BITS), (1, 3));
    }

    #[test]
    fn numbers_of_one_disk_are_no_others() {
        let last = (3 << NUMBER_BITS) + (1 << NUMBER_BITS) - 1;
        assert_eq!(
            (next_number(3 << NUMBER_BITS), next_number(last)),
            ((3 << NUMBER_BITS) + 1, 3 << NUMBER_BITS)
        );
    }
}
