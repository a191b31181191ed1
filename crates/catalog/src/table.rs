//! An immutable sorted table of fixed-size records under keys that are as good as random.
//!
//! ```text
//! section ──► [ data block 0 ][ data block 1 ] … [ radix block 0 ] …        256 bytes each, see `block`
//! data block  ──► records, sorted, none cut in two; the last block is zero-filled
//! radix block ──► 63 little-endian u32: entry p is the data block in which the first key that starts
//!                 with the bits p (or more) stands
//!
//! find(key):
//!     first, last = radix[prefix(key)], radix[prefix(key) + 1]          about 4 blocks
//!     block = first + (last - first + 1) * (the key's next bits as a fraction)
//!     back while the block starts with the key or a greater one, then forward until a greater one
//! ```
//!
//! Because keys are digests, their bits say where they are; no tree has to be walked, and nothing is read at opening.
//! A look-up checks two to three blocks, the last of which lie side by side.

mod read;
mod shape;
mod write;

pub(crate) use read::Table;
pub(crate) use shape::Shape;
pub(crate) use write::TableWriter;

#[cfg(test)]
mod tests;
