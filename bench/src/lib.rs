//! What `cargo xtask bench` measures without a guest. Each program prints one JSON object; `xtask` adds the machine, the
//! commit and the date.

mod clock;
mod made;

pub use clock::{Clock, Took};
pub use made::{Made, Shares};
