//! One object in the heap: everything that is only wanted once the object is known.
//!
//! ```text
//! extent ──► [ chunk │ crc ] … [ rest of part │ crc ] …   [ record │ crc ]
//! chunk      128 KiB of a part's bytes, zstd: a page is decoded without the rest of a large library
//! rest       the part without its bytes: sites and values, postcard, zstd
//! record     what the object is and where its chunks are, postcard, zstd
//! ```
//!
//! Offsets are relative to the extent, so that merging segments copies extents as they are.

use std::cell::RefCell;
use std::io::Read;

use nephoscope_recipe::{Facts, Load, Object, ObjectKind, Part};
use serde::{Deserialize, Serialize};
use zstd::bulk::Decompressor;

use crate::block::{check, holds};
use crate::limits::MAX_PART_BYTES;
use crate::model::PartInfo;

/// Bytes of a part that are compressed together.
pub(crate) const CHUNK: usize = 128 << 10;
/// zstd's level: 9 is where code stops getting much smaller.
const LEVEL: i32 = 6;
/// The place that goes into a blob's check is its offset; the record's is this, to tell it from a chunk.
const RECORD_PLACE: u64 = 1 << 63;

/// A blob in the extent, its CRC not counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Blob {
    at: u32,
    len: u32,
    /// Its length decompressed.
    raw: u32,
}

/// The object as the heap keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) digest: [u8; 32],
    pub(crate) file_len: u64,
    pub(crate) kind: ObjectKind,
    pub(crate) facts: Facts,
    pub(crate) loads: Vec<Load>,
    pub(crate) parts: Vec<StoredPart>,
}

/// A part as the heap keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct StoredPart {
    pub(crate) info: PartInfo,
    pub(crate) chunks: Vec<Blob>,
    rest: Blob,
}

/// An encoded object.
#[derive(Debug)]
pub(crate) struct Extent {
    pub(crate) bytes: Vec<u8>,
    pub(crate) record: u32,
}

/// Why an extent cannot be read: one word, the caller knows which.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Broken;

/// Encodes an object, its pages aside.
pub(crate) fn encode(digest: [u8; 32], file_len: u64, object: Object) -> Result<Extent, String> {
    let mut out = Vec::new();
    let mut parts = Vec::with_capacity(object.parts.len());
    for mut part in object.parts {
        let bytes = std::mem::take(&mut part.bytes);
        let info = PartInfo {
            kind: part.kind,
            name: part.name.clone(),
            link: part.link,
            placement: part.placement,
            len: bytes.len() as u64,
        };
        if info.len > MAX_PART_BYTES {
            return Err(format!(
                "part {} is larger than {MAX_PART_BYTES} bytes",
                info.name
            ));
        }
        let chunks = bytes
            .chunks(CHUNK)
            .map(|chunk| push(&mut out, chunk))
            .collect::<Result<_, _>>()?;
        let rest = push(&mut out, &postcard::to_stdvec(&part).map_err(|e| e.to_string())?)?;
        parts.push(StoredPart { info, chunks, rest });
    }
    let record = Record {
        digest,
        file_len,
        kind: object.kind,
        facts: object.facts,
        loads: object.loads,
        parts,
    };
    let at = u32::try_from(out.len()).map_err(|_| "object too large".to_owned())?;
    let record = postcard::to_stdvec(&record).map_err(|e| e.to_string())?;
    let raw = u32::try_from(record.len()).map_err(|_| "object too large".to_owned())?;
    let packed = zstd::bulk::compress(&record, LEVEL).map_err(|e| e.to_string())?;
    let mut body = raw.to_le_bytes().to_vec();
    body.extend(packed);
    out.extend_from_slice(&body);
    out.extend(check(&body, RECORD_PLACE).to_le_bytes());
    Ok(Extent {
        bytes: out,
        record: at,
    })
}

fn push(out: &mut Vec<u8>, raw: &[u8]) -> Result<Blob, String> {
    let number = |n: usize| u32::try_from(n).map_err(|_| "object too large".to_owned());
    let packed = zstd::bulk::compress(raw, LEVEL).map_err(|e| e.to_string())?;
    let blob = Blob {
        at: number(out.len())?,
        len: number(packed.len())?,
        raw: number(raw.len())?,
    };
    out.extend_from_slice(&packed);
    out.extend(check(&packed, u64::from(blob.at)).to_le_bytes());
    Ok(blob)
}

/// A blob with its CRC, copied and checked.
fn checked(bytes: Option<&[u8]>, place: u64) -> Result<Vec<u8>, Broken> {
    let mut copy = bytes.ok_or(Broken)?.to_vec();
    let body = copy.len().checked_sub(4).ok_or(Broken)?;
    let sum = copy.split_off(body);
    let sum = <[u8; 4]>::try_from(sum.as_slice()).map_err(|_| Broken)?;
    if holds(&copy, place, sum) {
        Ok(copy)
    } else {
        Err(Broken)
    }
}

thread_local! {
    static DECODER: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Up to so many bytes have their memory before they are there; for more, it grows with what comes.
const AT_ONCE: usize = 4 << 20;

/// Decompresses at most `raw` bytes, and exactly so many.
fn unpack(packed: &[u8], raw: u32) -> Result<Vec<u8>, Broken> {
    if u64::from(raw) > MAX_PART_BYTES {
        return Err(Broken);
    }
    let len = raw;
    let raw = usize::try_from(len).map_err(|_| Broken)?;
    if raw > AT_ONCE {
        return unpack_as_it_comes(packed, len);
    }
    let bytes = DECODER.with_borrow_mut(|decoder| {
        // Its tables take longer to make than most blobs take to decode.
        let decoder = match decoder {
            Some(decoder) => decoder,
            none => none.insert(Decompressor::new().map_err(|_| Broken)?),
        };
        decoder.decompress(packed, raw).map_err(|_| Broken)
    })?;
    if bytes.len() == raw {
        Ok(bytes)
    } else {
        Err(Broken)
    }
}

/// A length that is not true costs no memory.
fn unpack_as_it_comes(packed: &[u8], raw: u32) -> Result<Vec<u8>, Broken> {
    let decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(|_| Broken)?;
    let mut bytes = Vec::new();
    let most = u64::from(raw).saturating_add(1);
    decoder.take(most).read_to_end(&mut bytes).map_err(|_| Broken)?;
    if bytes.len() as u64 == u64::from(raw) {
        Ok(bytes)
    } else {
        Err(Broken)
    }
}

/// A blob of the extent, decompressed.
pub(crate) fn blob(extent: &[u8], blob: Blob) -> Result<Vec<u8>, Broken> {
    let at = usize::try_from(blob.at).map_err(|_| Broken)?;
    let len = usize::try_from(blob.len)
        .ok()
        .and_then(|len| len.checked_add(4))
        .ok_or(Broken)?;
    let end = at.checked_add(len).ok_or(Broken)?;
    unpack(&checked(extent.get(at..end), u64::from(blob.at))?, blob.raw)
}

/// The record, from its bytes to the extent's end.
pub(crate) fn record(tail: &[u8]) -> Result<Record, Broken> {
    let body = checked(Some(tail), RECORD_PLACE)?;
    let (raw, packed) = body.split_first_chunk::<4>().ok_or(Broken)?;
    let bytes = unpack(packed, u32::from_le_bytes(*raw))?;
    postcard::from_bytes(&bytes).map_err(|_| Broken)
}

/// A part, whole.
pub(crate) fn part(extent: &[u8], stored: &StoredPart) -> Result<Part, Broken> {
    let unpacked = stored
        .chunks
        .iter()
        .fold(0, |sum: u64, chunk| sum.saturating_add(u64::from(chunk.raw)));
    if unpacked != stored.info.len || unpacked > MAX_PART_BYTES {
        return Err(Broken);
    }
    let mut part: Part = postcard::from_bytes(&blob(extent, stored.rest)?).map_err(|_| Broken)?;
    let len = usize::try_from(unpacked).map_err(|_| Broken)?;
    let mut bytes = Vec::with_capacity(len.min(1 << 26));
    for chunk in &stored.chunks {
        bytes.extend(blob(extent, *chunk)?);
    }
    part.bytes = bytes;
    Ok(part)
}

#[cfg(test)]
mod tests {
    use nephoscope_recipe::{PartKind, Placement, Values};

    use super::*;

    fn object(len: u64) -> Object {
        let part = Part {
            kind: PartKind::ModuleText,
            name: ".text".into(),
            link: 0,
            // Zeros, which take no memory as long as nobody looks at them.
            bytes: vec![0; usize::try_from(len).unwrap()],
            sites: Vec::new(),
            placement: Placement::Aligned(4096),
            values: Values::default(),
        };
        Object {
            kind: ObjectKind::KernelModule,
            facts: Facts::default(),
            loads: Vec::new(),
            pages: Vec::new(),
            parts: vec![part],
        }
    }

    /// `len` zeros as zstd packs them: blocks of one byte that is repeated (RFC 8878, 3.1.1).
    fn zeros(len: u64) -> Vec<u8> {
        const BLOCK: u64 = 128 << 10;
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd];
        // A single segment with its length in eight bytes would need a window of that; so a window of 128 KiB is named.
        frame.extend([0, 7 << 3]);
        let mut left = len;
        while left > 0 {
            let block = left.min(BLOCK);
            left -= block;
            let head = u32::try_from(block << 3 | 1 << 1 | u64::from(left == 0)).unwrap();
            frame.extend(&head.to_le_bytes()[..3]);
            frame.push(0);
        }
        frame
    }

    #[test]
    fn max_part_bytes_refuses_a_part_that_could_not_be_read_again() {
        let error = encode([0; 32], 0, object(MAX_PART_BYTES + 1)).unwrap_err();
        assert_eq!(error, format!("part .text is larger than {MAX_PART_BYTES} bytes"));
    }

    #[test]
    fn max_part_bytes_stops_a_length_that_asks_for_all_memory() {
        let small = u32::try_from(5 * CHUNK + 7).unwrap();
        let bytes = unpack(&zeros(u64::from(small)), small).unwrap();
        assert_eq!(bytes, vec![0; small as usize]);
        for near in [small, u32::try_from(AT_ONCE + 5).unwrap()] {
            let bytes = unpack(&zeros(u64::from(near)), near).unwrap();
            assert_eq!(bytes.len(), near as usize);
            for wrong in [near - 1, near + 1, u32::try_from(MAX_PART_BYTES).unwrap()] {
                assert_eq!(
                    unpack(&zeros(u64::from(near)), wrong),
                    Err(Broken),
                    "{near} for {wrong}"
                );
            }
        }
        let large = u32::try_from(MAX_PART_BYTES + 1).unwrap();
        assert_eq!(unpack(&zeros(u64::from(large)), large), Err(Broken));
    }

    #[test]
    fn max_part_bytes_stops_chunks_that_are_more_together_than_their_part() {
        let Extent { bytes, record: at } = encode([0; 32], 0, object(3 * CHUNK as u64)).unwrap();
        let stored = record(&bytes[at as usize..]).unwrap().parts.remove(0);
        assert_eq!(part(&bytes, &stored).unwrap().bytes.len(), 3 * CHUNK);
        let mut longer = stored.clone();
        // Each is whole, and all together unpack to more than a part may be.
        let more = MAX_PART_BYTES / CHUNK as u64 + 1;
        longer.chunks = vec![stored.chunks[0]; usize::try_from(more).unwrap()];
        longer.info.len = more * CHUNK as u64;
        assert_eq!(part(&bytes, &longer), Err(Broken));
    }
}
