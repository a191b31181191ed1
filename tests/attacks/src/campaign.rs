//! Runs attacks: one boot for each group, one after the other in it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use nephoscope_e2e::{Kernel, Options, Step};
use serde_json::Value;

use crate::attack::{Attack, Seen};
use crate::group::Group;
use crate::place::Place;
use crate::row::Row;
use crate::scene::{self, Scene};

/// A finding has to come so soon after the code first ran.
const WITHIN: Duration = Duration::from_secs(1);

/// Attacks in one place.
#[derive(Debug)]
pub struct Campaign {
    place: Place,
}

impl Campaign {
    /// On this machine. Builds what is missing: the guest, its catalog, the attacks' programs. `program` is the `nephoscope`
    /// that is put to the proof.
    ///
    /// # Errors
    /// When one of them cannot be had.
    pub fn prepare(program: PathBuf) -> Result<Self> {
        Ok(Campaign {
            place: Place::here(program)?,
        })
    }

    /// In a place that is prepared.
    #[must_use]
    pub fn at(place: Place) -> Self {
        Campaign { place }
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Boots the guest of a group.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn open(&self, group: Group, kernel: Kernel) -> Result<Scene> {
        self.open_with(group, kernel, self.place.catalog.clone())
    }

    /// [`Campaign::open`] with another catalog.
    ///
    /// # Errors
    /// When the guest does not come up.
    pub fn open_with(&self, group: Group, kernel: Kernel, catalog: PathBuf) -> Result<Scene> {
        let step = Step::begin(&format!("Booting Linux {} for {}", kernel.version(), group.name));
        let mut options = Options {
            kernel,
            // Of an hour of attacks a boot is the least; on a machine that does ten other things it takes minutes.
            boot_timeout: Duration::from_secs(900),
            ..Options::default()
        };
        self.place.adapt(&mut options);
        (group.adapt)(&mut options);
        let scene = Scene::open(&self.place, options, catalog)?;
        step.done("");
        Ok(scene)
    }

    /// Runs the attacks under one kernel, group by group, and gives a row for each, in the order of their end.
    pub fn run(&self, kernel: Kernel, attacks: &[&'static dyn Attack]) -> Vec<Row> {
        let mut groups: Vec<Group> = Vec::new();
        for attack in attacks {
            if !groups.contains(&attack.group()) {
                groups.push(attack.group());
            }
        }
        let mut rows = Vec::new();
        for group in groups {
            let of_it = attacks.iter().filter(|attack| attack.group() == group);
            let of_it: Vec<&dyn Attack> = of_it.copied().collect();
            rows.extend(self.run_group(group, kernel, &of_it));
        }
        rows
    }

    fn run_group(&self, group: Group, kernel: Kernel, attacks: &[&dyn Attack]) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut scene = match self.open(group, kernel) {
            Ok(scene) => scene,
            Err(error) => {
                let wrong = Seen::wrong(format!("the guest did not come up: {error:#}"));
                let failed = attacks
                    .iter()
                    .map(|attack| Row::new(*attack, kernel, wrong.clone()));
                return failed.collect();
            }
        };
        scene.wait_for_monitor();
        for attack in attacks {
            let step = Step::begin(&format!("{} {}", attack.number(), attack.name()));
            let seen = one(*attack, &mut scene);
            step.done(if seen.ok { "right" } else { &seen.text });
            rows.push(Row::new(*attack, kernel, seen));
        }
        let may_blind = attacks.iter().any(|attack| attack.may_blind());
        if let Err(why) = end(scene, may_blind) {
            rows.push(Row {
                attack: format!("(end of {})", group.name),
                kernel: kernel.version(),
                expected: "the guest is switched off, the report is written and complete".to_owned(),
                seen: format!("{why:#}"),
                ok: false,
                to_finding: None,
            });
        }
        rows
    }
}

/// An attack, and what nobody may get wrong: a gap that nothing explains, a finding that comes late.
fn one(attack: &dyn Attack, scene: &mut Scene) -> Seen {
    let since = scene.now_ns();
    let seen = attack.run(scene).and_then(|mut seen| {
        let gaps = scene.gaps(since)?;
        if !attack.may_blind() && !gaps.is_empty() {
            seen.ok = false;
            seen.text = format!("{}; not all was seen: {}", seen.text, Value::Array(gaps));
        }
        Ok(seen)
    });
    let mut seen = seen.unwrap_or_else(|error| Seen::wrong(format!("{error:#}")));
    if seen.to_finding.is_some_and(|time| time > scene.patience(WITHIN)) {
        seen.ok = false;
        seen.text.push_str("; too late");
    }
    seen
}

fn end(scene: Scene, may_blind: bool) -> Result<()> {
    let sampled = scene.samples_attribution();
    let report = scene.close()?;
    let gaps = scene::gaps(&report, 0, sampled);
    anyhow::ensure!(
        may_blind || gaps.is_empty(),
        "not all was seen: {}",
        Value::Array(gaps)
    );
    Ok(())
}
