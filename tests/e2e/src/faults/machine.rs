//! A machine that is reset, and a watch of which every process is killed: the one that was started, and all at once.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::ours::{self, Role};
use super::proof::{Killed, account, blind, intervals, only_while_away};
use super::scene::{Presence, Scene};
use super::ticks::{Ticks, now_ns};
use super::{Row, SLACK, Setting};
use crate::command::output_of;
use crate::living::list;
use crate::qmp::Qmp;

pub(super) fn run(setting: &Setting) -> Result<Vec<Row>> {
    let mut scene = Scene::begin(setting, "machine", None, |options| options.reboots = true)?;
    let reset = reset(&mut scene);
    let mut rows = vec![Row::new(
        "machine reset",
        1,
        "who ran before has ended, who runs after it is somebody else; nothing blind",
        reset,
    )];
    rows.push(Row::new(
        "everyone killed",
        3,
        "the guest lives without `run`; the stand-in keeps it watched; `attach --all` after all were killed",
        everyone(scene, setting),
    ));
    Ok(rows)
}

fn reset(scene: &mut Scene) -> Result<String> {
    scene.settle()?;
    let at_ns = intervals(&scene.report()?).last().context("no interval")?["to_ns"]
        .as_u64()
        .unwrap_or(0);
    Qmp::connect(scene.guest.folder())?.execute("system_reset", json!({}))?;
    scene.ticks.stop();
    scene.before = scene.ticks.so_far();
    scene.guest.wait_again()?;
    let folder = scene.folder().to_owned();
    let after = scene.before.last().map_or(0, |tick| tick.number);
    scene.ticks = Ticks::begin(&mut scene.guest, &folder, after + 1000)?;
    let (report, account) = scene.settle()?;
    let number = |space: &Value, name: &str| space[name].as_u64();
    let user = list(&report, "address_spaces")
        .iter()
        .filter(|space| space["kind"] == "user");
    let (old, new): (Vec<&Value>, Vec<&Value>) =
        user.partition(|space| number(space, "first_ns") < Some(at_ns));
    let living = old.iter().filter(|space| space["ended"].is_null()).count();
    ensure!(living == 0, "{living} address spaces outlived the reset");
    let over = old
        .iter()
        .filter(|space| number(space, "last_ns") > Some(at_ns + 2_000_000_000));
    ensure!(
        over.count() == 0,
        "address spaces of the first boot ran after the reset"
    );
    let kernels = list(&report, "address_spaces")
        .iter()
        .filter(|space| space["kind"] == "kernel");
    let pages: Vec<u64> = kernels
        .map(|space| {
            let modules = list(space, "modules").iter();
            modules
                .filter_map(|module| module["pages_executed"].as_u64())
                .sum()
        })
        .collect();
    let [first, second] = pages.as_slice() else {
        anyhow::bail!("{} kernels", pages.len())
    };
    // It has the same kernel and does the same.
    ensure!(
        second * 3 > first * 2,
        "the first kernel ran {first} pages, the second {second}"
    );
    ensure!(
        blind(&report, scene.origin).is_empty(),
        "blind: {}",
        report["coverage"]
    );
    Ok(format!(
        "{} address spaces ended, {} came; kernels of {first} and {second} pages; {}",
        old.len(),
        new.len(),
        account.words()
    ))
}

fn everyone(scene: Scene, setting: &Setting) -> Result<String> {
    let vm = scene.vm.clone();
    let presence = Presence::begin(&vm)?;
    let back = |moment| {
        ours::wait_for("the watch to be back", Duration::from_secs(60), || {
            presence.after(moment).is_some()
        })
    };
    let keepers = |wanted: usize| {
        ours::wait_for("keepers", Duration::from_secs(60), || {
            ours::of(&vm, Role::Keep).len() >= wanted
        })
    };
    keepers(1)?;
    ensure!(ours::kill(&vm, Role::Run) == 1, "no `nephoscope run`");
    // The stand-in keeps the VM now, and has a stand-in of its own and a watcher that waits.
    keepers(2)?;
    ensure!(ours::is_alive(scene.qemu), "QEMU went with `nephoscope run`");
    let one = Killed::by(|| Ok(ours::kill(&vm, Role::Watch)))?;
    back(one.gone_ns)?;
    scene.settle()?;
    scene.catch_up()?;
    let all = Killed::by(|| {
        // Whoever is started meanwhile too.
        for _ in 0..3 {
            ours::kill(&vm, Role::Keep);
            ours::kill(&vm, Role::Watch);
        }
        ours::wait_for("all to be gone", Duration::from_secs(10), || {
            ours::kill(&vm, Role::Keep) + ours::kill(&vm, Role::Watch) == 0
        })
    })?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(ours::is_alive(scene.qemu), "QEMU went with those who watched it");
    let said = output_of(Command::new(&setting.program).args(["attach", "--all"]))?;
    ensure!(
        said.contains(&format!("{vm}: taken up")),
        "`attach --all` said {said:?}"
    );
    back(now_ns())?;
    let (report, _) = scene.settle()?;
    let longest = only_while_away(
        &blind(&report, scene.origin),
        "detached",
        &presence.away(&[one, all]),
        SLACK,
    )?;
    drop(presence);

    let file = scene.folder().join("report.json");
    let Scene {
        guest,
        ticks,
        qemu,
        origin,
        before,
        leash,
        folder,
        ..
    } = scene;
    let mut ran = before;
    ran.extend(ticks.end());
    let logs = guest.folder().to_owned();
    // `nephoscope run` was killed, so its code says nothing, and comes at once.
    guest.power_off()?;
    ours::wait_for("the guest's end", Duration::from_secs(90), || {
        !ours::is_alive(qemu)
    })?;
    let report = ours::whole_report(&file)?;
    let account = account(&ran, &[(&report, origin)])?;
    ours::wait_for("the keepers' end", Duration::from_secs(60), || {
        ours::of(&vm, Role::Keep).is_empty()
    })?;
    drop((folder, leash));
    std::fs::remove_dir_all(logs)?;
    Ok(format!(
        "{}; blind {} ms longer than nobody watched at most",
        account.words(),
        longest.as_millis()
    ))
}
