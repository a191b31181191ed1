//! The soak within L1.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::guest::Given;
use super::health;
use super::module::{Module, watches};
use super::plan::{Random, Wave, plan};
use super::vm::{After, Running};
use crate::command::output_of;

/// How long the first watch of a wave may take until the module can be asked to leave in vain.
const FIRST_WATCH: Duration = Duration::from_secs(240);

/// Does it, and writes `soak.json` to the folder. `debug`: the kernel is one that looks for mistakes.
///
/// # Errors
/// When the module cannot be loaded or unloaded where it has to, or a process does not end. What the kernel found is in the file.
pub fn soak_inside(
    folder: &Path,
    seed: u64,
    vms: usize,
    debug: bool,
    say: impl Fn(&str) + Sync,
) -> Result<()> {
    let begun = Instant::now();
    health::begin()?;
    ensure!(
        debug == health::finds_leaks(),
        "a debug kernel was wanted: {debug}; kmemleak is there: {}",
        health::finds_leaks()
    );
    let given = given(folder)?;
    let before_log = health::log()?;
    let before_taints = health::taints()?;
    health::forget_leaks()?;
    let mut soak = Soak {
        module: Module::new(folder.join("nephoscope_kvm.ko")),
        given,
        random: Random(seed),
        rows: Vec::new(),
        running: Vec::new(),
    };
    let before = health::amounts()?;
    let ended = soak.waves(plan(seed, vms), &say);
    let mut wrong: Vec<String> = Vec::new();
    if let Err(error) = &ended {
        wrong.push(format!("{error:#}"));
    }
    say("looking for leaks");
    // While it is loaded, what the module made can be told by its name.
    let is_loaded = health::is_loaded();
    let mut held = health::held()?;
    let mut leaks = health::leaks()?;
    if is_loaded && let Err(error) = soak.module.unload(0) {
        wrong.push(format!("{error:#}"));
    }
    let after = health::amounts()?;
    let later = health::leaks()?;
    leaks.ours.extend(later.ours);
    leaks.others = later.others;
    leaks.ours.sort();
    leaks.ours.dedup();
    let log = health::log()?;
    let warnings = health::complaints(log.strip_prefix(&before_log).unwrap_or(&log));
    let lockdep = health::lockdep();
    let taints = health::taints()?;
    if lockdep != debug.then_some(true) {
        wrong.push(format!("lockdep does not look any more: {lockdep:?}"));
    }
    if taints != before_taints {
        wrong.push(format!(
            "the kernel is tainted {taints:?}, before it was {before_taints:?}"
        ));
    }
    wrong.extend(warnings.iter().map(|line| format!("L1's kernel: {line}")));
    wrong.extend(leaks.ours.iter().map(|object| format!("leak: {object}")));
    wrong.append(&mut held);
    fs::write(folder.join("dmesg"), &log)?;
    let report = json!({
        "seed": seed,
        "kernel": fs::read_to_string("/proc/version")?.trim(),
        "seconds": begun.elapsed().as_secs(),
        "vms": soak.rows.len(),
        "watched": soak.rows.iter().filter(|row| row["watched"] == true).count(),
        "late": soak.rows.iter().filter(|row| row["late"] != json!([])).count(),
        "ended": soak.counts(),
        "module": soak.module.json(),
        "debug": debug,
        "lockdep_active": lockdep,
        "taints": taints,
        "warnings": warnings,
        "warnings_of_boot": health::complaints(&before_log),
        "leaks": leaks.ours,
        "leaks_of_others": leaks.others,
        "memory_before": before,
        "memory_after": after,
        "wrong": wrong,
        "rows": soak.rows,
    });
    fs::write(folder.join("soak.json"), format!("{report:#}\n"))?;
    Ok(())
}

/// Copies what is run often out of the shared folder, which is slow.
fn given(folder: &Path) -> Result<Given> {
    let own = Path::new("/tmp/given");
    fs::create_dir_all(own)?;
    for name in ["nephoscope", "plugins", "guest-initramfs"] {
        output_of(
            std::process::Command::new("cp")
                .arg("-r")
                .arg(folder.join(name))
                .arg(own),
        )?;
    }
    let kernel = own.join("vmlinuz");
    fs::copy(folder.join("image/vmlinuz-6.1"), &kernel).context("no kernel for the guests")?;
    Ok(Given {
        program: own.join("nephoscope"),
        catalog: folder.join("catalog"),
        kernel,
        initramfs: own.join("guest-initramfs"),
    })
}

struct Soak {
    module: Module,
    given: Given,
    random: Random,
    rows: Vec<Value>,
    /// VMs that run on unwatched.
    running: Vec<Running>,
}

impl Soak {
    fn waves(&mut self, waves: Vec<Wave>, say: &(impl Fn(&str) + Sync)) -> Result<()> {
        let count = waves.len();
        for (number, wave) in waves.into_iter().enumerate() {
            self.module.load()?;
            say(&format!(
                "wave {} of {count}: {} VMs, {} run on from before",
                number + 1,
                wave.len(),
                self.running.len()
            ));
            self.wave(wave, say)?;
            // One that has ended by itself stays here too: it is told with those of the next wave.
            let running = self.running.iter().filter(|vm| vm.runs()).count();
            self.module.unload(running)?;
            // Who runs on does so for a moment without it.
            std::thread::sleep(Duration::from_millis(self.random.below(3000)));
        }
        self.module.load()?;
        self.wave(Wave::new(), say)
    }

    /// Starts all of its VMs at once, and ends those that run on from the wave before.
    fn wave(&mut self, wave: Wave, say: &(impl Fn(&str) + Sync)) -> Result<()> {
        let before = std::mem::take(&mut self.running);
        let given = &self.given;
        let mut outcomes = Vec::new();
        let tried = std::thread::scope(|scope| {
            let new = wave
                .into_iter()
                .map(|vm| scope.spawn(move || Running::start(vm, given)?.live()));
            let mut threads: Vec<ScopedJoinHandle<'_, Result<After>>> = new.collect();
            threads.extend(before.into_iter().map(|vm| scope.spawn(move || vm.end())));
            let deadline = Instant::now() + FIRST_WATCH;
            while watches() == 0
                && Instant::now() < deadline
                && !threads.iter().all(ScopedJoinHandle::is_finished)
            {
                std::thread::sleep(Duration::from_millis(100));
            }
            let tried = self.module.must_stay();
            for thread in threads {
                outcomes.push(
                    thread
                        .join()
                        .unwrap_or_else(|_| Err(anyhow!("a thread of the soak panicked"))),
                );
            }
            tried
        });
        tried?;
        for outcome in outcomes {
            match outcome? {
                After::Ended(row) => {
                    say(&row.to_string());
                    self.rows.push(row);
                }
                After::RunsOn(vm) => {
                    say(&format!("{} runs on", vm.plan.name));
                    self.running.push(*vm);
                }
            }
        }
        Ok(())
    }

    /// How many VMs were watched in this way and ended in that one.
    fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for row in &self.rows {
            let word = |name: &str| row[name].as_str().unwrap_or("?").to_owned();
            *counts
                .entry(format!("{} {}", word("watch"), word("ending")))
                .or_default() += 1;
        }
        counts
    }
}
