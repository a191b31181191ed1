//! Which files were read, and by whom.
//!
//! A piece of a file that is in guest memory is *held* there; who accesses that memory has read it, as long as it holds the same bytes.
//! Memory that was written to or holds something else is no file's any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use nephoscope_guest::{FileHeld, FileSeen, Gpa, PAGE_SIZE, PageRead};

use crate::space::SpaceId;

/// Files that are remembered: more than interpreters of one VM read. It stops a guest that makes files without end.
const MAX_FILES: usize = 256 << 10;
/// Pages of memory that hold pieces: 8 GiB.
const MAX_HELD: usize = 2 << 20;
/// Readers of one file that are told one by one.
const MAX_READERS: usize = 64;
/// Pieces of all files that are remembered with their digests.
const MAX_PIECES: usize = 2 << 20;

/// A file that is followed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FollowedFile {
    /// What it is.
    pub about: FileSeen,
    /// Pieces that were read: where in the file, and BLAKE3 of the bytes as they were.
    pub pieces: BTreeMap<u64, [u8; 32]>,
    /// Who read it.
    pub readers: Vec<Reader>,
    /// Accesses by whom is not known: a device, or a vCPU whose root is not.
    pub unattributed: u64,
}

/// Who read a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reader {
    /// The address space.
    pub space: SpaceId,
    /// When it did for the first time.
    pub first_ns: u64,
    /// Which pieces, by where they are in the file, and their bytes.
    pub pieces: BTreeMap<u64, u16>,
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
    /// What is not told, and why.
    pub(crate) left_out: LeftOut,
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
                    pieces: BTreeMap::new(),
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

    /// Memory was accessed; `space` is who did, if that is known. The file that was read, if one was.
    pub fn read(&mut self, at_ns: u64, read: &PageRead, space: Option<SpaceId>) -> Option<&FollowedFile> {
        let held = *self.held.get(&read.gpa)?;
        if read.write || held.digest != read.digest {
            self.held.remove(&read.gpa);
            self.left_out.changed += u64::from(!read.write);
            return None;
        }
        let file = self.files.get_mut(held.file)?;
        if self.pieces >= MAX_PIECES {
            self.left_out.no_room += 1;
            return None;
        }
        self.pieces += usize::from(file.pieces.insert(held.at, held.digest).is_none());
        let Some(space) = space else {
            file.unattributed += 1;
            return Some(file);
        };
        let reader = match file.readers.iter().position(|reader| reader.space == space) {
            Some(reader) => reader,
            None if file.readers.len() >= MAX_READERS => {
                self.left_out.no_room += 1;
                return Some(file);
            }
            None => {
                file.readers.push(Reader {
                    space,
                    first_ns: at_ns,
                    pieces: BTreeMap::new(),
                });
                file.readers.len() - 1
            }
        };
        if let Some(reader) = file.readers.get_mut(reader) {
            self.pieces += usize::from(reader.pieces.insert(held.at, held.len).is_none());
        }
        Some(file)
    }

    /// Those that were read.
    pub fn read_ones(&self) -> impl Iterator<Item = &FollowedFile> {
        self.files.iter().filter(|file| !file.pieces.is_empty())
    }

    /// Address spaces that read files.
    pub fn readers(&self) -> BTreeSet<SpaceId> {
        let readers = self.files.iter().flat_map(|file| &file.readers);
        readers.map(|reader| reader.space).collect()
    }

    /// What is not told.
    #[must_use]
    pub const fn left_out(&self) -> LeftOut {
        self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(inode: u64) -> FileSeen {
        FileSeen {
            disk: 0,
            partition: 1,
            inode,
            generation: 7,
            bytes: 5000,
            path: format!("/{inode}.php").into_bytes(),
        }
    }

    fn held(file: u32, at: u64, gpa: u64, digest: u8) -> FileHeld {
        FileHeld {
            file,
            at,
            gpa: Gpa(gpa),
            len: 4096,
            written: false,
            digest: [digest; 32],
        }
    }

    fn read(gpa: u64, digest: u8) -> PageRead {
        PageRead {
            gpa: Gpa(gpa),
            by: None,
            write: false,
            digest: [digest; 32],
        }
    }

    #[test]
    fn who_accesses_memory_that_holds_a_piece_has_read_it() {
        let mut files = Files::default();
        files.seen(1, seen(12));
        files.held(&held(1, 0, 0x5000, 1));
        files.held(&held(1, 4096, 0x9000, 2));
        assert_eq!(files.read_ones().count(), 0, "held, and not read");
        for (at, gpa, digest, space) in [(10, 0x5000, 1, 3), (20, 0x9000, 2, 3), (30, 0x5000, 1, 4)] {
            assert!(files.read(at, &read(gpa, digest), Some(SpaceId(space))).is_some());
        }
        let [file] = files.read_ones().collect::<Vec<_>>()[..] else {
            panic!()
        };
        assert_eq!(file.pieces, BTreeMap::from([(0, [1; 32]), (4096, [2; 32])]));
        let readers: Vec<_> = file
            .readers
            .iter()
            .map(|r| (r.space.0, r.first_ns, r.pieces.len()))
            .collect();
        assert_eq!(readers, [(3, 10, 2), (4, 30, 1)]);
    }

    #[test]
    fn memory_that_holds_something_else_is_no_files_any_more() {
        let mut files = Files::default();
        files.seen(1, seen(12));
        files.held(&held(1, 0, 0x5000, 1));
        assert!(files.read(1, &read(0x5000, 9), Some(SpaceId(3))).is_none());
        assert!(files.read(2, &read(0x5000, 1), Some(SpaceId(3))).is_none());
        files.held(&held(1, 0, 0x5000, 1));
        let write = PageRead {
            write: true,
            ..read(0x5000, 1)
        };
        assert!(files.read(3, &write, Some(SpaceId(3))).is_none());
        assert!(files.read(4, &read(0x5000, 1), Some(SpaceId(3))).is_none());
        assert_eq!(files.left_out().changed, 1);
    }

    #[test]
    fn a_server_that_begins_anew_gives_other_numbers_to_the_same_files() {
        let mut files = Files::default();
        files.seen(1, seen(12));
        files.held(&held(1, 0, 0x5000, 1));
        files.seen(1, seen(99));
        files.seen(2, seen(12));
        files.held(&held(1, 0, 0x6000, 3));
        assert_eq!(files.read(1, &read(0x5000, 1), None).unwrap().about.inode, 12);
        assert_eq!(files.read(1, &read(0x6000, 3), None).unwrap().about.inode, 99);
        assert_eq!(files.files.len(), 2);
    }

    #[test]
    fn what_cannot_be_told_is_counted() {
        let mut files = Files::default();
        files.held(&held(1, 0, 0x5000, 1));
        files.seen(1, seen(12));
        files.held(&held(1, 0, 0x5200, 1));
        assert_eq!((files.left_out().of_no_file, files.left_out().in_part), (1, 1));
    }

    #[test]
    fn max_files_max_held_max_readers_and_max_pieces_bound_what_is_kept() {
        let mut files = Files::default();
        for inode in 0..=MAX_FILES as u64 {
            files.seen(u32::try_from(inode).unwrap(), seen(inode));
        }
        assert_eq!((files.files.len(), files.left_out().no_room), (MAX_FILES, 1));
        for page in 0..=MAX_HELD as u64 {
            files.held(&held(1, page << 12, page << 12, 1));
        }
        assert_eq!((files.held.len(), files.left_out().no_room), (MAX_HELD, 2));
        for space in 0..=u32::try_from(MAX_READERS).unwrap() {
            files.read(0, &read(0, 1), Some(SpaceId(space)));
        }
        let readers = files.read_ones().next().unwrap().readers.len();
        assert_eq!((readers, files.left_out().no_room), (MAX_READERS, 3));
        files.pieces = MAX_PIECES;
        assert!(files.read(0, &read(0x1000, 1), None).is_none());
        assert_eq!(files.left_out().no_room, 4);
    }
}
