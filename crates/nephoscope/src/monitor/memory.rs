//! The guest's memory and QEMU's own word on the machine, beside the driver.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nephoscope_drivers::{Hva, KvmSlots, MemoryKind, ProcessRam, Qmp, QmpEvent, RamMap, paging_mode};
use nephoscope_guest::Gpa;
use nephoscope_isa::Mode;
use nephoscope_wire::RamRange;

use super::driver::Told;

/// How long QEMU may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often QEMU is asked again: for the memory map when a frame is not in it, and for its registers.
const AGAIN: Duration = Duration::from_millis(250);

/// Guest memory through the VMM's process.
#[derive(Debug)]
pub(super) struct Memory {
    /// QEMU, if there is a socket for us.
    qmp: Option<Qmp>,
    /// Under KVM, what knows where the memory is.
    slots: Option<KvmSlots>,
    pid: u32,
    ram: Option<ProcessRam>,
    read_at: Instant,
    /// When QEMU was asked for the mode, and what it said.
    mode: Option<(Instant, Option<Mode>)>,
}

impl Memory {
    /// Connects. `None` with a reason: addresses and ends of address spaces will not be known.
    pub(super) fn open(socket: Option<PathBuf>, pid: u32, slots: Option<KvmSlots>) -> Result<Self, String> {
        let qmp = match socket {
            Some(socket) => {
                Some(Qmp::connect_when_ready(&socket, TIMEOUT).map_err(|error| error.to_string())?)
            }
            None if slots.is_some() => None,
            None => return Err("no QMP socket".into()),
        };
        let mut memory = Self {
            qmp,
            slots,
            pid,
            ram: None,
            read_at: Instant::now(),
            mode: None,
        };
        memory.read_map().map_err(|error| error.to_string())?;
        Ok(memory)
    }

    /// Whether QEMU says what happens to the machine: that it is reset, or goes elsewhere.
    pub(super) fn is_told_of_the_machine(&self) -> bool {
        self.qmp.is_some()
    }

    fn read_map(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        self.read_at = Instant::now();
        let map = match (&self.slots, &mut self.qmp) {
            (Some(slots), _) => slots.map()?,
            (None, Some(qmp)) => RamMap::read(qmp)?,
            (None, None) => return Ok(()),
        };
        match &mut self.ram {
            Some(ram) => ram.set_map(map),
            None => self.ram = Some(ProcessRam::open(self.pid, map)?),
        }
        Ok(())
    }

    /// Guest-physical memory.
    pub(super) fn ram(&self) -> Option<&ProcessRam> {
        self.ram.as_ref()
    }

    /// How the guest's CPUs translate, if paging is on and it is told: by the driver, or by QEMU, which is asked only if the
    /// driver does not say and only now and then.
    ///
    /// A question stops the guest's CPU for a moment. And a QEMU that ends just when it has one is stuck for ever
    /// (`docs/design.md`, "Questions to QEMU").
    pub(super) fn paging_mode(&mut self, told: Told) -> Option<Mode> {
        if let Told::Known(mode) = told {
            return mode;
        }
        match self.mode {
            Some((asked, mode)) if asked.elapsed() < AGAIN => mode,
            _ => {
                let mode = self.qmp.as_mut().and_then(|qmp| paging_mode(qmp).ok().flatten());
                self.mode = Some((Instant::now(), mode));
                mode
            }
        }
    }

    /// RAM that stays mapped as long as the machine, for the plugin.
    pub(super) fn ranges(&self) -> Vec<RamRange> {
        let Some(ram) = &self.ram else { return Vec::new() };
        ram.map()
            .segments()
            .iter()
            .filter(|segment| segment.kind == MemoryKind::Ram)
            .map(|segment| RamRange {
                gpa: segment.gpa.0,
                len: segment.size_bytes,
                hva: segment.hva.0,
            })
            .collect()
    }

    /// Where a frame lies.
    pub(super) fn place(&self, frame: u64) -> Option<Gpa> {
        self.ram.as_ref()?.gpa_of(Hva(frame))
    }

    /// Reads the map again if that is due: firmware moves ROM and RAM about.
    pub(super) fn refresh(&mut self) -> bool {
        self.read_at.elapsed() >= AGAIN && self.read_map().is_ok()
    }

    /// What QEMU says that the machine does: `running`, `paused`, `postmigrate`, …
    pub(super) fn status(&mut self) -> Option<String> {
        let status = self.qmp.as_mut()?.execute("query-status", None).ok()?;
        Some(status.get("status")?.as_str()?.to_owned())
    }

    /// What QEMU said since the last time.
    pub(super) fn events(&mut self) -> Vec<QmpEvent> {
        let Some(qmp) = &mut self.qmp else {
            return Vec::new();
        };
        match qmp.events_so_far() {
            Ok(events) => events,
            // That QEMU is gone is seen elsewhere; what it said before still counts.
            Err(_) => qmp.take_events(),
        }
    }
}
