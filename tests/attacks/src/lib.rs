//! Real attacks in real guests: each is a small program or module, and one file that says what it does, what the right
//! answer is and why.
//!
//! ```text
//!  Campaign ── boots the guest of each Group ──► Scene ── each Attack of the group ──► Seen ──► Row
//! ```
//!
//! An attack decides by itself whether what was seen is right, by what the planted program says of its own bytes, by the
//! guest's `/proc` and by its package manager; never by repeating what the monitor said. `cargo xtask attacks` prints the
//! rows; the tests of this crate run the same groups.

pub mod attack;
pub mod campaign;
pub mod check;
pub mod control;
pub mod group;
mod kernel_code;
pub mod modules;
pub mod nested;
pub mod place;
mod resident;
pub mod row;
pub mod said;
pub mod scene;
pub mod tools;

pub use attack::{Attack, Seen};
pub use campaign::Campaign;
pub use group::Group;
pub use modules::Modules;
pub use place::Place;
pub use row::Row;
pub use said::Said;
pub use scene::Scene;
pub use tools::Tools;
