//! What the header of a qcow2 image says that the library does not ask for (`docs/interop/qcow2.rst` of QEMU).

use std::fs::File;
use std::os::unix::fs::FileExt;

/// A qcow2 image that is not served.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// It cannot be read.
    #[error("its header cannot be read")]
    Read(#[source] std::io::Error),
    /// Other bytes.
    #[error("it does not begin as a qcow2 image does: is it `format=raw`?")]
    Magic,
    /// It is a part of a chain.
    #[error("it has a backing file: `qemu-img rebase -b \"\"` makes it whole")]
    Backing,
    /// Its bytes are in another file.
    #[error("it keeps its data in another file: `qemu-img convert -O qcow2` makes it one")]
    DataFile,
    /// Its bytes are not the disk's.
    #[error("it is encrypted")]
    Encrypted,
    /// Writing would break what they share.
    #[error("it has internal snapshots: `qemu-img snapshot -d` removes them")]
    Snapshots,
    /// QEMU did not close it.
    #[error("it was not closed in order: run `qemu-img check -r all` first")]
    Dirty,
}

/// Bytes of the header of version 3 up to the incompatible features, which come last of what is looked at.
const LEN: usize = 80;
const MAGIC: [u8; 4] = *b"QFI\xfb";
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;

pub(super) fn check(file: &File) -> Result<(), HeaderError> {
    let mut header = [0; LEN];
    file.read_exact_at(&mut header, 0).map_err(HeaderError::Read)?;
    judge(&header)
}

fn judge(header: &[u8; LEN]) -> Result<(), HeaderError> {
    if header[..4] != MAGIC {
        return Err(HeaderError::Magic);
    }
    let word = |at: usize| {
        let mut bytes = [0; 4];
        if let Some(found) = header.get(at..at.saturating_add(4)) {
            bytes.copy_from_slice(found);
        }
        u32::from_be_bytes(bytes)
    };
    let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at.saturating_add(4)));
    if long(8) != 0 {
        return Err(HeaderError::Backing);
    }
    if word(32) != 0 {
        return Err(HeaderError::Encrypted);
    }
    if word(60) != 0 {
        return Err(HeaderError::Snapshots);
    }
    let incompatible = if word(4) >= 3 { long(72) } else { 0 };
    if incompatible & (DIRTY | CORRUPT) != 0 {
        return Err(HeaderError::Dirty);
    }
    if incompatible & DATA_FILE != 0 {
        return Err(HeaderError::DataFile);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(change: impl Fn(&mut [u8; LEN])) -> Result<(), HeaderError> {
        let mut header = [0; LEN];
        header[..4].copy_from_slice(&MAGIC);
        header[7] = 3;
        change(&mut header);
        judge(&header)
    }

    #[test]
    fn images_with_parts_elsewhere_or_that_need_care_are_refused_by_name() {
        assert!(header(|_| ()).is_ok());
        assert!(matches!(header(|h| h[0] = b'X'), Err(HeaderError::Magic)));
        assert!(matches!(header(|h| h[15] = 1), Err(HeaderError::Backing)));
        assert!(matches!(header(|h| h[35] = 1), Err(HeaderError::Encrypted)));
        assert!(matches!(header(|h| h[63] = 1), Err(HeaderError::Snapshots)));
        assert!(matches!(header(|h| h[79] = 1), Err(HeaderError::Dirty)));
        assert!(matches!(header(|h| h[79] = 2), Err(HeaderError::Dirty)));
        assert!(matches!(header(|h| h[79] = 4), Err(HeaderError::DataFile)));
        let old = header(|h| (h[7], h[79]) = (2, 4));
        assert!(old.is_ok(), "version 2 has no such features");
    }
}
