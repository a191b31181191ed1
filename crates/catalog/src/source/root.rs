//! A directory tree that is only ever entered by names beneath its root: no symbolic link is followed, no mount of a
//! special file system entered, and somebody who moves things about underneath cannot lead out of it
//! (openat2(2), `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};

/// An opened root.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

/// A name in a directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Name {
    pub(crate) bytes: Vec<u8>,
    pub(crate) kind: Kind,
}

/// What stands under a name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    Other,
}

impl Root {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    fn open_beneath(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // Not blocking: a pipe in place of a file must not hold us up.
        let flags = flags | OFlags::CLOEXEC | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        Ok(rustix::fs::openat2(&self.0, path, flags, Mode::empty(), resolve)?)
    }

    /// A regular file beneath the root and its length.
    pub(crate) fn file(&self, path: &[u8]) -> io::Result<(File, u64)> {
        let file = File::from(self.open_beneath(path, OFlags::empty())?);
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        Ok((file, meta.len()))
    }

    /// The whole of a small file.
    pub(crate) fn read(&self, path: &[u8], max: u64) -> io::Result<Vec<u8>> {
        let (file, len) = self.file(path)?;
        if len > max {
            return Err(io::Error::other(format!("larger than {max} bytes")));
        }
        let mut bytes = Vec::new();
        file.take(max).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// What a directory beneath the root holds, sorted.
    pub(crate) fn list(&self, path: &[u8]) -> io::Result<Vec<Name>> {
        let dir = self.open_beneath(path, OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let bytes = entry.file_name().to_bytes();
            if bytes == b"." || bytes == b".." {
                continue;
            }
            let mut kind = entry.file_type();
            if kind == FileType::Unknown {
                let stat =
                    rustix::fs::statat(&dir, entry.file_name(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
                kind = FileType::from_raw_mode(stat.st_mode);
            }
            let kind = match kind {
                FileType::RegularFile => Kind::File,
                FileType::Directory => Kind::Directory,
                FileType::Symlink => Kind::Symlink,
                _ => Kind::Other,
            };
            names.push(Name {
                bytes: bytes.to_vec(),
                kind,
            });
        }
        names.sort();
        Ok(names)
    }
}
