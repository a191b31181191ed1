//! An immutable sorted table of fixed-size records under keys that are as good as random.
//!
//! ```text
//! section ──► [ data block 0 ][ data block 1 ] … [ radix block 0 ] …        512 bytes each, see `block`
//! data block  ──► records, sorted, none cut in two; the last block is zero-filled
//! radix block ──► 127 little-endian u32: entry p is the data block in which the first key that starts
//!                 with the bits p (or more) stands
//! ```
//!
//! A look-up reads the radix entry of the key's first bits, then data blocks from there until a greater key: two
//! to three blocks, each checked. Because keys are digests, a prefix of `log2(blocks)` bits leaves one or two
//! blocks; no tree has to be walked, and nothing is read at opening.

mod read;
mod shape;
mod write;

pub(crate) use read::Table;
pub(crate) use shape::Shape;
pub(crate) use write::TableWriter;

#[cfg(test)]
mod tests;
