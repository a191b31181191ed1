//! One pair: the same jobs in a guest without a watch and in one with it, right after each other.

use std::collections::BTreeMap;

use anyhow::Result;
use nephoscope_e2e::{Guest, Image, Options, Step, Watched, guest};

use super::cpu::{self, Cost, Meter};
use super::jobs::Job;

/// What each job cost, by its name.
pub(crate) type Costs = BTreeMap<&'static str, Cost>;

/// A measured pair.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    /// The guest without a watch was the first of the two.
    pub(crate) plain_first: bool,
    pub(crate) plain: Costs,
    pub(crate) watched: Costs,
}

/// How the two guests are started; they differ in nothing but the watch.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) image: Image,
    pub(crate) options: Options,
    pub(crate) watch: Watched,
    pub(crate) jobs: Vec<Job>,
}

impl Setting {
    /// Measures one pair, with no other guest of ours in between.
    pub(crate) fn pair(&self, plain_first: bool) -> Result<Pair> {
        let _turn = guest::turn()?;
        if plain_first {
            let plain = self.guest(None)?;
            let watched = self.guest(Some(&self.watch))?;
            Ok(Pair {
                plain_first,
                plain,
                watched,
            })
        } else {
            let watched = self.guest(Some(&self.watch))?;
            let plain = self.guest(None)?;
            Ok(Pair {
                plain_first,
                plain,
                watched,
            })
        }
    }

    /// One guest from power-on to power-off, with all the jobs in between.
    fn guest(&self, watch: Option<&Watched>) -> Result<Costs> {
        let how = if watch.is_some() { "watched" } else { "plain" };
        let mut step = Step::begin(&format!("A guest, {how}"));
        let options = Options {
            watched: watch.cloned(),
            alone: false,
            ..self.options.clone()
        };
        let mut costs = Costs::new();
        let mut guest = Guest::boot(&self.image, options)?;
        let (machine, stolen) = cpu::machine()?;
        let ready = guest.wait_ready()?;
        let meter = Meter::of(guest.pid(), watch.is_some())?;
        let mut boot = meter.read()?;
        boot.wall = ready;
        boot.machine = boot.machine.saturating_sub(machine);
        boot.stolen = boot.stolen.saturating_sub(stolen);
        // What still starts up would be counted with the first job. That something failed to start is no matter here.
        guest.run("systemctl is-system-running --wait; sleep 2")?;
        for job in &self.jobs {
            step.note(job.name);
            if job.is_boot() {
                costs.insert(job.name, boot);
                continue;
            }
            let before = meter.read()?;
            job.run(&mut guest)?;
            costs.insert(job.name, meter.read()? - before);
        }
        let told: Vec<String> = costs
            .iter()
            .map(|(name, cost)| format!("{name} {:.1}", cost.total().as_secs_f64()))
            .collect();
        guest.power_off()?;
        step.done(&format!("CPU seconds: {}", told.join(", ")));
        Ok(costs)
    }
}
