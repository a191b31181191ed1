//! A binary package, deb(5): `debian-binary`, `control.tar`, `data.tar`.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::limits::{
    MAX_CONTROL_BYTES, MAX_HEAD_BYTES, MAX_PACKAGE_BYTES, MAX_PACKAGE_MEMBERS, MAX_XZ_MEMORY,
    MAX_ZSTD_WINDOW_LOG,
};
use crate::model::Package;

use super::ar::{Member, members};
use super::control;

/// One member of the data archive. Paths are raw bytes.
pub(crate) enum Entry<'a> {
    /// A regular file.
    File {
        path: &'a [u8],
        len: u64,
        bytes: &'a mut dyn Read,
    },
    /// Another name of a file before it.
    Hardlink { path: &'a [u8], target: &'a [u8] },
    /// A symbolic link.
    Symlink,
    /// A device node, pipe or socket.
    Device,
    /// A directory.
    Directory,
}

/// A package that was opened: its parts are there and its control file is read.
#[derive(Debug)]
pub(crate) struct Deb {
    pub(crate) package: Package,
    file: Arc<File>,
    data: Member,
    /// Bytes that it may unpack to.
    max_bytes: u64,
    /// Members that it may have.
    max_members: u64,
}

impl Deb {
    /// Opens a package and reads who it is.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn open(file: File) -> Result<Self, String> {
        let file = Arc::new(file);
        let members = members(&file)?;
        let find = |prefix: &str| members.iter().find(|m| m.name.starts_with(prefix)).cloned();
        match members.first() {
            Some(first) if first.name == "debian-binary" => {}
            _ => return Err("not a Debian package: no debian-binary".to_owned()),
        }
        let control = find("control.tar").ok_or("not a Debian package: no control.tar")?;
        let data = find("data.tar").ok_or("not a Debian package: no data.tar")?;
        let package = read_control(&file, &control).map_err(|e| format!("{}: {e}", control.name))?;
        Ok(Self {
            package,
            file,
            data,
            max_bytes: MAX_PACKAGE_BYTES,
            max_members: MAX_PACKAGE_MEMBERS,
        })
    }

    /// Hands every member of the data archive to `each`, then makes sure that the archive was whole.
    ///
    /// # Errors
    /// What is wrong with it; what was handed out before came from a damaged package.
    pub(crate) fn each(&self, each: &mut dyn FnMut(Entry<'_>) -> Result<(), String>) -> Result<(), String> {
        let name = &self.data.name;
        let bytes = unpack(Section::new(&self.file, &self.data), name).map_err(|e| format!("{name}: {e}"))?;
        let head = Cell::new(MAX_HEAD_BYTES);
        let mut bytes = Bounded {
            inner: bytes,
            at: 0,
            max: self.max_bytes,
            head: &head,
        };
        let mut archive = tar::Archive::new(&mut bytes);
        let entries = archive.entries().map_err(|e| format!("{name}: {e}"))?;
        let mut members = 0u64;
        for entry in entries {
            let mut entry = entry.map_err(|e| format!("{name}: {e}"))?;
            members += 1;
            if members > self.max_members {
                return Err(format!("more than {} files", self.max_members));
            }
            let path = entry.path_bytes().into_owned();
            let len = entry.size();
            let kind = entry.header().entry_type();
            let stored = if kind.is_gnu_sparse() {
                entry.header().entry_size().map_err(|e| format!("{name}: {e}"))?
            } else {
                len
            };
            let end = entry.raw_file_position().saturating_add(stored);
            head.set(end.saturating_add(MAX_HEAD_BYTES));
            if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
                each(Entry::File {
                    path: &path,
                    len,
                    bytes: &mut entry,
                })?;
            } else if kind.is_hard_link() {
                let target = entry
                    .link_name_bytes()
                    .map(std::borrow::Cow::into_owned)
                    .unwrap_or_default();
                each(Entry::Hardlink {
                    path: &path,
                    target: &target,
                })?;
            } else if kind.is_symlink() {
                each(Entry::Symlink)?;
            } else if kind.is_dir() {
                each(Entry::Directory)?;
            } else {
                each(Entry::Device)?;
            }
        }
        head.set(u64::MAX);
        // The archive may end before the compressed data does; only its end proves that all of it is whole.
        io::copy(&mut bytes, &mut io::sink())
            .map(drop)
            .map_err(|e| format!("{name}: {e}"))
    }
}

fn read_control(file: &Arc<File>, member: &Member) -> Result<Package, String> {
    let bytes = unpack(Section::new(file, member), &member.name).map_err(|e| e.to_string())?;
    // What is allowed in all is little enough.
    let head = Cell::new(u64::MAX);
    let mut archive = tar::Archive::new(Bounded {
        inner: bytes,
        at: 0,
        max: MAX_CONTROL_BYTES * 64,
        head: &head,
    });
    for entry in archive.entries().map_err(|e| e.to_string())? {
        let entry = entry.map_err(|e| e.to_string())?;
        let path = entry.path_bytes().into_owned();
        if path.strip_prefix(b"./").unwrap_or(&path) != b"control" {
            continue;
        }
        if entry.size() > MAX_CONTROL_BYTES {
            return Err(format!("control file larger than {MAX_CONTROL_BYTES} bytes"));
        }
        let mut text = Vec::new();
        entry
            .take(MAX_CONTROL_BYTES)
            .read_to_end(&mut text)
            .map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&text);
        let package = control::paragraphs(&text)
            .next()
            .and_then(control::Paragraph::package);
        return package.ok_or_else(|| "control file without Package and Version".to_owned());
    }
    Err("no control file".to_owned())
}

/// The member decompressed, by its suffix (deb(5): none, `.gz`, `.xz`, `.zst`; the older ones are refused).
fn unpack(member: Section, name: &str) -> io::Result<Box<dyn Read>> {
    let buffered = io::BufReader::with_capacity(1 << 16, member);
    match name.rsplit_once(".tar").map_or("", |(_, suffix)| suffix) {
        "" => Ok(Box::new(buffered)),
        ".gz" => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(buffered))),
        ".xz" => {
            let flags = liblzma::stream::CONCATENATED;
            let stream = liblzma::stream::Stream::new_stream_decoder(MAX_XZ_MEMORY, flags)
                .map_err(io::Error::other)?;
            Ok(Box::new(liblzma::bufread::XzDecoder::new_stream(
                buffered, stream,
            )))
        }
        ".zst" => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)?;
            decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
            Ok(Box::new(decoder))
        }
        other => Err(io::Error::other(format!("compression {other} is not supported"))),
    }
}

/// One member's bytes.
struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Section {
    fn new(file: &Arc<File>, member: &Member) -> Self {
        Self {
            file: Arc::clone(file),
            at: member.at,
            end: member.at.saturating_add(member.len),
        }
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let len = buffer.len().min(left);
        let n = match buffer.get_mut(..len) {
            Some([]) | None => 0,
            Some(buffer) => self.file.read_at(buffer, self.at)?,
        };
        if n == 0 && len > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter",
            ));
        }
        self.at = self.at.saturating_add(n as u64);
        Ok(n)
    }
}

/// Gives an error, and not an end, past its bounds.
struct Bounded<'a, R> {
    inner: R,
    at: u64,
    /// Where it ends.
    max: u64,
    /// Where the next member must have begun.
    head: &'a Cell<u64>,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.at = self.at.saturating_add(n as u64);
        if self.at > self.max {
            return Err(io::Error::other("unpacks to more than is allowed"));
        }
        if self.at > self.head.get() {
            let error = format!("a member's head is longer than {MAX_HEAD_BYTES} bytes");
            return Err(io::Error::other(error));
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(tar: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, bytes: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        header.set_path(name).unwrap();
        header.set_cksum();
        tar.append(&header, bytes).unwrap();
    }

    /// A package with so many empty files, whose archive is that and `padding` more bytes, all zeros.
    fn package(files: usize, padding: usize) -> Deb {
        let mut tar = tar::Builder::new(Vec::new());
        for number in 0..files {
            member(&mut tar, tar::EntryType::Regular, &number.to_string(), b"");
        }
        let mut data = tar.into_inner().unwrap();
        data.resize(data.len() + padding, 0);
        package_of(&data)
    }

    fn package_of(data: &[u8]) -> Deb {
        let mut control = tar::Builder::new(Vec::new());
        let text = b"Package: a\nVersion: 1\nArchitecture: all\n";
        member(&mut control, tar::EntryType::Regular, "control", text);
        let control = control.into_inner().unwrap();
        let mut ar = ar::Builder::new(tempfile::tempfile().unwrap());
        let members = [
            ("debian-binary", b"2.0\n".to_vec()),
            ("control.tar", control),
            ("data.tar.zst", zstd::encode_all(data, 1).unwrap()),
        ];
        for (name, bytes) in members {
            let header = ar::Header::new(name.into(), bytes.len() as u64);
            ar.append(&header, bytes.as_slice()).unwrap();
        }
        let deb = Deb::open(ar.into_inner().unwrap()).unwrap();
        assert_eq!(
            (deb.max_bytes, deb.max_members),
            (MAX_PACKAGE_BYTES, MAX_PACKAGE_MEMBERS)
        );
        deb
    }

    /// How many members came, and how it ended.
    fn read(deb: &Deb) -> (usize, Result<(), String>) {
        let mut members = 0;
        let result = deb.each(&mut |_| {
            members += 1;
            Ok(())
        });
        (members, result)
    }

    #[test]
    fn max_package_bytes_stops_a_package_that_unpacks_without_end() {
        let padding = 1 << 20;
        let mut deb = package(1, padding);
        // One header, and the two empty blocks that end an archive.
        let whole = 3 * 512 + padding as u64;
        deb.max_bytes = whole;
        assert_eq!(read(&deb), (1, Ok(())));
        deb.max_bytes = whole - 1;
        let refused = "data.tar.zst: unpacks to more than is allowed".to_owned();
        assert_eq!(read(&deb), (1, Err(refused)));
    }

    #[test]
    fn max_package_members_stops_a_package_of_nothing_else() {
        let mut deb = package(20, 0);
        deb.max_members = 20;
        assert_eq!(read(&deb), (20, Ok(())));
        deb.max_members = 19;
        assert_eq!(read(&deb), (19, Err("more than 19 files".to_owned())));
    }

    #[test]
    fn max_head_bytes_stops_a_name_of_gigabytes_that_packs_into_nothing() {
        let most = usize::try_from(MAX_HEAD_BYTES).unwrap();
        let named = |len: usize| {
            let mut tar = tar::Builder::new(Vec::new());
            // A file that is passed over is no head of the next.
            member(&mut tar, tar::EntryType::Regular, "large", &vec![0; 3 * most]);
            member(&mut tar, tar::EntryType::GNULongName, "name", &vec![b'a'; len]);
            member(&mut tar, tar::EntryType::Regular, "named", b"");
            read(&package_of(&tar.into_inner().unwrap()))
        };
        // Two headers besides.
        assert_eq!(named(most - 1024), (2, Ok(())));
        let refused = format!("data.tar.zst: a member's head is longer than {MAX_HEAD_BYTES} bytes");
        assert_eq!(named(most - 1023), (1, Err(refused)));
    }
}
