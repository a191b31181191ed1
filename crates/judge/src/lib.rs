//! One rule per file, each turning a change of the inventory into findings.

mod draft;
mod file_rules;
#[cfg(test)]
mod fixture;
mod interpreted_file;
mod modified_code;
mod package_versions;
mod pieces;
mod unknown_code;

pub use draft::{Draft, Judge};
pub use file_rules::{FileRules, PatternError};
pub use interpreted_file::InterpretedFile;
pub use modified_code::ModifiedCode;
pub use unknown_code::{KernelLook, UnknownCode};
