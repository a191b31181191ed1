//! The identity database: which file, package and version is this page of?
//!
//! [`Adder`] takes in packages, root trees and files, asks `nephoscope_recipe` what they become once loaded, and
//! stores that; [`Catalog`] answers from a memory map. `docs/catalog.md` draws the format and says why it is one of
//! its own.

mod adder;
mod block;
mod cache;
mod catalog;
mod error;
mod formats;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod limits;
mod manifest;
mod map;
mod model;
mod segment;
mod source;
mod table;
mod verify;

#[doc(hidden)]
pub mod bench;

pub use adder::{AddError, Adder, Progress, Refusal, Summary};
pub use catalog::{Catalog, Once};
pub use error::{OpenError, ReadError};
pub use model::{Found, Info, ObjectId, ObjectInfo, Package, PageRef, PartInfo, Placement, WindowRef};
pub use verify::{Report, verify};
