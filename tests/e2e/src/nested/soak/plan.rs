//! What is done to which VM, and when: all of it follows from one number, so that a run can be had again.

use serde_json::{Value, json};

/// How a VM is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watch {
    /// `nephoscope run --no-guard`.
    FromStart,
    /// `nephoscope run`.
    Guarded,
    /// `nephoscope attach --pid`, some time after QEMU was started.
    Attached,
    /// Not at all: it runs while the module comes and goes.
    Not,
}

/// What runs in a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inside {
    /// Its firmware, which looks in vain for something to boot.
    Firmware,
    /// Linux, and processes that start and end.
    Linux,
}

/// What is waited for before its end is brought about; some milliseconds more pass then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// Nothing.
    Start,
    /// The module watches it.
    Watched,
    /// Its init runs.
    Up,
}

/// What is done to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// `SIGKILL` for QEMU.
    VmmKilled,
    /// `SIGKILL` for who watches; QEMU follows when it is watched again, or runs on if nobody does that.
    WatcherKilled,
    /// `SIGKILL` for all of them at once.
    BothKilled,
    /// It switches itself off; firmware cannot, there QEMU is asked to end.
    PoweredOff,
    /// The watch ends, and the VM runs on unwatched.
    Detached,
}

/// Every way of watching with every way of ending.
const PAIRS: [(Watch, Ending); 17] = [
    (Watch::FromStart, Ending::VmmKilled),
    (Watch::FromStart, Ending::WatcherKilled),
    (Watch::FromStart, Ending::BothKilled),
    (Watch::FromStart, Ending::PoweredOff),
    (Watch::FromStart, Ending::Detached),
    (Watch::Guarded, Ending::VmmKilled),
    (Watch::Guarded, Ending::WatcherKilled),
    (Watch::Guarded, Ending::BothKilled),
    (Watch::Guarded, Ending::PoweredOff),
    (Watch::Guarded, Ending::Detached),
    (Watch::Attached, Ending::VmmKilled),
    (Watch::Attached, Ending::WatcherKilled),
    (Watch::Attached, Ending::BothKilled),
    (Watch::Attached, Ending::PoweredOff),
    (Watch::Attached, Ending::Detached),
    (Watch::Not, Ending::VmmKilled),
    (Watch::Not, Ending::Detached),
];

/// At most so many at once, and at least two.
const AT_ONCE: u64 = 4;

/// One VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vm {
    /// By which its processes are found.
    pub(super) name: String,
    /// How it is watched.
    pub(super) watch: Watch,
    /// What runs in it.
    pub(super) inside: Inside,
    /// Its vCPUs.
    pub(super) vcpus: u32,
    /// All of its mappings are looked at every second.
    pub(super) audit: bool,
    /// What is waited for.
    pub(super) moment: Moment,
    /// And how long after that.
    pub(super) delay_ms: u64,
    /// What is done then.
    pub(super) ending: Ending,
    /// If it runs on: it is watched again under the module that is loaded next.
    pub(super) again: bool,
}

impl Vm {
    /// For the report.
    pub(super) fn json(&self) -> Value {
        json!({
            "name": self.name,
            "watch": format!("{:?}", self.watch),
            "inside": format!("{:?}", self.inside),
            "vcpus": self.vcpus,
            "audit": self.audit,
            "moment": format!("{:?}", self.moment),
            "delay_ms": self.delay_ms,
            "ending": format!("{:?}", self.ending),
        })
    }
}

/// VMs that are started at once. Between two of them the module is unloaded and loaded again.
pub(super) type Wave = Vec<Vm>;

/// So many VMs, in waves.
pub(super) fn plan(seed: u64, vms: usize) -> Vec<Wave> {
    let mut random = Random(seed);
    let mut deck = Vec::new();
    let mut waves = Vec::new();
    let mut made = 0;
    while made < vms {
        let mut wave = Wave::new();
        let together = 2 + random.below(AT_ONCE - 1);
        while made < vms && (wave.len() as u64) < together {
            if deck.is_empty() {
                deck = PAIRS.to_vec();
                random.shuffle(&mut deck);
            }
            let Some((watch, ending)) = deck.pop() else {
                break;
            };
            wave.push(vm(&mut random, made, watch, ending));
            made += 1;
        }
        waves.push(wave);
    }
    waves
}

fn vm(random: &mut Random, number: usize, watch: Watch, ending: Ending) -> Vm {
    let inside = match random.below(2) {
        0 => Inside::Firmware,
        _ => Inside::Linux,
    };
    let moment = match (random.below(3), watch, inside) {
        (0, ..) => Moment::Start,
        // Nobody says when firmware is up, and nobody watches the others.
        (1, Watch::FromStart | Watch::Guarded | Watch::Attached, _) => Moment::Watched,
        (_, Watch::FromStart | Watch::Guarded | Watch::Attached, Inside::Firmware) => Moment::Watched,
        (_, Watch::Not, Inside::Firmware) => Moment::Start,
        _ => Moment::Up,
    };
    Vm {
        name: format!("soak-{number}"),
        watch,
        inside,
        vcpus: if random.below(4) == 0 { 2 } else { 1 },
        audit: random.below(3) == 0,
        moment,
        delay_ms: random.below(4000),
        ending,
        again: random.below(2) == 0,
    }
}

/// SplitMix64 (Steele, Lea, Flood, 2014): any seed is good.
#[derive(Debug, Clone)]
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below another; 0 if there is none.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next().checked_rem(end).unwrap_or(0)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = usize::try_from(self.below(last as u64 + 1)).unwrap_or(0);
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_watching_ends_in_every_way_and_the_count_is_right() {
        for seed in 0..200 {
            for count in [1, 4, 17, 50] {
                let waves = plan(seed, count);
                let vms: Vec<&Vm> = waves.iter().flatten().collect();
                assert_eq!(vms.len(), count);
                assert!(
                    waves
                        .iter()
                        .all(|wave| (1..=AT_ONCE).contains(&(wave.len() as u64)))
                );
                if count >= PAIRS.len() {
                    for pair in PAIRS {
                        assert!(vms.iter().any(|vm| (vm.watch, vm.ending) == pair), "{pair:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn fifty_vms_have_every_moment_and_every_inside() {
        for seed in 0..200 {
            let waves = plan(seed, 50);
            for moment in [Moment::Start, Moment::Watched, Moment::Up] {
                assert!(waves.iter().flatten().any(|vm| vm.moment == moment), "{moment:?}");
            }
            for inside in [Inside::Firmware, Inside::Linux] {
                assert!(waves.iter().flatten().any(|vm| vm.inside == inside), "{inside:?}");
            }
        }
    }

    #[test]
    fn a_seed_gives_the_same_plan_and_another_one_another() {
        assert_eq!(plan(7, 50), plan(7, 50));
        assert_ne!(plan(7, 50), plan(8, 50));
    }

    #[test]
    fn nothing_is_waited_for_that_cannot_come() {
        for vm in (0..200).flat_map(|seed| plan(seed, 50)).flatten() {
            assert!(vm.moment != Moment::Up || vm.inside == Inside::Linux);
            assert!(vm.moment != Moment::Watched || vm.watch != Watch::Not);
        }
    }
}
