//! Which files were read, and by whom.
//!
//! A piece of a file that is in guest memory is *held* there; who accesses that memory has read it, as long as it holds the same bytes.
//! Memory that was written to or holds something else is no file's any more. What was read of a file counts as long as the file has it:
//! where it is rewritten, it has to be read anew.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use std::sync::Arc;

use nephoscope_catalog::ObjectId;
use nephoscope_guest::{FileHeld, FileSeen, Gpa, PAGE_SIZE};

use crate::installed::Installed;
use crate::space::SpaceId;

/// Files that are remembered: more than interpreters of one VM read. It stops a guest that makes files without end.
const MAX_FILES: usize = 256 << 10;
/// Pages of memory that hold pieces: 8 GiB.
const MAX_HELD: usize = 2 << 20;
/// Readers of one file that are told one by one.
const MAX_READERS: usize = 64;
/// Pieces of which it is not looked yet how they were read. What is beyond stays unknown.
const MAX_UNSETTLED: usize = 64 << 10;
/// Names of a file that it had before. What is beyond is not told.
const MAX_FORMER: usize = 16;
/// Pieces of all files that are remembered with their digests.
const MAX_PIECES: usize = 2 << 20;

/// A file in one inventory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileId(pub u32);

/// A file that is followed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FollowedFile {
    /// What it is.
    pub about: FileSeen,
    /// The names that it had before, the oldest first.
    pub former_paths: Vec<Vec<u8>>,
    /// Pieces that were read: where in the file, and BLAKE3 of the bytes as they were.
    pub pieces: BTreeMap<u64, [u8; 32]>,
    /// How often something that was read of it was rewritten.
    pub rewritten: u32,
    /// What it is, by all of its pieces; `None` until somebody has looked.
    pub verdict: Option<Arc<FileVerdict>>,
    /// Who read it.
    pub readers: Vec<Reader>,
    /// Accesses by whom is not known: a device, or a vCPU whose root is not.
    pub unattributed: u64,
}

impl FollowedFile {
    /// All names that it has and had since it is followed.
    pub fn paths(&self) -> impl Iterator<Item = &[u8]> {
        let former = self.former_paths.iter().map(Vec::as_slice);
        former.chain([self.about.path.as_slice()])
    }

    fn renamed(&mut self, to: &[u8]) {
        let was = &self.about.path;
        if was != to
            && !was.is_empty()
            && !self.former_paths.contains(was)
            && self.former_paths.len() < MAX_FORMER
        {
            self.former_paths.push(was.clone());
        }
        self.former_paths.retain(|former| former != to);
    }
}

/// What a file is, by what was read of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FileVerdict {
    /// All of that stands in these files of the catalog where it stands in this one.
    Known(Vec<ObjectId>),
    /// It is like these, which are alike.
    Modified(ModifiedFile),
    /// It is like none.
    Unknown,
}

/// A file that is like one in the catalog.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModifiedFile {
    /// Which.
    pub nearest: Vec<ObjectId>,
    /// Pieces that stand there where they stand in this one.
    pub known: usize,
    /// In what its text differs from theirs; `None` if it is not text, or not all of it was read.
    pub lines: Option<LinesChanged>,
}

/// In what two texts differ.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LinesChanged {
    /// Lines that it has and they have not.
    pub added: u64,
    /// Lines that they have and it has not.
    pub removed: u64,
    /// The first of them.
    pub first: Vec<LineChanged>,
}

/// A line that only one of two texts has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LineChanged {
    /// Counted from 1, in the text that has it.
    pub number: u64,
    /// This file has it, and not the one in the catalog.
    pub added: bool,
    /// Its beginning.
    pub text: String,
}

/// A piece of a file that was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PieceRead {
    /// The file.
    pub file: FileId,
    /// Where in it.
    pub at: u64,
}

/// Who read a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reader {
    /// The address space.
    pub space: SpaceId,
    /// When it did for the first time.
    pub first_ns: u64,
    /// Which pieces, by where they are in the file.
    pub pieces: BTreeMap<u64, ReadPiece>,
}

/// A piece of a file that somebody read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadPiece {
    /// Its bytes.
    pub len: u16,
    /// How it was read.
    pub how: How,
}

/// How something was read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum How {
    /// It was not looked, or nothing was there any more to look at.
    NotKnown,
    /// The kernel copied it (`read(2)`, `sendfile(2)`, `splice(2)`): the reader does not have that memory mapped.
    Copied,
    /// The reader has that memory mapped (`mmap(2)`).
    Mapped,
}

/// Whose address space, which file and piece, and where it lay.
#[derive(Clone, Copy, Debug)]
struct Unsettled {
    file: usize,
    at: u64,
    gpa: Gpa,
}

/// Which file: disk, partition, inode and generation.
type Key = (u16, u16, u64, u32);

#[derive(Clone, Copy, Debug)]
struct Held {
    file: usize,
    at: u64,
    len: u16,
    digest: [u8; 32],
}

/// All of them.
#[derive(Debug, Default)]
pub struct Files {
    files: Vec<FollowedFile>,
    by_key: HashMap<Key, usize>,
    /// By the number that a driver gives it.
    by_number: HashMap<u32, usize>,
    held: HashMap<Gpa, Held>,
    pieces: usize,
    /// By address space: pieces of which it is to be looked how they were read.
    unsettled: BTreeMap<SpaceId, Vec<Unsettled>>,
    unsettled_count: usize,
    /// Address spaces that read something, each with its program, if it is only counted by now.
    spaces: HashMap<SpaceId, Option<Arc<str>>>,
    /// What is not told, and why.
    pub(crate) left_out: LeftOut,
    /// What its server says is not seen of a disk, by disk and reason: the most that any of its servers said.
    unseen: BTreeMap<(u16, &'static str), u64>,
    /// What package managers say.
    pub installed: Installed,
}

/// What is not told of files.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LeftOut {
    /// Files, pieces and readers for which there was no room.
    pub no_room: u64,
    /// Pieces whose file was not told.
    pub of_no_file: u64,
    /// Pieces that do not fill a page of memory.
    pub in_part: u64,
    /// Accesses to memory that held something else by then: it was written to, or given to somebody else.
    pub changed: u64,
}

impl Files {
    /// A file has this number from now on.
    pub fn seen(&mut self, number: u32, about: FileSeen) {
        let key = (about.disk, about.partition, about.inode, about.generation);
        let at = match self.by_key.get(&key) {
            Some(at) => {
                if let Some(file) = self.files.get_mut(*at) {
                    let cut = file.pieces.split_off(&about.bytes);
                    self.pieces = self.pieces.saturating_sub(cut.len());
                    file.rewritten += u32::from(!cut.is_empty());
                    file.renamed(&about.path);
                    file.about = about;
                }
                *at
            }
            None if self.files.len() >= MAX_FILES => {
                self.left_out.no_room += 1;
                return;
            }
            None => {
                self.files.push(FollowedFile {
                    about,
                    former_paths: Vec::new(),
                    pieces: BTreeMap::new(),
                    rewritten: 0,
                    verdict: None,
                    readers: Vec::new(),
                    unattributed: 0,
                });
                self.by_key.insert(key, self.files.len() - 1);
                self.files.len() - 1
            }
        };
        self.by_number.insert(number, at);
    }

    /// Memory holds a piece of a file.
    pub fn held(&mut self, held: &FileHeld) {
        let Some(file) = self.by_number.get(&held.file) else {
            self.left_out.of_no_file += 1;
            return;
        };
        if let Some(file) = self.files.get_mut(*file)
            && file.pieces.get(&held.at).is_some_and(|was| *was != held.digest)
        {
            file.pieces.remove(&held.at);
            file.rewritten = file.rewritten.saturating_add(1);
            self.pieces = self.pieces.saturating_sub(1);
        }
        let page = Gpa(held.gpa.0 & !(PAGE_SIZE as u64 - 1));
        if usize::from(held.len) != PAGE_SIZE || page != held.gpa {
            self.left_out.in_part += 1;
            self.held.remove(&page);
            return;
        }
        if self.held.len() >= MAX_HELD && !self.held.contains_key(&page) {
            self.left_out.no_room += 1;
            return;
        }
        let held = Held {
            file: *file,
            at: held.at,
            len: held.len,
            digest: held.digest,
        };
        self.held.insert(page, held);
    }

    /// Memory was accessed; `space` is who did, if that is known, and `digest` is BLAKE3 of what the page held: `None` if it was about to
    /// be written. What was read, if something was.
    pub fn accessed(
        &mut self,
        at_ns: u64,
        gpa: Gpa,
        digest: Option<[u8; 32]>,
        space: Option<SpaceId>,
    ) -> Option<PieceRead> {
        let held = *self.held.get(&gpa)?;
        if digest != Some(held.digest) {
            self.held.remove(&gpa);
            self.left_out.changed += u64::from(digest.is_some());
            return None;
        }
        let piece = PieceRead {
            file: FileId(u32::try_from(held.file).ok()?),
            at: held.at,
        };
        let file = self.files.get_mut(held.file)?;
        if self.pieces >= MAX_PIECES {
            self.left_out.no_room += 1;
            return None;
        }
        self.pieces += usize::from(file.pieces.insert(held.at, held.digest).is_none());
        let Some(space) = space else {
            file.unattributed += 1;
            return Some(piece);
        };
        let reader = match file.readers.iter().position(|reader| reader.space == space) {
            Some(reader) => reader,
            None if file.readers.len() >= MAX_READERS => {
                self.left_out.no_room += 1;
                return Some(piece);
            }
            None => {
                self.spaces.entry(space).or_default();
                file.readers.push(Reader {
                    space,
                    first_ns: at_ns,
                    pieces: BTreeMap::new(),
                });
                file.readers.len() - 1
            }
        };
        if let Some(reader) = file.readers.get_mut(reader) {
            let read = ReadPiece {
                len: held.len,
                how: How::NotKnown,
            };
            self.pieces += usize::from(reader.pieces.insert(held.at, read).is_none());
            if self.unsettled_count < MAX_UNSETTLED {
                self.unsettled_count += 1;
                self.unsettled.entry(space).or_default().push(Unsettled {
                    file: held.file,
                    at: held.at,
                    gpa,
                });
            }
        }
        Some(piece)
    }

    /// Address spaces that have read something of which it is to be looked how.
    pub fn unsettled(&self) -> impl Iterator<Item = SpaceId> {
        self.unsettled.keys().copied()
    }

    /// Where that lies in memory.
    #[must_use]
    pub fn unsettled_in(&self, space: SpaceId) -> HashSet<Gpa> {
        let all = self.unsettled.get(&space).into_iter().flatten();
        all.map(|one| one.gpa).collect()
    }

    /// It was looked: the address space has these mapped. `None`: there was nothing to look at.
    pub fn settle(&mut self, space: SpaceId, mapped: Option<&HashSet<Gpa>>) {
        let all = self.unsettled.remove(&space).unwrap_or_default();
        self.unsettled_count = self.unsettled_count.saturating_sub(all.len());
        let Some(mapped) = mapped else { return };
        for one in all {
            let how = if mapped.contains(&one.gpa) {
                How::Mapped
            } else {
                How::Copied
            };
            let file = self.files.get_mut(one.file);
            let reader = file.and_then(|file| file.readers.iter_mut().find(|reader| reader.space == space));
            if let Some(piece) = reader.and_then(|reader| reader.pieces.get_mut(&one.at)) {
                piece.how = how;
            }
        }
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, file: FileId) -> Option<&FollowedFile> {
        self.files.get(usize::try_from(file.0).ok()?)
    }

    /// Somebody has looked what a file is.
    pub fn judged(&mut self, file: FileId, verdict: FileVerdict) {
        if let Some(file) = usize::try_from(file.0).ok().and_then(|at| self.files.get_mut(at)) {
            file.verdict = Some(Arc::new(verdict));
        }
    }

    /// Those that were read.
    pub fn read_ones(&self) -> impl Iterator<Item = &FollowedFile> {
        self.files.iter().filter(|file| !file.pieces.is_empty())
    }

    /// An address space is only counted from now on, and its program was this.
    pub(crate) fn gone(&mut self, space: SpaceId, program: Option<&str>) {
        if let (Some(known), Some(program)) = (self.spaces.get_mut(&space), program) {
            *known = Some(program.into());
        }
    }

    /// The program of an address space that read something and is only counted by now.
    #[must_use]
    pub fn program_of_gone(&self, space: SpaceId) -> Option<&str> {
        self.spaces.get(&space)?.as_deref()
    }

    /// Address spaces that read files.
    pub fn readers(&self) -> BTreeSet<SpaceId> {
        let readers = self.files.iter().flat_map(|file| &file.readers);
        readers.map(|reader| reader.space).collect()
    }

    /// A disk's server says what is not seen of it.
    pub fn unseen(&mut self, disk: u16, counts: &[(&'static str, u64)]) {
        for (why, count) in counts {
            let most = self.unseen.entry((disk, why)).or_default();
            *most = (*count).max(*most);
        }
    }

    /// What is not seen of disks, by reason.
    pub fn unseen_by_reason(&self) -> BTreeMap<&'static str, u64> {
        let mut all = BTreeMap::new();
        for ((_, why), count) in self.unseen.iter().filter(|(_, count)| **count > 0) {
            let sum: &mut u64 = all.entry(*why).or_default();
            *sum = sum.saturating_add(*count);
        }
        all
    }

    /// What is not told.
    #[must_use]
    pub const fn left_out(&self) -> LeftOut {
        self.left_out
    }
}

#[cfg(test)]
mod tests;
