//! One rule per file, each turning a change of the inventory into findings.

mod draft;
#[cfg(test)]
mod fixture;
mod modified_code;
mod pieces;
mod unknown_code;

pub use draft::{Draft, Judge};
pub use modified_code::ModifiedCode;
pub use unknown_code::{KernelLook, UnknownCode};
