//! LiME images: each range of memory behind a header of its own (LiME `src/lime.h`, format version 1).
//!
//! ```text
//!  ┌ magic "EMiL" u32 │ version u32 │ first byte u64 │ last byte u64 │ 8 bytes of nothing ┐ bytes … ┌ magic …
//! ```

use super::DumpError;
use super::pieces::{MAX_PIECES, Piece};
use crate::mapped_file::MappedFile;

pub(super) const MAGIC: [u8; 4] = *b"EMiL";
const HEADER_BYTES: usize = 32;

/// The ranges of an image.
pub(super) fn pieces(file: &MappedFile) -> Result<Vec<Piece>, DumpError> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < file.len() {
        let malformed = |what| DumpError::Malformed { what, at };
        let mut header = [0; HEADER_BYTES];
        file.read(at, &mut header)
            .ok_or(malformed("a header of LiME's that the file ends in"))?;
        let [m0, m1, m2, m3, v0, v1, v2, v3, rest @ ..] = header;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(malformed("no header of LiME's where one has to be"));
        }
        if u32::from_le_bytes([v0, v1, v2, v3]) != 1 {
            return Err(malformed("a version of LiME's format other than 1"));
        }
        let word = |at: usize| {
            rest.get(at..)
                .and_then(<[u8]>::first_chunk)
                .map_or(0, |raw| u64::from_le_bytes(*raw))
        };
        let (first, last) = (word(0), word(8));
        let len = last
            .checked_sub(first)
            .and_then(|len| len.checked_add(1))
            .ok_or(malformed("a range that ends before it begins"))?;
        if pieces.len() >= MAX_PIECES {
            return Err(DumpError::TooMany);
        }
        let data = at + HEADER_BYTES as u64;
        pieces.push(Piece {
            gpa: first,
            at: data,
            len,
            zeros: 0,
        });
        // Whether the file has as many is checked for all formats alike.
        at = data.saturating_add(len);
    }
    Ok(pieces)
}
