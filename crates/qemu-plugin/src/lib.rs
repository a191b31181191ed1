//! The library inside QEMU: TCG callbacks in, frames out.
//!
//! ```text
//!  translation ──► translate ─► frames (captured? changed?) ─► ring     first run of a page generation
//!  every block ──► one inline store into the vCPU's marks                which pages ran
//!  root change ──► roots ─► marks collected for the outgoing root ─► ring   who ran them
//!  10 ms, idle ──► the same, from the collector's thread
//! ```
//!
//! Where files are watched, disks' servers say what they have written to memory, and accesses to that are told (`follow`).
//!
//! Under KVM there are no such callbacks. There it guards executable frames against writes by QEMU itself (`guard`).
//!
//! What it may not do: block for ever, take a lock that vCPUs share on a hot path, let a panic out, or change what
//! QEMU does. When it cannot see, it says so with a gap.

mod api;
mod collect;
mod collector;
mod config;
mod control;
mod counters;
mod decode;
mod follow;
mod frames;
mod guard;
mod install;
mod marks;
mod memory;
mod pending;
mod plugin;
mod registers;
mod translate;
mod uffd;
mod vcpu;

pub use api::Info;
pub use install::install_for;
