//! The identity database: which file, package and version is this page of?

mod block;
mod error;
mod map;
mod table;

#[doc(hidden)]
pub mod bench;

pub use error::{OpenError, ReadError};
