//! What processes in the guest read, as `strace` there says it, to compare with what was seen from outside.

mod proof;
mod traced;

pub use proof::{Proof, Side, prove};
pub use traced::{Read, Traced};
