//! What is done to the watch: killed at random, stopped, followed by somebody who does not read, its catalog changed beneath
//! it, the guest paused and taken back to a snapshot, and at last no room for the report.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use super::ours::{self, Role};
use super::proof::{Killed, account, blind, only_while_away};
use super::scene::{Presence, Scene};
use super::ticks::now_ns;
use super::{Row, SLACK, Setting};
use crate::command::{output_of, privileged};
use crate::control;
use crate::living::{list, living};
use crate::qmp::Qmp;

/// A guest that works: processes come and go.
const WORK: &str = "bash -c \"while :; do /opt/nephoscope/shortlived 20; sleep 0.2; done\"";

pub(super) fn run(setting: &Setting) -> Result<Vec<Row>> {
    let own = tempfile::tempdir()?;
    let catalog = own.path().join("catalog");
    output_of(
        Command::new("cp")
            .arg("--recursive")
            .arg(&setting.catalog)
            .arg(&catalog),
    )?;
    let disk = SmallDisk::mount(own.path().join("full"))?;
    let setting = &Setting {
        catalog: catalog.clone(),
        program: setting.program.clone(),
        image: setting.image.clone(),
        kills: setting.kills,
    };
    let mut scene = Scene::begin(setting, "watch", Some(disk.path.join("report.json")), |_| ())?;
    let mut rows = vec![
        Row::new(
            "monitor killed",
            setting.kills,
            "guest lives, watched again by itself, blind only while away",
            kills(&mut scene, setting.kills),
        ),
        Row::new(
            "monitor stopped",
            1,
            "goes on; what did not fit the rings is a blind interval",
            stopped(&mut scene),
        ),
        Row::new(
            "follower that does not read",
            8,
            "the watch goes on and answers others",
            followers(&scene),
        ),
        Row::new(
            "catalog extended in use",
            1,
            "the old one until the watch begins again, then the new one",
            extended(&scene, setting),
        ),
        Row::new("guest paused", 1, "nothing lost, nothing blind", paused(&scene)),
        Row::new(
            "snapshot loaded",
            1,
            "what runs after it is captured anew, nothing blind",
            snapshot(&scene),
        ),
    ];
    rows.push(Row::new(
        "disk full under the report",
        1,
        "exit code 40, one line that says where the report is kept, all of it there",
        full_disk(scene),
    ));
    drop(disk);
    Ok(rows)
}

/// A number below `most` that nobody foresees.
fn random(state: &mut u64, most: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % most
}

fn kills(scene: &mut Scene, kills: usize) -> Result<String> {
    scene.guest.start(WORK)?;
    let presence = Presence::begin(&scene.vm)?;
    let mut state = now_ns() | 1;
    let (mut killed, mut stand_ins) = (Vec::<Killed>::new(), 0);
    while killed.len() + stand_ins < kills {
        let ms = 20 + random(&mut state, 680);
        std::thread::sleep(Duration::from_millis(ms));
        // Now and then again before it is back.
        if random(&mut state, 5) > 0
            && let Some(last) = killed.last()
        {
            ours::wait_for("the watch to be back", Duration::from_secs(60), || {
                presence.after(last.gone_ns).is_some()
            })?;
        }
        let role = if random(&mut state, 8) == 0 {
            Role::Keep
        } else {
            Role::Watch
        };
        let pids = ours::of(&scene.vm, role);
        let Some(pid) = pids.first() else { continue };
        let one = Killed::by(|| Ok(kill_process(*pid, Signal::KILL)?))?;
        match role {
            Role::Watch => killed.push(one),
            _ => stand_ins += 1,
        }
    }
    let last = killed.last().map_or_else(now_ns, |last| last.gone_ns);
    ours::wait_for("the watch to be back", Duration::from_secs(60), || {
        presence.after(last).is_some()
    })?;
    ensure!(ours::is_alive(scene.qemu), "the guest did not live");
    scene.guest.run_ok("pkill -f shortlived; true")?;
    let (report, account) = scene.settle()?;
    let away = presence.away(&killed);
    let blind = blind(&report, scene.origin);
    let longest = only_while_away(&blind, "detached", &away, SLACK)?;
    let mut lasted: Vec<u64> = away
        .iter()
        .map(|away| (away.back_ns - away.killed.from_ns) / 1_000_000)
        .collect();
    lasted.sort_unstable();
    let middle = lasted.get(lasted.len() / 2).copied().unwrap_or(0);
    Ok(format!(
        "{} watchers and {stand_ins} stand-ins killed, 0 guests harmed; {}; {} blind intervals, away {middle} ms in the middle, {} ms \
         at most, blind {} ms longer at most",
        killed.len(),
        account.words(),
        blind.len(),
        lasted.last().copied().unwrap_or(0),
        longest.as_millis()
    ))
}

fn stopped(scene: &mut Scene) -> Result<String> {
    let before = blind(&scene.report()?, scene.origin).len();
    let watcher = *ours::of(&scene.vm, Role::Watch)
        .first()
        .context("nobody watches")?;
    kill_process(watcher, Signal::STOP)?;
    let worked = scene
        .guest
        .run("/opt/nephoscope/shortlived 60; python3 /opt/nephoscope/work.py");
    std::thread::sleep(Duration::from_secs(2));
    kill_process(watcher, Signal::CONT)?;
    ensure!(worked?.success(), "the guest's work failed");
    let (report, account) = scene.settle()?;
    let more = blind(&report, scene.origin).len().saturating_sub(before);
    Ok(format!("{}; {more} blind interval(s) more", account.words()))
}

fn followers(scene: &Scene) -> Result<String> {
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let mut stream = UnixStream::connect(control::socket(&scene.vm))?;
        for _ in 0..4 {
            stream.write_all(b"{\"ask\":\"report\"}\n")?;
        }
        stalled.push(stream);
    }
    let (_, account) = scene.settle()?;
    drop(stalled);
    Ok(account.words())
}

/// The programs of the living.
fn programs(report: &Value) -> Vec<(u64, String)> {
    let named = living(report).filter(|space| !space["program"].is_null());
    named
        .map(|space| (space["id"].as_u64().unwrap_or(0), space["program"].to_string()))
        .collect()
}

fn extended(scene: &Scene, setting: &Setting) -> Result<String> {
    let (before, _) = scene.settle()?;
    let known = programs(&before);
    ensure!(known.len() > 5, "{} programs are named", known.len());
    output_of(
        Command::new(&setting.program)
            .args(["catalog", "add", "--catalog"])
            .arg(&setting.catalog)
            .arg(&setting.program),
    )?;
    let same = |report: &Value| -> Result<()> {
        for (id, program) in &known {
            let space = list(report, "address_spaces")
                .iter()
                .find(|space| space["id"] == *id);
            let space = space.with_context(|| format!("address space {id} is gone"))?;
            let now = space["program"].to_string();
            ensure!(now == *program, "address space {id} was {program}, now {now}");
        }
        Ok(())
    };
    same(&scene.settle()?.0)?;
    let presence = Presence::begin(&scene.vm)?;
    ours::kill(&scene.vm, Role::Watch);
    let at = now_ns();
    ours::wait_for("the watch to be back", Duration::from_secs(60), || {
        presence.after(at).is_some()
    })?;
    let (report, account) = scene.settle()?;
    same(&report)?;
    Ok(format!(
        "{} programs are named as before, with the old one and with the new one; {}",
        known.len(),
        account.words()
    ))
}

fn paused(scene: &Scene) -> Result<String> {
    let before = blind(&scene.report()?, scene.origin).len();
    let mut qmp = Qmp::connect(scene.guest.folder())?;
    qmp.execute("stop", json!({}))?;
    std::thread::sleep(Duration::from_secs(2));
    qmp.execute("cont", json!({}))?;
    let (report, account) = scene.settle()?;
    ensure!(
        blind(&report, scene.origin).len() == before,
        "blind: {}",
        report["coverage"]
    );
    Ok(account.words())
}

fn snapshot(scene: &Scene) -> Result<String> {
    let before = blind(&scene.report()?, scene.origin).len();
    let mut qmp = Qmp::connect(scene.guest.folder())?;
    qmp.human("savevm faults")?;
    scene.ticks.wait(20)?;
    qmp.human("loadvm faults")?;
    scene.ticks.wait(20)?;
    let (report, account) = scene.settle()?;
    qmp.human("delvm faults")?;
    ensure!(
        blind(&report, scene.origin).len() == before,
        "blind: {}",
        report["coverage"]
    );
    Ok(account.words())
}

fn full_disk(scene: Scene) -> Result<String> {
    let Scene {
        guest,
        ticks,
        origin,
        before,
        vm,
        ..
    } = scene;
    let mut ran = before;
    ran.extend(ticks.end());
    let log = guest.folder().join("emulator.log");
    let code = guest.power_off()?;
    let said = std::fs::read_to_string(&log)?;
    let line = said
        .lines()
        .find(|line| line.contains("could not be written"))
        .with_context(|| format!("exit code {code}, and nothing was said: {said}"))?;
    let kept = control::folder(&vm).join("watch/report.json");
    ensure!(
        line.contains("No space left on device") && line.contains(&kept.display().to_string()),
        "{line}"
    );
    ensure!(code == 40, "exit code {code}");
    let report: Value = serde_json::from_slice(&std::fs::read(&kept)?)?;
    crate::report::validate(&report)?;
    let account = account(&ran, &[(&report, origin)])?;
    std::fs::remove_dir_all(control::folder(&vm))?;
    // What is kept of a guest that ended with another code than 0 is of no use here.
    if let Some(folder) = log.parent() {
        std::fs::remove_dir_all(folder)?;
    }
    Ok(format!("exit code {code}; {}", account.words()))
}

/// A file system that has room for nearly nothing.
#[derive(Debug)]
struct SmallDisk {
    path: std::path::PathBuf,
}

impl SmallDisk {
    fn mount(path: std::path::PathBuf) -> Result<Self> {
        std::fs::create_dir(&path)?;
        output_of(
            privileged("mount")
                .args(["-t", "tmpfs", "-o", "size=64k,mode=777", "faults"])
                .arg(&path),
        )?;
        Ok(SmallDisk { path })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = output_of(privileged("umount").arg("--lazy").arg(&self.path));
    }
}
