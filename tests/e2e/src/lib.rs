//! Real guests, watched: what builds them, boots them and talks to them.
//!
//! [`image`] makes a Debian guest from packages, once, and keeps it in the [`cache`]; [`Guest`] boots it (under
//! watch or not) and runs commands in it over a virtio-serial port; [`Truth`] is what the guest itself says about
//! its processes. `cargo xtask` uses the same modules for the demonstration, so that a demonstration is a test
//! that somebody looks at.
//!
//! The build half asks for packages and root rights (`cargo xtask setup` gets the former); the boot half needs
//! neither.

pub mod apt;
pub mod arrivals;
pub mod cache;
pub mod catalog;
pub mod command;
pub mod control;
pub mod disk_proof;
pub mod faults;
pub mod guest;
pub mod image;
pub mod initramfs;
pub mod kbuild;
pub mod living;
pub mod nested;
pub mod packages;
pub mod pae;
pub mod planted;
mod program;
pub mod progress;
pub mod qemu;
pub mod qmp;
pub mod reads;
pub mod report;
pub mod truth;

pub use catalog::Catalog;
pub use control::Control;
pub use guest::{Guest, Kernel, Options, Output, Watched, vm_name};
pub use image::{Image, Tools};
pub use planted::Planting;
pub use program::program;
pub use progress::Step;
pub use truth::Truth;
