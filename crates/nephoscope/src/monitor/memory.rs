//! The guest's memory and QEMU's own word on the machine, beside the driver.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nephoscope_drivers::{Hva, KvmSlots, MemoryKind, ProcessRam, Qmp, QmpEvent, RamMap};
use nephoscope_guest::Gpa;
use nephoscope_isa::Mode;
use nephoscope_wire::RamRange;

use super::asking::{Asker, Question, Said};
use super::driver::Told;

/// How long QEMU may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often QEMU is asked again: for the memory map when a frame is not in it, and for its registers.
const AGAIN: Duration = Duration::from_millis(250);

/// What QEMU said that nobody looked at yet, about: until it is looked at no more is heard.
const MAX_EVENTS: usize = 1024;

/// QEMU's machine protocol.
#[derive(Debug)]
enum Qemu {
    /// There is no socket for us.
    Nobody,
    /// It is not asked any more before the watch begins.
    Connected(Box<Qmp>),
    /// By the thread that asks.
    Asked(Asker),
}

/// Guest memory through the VMM's process.
#[derive(Debug)]
pub(super) struct Memory {
    qemu: Qemu,
    /// Under KVM, what knows where the memory is.
    slots: Option<KvmSlots>,
    ram: Option<ProcessRam>,
    read_at: Instant,
    /// When QEMU was asked for the mode.
    asked_mode: Option<Instant>,
    /// What it said.
    mode: Option<Mode>,
    /// Why the guest stands still, and since when.
    status: Option<(u64, String)>,
    events: Vec<QmpEvent>,
}

impl Memory {
    /// Connects. `None` with a reason: addresses and ends of address spaces will not be known.
    pub(super) fn open(socket: Option<PathBuf>, pid: u32, slots: Option<KvmSlots>) -> Result<Self, String> {
        let mut qmp = match socket {
            Some(socket) => {
                Some(Qmp::connect_when_ready(&socket, TIMEOUT).map_err(|error| error.to_string())?)
            }
            None if slots.is_some() => None,
            None => return Err("no QMP socket".into()),
        };
        let map = match (&slots, &mut qmp) {
            (Some(slots), _) => Some(slots.map().map_err(|error| error.to_string())?),
            (None, Some(qmp)) => Some(RamMap::read(qmp).map_err(|error| error.to_string())?),
            (None, None) => None,
        };
        let ram = map.map(|map| ProcessRam::open(pid, map)).transpose();
        Ok(Self {
            qemu: qmp.map_or(Qemu::Nobody, |qmp| Qemu::Connected(Box::new(qmp))),
            slots,
            ram: ram.map_err(|error| error.to_string())?,
            read_at: Instant::now(),
            asked_mode: None,
            mode: None,
            status: None,
            events: Vec::new(),
        })
    }

    /// Starts the thread that asks QEMU. Not before privileges are dropped.
    pub(super) fn run_beside(&mut self) -> std::io::Result<()> {
        self.qemu = match std::mem::replace(&mut self.qemu, Qemu::Nobody) {
            Qemu::Connected(qmp) => Qemu::Asked(Asker::start(*qmp)?),
            other => other,
        };
        Ok(())
    }

    /// Whether QEMU says what happens to the machine: that it is reset, or goes elsewhere.
    pub(super) fn is_told_of_the_machine(&self) -> bool {
        !matches!(self.qemu, Qemu::Nobody)
    }

    fn ask(&mut self, question: Question) {
        if let Qemu::Asked(asker) = &mut self.qemu {
            asker.ask(question);
        }
    }

    /// Takes what QEMU said since the last time.
    pub(super) fn hear(&mut self) {
        let Qemu::Asked(asker) = &mut self.qemu else {
            return;
        };
        if self.events.len() >= MAX_EVENTS {
            return;
        }
        for said in asker.hear() {
            match said {
                Said::Map(map) => {
                    if let Some(ram) = &mut self.ram {
                        ram.set_map(map);
                    }
                }
                Said::Mode(mode) => self.mode = mode,
                Said::Status(since, status) => self.status = Some((since, status)),
                Said::Event(event) => self.events.push(event),
                Said::Nothing => {}
            }
        }
    }

    /// Guest-physical memory.
    pub(super) fn ram(&self) -> Option<&ProcessRam> {
        self.ram.as_ref()
    }

    /// How the guest's CPUs translate, if paging is on and it is told: by the driver, or by QEMU, which is asked only if the
    /// driver does not say and only now and then. What it said last counts until it says something else.
    ///
    /// A question stops the guest's CPU for a moment. And a QEMU that ends just when it has one is stuck for ever
    /// (`docs/design.md`, "Questions to QEMU").
    pub(super) fn paging_mode(&mut self, told: Told) -> Option<Mode> {
        if let Told::Known(mode) = told {
            return mode;
        }
        if self.asked_mode.is_none_or(|asked| asked.elapsed() >= AGAIN) {
            self.asked_mode = Some(Instant::now());
            self.ask(Question::Mode);
        }
        self.mode
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

    /// Has the map read again if that is due: firmware moves ROM and RAM about.
    pub(super) fn refresh(&mut self) {
        if self.read_at.elapsed() < AGAIN {
            return;
        }
        self.read_at = Instant::now();
        match (&self.slots, &mut self.ram) {
            (Some(slots), Some(ram)) => {
                if let Ok(map) = slots.map() {
                    ram.set_map(map);
                }
            }
            _ => self.ask(Question::Map),
        }
    }

    /// Asks why the guest stands still, since then.
    pub(super) fn ask_status(&mut self, since_ns: u64) {
        self.ask(Question::Status(since_ns));
    }

    /// What QEMU said on why the guest stands still since then: `paused`, `postmigrate`, …
    pub(super) fn status(&self, since_ns: u64) -> Option<&str> {
        let (since, status) = self.status.as_ref()?;
        (*since == since_ns).then_some(status)
    }

    /// What QEMU said since the last time without being asked.
    pub(super) fn events(&mut self) -> Vec<QmpEvent> {
        self.hear();
        std::mem::take(&mut self.events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_events_bounds_what_is_kept_until_somebody_looks() {
        let (asker, say) = Asker::played();
        let mut memory = Memory {
            qemu: Qemu::Asked(asker),
            slots: None,
            ram: None,
            read_at: Instant::now(),
            asked_mode: None,
            mode: None,
            status: None,
            events: Vec::new(),
        };
        let saying = std::thread::spawn(move || {
            for _ in 0..2 * MAX_EVENTS {
                let name = "RTC_CHANGE".to_owned();
                let (data, at_us) = (serde_json::Value::Null, None);
                say(Said::Event(QmpEvent { name, data, at_us }));
            }
        });
        let mut taken = 0;
        while taken < 2 * MAX_EVENTS {
            for _ in 0..100 {
                memory.hear();
            }
            // One more look at it than would fit.
            assert!(memory.events.len() < MAX_EVENTS + 64);
            taken += memory.events().len();
        }
        saying.join().unwrap();
    }
}
