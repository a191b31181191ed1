//! Terse images: PE images whose headers were replaced by a short one, to save flash.
//!
//! ```text
//!  0 "VZ" │ 2 machine │ 4 sections u8 │ 5 subsystem │ 6 stripped u16 │ 8 entry u32 │ 12 code u32 │ 16 image base u64
//!  24 relocations: address u32, size u32 │ 32 debug: address u32, size u32 │ 40 section headers as in PE …
//! ```
//!
//! PI specification 1.7, volume 1, 15.1. All addresses and offsets count from the start of the PE that once was: what
//! was stripped of it, less this header, is between that and the file.

use super::image::{Loaded, Piece};
use crate::kernel::bytes::{index, u16_at, u32_at, u64_at};

const SIGNATURE: &[u8] = b"VZ";
const HEADER: usize = 40;
/// `IMAGE_SECTION_HEADER`.
const SECTION: usize = 40;

/// The image in this file, loaded; `None` if there is none.
pub(super) fn loaded(file: &[u8]) -> Option<Loaded> {
    if !file.starts_with(SIGNATURE) {
        return None;
    }
    let stripped = u64::from(u16_at(file, 6)?);
    let ahead = stripped.checked_sub(40)?;
    let count = usize::from(*file.get(4)?);
    let head_len = count.checked_mul(SECTION)?.checked_add(HEADER)?;
    let mut pieces = vec![Piece {
        at: 0,
        bytes: file.get(..head_len)?,
    }];
    for header in file.get(HEADER..head_len)?.chunks_exact(SECTION) {
        let word = |at: usize| u32_at(header, at).map(u64::from);
        let (virtual_len, raw_len) = (word(8)?, word(16)?);
        let len = if virtual_len == 0 {
            raw_len
        } else {
            virtual_len.min(raw_len)
        };
        let from = index(word(20)?.checked_sub(ahead)?);
        pieces.push(Piece {
            at: word(12)?.checked_sub(ahead)?,
            bytes: file.get(from..from.checked_add(index(len))?)?,
        });
    }
    let link = u64_at(file, 16)?.wrapping_add(ahead);
    let (directory, size) = (u64::from(u32_at(file, 24)?), u64::from(u32_at(file, 28)?));
    let from = directory.saturating_sub(ahead);
    Loaded::lay_out(link, &pieces, from..from.saturating_add(size), ahead)
}
