//! A segment: one immutable file with everything about objects `[base, base + count)`, and placements of these
//! and of earlier objects.
//!
//! ```text
//! heap        extents, one per object: chunks of parts, then sites, then the object's record; see `extent`
//! names       blobs: who places (package or input), and where (paths)
//! pages       32 digest │ 4 object │ 4 number │ 8 va, bit 0: executable                      by digest
//! windows      8 mixed hash │ 4 object │ 4 offset │ 2 part                                   by hash
//! digests     32 file digest │ 4 object                                                      by digest
//! objects      8 extent's start │ 4 its length │ 4 its record's start │ 4 kind               by object
//! placements   8 mixed object │ 4 object │ 8 blob's start │ 4 its length                     by object
//! sources      8 blob's start │ 4 its length                                                 by number
//! trailer     one block: magic, version, where the tables are, counts
//! ```
//!
//! Keys and what follows them in a record are big-endian, so that records sort as bytes; other numbers are
//! little-endian. An object number of `u32::MAX` stands for "and so many more" (in `va`, or in `offset`).
//! Heap blobs end in their own CRC-32; everything else is blocks with theirs. There are no gaps: each byte belongs
//! to something that is checked.

pub(crate) mod extent;
pub(crate) mod layout;
pub(crate) mod merge;
pub(crate) mod read;
pub(crate) mod record;
pub(crate) mod write;

pub(crate) use read::Segment;
pub(crate) use write::SegmentWriter;
