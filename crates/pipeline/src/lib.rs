//! The road of one event: take it, identify the page, record the change, judge it, emit findings.
//!
//! [`Session`] reads as that sentence. It names no driver and no sink; the program plugs them in.

#[doc(hidden)]
pub mod bench;
mod best;
mod counters;
mod executed;
#[cfg(test)]
mod fixture;
mod identify;
mod images;
mod journal;
mod kernels;
mod names;
mod narrow;
mod nearest;
mod origin;
mod read_files;
mod session;
mod shorts;
mod sites;
mod supervisor;
mod told;

pub use journal::Entry;
pub use names::CatalogNames;
pub use narrow::Ambiguous;
pub use nephoscope_judge::KernelLook;
pub use session::Session;
