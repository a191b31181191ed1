//! Bombs: processes, code and generations of code made as fast as the guest can, to exhaust the monitor or to hide in the
//! noise.
//!
//! Right is that everything is bounded and nothing is lost in silence: the monitor's and QEMU's memory stay within what is
//! written here; what ran is counted, all of it, or lies in an interval that the report calls blind, with its reason; and
//! what is planted after the bomb is found as before.

use std::fmt::Write as _;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nephoscope_e2e::living::list;
use serde_json::Value;

use super::{Attack, Seen};
use crate::check::{self, Host};
use crate::group::{BOMBS, Group};
use crate::resident;
use crate::said::PAGE_BYTES;
use crate::scene::{Scene, gaps};

/// Number 18: processes.
#[derive(Debug)]
pub(super) struct Forks;

/// Number 18: much code, each executed once.
#[derive(Debug)]
pub(super) struct Translations;

/// Number 18: one page, rewritten again and again.
#[derive(Debug)]
pub(super) struct Generations;

/// What the monitor may use at its peak: what is promised for the demonstration's guest.
const MAX_MONITOR_MIB: u64 = 256;

/// What QEMU may grow by beyond the guest's memory: what the plugin bounds itself to (`crates/qemu-plugin/src/frames.rs`), and
/// QEMU's own cache of translations.
const MAX_QEMU_MIB: u64 = 600 + 512;

/// A finding has to come so soon after the code first ran.
const WITHIN: Duration = Duration::from_secs(1);

/// How often something is planted after a bomb until it has to be found in time.
const TRIES: usize = 4;

/// How often the report is asked for until it says the same twice.
const SETTLING: usize = 24;

/// How long a bomb goes on.
const SECONDS: u64 = 10;
/// Processes that a bomb starts, at least: on a slow machine it goes on for longer.
const PROCESSES: u64 = 1000;

/// Pages of the bomb of code: more than are told of one address space one by one.
const PAGES: u64 = 10_000;

/// How long a guest may take for a bomb, on a machine that does ten other things.
const PATIENCE: Duration = Duration::from_secs(600);

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// What a bomb changed.
struct Aftermath {
    captured: u64,
    spaces: u64,
    /// How many more there were at least, by the report.
    missed: u64,
    blind: Vec<Value>,
    monitor_mib: u64,
    qemu_mib: u64,
}

impl Aftermath {
    /// Runs the bomb; what it says comes first.
    fn of(scene: &mut Scene, bomb: impl FnOnce(&mut Scene) -> Result<u64>) -> Result<(u64, Self)> {
        let sampled = scene.samples_attribution();
        let begun = scene.now_ns();
        // A boot may not be told of to its end yet.
        let before = settled(scene, |report| told(report, begun, sampled))?;
        let (since, qemu) = (scene.now_ns(), memory(child(scene)?, "VmRSS")?);
        let peak = Peak::watch(scene.guest.watcher()?)?;
        let said = bomb(scene)?;
        let after = settled(scene, |report| told(report, since, sampled))?;
        let aftermath = Aftermath {
            captured: captured(&after) - captured(&before),
            spaces: spaces(&after) - spaces(&before),
            missed: missed(&after) - missed(&before),
            blind: gaps(&after, since, sampled),
            monitor_mib: peak.stop()?,
            qemu_mib: memory(child(scene)?, "VmRSS")?.saturating_sub(qemu),
        };
        Ok((said, aftermath))
    }

    /// Whether bounds held, gaps are closed, and what happens now is seen.
    fn judge(self, scene: &mut Scene, counted: bool, text: String) -> Result<Seen> {
        let blind = self.blind.len();
        let text = format!(
            "{text}; {blind} blind interval(s); monitor {} MiB at its peak, QEMU {} MiB more",
            self.monitor_mib, self.qemu_mib
        );
        if !counted && self.blind.is_empty() {
            return Ok(Seen::wrong(format!("lost in silence: {text}")));
        }
        if self.monitor_mib > MAX_MONITOR_MIB || self.qemu_mib > MAX_QEMU_MIB {
            return Ok(Seen::wrong(format!("not bounded: {text}")));
        }
        let now = scene.now_ns();
        for interval in &self.blind {
            let has_reason = interval["reason"]
                .as_str()
                .is_some_and(|reason| !reason.is_empty());
            if !has_reason || number(&interval["to_ns"]) >= now {
                return Ok(Seen::wrong(format!("{text}: {interval}")));
            }
        }
        // The first may come late, while what the bomb left in the rings is still worked on; then it is as before.
        let mut last = String::new();
        for _ in 0..TRIES {
            let planted = something_new(scene)?;
            if planted.ok
                && planted
                    .to_finding
                    .is_some_and(|time| time <= scene.patience(WITHIN))
            {
                return Ok(Seen::right(text, None));
            }
            last = format!("{} ({:?})", planted.text, planted.to_finding);
        }
        Ok(Seen::wrong(format!("blind afterwards: {last}; {text}")))
    }
}

fn captured(report: &Value) -> u64 {
    number(&report["pages"]["user"]["captured"])
}

/// Address spaces that a report says nobody saw, where who runs is sampled.
fn missed(report: &Value) -> u64 {
    number(&report["counters"]["lost_addressspacesmissed"])
}

/// How much a report tells.
fn told(report: &Value, since: u64, sampled: bool) -> (u64, u64, usize) {
    (
        captured(report),
        spaces(report),
        gaps(report, since, sampled).len(),
    )
}

/// What is in the rings by now, and what was lost behind it: the report when nothing more comes.
fn settled<T: PartialEq>(scene: &mut Scene, told: impl Fn(&Value) -> T) -> Result<Value> {
    let mut report = scene.control.report()?;
    for _ in 0..SETTLING {
        scene.wait(Duration::from_secs(5));
        let next = scene.control.report()?;
        let is_all = told(&next) == told(&report);
        report = next;
        if is_all {
            break;
        }
    }
    Ok(report)
}

/// Runs a page that nobody ever ran.
fn something_new(scene: &mut Scene) -> Result<Seen> {
    let stamp = scene.now_ns();
    let mut page = vec![0xcc; PAGE_BYTES];
    // A return, and the moment.
    let start = [[0xc3; 8], stamp.to_le_bytes()].concat();
    page.splice(..start.len(), start);
    let (tool, path) = (scene.tool("runpage")?, format!("/tmp/new-{stamp}"));
    scene.guest.put(&path, &page)?;
    let program = scene.launch(&format!("{tool} {path} 0"))?;
    let said = scene.said(&program, 1)?;
    let seen = check::unknown_pages(scene, &said, Host { program: None })?;
    scene.kill(program.pid)?;
    Ok(seen)
}

/// The most memory that a process has of its own: without files that it maps, which are the machine's to take back. Linux
/// keeps no such number (`VmHWM` counts mapped files), so it is looked at ten times a second.
struct Peak {
    stop: mpsc::Sender<()>,
    looking: JoinHandle<Result<u64>>,
}

impl Peak {
    fn watch(pid: u32) -> Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let look = move || {
            let mut most = 0;
            loop {
                most = most.max(memory(pid, "RssAnon")? + memory(pid, "RssShmem")?);
                if stopped.recv_timeout(Duration::from_millis(100)) != Err(RecvTimeoutError::Timeout) {
                    return Ok(most);
                }
            }
        };
        let looking = std::thread::Builder::new().name("peak".to_owned()).spawn(look)?;
        Ok(Peak { stop, looking })
    }

    fn stop(self) -> Result<u64> {
        drop(self.stop);
        self.looking
            .join()
            .unwrap_or_else(|_| anyhow::bail!("nobody looked"))
    }
}

/// Address spaces of a report: those told one by one, and those told by their number only.
fn spaces(report: &Value) -> u64 {
    let summarised = list(report, "ended_summary").iter();
    let summarised: u64 = summarised
        .map(|of_one_program| number(&of_one_program["count"]))
        .sum();
    list(report, "address_spaces").len() as u64 + summarised
}

/// A line of what a process has in memory, in MiB.
fn memory(pid: u32, name: &str) -> Result<u64> {
    Ok(resident::kib(pid, name)? / 1024)
}

/// QEMU, which the monitor started.
fn child(scene: &Scene) -> Result<u32> {
    let monitor = scene.guest.pid();
    let children = std::fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children"))?;
    let first = children
        .split_whitespace()
        .next()
        .context("the monitor has no child")?;
    Ok(first.parse()?)
}

impl Attack for Forks {
    fn number(&self) -> u8 {
        18
    }

    fn name(&self) -> &'static str {
        "fork-bomb"
    }

    fn expected(&self) -> &'static str {
        "all counted or blind; bounded; full sight afterwards"
    }

    fn group(&self) -> Group {
        BOMBS
    }

    fn may_blind(&self) -> bool {
        true
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let tool = scene.tool("forks")?;
        let bomb = format!(
            "f() {{ awk '/^processes/ {{ print $2 }}' /proc/stat; }}; a=$(f)
             systemd-run -q --wait --unit=bomb -p TasksMax=60 -p Nice=19 {tool} {SECONDS} {PROCESSES}
             sleep 2; b=$(f); echo $((b - a))"
        );
        let (forks, aftermath) = Aftermath::of(scene, |scene| {
            let said = scene
                .guest
                .run_within(&bomb, Duration::from_secs(600))?
                .stdout_text();
            said.trim()
                .parse()
                .with_context(|| format!("the bomb said {said:?}"))
        })?;
        ensure!(forks > 300, "only {forks} processes: no bomb");
        let mut text = format!("{forks} processes, {} address spaces more", aftermath.spaces);
        if scene.samples_attribution() {
            write!(text, ", at least {} more said to be missed", aftermath.missed)?;
        }
        // Some are killed before they run anything, and kernel threads are processes too.
        let counted = aftermath.spaces + aftermath.missed >= forks - forks / 5;
        if aftermath.spaces > forks + 50 {
            return Ok(Seen::wrong(format!("more than there were: {text}")));
        }
        aftermath.judge(scene, counted, text)
    }
}

impl Attack for Translations {
    fn number(&self) -> u8 {
        18
    }

    fn name(&self) -> &'static str {
        "translation-bomb"
    }

    fn expected(&self) -> &'static str {
        "all counted or blind; bounded; full sight afterwards"
    }

    fn group(&self) -> Group {
        BOMBS
    }

    fn may_blind(&self) -> bool {
        true
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let tool = scene.tool("translations")?;
        counted_pages(scene, &format!("{tool} {PAGES}"), "pages of code")
    }
}

impl Attack for Generations {
    fn number(&self) -> u8 {
        18
    }

    fn name(&self) -> &'static str {
        "generation-bomb"
    }

    fn expected(&self) -> &'static str {
        "all counted or blind; bounded; full sight afterwards"
    }

    fn group(&self) -> Group {
        BOMBS
    }

    fn may_blind(&self) -> bool {
        true
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let tool = scene.tool("generations")?;
        counted_pages(scene, &format!("{tool} {SECONDS}"), "generations of a page")
    }
}

/// A bomb that says how many different pages it ran.
fn counted_pages(scene: &mut Scene, command: &str, what: &str) -> Result<Seen> {
    let (ran, aftermath) = Aftermath::of(scene, |scene| {
        let said = scene.guest.run_within(command, PATIENCE)?.stdout_text();
        let count = said
            .trim()
            .strip_prefix("ran ")
            .with_context(|| format!("the bomb said {said:?}"))?;
        Ok(count.parse()?)
    })?;
    let text = format!("{ran} {what}, {} captured", aftermath.captured);
    let counted = aftermath.captured >= ran;
    aftermath.judge(scene, counted, text)
}
