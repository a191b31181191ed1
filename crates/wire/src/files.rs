//! Frames about files: which there are, who accessed which, and which versions of packages their disk has.

use nephoscope_guest::PAGE_SIZE;

use crate::frame::{Fields, FrameError};

/// The longest path of a file (Linux, `PATH_MAX`).
pub const MAX_PATH_BYTES: usize = 4096;
/// The longest name of a package, and the longest version: as many bytes as a name of a file may have (Linux, `NAME_MAX`), because
/// packages are files with both in their names.
pub const MAX_WORD_BYTES: usize = 255;

/// Of [`FrameAccessed`].
const FLAG_BY: u32 = 1;
const FLAG_BYTES: u32 = 2;

/// The fixed part of what is said of a file. Its path follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FileFrame {
    /// Its number: the server's, and never another file's.
    pub file: u32,
    /// The disk, counted from 0 as the VM is started with them.
    pub disk: u16,
    /// The partition, 0 if the disk has none.
    pub partition: u16,
    /// Its inode and that one's generation.
    pub inode: u64,
    /// Tells it from the one that had its number before.
    pub generation: u32,
    /// Bytes of it.
    pub bytes: u64,
}

/// Which piece is where.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FileHeld {
    /// The file.
    pub file: u32,
    /// Where in it, in bytes.
    pub at: u64,
    /// Where in memory.
    pub gpa: u64,
    /// Bytes of it, 4096 at most.
    pub len: u16,
    /// The guest has written it to the disk from there.
    pub written: bool,
    /// BLAKE3 of the bytes.
    pub digest: [u8; 32],
}

/// Who accessed memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FrameAccessed {
    /// The page of memory.
    pub gpa: u64,
    /// The root that was loaded and its incarnation, if a vCPU accessed it and they are known.
    pub by: Option<(u64, u32)>,
}

/// Of which package something is said. Its name and a version follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PackageFrame {
    /// The disk, counted from 0 as the VM is started with them.
    pub disk: u16,
    /// The partition, 0 if the disk has none.
    pub partition: u16,
    /// It is installed there, in that version; it was, if not.
    pub installed: bool,
}

impl FileFrame {
    pub(crate) fn encode(&self, path: &[u8], out: &mut Vec<u8>) {
        let path = path.get(..MAX_PATH_BYTES).unwrap_or(path);
        out.extend_from_slice(&self.inode.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.file.to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        let len = u16::try_from(path.len()).unwrap_or(0);
        for number in [self.disk, self.partition, len, 0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(path);
    }

    pub(crate) fn decode<'a>(f: &mut Fields<'a>, length: FrameError) -> Result<(Self, &'a [u8]), FrameError> {
        let (inode, bytes) = (f.u64().ok_or(length)?, f.u64().ok_or(length)?);
        let (file, generation) = (f.u32().ok_or(length)?, f.u32().ok_or(length)?);
        let (disk, partition) = (f.u16().ok_or(length)?, f.u16().ok_or(length)?);
        let len = usize::from(f.u16().ok_or(length)?);
        f.u16().ok_or(length)?;
        let (path, padding) = f.rest.split_at_checked(len).ok_or(length)?;
        if padding.len() >= 8 || len > MAX_PATH_BYTES {
            return Err(length);
        }
        f.rest = &[];
        let file = Self {
            file,
            disk,
            partition,
            inode,
            generation,
            bytes,
        };
        Ok((file, path))
    }
}

impl PackageFrame {
    pub(crate) fn encode(&self, name: &[u8], version: &[u8], out: &mut Vec<u8>) {
        let words = [name, version].map(|word| word.get(..MAX_WORD_BYTES).unwrap_or(word));
        let [name, version] = words.map(|word| u8::try_from(word.len()).unwrap_or(0));
        out.extend_from_slice(&self.disk.to_le_bytes());
        out.extend_from_slice(&self.partition.to_le_bytes());
        out.extend_from_slice(&[self.installed.into(), name, version, 0]);
        for word in words {
            out.extend_from_slice(word);
        }
    }

    pub(crate) fn decode<'a>(
        f: &mut Fields<'a>,
        length: FrameError,
    ) -> Result<(Self, &'a [u8], &'a [u8]), FrameError> {
        let (disk, partition) = (f.u16().ok_or(length)?, f.u16().ok_or(length)?);
        let [installed, name, version, _] = f.take().ok_or(length)?;
        let (name, rest) = f.rest.split_at_checked(name.into()).ok_or(length)?;
        let (version, padding) = rest.split_at_checked(version.into()).ok_or(length)?;
        if padding.len() >= 8 {
            return Err(length);
        }
        if installed > 1 {
            return Err(FrameError::Field("installed"));
        }
        f.rest = &[];
        let package = Self {
            disk,
            partition,
            installed: installed == 1,
        };
        Ok((package, name, version))
    }
}

impl FileHeld {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.gpa.to_le_bytes());
        out.extend_from_slice(&self.at.to_le_bytes());
        out.extend_from_slice(&self.file.to_le_bytes());
        for number in [self.len, self.written.into()] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.digest);
    }

    pub(crate) fn decode(f: &mut Fields<'_>, length: FrameError) -> Result<Self, FrameError> {
        let (gpa, at) = (f.u64().ok_or(length)?, f.u64().ok_or(length)?);
        let file = f.u32().ok_or(length)?;
        let (len, written) = (f.u16().ok_or(length)?, f.u16().ok_or(length)?);
        if len == 0 || usize::from(len) > PAGE_SIZE {
            return Err(FrameError::Field("len"));
        }
        Ok(Self {
            file,
            at,
            gpa,
            len,
            written: written != 0,
            digest: f.take().ok_or(length)?,
        })
    }
}

impl FrameAccessed {
    pub(crate) fn encode(&self, page: Option<&[u8; PAGE_SIZE]>, out: &mut Vec<u8>) {
        let (root, incarnation) = self.by.unwrap_or_default();
        out.extend_from_slice(&self.gpa.to_le_bytes());
        out.extend_from_slice(&root.to_le_bytes());
        out.extend_from_slice(&incarnation.to_le_bytes());
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let flags = flag(self.by.is_some(), FLAG_BY) | flag(page.is_some(), FLAG_BYTES);
        out.extend_from_slice(&flags.to_le_bytes());
        if let Some(page) = page {
            out.extend_from_slice(page);
        }
    }

    pub(crate) fn decode<'a>(
        f: &mut Fields<'a>,
        length: FrameError,
    ) -> Result<(Self, Option<&'a [u8; PAGE_SIZE]>), FrameError> {
        let (gpa, root) = (f.u64().ok_or(length)?, f.u64().ok_or(length)?);
        let (incarnation, flags) = (f.u32().ok_or(length)?, f.u32().ok_or(length)?);
        let by = (flags & FLAG_BY != 0).then_some((root, incarnation));
        let page = if flags & FLAG_BYTES == 0 {
            None
        } else {
            Some(f.page().ok_or(length)?)
        };
        Ok((Self { gpa, by }, page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Frame, MAX_FRAME_BYTES, Stamp};

    #[test]
    fn max_path_bytes_is_as_long_as_a_path_may_be() {
        let (path, mut bytes) = ([b'x'; MAX_PATH_BYTES + 1], Vec::new());
        Frame::File(FileFrame::default(), &path).encode(Stamp::default(), &mut bytes);
        assert!(bytes.len() <= MAX_FRAME_BYTES);
        let Ok((_, Frame::File(_, told))) = Frame::decode(&bytes) else {
            panic!("no file")
        };
        assert_eq!(told.len(), MAX_PATH_BYTES);
    }

    #[test]
    fn max_word_bytes_is_as_long_as_a_name_or_version_may_be() {
        let (word, mut bytes) = ([b'x'; MAX_WORD_BYTES + 1], Vec::new());
        Frame::Package(PackageFrame::default(), &word, &word).encode(Stamp::default(), &mut bytes);
        let Ok((_, Frame::Package(_, name, version))) = Frame::decode(&bytes) else {
            panic!("no package")
        };
        assert_eq!([name.len(), version.len()], [MAX_WORD_BYTES; 2]);
    }
}
