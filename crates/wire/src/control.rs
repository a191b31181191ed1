//! What the two sides say over the control socket: one JSON object per message.

use serde::{Deserialize, Serialize};

/// Goes up with every change of the frames, the ring or the messages. Plugin and monitor must agree.
pub const WIRE_VERSION: u32 = 8;

/// The plugin's first message after a monitor connected. The ring memory files come with it, one per vCPU in
/// order, then the event descriptor that the plugin signals when a sleeping monitor has something to read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`WIRE_VERSION`] of the plugin.
    pub wire: u32,
    /// Version of the plugin library.
    pub version: String,
    /// The plugin API the library was built for.
    pub api: i32,
    /// QEMU's target: `x86_64` or `i386`.
    pub target: String,
    /// Virtual CPUs that the machine starts with.
    pub vcpus: u32,
    /// QEMU's process.
    pub pid: u32,
    /// When the plugin was installed, `CLOCK_MONOTONIC` in nanoseconds.
    pub installed_ns: u64,
    /// When this monitor was attached.
    pub attached_ns: u64,
    /// Since when there was no monitor, if there was one before or the guest has already run.
    pub blind_since_ns: Option<u64>,
}

/// A piece of guest-physical memory and where the VMM has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RamRange {
    /// Guest-physical start, in bytes.
    pub gpa: u64,
    /// Length, in bytes.
    pub len: u64,
    /// Host-virtual start in the VMM's process.
    pub hva: u64,
}

/// What the plugin answers to [`Request::Ram`] under KVM, where nothing else is to be had of it. The userfaultfd by which it
/// guards comes with it, if there is one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Guarded {
    /// [`WIRE_VERSION`] of the plugin.
    pub wire: u32,
    /// How much of guest RAM is guarded, in bytes.
    pub bytes: u64,
    /// What kept it from guarding the rest.
    pub why_not: Option<String>,
}

/// What a monitor can ask.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Where guest RAM lies. The plugin needs it to read page tables when a root changes.
    Ram {
        /// RAM that stays mapped for the life of the machine.
        ranges: Vec<RamRange>,
    },
    /// Send the counters now.
    Counters,
    /// The machine was reset: whoever has a root from now on is another address space.
    Reset,
}
