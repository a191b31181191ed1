//! The same jobs in guests that differ in nothing but the watch, by slices of time.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, anyhow};
use nephoscope_e2e::{Guest, Image, Options, Step, Watched, guest};

use super::cpu::{self, Cost, Meter};
use super::jobs::Job;
use super::slices::Slices;

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
    /// What a watched QEMU has, and no monitor comes.
    Unattended,
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
            Mode::Unattended => "unattended",
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
            Mode::Unattended => "the plugin and no monitor",
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
    /// The plugin of a watch.
    pub(crate) own_plugin: String,
    /// For sockets that nobody connects to.
    pub(crate) scratch: tempfile::TempDir,
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
    /// Boots one guest of each side and does all jobs in them, by slices; `given` gets what was measured as it comes.
    /// `number` counts such boots: odd ones begin with the other side.
    pub(crate) fn round(&self, number: usize, given: &mut Vec<Turn>) -> Result<()> {
        let _turn = guest::turn()?;
        let mut smps: Vec<u32> = self.jobs.iter().map(|job| job.smp).collect();
        smps.dedup();
        for smp in smps {
            let jobs: Vec<Job> = self.jobs.iter().copied().filter(|job| job.smp == smp).collect();
            let mut up = self.boot(number, smp)?;
            self.work(&jobs, &mut up, number, given)?;
            for one in up {
                one.guest.power_off()?;
            }
        }
        Ok(())
    }

    /// A, B, B, A, A, B: who goes first changes.
    fn order(&self, number: usize) -> Vec<Side> {
        let mut sides = vec![Side::Plain];
        sides.extend(self.with.iter().copied().map(Side::Other));
        sides.push(Side::Watched);
        if number % 2 == 1 {
            sides.reverse();
        }
        sides
    }

    fn start(&self, side: Side, smp: u32) -> Result<Up> {
        let mut options = Options {
            watched: (side == Side::Watched).then(|| self.watch.clone()),
            alone: false,
            smp,
            // Others run while it waits for its slice.
            boot_timeout: self.options.boot_timeout.saturating_mul(4),
            command_timeout: self.options.command_timeout.saturating_mul(4),
            ..self.options.clone()
        };
        if let Side::Other(mode) = side {
            options.extra.push("-plugin".into());
            options.extra.push(match mode {
                Mode::Unattended => {
                    let socket = self.scratch.path().join(format!("{smp}.sock"));
                    format!("{},socket={}", self.own_plugin, socket.display())
                }
                other => format!("{},mode={}", self.plugin, other.word()),
            });
        }
        let guest = Guest::boot(&self.image, options)?;
        let meter = Meter::of(guest.pid(), side == Side::Watched)?;
        Ok(Up {
            side,
            guest,
            meter,
            boot: Cost::default(),
        })
    }

    /// All sides' guests, with what it cost each until it was ready.
    fn boot(&self, number: usize, smp: u32) -> Result<Vec<Up>> {
        let mut step = Step::begin(&format!("Guests with {smp} vCPU"));
        let mut up = Vec::new();
        for side in self.order(number) {
            up.push(self.start(side, smp)?);
        }
        // Nothing was used before they were there.
        let before = vec![Cost::default(); up.len()];
        let costs = together(&mut up, &before, |one| one.guest.wait_ready().map(drop))?;
        for (one, cost) in up.iter_mut().zip(costs) {
            one.boot = cost;
        }
        // What still starts up would be counted with the first job. That something failed to start is no matter here.
        step.note("waiting until all is up");
        for one in &mut up {
            one.guest.run("systemctl is-system-running --wait; sleep 2")?;
        }
        let seconds: Vec<String> = up
            .iter()
            .map(|one| format!("{} {:.2}", one.side.word(), one.boot.total().as_secs_f64()))
            .collect();
        step.done(&format!("CPU seconds until login: {}", seconds.join(", ")));
        Ok(up)
    }

    fn work(&self, jobs: &[Job], up: &mut [Up], number: usize, given: &mut Vec<Turn>) -> Result<()> {
        for job in jobs {
            if job.is_boot() {
                let costs = up.iter().map(|one| (one.side, one.boot)).collect();
                given.push(Turn { job: job.name, costs });
                continue;
            }
            let mut step = Step::begin(job.name);
            let mut told: BTreeMap<Side, Vec<String>> = BTreeMap::new();
            for again in 0..self.repeat {
                step.note(&format!("{} of {}", again + 1, self.repeat));
                let order = self.order(number + again);
                up.sort_by_key(|one| order.iter().position(|side| *side == one.side));
                let mut before = Vec::new();
                for one in &mut *up {
                    job.prepare(&mut one.guest)?;
                }
                for one in &mut *up {
                    before.push(one.meter.read()?);
                }
                let costs = together(up, &before, |one| job.run(&mut one.guest))?;
                for (one, cost) in up.iter().zip(&costs) {
                    let seconds = format!("{:.2}", cost.total().as_secs_f64());
                    told.entry(one.side).or_default().push(seconds);
                }
                given.push(Turn {
                    job: job.name,
                    costs: up.iter().map(|one| one.side).zip(costs).collect(),
                });
            }
            let told: Vec<String> = told
                .iter()
                .map(|(side, seconds)| format!("{} {}", side.word(), seconds.join(" ")))
                .collect();
            step.done(&format!("CPU seconds: {}", told.join("; ")));
        }
        Ok(())
    }
}

/// Does the same in all guests, by slices; what it cost each since the readings in `before`. Its time on the wall is that of its
/// slices; what others used of the machine meanwhile is shared out by it.
fn together(up: &mut [Up], before: &[Cost], run: impl Fn(&mut Up) -> Result<()> + Sync) -> Result<Vec<Cost>> {
    let (machine, stolen) = cpu::machine()?;
    let slices = Slices::begin(up.iter().map(|one| one.meter.qemu()))?;
    let results: Vec<Result<Cost>> = std::thread::scope(|scope| {
        let (slices, run) = (&slices, &run);
        let threads: Vec<_> = (0..)
            .zip(up.iter_mut())
            .map(|(number, one)| {
                scope.spawn(move || {
                    let done = run(one);
                    // Whatever came of it, the others are not to wait.
                    let wall = slices.done(number);
                    done?;
                    Ok(Cost {
                        wall,
                        ..one.meter.read()?
                    })
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a job's thread died")))
            })
            .collect()
    });
    drop(slices);
    let (machine_after, stolen_after) = cpu::machine()?;
    let mut costs = Vec::new();
    for (result, before) in results.into_iter().zip(before) {
        let cost = result?;
        let wall = cost.wall;
        costs.push(Cost {
            wall,
            ..cost - *before
        });
    }
    let own: Duration = costs.iter().map(Cost::total).sum();
    let wall: Duration = costs.iter().map(|cost| cost.wall).sum();
    let others = machine_after.saturating_sub(machine).saturating_sub(own);
    let stolen = stolen_after.saturating_sub(stolen);
    for cost in &mut costs {
        let share = cost.wall.as_secs_f64() / wall.as_secs_f64().max(0.001);
        cost.machine = cost.total().saturating_add(others.mul_f64(share));
        cost.stolen = stolen.mul_f64(share);
    }
    Ok(costs)
}
