//! The loop of one watch.

use std::cell::{OnceCell, RefCell};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use nephoscope_catalog::Catalog;
use nephoscope_finding::Sink;
use nephoscope_guest::{
    Attribution, CodeCoverage, Coverage, Event, Gap, GapReason, Lifecycle, PageId, Stamped,
};
use nephoscope_inventory::{Report, VmReport};
use nephoscope_isa::Walker;
use nephoscope_judge::FileRules;
use nephoscope_pipeline::Session;

use super::driver::{Driver, Origin};
use super::evidence;
use super::journal::{Journal, Left, Of};
use super::kernel_mapped::{self, KernelMapped};
use super::liveness::Liveness;
use super::machine::{Machine, Turn, away};
use super::mapped::Mapped;
use super::memory::Memory;
use super::paced::Paced;
use super::placing::Placing;
use super::pump::Pump;
use super::readers;
use super::resident::Resident;
use super::server::{Request, listen, serve};
use super::sinks::Terminal;
use crate::control::{Answer, Ask};
use crate::privilege::{self, Keep};
use crate::runtime::{Kept, VmDir};

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
/// How long what waits is taken before the rest of the work has its turn. One page may take longer.
const AT_ONCE: Duration = Duration::from_millis(20);
/// How often open pages are looked at again.
const SETTLE: Duration = Duration::from_millis(20);
/// How often address spaces are looked for that ended.
const LOOK: Duration = Duration::from_millis(200);

/// How often mapped pages are read that tell versions apart.
const NARROW: Duration = Duration::from_millis(500);

/// How often what was concluded is written down. A watch that is killed is blind from the last time on, until its successor
/// is attached.
const KEEP: Duration = Duration::from_millis(20);
/// What ran is in its ring so soon: frames when their thread had a core to put them there, marks when they were collected.
const IN_FLIGHT_NS: u64 = 50_000_000;

/// A running watch.
#[derive(Debug)]
pub(crate) struct Watch {
    session: Session,
    pump: Pump,
    origin: Origin,
    memory: Option<Memory>,
    machine: Machine,
    liveness: Liveness,
    placing: Placing,
    mapped: Mapped,
    kernel_mapped: KernelMapped,
    requests: Receiver<Request>,
    refused: Arc<AtomicU64>,
    sinks: Vec<Terminal>,
    journal: Option<Journal>,
    resident: Resident,
    looked_ns: u64,
    stopped: bool,
}

/// What a watch is told before it begins.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    /// The VM, for the report.
    pub(crate) vm: VmReport,
    /// The catalog.
    pub(crate) catalog: Arc<Catalog>,
    /// A socket of QEMU's monitor protocol.
    pub(crate) qmp: Option<PathBuf>,
    /// The VM's directory, where questions are answered.
    pub(crate) dir: &'a VmDir,
    /// Where what an earlier watch concluded is.
    pub(crate) kept: &'a Kept,
    /// What is still needed when privileges are dropped.
    pub(crate) keep: &'a Keep,
    /// Whether findings are printed.
    pub(crate) print_findings: bool,
    /// Which of the files that interpreters read are spoken of.
    pub(crate) file_rules: FileRules,
    /// Files are watched, on all disks but so many.
    pub(crate) files_but: Option<u64>,
}

impl Watch {
    /// Begins to watch, or goes on where an earlier watch of this VM was ended; and drops all privileges but those to keep. No
    /// thread may have been started before.
    ///
    /// # Errors
    /// If the control socket cannot be served, or root cannot be given up.
    pub(crate) fn new(setup: Setup<'_>, mut driver: Driver) -> anyhow::Result<Self> {
        let began = driver.origin();
        let of = Of {
            pid: began.pid,
            installed_ns: began.begun_ns,
        };
        let mut memory = match Memory::open(setup.qmp, began.pid, driver.slots()) {
            Ok(memory) => {
                driver.set_ram(memory.ranges())?;
                if !memory.is_told_of_the_machine() {
                    eprintln!(
                        "nephoscope: no QMP socket: that the machine is reset or migrated will not be seen at once"
                    );
                }
                Some(memory)
            }
            Err(reason) => {
                eprintln!(
                    "nephoscope: guest memory cannot be read ({reason}): ends of processes will not be seen"
                );
                None
            }
        };
        let owner = rustix::process::getuid();
        let listener = listen(&setup.dir.control())?;
        let resident = Resident::open();
        // Everything is open that a watch needs. What an earlier watch left is read by whom it belongs to.
        let in_force = privilege::drop(setup.keep)?;
        in_force.tell();
        let mut vm = setup.vm;
        vm.vcpus = began.vcpus;
        let mut session = Session::new(vm, setup.catalog);
        session.set_file_rules(setup.file_rules);
        if let Some(but) = setup.files_but {
            session.watches_files(but);
        }
        let mut left = Left::read(setup.kept).filter(|left| left.of == of);
        if let Some(left) = &mut left {
            session.restore(std::mem::take(&mut left.entries));
        }
        let origin = began.begun_ns;
        if let Some(moment) =
            Instant::now().checked_sub(Duration::from_nanos(now_ns().saturating_sub(origin)))
        {
            session.began(moment);
        }
        session.confined(in_force.parts().clone());
        let attached_ns = began.attached_ns.saturating_sub(origin);
        if began.was_blind || left.is_some() {
            // Whatever the plugin saw meanwhile, and whatever an earlier watch had taken and not yet written down, is not known.
            session.gap(Gap {
                from_ns: left.as_ref().map_or(0, |left| left.done_ns).min(attached_ns),
                to_ns: attached_ns,
                left: Coverage::BLIND,
                reason: GapReason::Detached,
                lost: 0,
            });
        }
        let journal = Journal::begin(setup.kept, of, left.as_ref(), &mut session)
            .inspect_err(|error| {
                session.journal_ends();
                eprintln!(
                    "nephoscope: no journal can be written in the directory of {} ({error}): a watch that is killed takes \
                     along what it concluded, and its report says so",
                    setup.dir.name
                );
            })
            .ok();
        let refused = Arc::new(AtomicU64::new(0));
        let requests = serve(listener, owner, refused.clone())?;
        let pump = driver.start()?;
        if let Some(memory) = &mut memory {
            memory.run_beside()?;
        }
        let sinks = if setup.print_findings {
            vec![Terminal::begin()?]
        } else {
            Vec::new()
        };
        session.goes_on(attached_ns);
        let mut watch = Self {
            session,
            pump,
            origin: began,
            memory,
            machine: Machine::default(),
            liveness: Liveness::default(),
            placing: Placing::default(),
            mapped: Mapped::default(),
            kernel_mapped: KernelMapped::default(),
            requests,
            refused,
            sinks,
            journal,
            resident,
            looked_ns: attached_ns,
            stopped: false,
        };
        watch.without_memory(attached_ns);
        Ok(watch)
    }

    /// Ends of address spaces are not seen as long as guest memory cannot be read; some drivers sample who runs what.
    fn without_memory(&mut self, now_ns: u64) {
        let from_ns = std::mem::replace(&mut self.looked_ns, now_ns).min(now_ns);
        let reason = match (&self.memory, self.origin.samples_attribution) {
            (None, _) => GapReason::MemoryUnreadable,
            (Some(_), true) => GapReason::AttributionSampled,
            (Some(_), false) => return,
        };
        self.session.gap(Gap {
            from_ns,
            to_ns: now_ns,
            left: Coverage {
                code: CodeCoverage::Complete,
                attribution: Attribution::Sampled,
            },
            reason,
            lost: 0,
        });
    }

    /// Watches until the VM ends.
    ///
    /// # Errors
    /// If the driver cannot be believed any more.
    pub(crate) fn run(&mut self) -> anyhow::Result<Ending> {
        let [mut settle, mut look, mut narrow, mut keep] = [SETTLE, LOOK, NARROW, KEEP].map(Paced::new);
        while !self.pump.is_closed() {
            if let Some(memory) = &mut self.memory {
                memory.hear();
            }
            self.take(PAUSE)?;
            if self
                .kernel_mapped
                .is_due(&mut self.session, self.pump.holds_more())
            {
                self.look_in_kernel();
            }
            if let Some(began) = settle.begin() {
                self.look_at_readers();
                // While something waits, time goes on with it: what it brings may be what is waited for.
                if !self.pump.holds_more() {
                    self.session.at(self.taken_until_ns());
                }
                self.session.settle(&mut sinks(&mut self.sinks));
                settle.end(began);
            }
            let looks = self.kernel_mapped.is_at_it() || self.session.is_lacking();
            self.session.looking_in_kernel(self.memory.is_some() && looks);
            self.speak();
            // Who has ended, and that the machine was reset, is for after all that ran before.
            if !self.pump.holds_more() {
                if let Some(began) = look.begin() {
                    self.look();
                    self.resident.look(&mut self.session);
                    look.end(began);
                }
                if let Some(began) = narrow.begin() {
                    self.narrow();
                    narrow.end(began);
                }
            }
            if let Some(began) = keep.begin() {
                self.keep();
                keep.end(began);
            }
            self.answer(self.taken_until_ns());
        }
        self.session.settle(&mut sinks(&mut self.sinks));
        self.session
            .speak(true, &|_, _| None, &mut sinks(&mut self.sinks));
        let now = self.elapsed_ns();
        self.without_memory(now);
        self.session.at(now);
        self.look_at_machine(now);
        self.machine.over(now, &mut self.session);
        if !self.stopped {
            self.session.lost_driver(now);
        }
        self.keep();
        Ok(if self.stopped {
            Ending::Stopped
        } else {
            Ending::Lost
        })
    }

    /// Writes down what was concluded, and until when that is all there is.
    fn keep(&mut self) {
        let done_ns = self.taken_until_ns().saturating_sub(IN_FLIGHT_NS);
        if let Some(journal) = &mut self.journal {
            journal.keep(&mut self.session, done_ns);
        }
    }

    /// The report as of now.
    #[must_use]
    pub(crate) fn report(&mut self) -> Report {
        let refused = self.refused.load(Ordering::Relaxed);
        self.session.count("control_peers_refused", refused);
        self.session.report()
    }

    /// Up to when everything that ran was taken.
    fn taken_until_ns(&self) -> u64 {
        self.pump.seen_until_ns()
    }

    /// Takes what comes within that time, and of what waits as much as leaves time for the rest of the watch's work.
    fn take(&mut self, timeout: Duration) -> anyhow::Result<()> {
        let (begun, mut timeout, mut unplaced) = (Instant::now(), timeout, false);
        while let Some(stamped) = self.pump.next(timeout)? {
            self.stopped |= stamped.event == Event::Lifecycle(Lifecycle::Stopped);
            let memory = self.memory.as_ref();
            let place = |frame: u64| memory.and_then(|memory| memory.place(frame));
            if let Event::CodeCaptured(captured) = &stamped.event {
                unplaced |= captured.frame != 0 && captured.gpa.is_none() && place(captured.frame).is_none();
            }
            self.session.take(stamped, &place, &mut sinks(&mut self.sinks));
            if begun.elapsed() >= AT_ONCE {
                break;
            }
            timeout = Duration::ZERO;
        }
        if unplaced && let Some(memory) = &mut self.memory {
            memory.refresh();
        }
        Ok(())
    }

    fn look(&mut self) {
        let now = self.elapsed_ns();
        self.session.at(self.taken_until_ns());
        self.without_memory(now);
        self.look_at_machine(now);
        let Some(memory) = &mut self.memory else { return };
        let living: Vec<_> = self.session.living().collect();
        let mode = if self.liveness.has_new(&living) {
            memory.paging_mode(self.pump.told())
        } else {
            None
        };
        if let Some(ram) = memory.ram() {
            for space in self.liveness.look(&living, mode.as_ref(), ram) {
                self.session.ended(space, now, &mut sinks(&mut self.sinks));
            }
        }
    }

    /// What QEMU said of the machine.
    fn look_at_machine(&mut self, now: u64) {
        let Some(memory) = &mut self.memory else { return };
        for turn in self.machine.look(now, memory) {
            match turn {
                Turn::Reset => {
                    let event = Event::Lifecycle(Lifecycle::Reset);
                    let reset = Stamped { at_ns: now, event };
                    self.session.take(reset, &|_| None, &mut sinks(&mut self.sinks));
                    self.kernel_mapped.forget();
                    self.pump.reset();
                }
                Turn::Away { from_ns, to_ns } => self.session.gap(away(from_ns, to_ns)),
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
        let Some(mode) = memory.paging_mode(self.pump.told()) else {
            return;
        };
        if let Some(ram) = memory.ram() {
            self.placing.look(&mut self.session, mode, ram);
            self.mapped.look(&mut self.session, &wanted, mode, ram);
        }
    }

    /// Looks whether those who read files have them mapped.
    fn look_at_readers(&mut self) {
        if self.session.readers_to_look_at().is_empty() {
            return;
        }
        let Some(memory) = &mut self.memory else { return };
        let mode = memory.paging_mode(self.pump.told());
        if let Some((mode, ram)) = mode.zip(memory.ram()) {
            readers::look(&mut self.session, mode, ram);
        }
    }

    /// Reads what the kernel has mapped, where it may explain what ran.
    fn look_in_kernel(&mut self) {
        let now = self.elapsed_ns();
        let Some(memory) = &mut self.memory else { return };
        let mode = memory.paging_mode(self.pump.told());
        match mode.zip(memory.ram()) {
            Some((mode, ram)) => {
                self.kernel_mapped
                    .look(&mut self.session, mode, ram, now, &mut sinks(&mut self.sinks));
            }
            None => self.kernel_mapped.cannot(),
        }
    }

    /// Speaks of the kernel's unknown code that had to be waited for.
    fn speak(&mut self) {
        if !self.session.has_to_speak() {
            return;
        }
        let (memory, mode) = (RefCell::new(self.memory.as_mut()), OnceCell::new());
        let told = self.pump.told();
        let roots = kernel_mapped::Roots::of(&self.session);
        let there = |root, va| {
            let mut memory = memory.borrow_mut();
            let memory = memory.as_deref_mut()?;
            let mode = mode.get_or_init(|| memory.paging_mode(told)).as_ref()?;
            let ram = memory.ram()?;
            let root = roots.now(&Walker::new(*mode, ram), root);
            kernel_mapped::there(mode, ram, root, va)
        };
        self.session.speak(false, &there, &mut sinks(&mut self.sinks));
    }

    /// Answers what was asked. Up to `until_ns`, everything was taken that ran.
    fn answer(&mut self, until_ns: u64) {
        while let Ok((ask, reply)) = self.requests.try_recv() {
            let answer = match ask {
                Ask::Report => {
                    // Not until now: what waits in the rings is not in it.
                    self.session.at(until_ns);
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
        now_ns().saturating_sub(self.origin.begun_ns)
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
