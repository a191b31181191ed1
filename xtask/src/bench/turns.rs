//! The same jobs in guests that differ in nothing but the watch, by turns.

use std::collections::BTreeMap;

use anyhow::Result;
use nephoscope_e2e::{Guest, Image, Options, Step, Watched, guest};

use super::cpu::{self, Cost, Meter};
use super::jobs::Job;

/// In what the guests differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// QEMU alone.
    Plain,
    /// QEMU with a plugin that learns nothing, in one of its modes.
    Other(Mode),
    /// QEMU behind `nephoscope run`.
    Watched,
}

impl Side {
    /// In tables and files.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Side::Plain => "plain",
            Side::Other(mode) => mode.word(),
            Side::Watched => "watched",
        }
    }
}

/// What the plugin of benchmarks does (`crates/qemu-plugin/builds/bench.rs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Mode {
    /// Nothing: what QEMU's own machinery costs.
    Empty,
    /// User blocks store into a word of their page.
    Inline,
    /// User blocks call a function.
    Callback,
    /// User blocks call a function if their page's word is not set.
    Conditional,
    /// User blocks that may leave their page store into its word.
    Exits,
}

impl Mode {
    /// As the plugin and the command line have it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Mode::Empty => "empty",
            Mode::Inline => "inline",
            Mode::Callback => "callback",
            Mode::Conditional => "conditional",
            Mode::Exits => "exits",
        }
    }

    /// In a heading.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Mode::Empty => "an empty plugin",
            Mode::Inline => "a store in each user block",
            Mode::Callback => "a call in each user block",
            Mode::Conditional => "a call in each user block whose word is not set",
            Mode::Exits => "a store in user blocks that may leave their page",
        }
    }
}

/// One job done once on each side, right after each other.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    /// The job's name.
    pub(crate) job: &'static str,
    /// In this order, with what it cost.
    pub(crate) costs: Vec<(Side, Cost)>,
}

impl Turn {
    /// What it cost on one side.
    pub(crate) fn on(&self, side: Side) -> Option<&Cost> {
        self.costs
            .iter()
            .find_map(|(of, cost)| (*of == side).then_some(cost))
    }
}

/// How the guests are started.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) image: Image,
    pub(crate) options: Options,
    pub(crate) watch: Watched,
    /// The plugin that learns nothing, and in which modes it is measured too.
    pub(crate) plugin: String,
    pub(crate) with: Vec<Mode>,
    pub(crate) jobs: Vec<Job>,
    /// How often each job is done in one boot.
    pub(crate) repeat: usize,
}

/// A guest that is up.
struct Up {
    side: Side,
    guest: Guest,
    meter: Meter,
    boot: Cost,
}

impl Setting {
    /// Boots one guest of each side and does all jobs in them by turns; `given` gets what was measured as it comes.
    /// `number` counts such boots: odd ones go the other way round.
    pub(crate) fn round(&self, number: usize, given: &mut Vec<Turn>) -> Result<()> {
        let _turn = guest::turn()?;
        let mut smps: Vec<u32> = self.jobs.iter().map(|job| job.smp).collect();
        smps.dedup();
        for smp in smps {
            let jobs: Vec<Job> = self.jobs.iter().copied().filter(|job| job.smp == smp).collect();
            let mut up = Vec::new();
            for side in self.order(number) {
                up.push(self.boot(side, smp)?);
            }
            self.jobs_by_turns(&jobs, &mut up, number, given)?;
            for one in up {
                one.guest.power_off()?;
            }
        }
        Ok(())
    }

    /// A, B, B, A, A, B: what drifts over time falls on all.
    fn order(&self, number: usize) -> Vec<Side> {
        let mut sides = vec![Side::Plain];
        sides.extend(self.with.iter().copied().map(Side::Other));
        sides.push(Side::Watched);
        if number % 2 == 1 {
            sides.reverse();
        }
        sides
    }

    fn boot(&self, side: Side, smp: u32) -> Result<Up> {
        let mut step = Step::begin(&format!("A guest with {smp} vCPU, {}", side.word()));
        let mut options = Options {
            watched: (side == Side::Watched).then(|| self.watch.clone()),
            alone: false,
            smp,
            ..self.options.clone()
        };
        if let Side::Other(mode) = side {
            options.extra.push("-plugin".into());
            options
                .extra
                .push(format!("{},mode={}", self.plugin, mode.word()));
        }
        let mut guest = Guest::boot(&self.image, options)?;
        let (machine, stolen) = cpu::machine()?;
        let ready = guest.wait_ready()?;
        let meter = Meter::of(guest.pid(), side == Side::Watched)?;
        let mut boot = meter.read()?;
        boot.wall = ready;
        boot.machine = boot.machine.saturating_sub(machine);
        boot.stolen = boot.stolen.saturating_sub(stolen);
        // What still starts up would be counted with the first job. That something failed to start is no matter here.
        step.note("waiting until all is up");
        guest.run("systemctl is-system-running --wait; sleep 2")?;
        step.done(&format!(
            "{:.2} s of user CPU until login",
            boot.user().as_secs_f64()
        ));
        Ok(Up {
            side,
            guest,
            meter,
            boot,
        })
    }

    fn jobs_by_turns(&self, jobs: &[Job], up: &mut [Up], number: usize, given: &mut Vec<Turn>) -> Result<()> {
        for job in jobs {
            if job.is_boot() {
                let costs = up.iter().map(|one| (one.side, one.boot)).collect();
                given.push(Turn { job: job.name, costs });
                continue;
            }
            let mut step = Step::begin(job.name);
            let mut told: BTreeMap<Side, Vec<String>> = BTreeMap::new();
            for again in 0..self.repeat {
                let mut costs = Vec::new();
                for side in self.order(number + again) {
                    let Some(one) = up.iter_mut().find(|one| one.side == side) else {
                        continue;
                    };
                    step.note(side.word());
                    job.prepare(&mut one.guest)?;
                    let before = one.meter.read()?;
                    job.run(&mut one.guest)?;
                    let cost = one.meter.read()? - before;
                    let seconds = format!("{:.2}", cost.user().as_secs_f64());
                    told.entry(side).or_default().push(seconds);
                    costs.push((side, cost));
                }
                given.push(Turn { job: job.name, costs });
            }
            let told: Vec<String> = told
                .iter()
                .map(|(side, seconds)| format!("{} {}", side.word(), seconds.join(" ")))
                .collect();
            step.done(&format!("user CPU seconds: {}", told.join("; ")));
        }
        Ok(())
    }
}
