//! Sections of a file.
//!
//! ```text
//!  0 length u24 │ 3 type │ (4 length u32, if the first is FFFFFF) │ content │ up to a multiple of 4
//!  GUID-defined:  GUID │ offset of the data u16 │ attributes u16 │ … │ data
//! ```
//!
//! PI specification 1.7, volume 3, 2.2.4 and 3.2.4. What a GUID that is not known here stands for is not looked into.

use super::volume::Guid;
use crate::error::RecipeError;
use crate::kernel::bytes::{array, index, u16_at, u32_at};

/// `EFI_SECTION_COMPRESSION`.
const COMPRESSION: u8 = 0x01;
/// `EFI_SECTION_GUID_DEFINED`.
const GUID_DEFINED: u8 = 0x02;
/// `EFI_SECTION_DISPOSABLE`: sections that may be left out.
const DISPOSABLE: u8 = 0x03;
/// `EFI_SECTION_PE32`, and position-independent code, which is a PE32, too.
const PE32: [u8; 2] = [0x10, 0x11];
/// `EFI_SECTION_TE`.
const TE: u8 = 0x12;
/// `EFI_SECTION_USER_INTERFACE`.
const NAME: u8 = 0x15;
/// `EFI_SECTION_FIRMWARE_VOLUME_IMAGE`.
const VOLUME: u8 = 0x17;
/// `EFI_GUIDED_SECTION_PROCESSING_REQUIRED`.
const PROCESSING_REQUIRED: u16 = 1;
/// `LzmaCompress` of EDK2: `EE4E5898-3914-4259-9D6E-DC7BD79403CF`.
const LZMA: Guid = Guid(*b"\x98\x58\x4e\xee\x14\x39\x59\x42\x9d\x6e\xdc\x7b\xd7\x94\x03\xcf");
/// A name longer than any.
pub(super) const MAX_NAME: usize = 64;

/// What a section holds.
pub(super) enum Section<'a> {
    /// A PE32 or PE32+ image.
    Pe(&'a [u8]),
    /// A terse image.
    Te(&'a [u8]),
    /// The file's name for people.
    Name(String),
    /// A volume.
    Volume(&'a [u8]),
    /// More sections.
    Sections(&'a [u8]),
    /// More sections, once decompressed.
    Lzma(&'a [u8]),
    /// Data, or something that is not looked into.
    Other,
}

/// The sections of a file; an error is the last.
pub(super) struct Sections<'a> {
    bytes: &'a [u8],
    next: Option<usize>,
}

/// The sections in these bytes.
pub(super) fn sections(bytes: &[u8]) -> Sections<'_> {
    Sections { bytes, next: Some(0) }
}

impl<'a> Sections<'a> {
    fn section(&self, at: usize) -> Result<Option<(Section<'a>, usize)>, RecipeError> {
        let Some(rest) = self.bytes.get(at..) else {
            return Ok(None);
        };
        let Some([a, b, c, kind]) = array(rest, 0) else {
            return Ok(None);
        };
        let malformed = RecipeError::Malformed {
            what: "a section of a firmware file",
            at: u64::try_from(at).unwrap_or(u64::MAX),
        };
        let (len, header) = match u32::from_le_bytes([a, b, c, 0]) {
            0xff_ffff => (u32_at(rest, 4).unwrap_or(u32::MAX), 8),
            len => (len, 4),
        };
        let whole = rest.get(..index(len.into())).ok_or(malformed.clone())?;
        let content = whole.get(header..).ok_or(malformed)?;
        let section = match kind {
            TE => Section::Te(content),
            NAME => Section::Name(name(content)),
            VOLUME => Section::Volume(content),
            DISPOSABLE => Section::Sections(content),
            COMPRESSION => not_compressed(content),
            GUID_DEFINED => guided(whole, header),
            _ if PE32.contains(&kind) => Section::Pe(content),
            _ => Section::Other,
        };
        Ok(Some((section, at.saturating_add(whole.len()))))
    }
}

/// Length u32, then 0 for plain sections or 1 for the standard compression.
fn not_compressed(content: &[u8]) -> Section<'_> {
    match (content.get(4), content.get(5..)) {
        (Some(0), Some(plain)) => Section::Sections(plain),
        _ => Section::Other,
    }
}

/// The data begins where the header says, from the section's start.
fn guided(whole: &[u8], header: usize) -> Section<'_> {
    let field = |offset: usize| header.checked_add(offset).and_then(|at| u16_at(whole, at));
    let (Some(guid), Some(offset), Some(attributes)) = (array(whole, header).map(Guid), field(16), field(18))
    else {
        return Section::Other;
    };
    let Some(data) = whole.get(usize::from(offset)..) else {
        return Section::Other;
    };
    match guid {
        LZMA => Section::Lzma(data),
        _ if attributes & PROCESSING_REQUIRED == 0 => Section::Sections(data),
        _ => Section::Other,
    }
}

/// UCS-2 up to a zero.
fn name(content: &[u8]) -> String {
    let units = content.as_chunks().0.iter().map(|unit| u16::from_le_bytes(*unit));
    let units = units.take_while(|unit| *unit != 0).take(MAX_NAME);
    char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

impl<'a> Iterator for Sections<'a> {
    type Item = Result<Section<'a>, RecipeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.next.take()?;
        let section = self.section(at).transpose()?;
        Some(section.map(|(section, end)| {
            self.next = end.checked_next_multiple_of(4);
            section
        }))
    }
}
