//! Small structures of each kind, made field by field: none is anybody's file. First inputs of the targets, and what the
//! catalog of some is made of.

mod dump;
pub mod elf;
pub(crate) mod ext4;
mod firmware;
#[allow(dead_code, clippy::all, reason = "of tests, which use more of it")]
#[path = "../../../crates/recipe/src/firmware/uefi/tests/made.rs"]
mod flash;
mod kernel;
mod module;
mod virtqueue;
mod wire;
pub(crate) mod xfs;

/// A target, a name, an input.
pub type Seed = (&'static str, String, Vec<u8>);

/// All of them.
#[must_use]
pub fn seeds() -> Vec<Seed> {
    [
        dump::seeds(),
        elf::seeds(),
        ext4::seeds(),
        module::seeds(),
        kernel::seeds(),
        firmware::seeds(),
        virtqueue::seeds(),
        wire::seeds(),
        xfs::seeds(),
    ]
    .concat()
}
