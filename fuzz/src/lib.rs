//! Targets: each takes bytes as a guest, a package or a peer might have made them, gives them to the code that reads such,
//! and holds the answer to what must be true of any. `cargo xtask fuzz` runs them; `src/bin` has one program for each.
#![cfg_attr(
    not(fuzzing),
    allow(
        unused,
        reason = "some targets need the insides that only a fuzzing build opens"
    )
)]

#[cfg(fuzzing)]
pub mod catalog;
pub mod compare;
#[cfg(fuzzing)]
pub mod disk;
pub mod dump;
pub mod frame;
pub mod heap;
pub mod leaves;
pub mod made;
pub mod memory;
#[cfg(fuzzing)]
pub mod packages;
#[allow(
    dead_code,
    missing_docs,
    reason = "a part of the plugin, which cannot be linked without QEMU"
)]
#[path = "../../crates/qemu-plugin/src/memory.rs"]
mod plugin_memory;
pub mod qemu;
pub mod recipes;
pub mod ring;
#[cfg(fuzzing)]
pub mod session;
#[cfg(fuzzing)]
pub mod terminal;
#[allow(dead_code, reason = "of tests, which use more of it")]
#[path = "../../crates/isa/tests/common/twin.rs"]
mod twin;
#[cfg(fuzzing)]
pub mod virtqueue;
pub mod walk;
pub mod windows;

pub use libfuzzer_sys;

/// A program that fuzzes one target: `target!(function, heap in MiB)`.
#[macro_export]
macro_rules! target {
    ($run:path, $mib:literal) => {
        #[global_allocator]
        static HEAP: $crate::heap::Bounded = $crate::heap::Bounded::mib($mib);

        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
            $run(bytes);
        });
    };
}
