//! Volumes, and the files in them.
//!
//! ```text
//!  volume  0 zeros[16] │ 16 file system │ 32 length u64 │ 40 "_FVH" │ 44 attributes │ 48 header length u16
//!          50 checksum u16 │ 52 extended header u16 │ 54 reserved │ 55 revision
//!  file    0 name │ 16 checksums u8, u8 │ 18 type │ 19 attributes │ 20 length u24 │ 23 state │ (24 length u64)
//! ```
//!
//! PI specification 1.7, volume 3, 3.2.1 to 3.2.3: files begin at multiples of 8 from the volume's start, the first
//! after the header or the extended header.

use crate::error::RecipeError;
use crate::kernel::bytes::{array, index, u16_at, u32_at, u64_at};

/// `_FVH`.
const SIGNATURE: u32 = 0x4856_465f;
const MIN_HEADER: usize = 56;
/// `EFI_FIRMWARE_FILE_SYSTEM2_GUID` and `EFI_FIRMWARE_FILE_SYSTEM3_GUID`: other volumes hold variables.
const FILE_SYSTEMS: [Guid; 2] = [
    Guid(*b"\x78\xe5\x8c\x8c\x3d\x8a\x1c\x4f\x99\x35\x89\x61\x85\xc3\x2d\xd3"),
    Guid(*b"\x7a\xc0\x73\x54\xcb\x3d\xca\x4d\xbd\x6f\x1e\x96\x89\xe7\x34\x9a"),
];
/// `FFS_ATTRIB_LARGE_FILE`.
const LARGE: u8 = 1;

/// A GUID as it is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Guid(pub(super) [u8; 16]);

impl std::fmt::Display for Guid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g, h, i, rest @ ..] = self.0;
        let (first, second) = (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([e, g]));
        write!(f, "{first:08X}-{second:04X}-{:04X}-", u16::from_le_bytes([h, i]))?;
        for (at, byte) in rest.iter().enumerate() {
            write!(f, "{}{byte:02X}", if at == 2 { "-" } else { "" })?;
        }
        Ok(())
    }
}

/// A volume, from its header to its end.
pub(super) struct Volume<'a> {
    /// All of it.
    pub(super) bytes: &'a [u8],
    /// Where its first file begins; `None` if it has another file system.
    first: Option<usize>,
}

impl<'a> Volume<'a> {
    /// The volume that begins here; `None` if none does.
    pub(super) fn at(bytes: &'a [u8], at: u64) -> Result<Option<Self>, RecipeError> {
        if u32_at(bytes, 40) != Some(SIGNATURE) {
            return Ok(None);
        }
        let Some(header) = u16_at(bytes, 48).and_then(|len| bytes.get(..usize::from(len))) else {
            return Ok(None);
        };
        let sum = header.as_chunks().0.iter().map(|word| u16::from_le_bytes(*word));
        if header.len() < MIN_HEADER || sum.fold(0, u16::wrapping_add) != 0 {
            return Ok(None);
        }
        let malformed = RecipeError::Malformed {
            what: "a firmware volume",
            at,
        };
        let len = index(u64_at(bytes, 32).unwrap_or(u64::MAX));
        let whole = bytes.get(..len).filter(|whole| whole.len() >= header.len());
        let bytes = whole.ok_or(malformed.clone())?;
        let file_system = array(bytes, 16).map(Guid);
        if !file_system.is_some_and(|guid| FILE_SYSTEMS.contains(&guid)) {
            return Ok(Some(Self { bytes, first: None }));
        }
        let first = match u16_at(bytes, 52).map(usize::from) {
            None | Some(0) => Some(header.len()),
            Some(extended) => extended
                .checked_add(16)
                .and_then(|size| u32_at(bytes, size))
                .and_then(|size| extended.checked_add(index(size.into()))),
        };
        let first = first.and_then(|first| first.checked_next_multiple_of(8));
        Ok(Some(Self {
            bytes,
            first: Some(first.ok_or(malformed)?),
        }))
    }

    /// Its files, in order; an error is the last.
    pub(super) fn files(&self) -> Files<'a> {
        Files {
            bytes: self.bytes,
            next: self.first,
        }
    }
}

/// A file of a volume.
pub(super) struct File<'a> {
    pub(super) name: Guid,
    /// `EFI_FV_FILETYPE_…`.
    pub(super) kind: u8,
    /// Without its header.
    pub(super) content: &'a [u8],
    /// Where that is in the volume.
    pub(super) at: usize,
}

/// The files of a volume.
pub(super) struct Files<'a> {
    bytes: &'a [u8],
    next: Option<usize>,
}

impl<'a> Files<'a> {
    /// The file at `at` and where it ends; `None` at free space or the volume's end.
    fn file(&self, at: usize) -> Result<Option<(File<'a>, usize)>, RecipeError> {
        let Some(rest) = self.bytes.get(at..) else {
            return Ok(None);
        };
        let Some(header) = array::<24>(rest, 0).filter(|header| !is_free(header)) else {
            return Ok(None);
        };
        let malformed = RecipeError::Malformed {
            what: "a firmware file",
            at: u64::try_from(at).unwrap_or(u64::MAX),
        };
        let [.., content_sum, kind, attributes, a, b, c, state] = header;
        let (len, header_len) = if attributes & LARGE == 0 {
            (u64::from(u32::from_le_bytes([a, b, c, 0])), 24)
        } else {
            (u64_at(rest, 24).unwrap_or(u64::MAX), 32)
        };
        let content = rest.get(header_len..index(len)).ok_or(malformed.clone())?;
        // The header's sum counts neither the content's checksum nor the state. 3.2.3.1.
        let sum = rest.iter().take(header_len).copied().fold(0, u8::wrapping_add);
        if sum != content_sum.wrapping_add(state) {
            return Err(malformed);
        }
        let name = array(rest, 0).map(Guid).ok_or(malformed)?;
        let file = File {
            name,
            kind,
            content,
            at: at.saturating_add(header_len),
        };
        Ok(Some((file, at.saturating_add(index(len)))))
    }
}

/// Erased flash is all ones or all zeros, as the volume's erase polarity says.
fn is_free(header: &[u8]) -> bool {
    header.iter().all(|byte| *byte == 0xff) || header.iter().all(|byte| *byte == 0)
}

impl<'a> Iterator for Files<'a> {
    type Item = Result<File<'a>, RecipeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.next.take()?;
        let file = self.file(at).transpose()?;
        Some(file.map(|(file, end)| {
            self.next = end.checked_next_multiple_of(8);
            file
        }))
    }
}
