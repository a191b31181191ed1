//! UEFI firmware: volumes of files of sections, with the images that execute.
//!
//! ```text
//!  flash   │ volume │ volume … │                                     found by `_FVH` and its checksum
//!  volume  header │ file │ file │ … │ free space                     volume.rs
//!  file    header │ section │ section …, or raw bytes                volume.rs
//!  section header │ an image (PE32, TE) │ a name │ a volume │ sections, maybe compressed      section.rs
//! ```
//!
//! UEFI Platform Initialization Specification 1.7, volume 3, sections 2 and 3. An image is a part as it lies once
//! loaded ([`image`]): in flash it runs where it was linked to, from memory wherever it was loaded, with its base
//! relocations applied.

mod image;
mod pe;
mod section;
mod te;
mod vectors;
mod volume;
mod walk;

#[cfg(test)]
mod tests;

pub(super) use image::Loaded;
pub(super) use pe::{application, loaded as pe_image};
pub(super) use walk::parts;

/// Images and raw files of one flash file. It stops a file of nothing but tiny images; OVMF has 130.
const MAX_PARTS: usize = 2048;
/// Volumes in sections, sections in sections. It stops sections that are compressed over and over; OVMF has 3 levels.
const MAX_DEPTH: usize = 8;
/// Decompressed and laid-out bytes of one flash file. It stops what grows without end; OVMF has 20 MiB.
const MAX_UNPACKED_BYTES: usize = if cfg!(fuzzing) { 8 << 20 } else { 256 << 20 };
/// The end of one loaded image. It stops sections at addresses that nobody would allocate; the largest of OVMF is 1 MiB.
const MAX_LOADED_BYTES: usize = if cfg!(fuzzing) { 1 << 20 } else { 32 << 20 };
/// Base relocations of one image. It stops directories that name one field for ever.
const MAX_RELOCATIONS: usize = 1 << 20;
