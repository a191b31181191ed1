//! The loop of one watch.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use nephoscope_catalog::Catalog;
use nephoscope_drivers::{QemuPlugin, QemuPluginError};
use nephoscope_finding::Sink;
use nephoscope_guest::{
    Attribution, CodeCoverage, Coverage, Event, Gap, GapReason, Lifecycle, PageId, Stamped,
};
use nephoscope_inventory::{Report, VmReport};
use nephoscope_pipeline::Session;

use super::evidence;
use super::kernel_mapped::KernelMapped;
use super::liveness::Liveness;
use super::mapped::Mapped;
use super::memory::Memory;
use super::placing::Placing;
use super::server::{Request, listen, serve};
use super::sinks::Terminal;
use crate::control::{Answer, Ask};
use crate::privilege::{self, Keep};

/// How the watch ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// QEMU said that it stops.
    Stopped,
    /// QEMU was gone.
    Lost,
}

/// How long one wait for events may take; questions are answered between waits.
const PAUSE: Duration = Duration::from_millis(10);
/// How often open pages are looked at again.
const SETTLE: Duration = Duration::from_millis(20);
/// How often address spaces are looked for that ended.
const LOOK: Duration = Duration::from_millis(200);

/// How often mapped pages are read that tell versions apart.
const NARROW: Duration = Duration::from_millis(500);

/// A running watch.
#[derive(Debug)]
pub(crate) struct Watch {
    session: Session,
    driver: QemuPlugin,
    memory: Option<Memory>,
    liveness: Liveness,
    placing: Placing,
    mapped: Mapped,
    kernel_mapped: KernelMapped,
    requests: Receiver<Request>,
    refused: Arc<AtomicU64>,
    quit: Arc<AtomicBool>,
    sinks: Vec<Terminal>,
    stopped: bool,
}

impl Watch {
    /// Begins to watch, and drops all privileges but those to `keep`. No thread may have been started before.
    ///
    /// # Errors
    /// If the control socket cannot be served, or root cannot be given up.
    pub(crate) fn new(
        mut vm: VmReport,
        catalog: Arc<Catalog>,
        mut driver: QemuPlugin,
        qmp: Option<PathBuf>,
        control: PathBuf,
        print_findings: bool,
        keep: &Keep,
    ) -> anyhow::Result<Self> {
        let hello = driver.hello().clone();
        vm.vcpus = hello.vcpus;
        let mut session = Session::new(vm, catalog);
        let origin = hello.installed_ns;
        if let Some(began) = Instant::now().checked_sub(Duration::from_nanos(now_ns().saturating_sub(origin)))
        {
            session.began(began);
        }
        let attached_ns = hello.attached_ns.saturating_sub(origin);
        if let Some(since) = hello.blind_since_ns {
            session.gap(Gap {
                from_ns: since.saturating_sub(origin),
                to_ns: attached_ns,
                left: Coverage::BLIND,
                reason: GapReason::Detached,
                lost: 0,
            });
        }
        let memory = match Memory::open(qmp, hello.pid) {
            Ok(memory) => {
                driver.set_ram(memory.ranges())?;
                Some(memory)
            }
            Err(reason) => {
                eprintln!(
                    "nephoscope: guest memory cannot be read ({reason}): ends of processes will not be seen"
                );
                session.gap(Gap {
                    from_ns: attached_ns,
                    to_ns: u64::MAX,
                    left: Coverage {
                        code: CodeCoverage::Complete,
                        attribution: Attribution::Sampled,
                    },
                    reason: GapReason::MemoryUnreadable,
                    lost: 0,
                });
                None
            }
        };
        let owner = rustix::process::getuid();
        let listener = listen(&control)?;
        // Everything is open that a watch needs.
        let in_force = privilege::drop(keep)?;
        in_force.tell();
        session.confined(in_force.parts().clone());
        let refused = Arc::new(AtomicU64::new(0));
        let requests = serve(listener, owner, refused.clone())?;
        let sinks = if print_findings {
            vec![Terminal]
        } else {
            Vec::new()
        };
        Ok(Self {
            session,
            driver,
            memory,
            liveness: Liveness::default(),
            placing: Placing::default(),
            mapped: Mapped::default(),
            kernel_mapped: KernelMapped::default(),
            requests,
            refused,
            quit: Arc::default(),
            sinks,
            stopped: false,
        })
    }

    /// Watches until the VM ends. `gone` says whether QEMU has ended.
    ///
    /// # Errors
    /// If the driver cannot be believed any more.
    pub(crate) fn run(&mut self, mut gone: impl FnMut() -> bool) -> anyhow::Result<Ending> {
        let mut events = Vec::new();
        let (mut settled, mut looked, mut narrowed) = (Instant::now(), Instant::now(), Instant::now());
        loop {
            self.driver.next(PAUSE, &mut events)?;
            self.take(&mut events);
            if self.kernel_mapped.is_due(&mut self.session) {
                self.look_in_kernel();
            }
            if settled.elapsed() >= SETTLE {
                self.session.settle(&mut sinks(&mut self.sinks));
                settled = Instant::now();
            }
            if looked.elapsed() >= LOOK {
                self.look();
                looked = Instant::now();
            }
            if narrowed.elapsed() >= NARROW {
                self.narrow();
                narrowed = Instant::now();
            }
            self.answer();
            if self.quit.swap(false, Ordering::Relaxed)
                && let Some(memory) = &mut self.memory
            {
                memory.quit();
            }
            if self.driver.is_closed() || gone() {
                break;
            }
        }
        self.drain(&mut events)?;
        if !self.stopped {
            self.session.lost_driver(self.elapsed_ns());
        }
        Ok(if self.stopped {
            Ending::Stopped
        } else {
            Ending::Lost
        })
    }

    /// Set by somebody, it makes QEMU end as a signal would: for a monitor that may not send signals any more.
    pub(crate) fn quit(&self) -> Arc<AtomicBool> {
        self.quit.clone()
    }

    /// The report as of now.
    #[must_use]
    pub(crate) fn report(&mut self) -> Report {
        let refused = self.refused.load(Ordering::Relaxed);
        self.session.count("control_peers_refused", refused);
        self.session.report()
    }

    /// What is still in the rings when QEMU has ended.
    fn drain(&mut self, events: &mut Vec<Stamped>) -> Result<(), QemuPluginError> {
        for _ in 0..1000 {
            self.driver.next(Duration::from_millis(1), events)?;
            if events.is_empty() && self.driver.is_closed() {
                break;
            }
            self.take(events);
        }
        self.session.settle(&mut sinks(&mut self.sinks));
        Ok(())
    }

    fn take(&mut self, events: &mut Vec<Stamped>) {
        let mut unplaced = false;
        for stamped in events.drain(..) {
            self.stopped |= stamped.event == Event::Lifecycle(Lifecycle::Stopped);
            let memory = self.memory.as_ref();
            let place = |frame: u64| memory.and_then(|memory| memory.place(frame));
            if let Event::CodeCaptured(captured) = &stamped.event {
                unplaced |= captured.frame != 0 && captured.gpa.is_none() && place(captured.frame).is_none();
            }
            self.session.take(stamped, &place, &mut sinks(&mut self.sinks));
        }
        if unplaced && let Some(memory) = &mut self.memory {
            memory.refresh();
        }
    }

    fn look(&mut self) {
        let now = self.elapsed_ns();
        self.session.at(now);
        let Some(memory) = &mut self.memory else { return };
        for event in memory.events() {
            if event.name == "RESET" {
                let reset = Stamped {
                    at_ns: now,
                    event: Event::Lifecycle(Lifecycle::Reset),
                };
                self.session.take(reset, &|_| None, &mut sinks(&mut self.sinks));
            }
        }
        if let Some(ram) = memory.ram() {
            let living: Vec<_> = self.session.living().collect();
            for space in self.liveness.look(&living, ram) {
                self.session.ended(space, now, &mut sinks(&mut self.sinks));
            }
        }
    }

    /// Finds where address spaces see what they ran, and reads mapped pages where they decide between versions.
    fn narrow(&mut self) {
        let Some(memory) = &mut self.memory else { return };
        let placing = self.placing.is_due(&self.session);
        let wanted = self.session.ambiguous();
        if !placing && wanted.is_empty() {
            return;
        }
        // Paging is off for moments only, while there are address spaces; the next look comes soon.
        let Some(mode) = memory.paging_mode() else { return };
        if let Some(ram) = memory.ram() {
            self.placing.look(&mut self.session, mode, ram);
            self.mapped.look(&mut self.session, &wanted, mode, ram);
        }
    }

    /// Reads what the kernel has mapped, where it may explain what ran.
    fn look_in_kernel(&mut self) {
        let Some(memory) = &mut self.memory else { return };
        let Some(mode) = memory.paging_mode() else { return };
        if let Some(ram) = memory.ram() {
            self.kernel_mapped.look(&mut self.session, mode, ram);
        }
    }

    fn answer(&mut self) {
        while let Ok((ask, reply)) = self.requests.try_recv() {
            let answer = match ask {
                Ask::Report => {
                    self.session.at(self.elapsed_ns());
                    Answer::Report {
                        report: Box::new(self.report()),
                    }
                }
                Ask::Findings { after } => Answer::Findings {
                    findings: self
                        .session
                        .findings()
                        .iter()
                        .filter(|f| f.id > after)
                        .cloned()
                        .collect(),
                },
                Ask::Page { page } => match evidence::of(&self.session, PageId(page)) {
                    Some(page) => Answer::Page { page: Box::new(page) },
                    None => Answer::Nothing {
                        why: format!("there is no page {page}"),
                    },
                },
            };
            let _ = reply.try_send(answer);
        }
    }

    fn elapsed_ns(&self) -> u64 {
        now_ns().saturating_sub(self.driver.hello().installed_ns)
    }
}

/// The clock that the plugin stamps with.
fn now_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

fn sinks(terminals: &mut [Terminal]) -> Vec<&mut dyn Sink> {
    terminals
        .iter_mut()
        .map(|terminal| terminal as &mut dyn Sink)
        .collect()
}
