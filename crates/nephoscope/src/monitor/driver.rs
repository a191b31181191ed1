//! The way into the VM, whichever it is, until the watch begins.

use nephoscope_drivers::{KvmSlots, KvmTrap, QemuPlugin};
use nephoscope_isa::Mode;
use nephoscope_wire::RamRange;

use super::pump::Pump;

/// What there is to watch a VM with.
#[derive(Debug)]
pub(crate) enum Driver {
    /// QEMU's plugin, under TCG.
    Plugin(Box<QemuPlugin>),
    /// The kernel module, under KVM.
    KvmTrap {
        /// The driver.
        trap: Box<KvmTrap>,
        /// Whether the guest ran before.
        was_running: bool,
    },
}

/// How the watch began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Origin {
    /// The VMM's process.
    pub(crate) pid: u32,
    /// Virtual CPUs.
    pub(crate) vcpus: u32,
    /// What times count from (`CLOCK_MONOTONIC`, ns).
    pub(crate) begun_ns: u64,
    /// When this monitor was attached.
    pub(crate) attached_ns: u64,
    /// Whether the guest may have run unwatched before.
    pub(crate) was_blind: bool,
    /// Whether who runs a page is sampled.
    pub(crate) samples_attribution: bool,
}

/// What a driver says of how the guest's CPUs translate.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Told {
    /// Like this; `None` while paging is off.
    Known(Option<Mode>),
    /// Nothing.
    Unknown,
}

impl Driver {
    /// Starts the thread that empties the rings; from then on all comes from there. Not before privileges are dropped.
    pub(super) fn start(self) -> std::io::Result<Pump> {
        match self {
            Self::Plugin(plugin) => Pump::start(*plugin),
            Self::KvmTrap { trap, .. } => Pump::start(*trap),
        }
    }

    /// How the watch began.
    pub(crate) fn origin(&self) -> Origin {
        match self {
            Self::Plugin(plugin) => {
                let hello = plugin.hello();
                Origin {
                    pid: hello.pid,
                    vcpus: hello.vcpus,
                    begun_ns: hello.installed_ns,
                    attached_ns: hello.attached_ns,
                    was_blind: hello.blind_since_ns.is_some(),
                    samples_attribution: false,
                }
            }
            Self::KvmTrap { trap, was_running } => Origin {
                pid: trap.pid(),
                vcpus: trap.vcpus(),
                begun_ns: trap.begun_ns(),
                attached_ns: trap.attached_ns(),
                was_blind: *was_running,
                samples_attribution: true,
            },
        }
    }

    /// What knows where guest memory is without asking the VMM.
    pub(crate) fn slots(&self) -> Option<KvmSlots> {
        match self {
            Self::KvmTrap { trap, .. } => trap.slots().ok(),
            Self::Plugin(_) => None,
        }
    }

    /// Tells where guest RAM lies, so that address spaces can be told apart.
    pub(crate) fn set_ram(&mut self, ranges: Vec<RamRange>) -> anyhow::Result<()> {
        match self {
            Self::Plugin(plugin) => plugin.set_ram(ranges)?,
            Self::KvmTrap { trap, .. } => trap.set_ram(ranges),
        }
        Ok(())
    }
}
