//! Serves the guest's disk, so that every transfer is seen, and maps blocks to files.
//!
//! ```text
//!  guest ─ virtqueue ─► request (copied, checked) ─► image (raw, qcow2)
//!                              │
//!                              └─► Transfers: sectors, guest frames, bytes
//! ```
//!
//! The server is the disk's only writer. What it has answered is out of this process: in the image's file, as far as the host's
//! kernel goes, and on the medium after a flush. Requests of one queue are answered in their order; so the next server finds all
//! that were not answered behind the last that was, and does them again.

mod config;
mod device;
#[cfg(test)]
mod fixture;
mod follow;
#[cfg(fuzzing)]
pub mod fuzzing;
mod image;
pub mod layout;
mod request;
mod serve;

pub use device::{Device, Serial, Transfer, Transfers};
pub use follow::{Follower, Kinds, Link, Skipped};
pub use image::{Format, HeaderError, Image, OpenImageError};
pub use serve::{ServeError, Server, Stop};
