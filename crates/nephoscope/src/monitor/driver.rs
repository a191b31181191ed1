//! The way into the VM, whichever it is.

use std::time::Duration;

use nephoscope_drivers::{KvmSlots, KvmTrap, QemuPlugin};
use nephoscope_guest::Stamped;
use nephoscope_isa::Mode;
use nephoscope_wire::RamRange;

use super::pump::{Pump, Pumped as _};

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
    /// The same, when its thread runs.
    Pumped {
        /// The thread.
        pump: Pump,
        /// How the watch began.
        origin: Origin,
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
    /// How the guest's CPUs translate, as far as it is told with what runs.
    pub(crate) fn mode(&self) -> Told {
        match self {
            Self::Plugin(plugin) => plugin.told(),
            Self::KvmTrap { trap, .. } => trap.told(),
            Self::Pumped { pump, .. } => pump.told(),
        }
    }

    /// Starts the thread that empties the rings. Not before privileges are dropped.
    pub(crate) fn run_beside(self) -> anyhow::Result<Self> {
        let origin = self.origin();
        let pump = match self {
            Self::Plugin(plugin) => Pump::start(*plugin)?,
            Self::KvmTrap { trap, .. } => Pump::start(*trap)?,
            Self::Pumped { pump, .. } => pump,
        };
        Ok(Self::Pumped { pump, origin })
    }

    /// Whether more has come than was given out.
    pub(crate) fn holds_more(&self) -> bool {
        match self {
            Self::Plugin(_) | Self::KvmTrap { .. } => false,
            Self::Pumped { pump, .. } => pump.holds_more(),
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
            Self::Pumped { origin, .. } => *origin,
        }
    }

    /// What knows where guest memory is without asking the VMM.
    pub(crate) fn slots(&self) -> Option<KvmSlots> {
        match self {
            Self::KvmTrap { trap, .. } => trap.slots().ok(),
            Self::Plugin(_) | Self::Pumped { .. } => None,
        }
    }

    /// Tells where guest RAM lies, so that address spaces can be told apart.
    pub(crate) fn set_ram(&mut self, ranges: Vec<RamRange>) -> anyhow::Result<()> {
        match self {
            Self::Plugin(plugin) => plugin.set_ram(ranges)?,
            Self::KvmTrap { trap, .. } => trap.set_ram(ranges),
            // Memory stays where it is as long as the machine.
            Self::Pumped { .. } => {}
        }
        Ok(())
    }

    /// The machine was reset. It fails with the connection only, which ends the watch.
    pub(crate) fn reset(&mut self) {
        match self {
            Self::Plugin(plugin) => drop(plugin.reset()),
            Self::KvmTrap { trap, .. } => trap.reset(),
            Self::Pumped { pump, .. } => pump.reset(),
        }
    }

    /// Up to when everything was given out, in nanoseconds since the beginning.
    pub(crate) fn seen_until_ns(&self) -> u64 {
        match self {
            Self::Plugin(plugin) => plugin.seen_until_ns(),
            Self::KvmTrap { trap, .. } => trap.seen_until_ns(),
            Self::Pumped { pump, .. } => pump.seen_until_ns(),
        }
    }

    /// Whether the VM is gone, and everything was given out.
    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Self::Plugin(plugin) => plugin.is_closed(),
            Self::KvmTrap { trap, .. } => trap.is_closed(),
            Self::Pumped { pump, .. } => pump.is_closed(),
        }
    }

    /// Waits up to `timeout` for events and appends them.
    pub(crate) fn next(&mut self, timeout: Duration, out: &mut Vec<Stamped>) -> anyhow::Result<()> {
        match self {
            Self::Plugin(plugin) => plugin.next(timeout, out)?,
            Self::KvmTrap { trap, .. } => trap.next(timeout, out)?,
            Self::Pumped { pump, .. } => pump.next(timeout, out)?,
        }
        Ok(())
    }
}
