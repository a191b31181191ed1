//! A guest that is migrated to another QEMU on the same machine, with a plugin and a watch of its own.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::ours::{self, Leash};
use super::proof::{Origin, account, blind, intervals};
use super::scene::Scene;
use super::ticks;
use super::{Row, Setting};
use crate::command::output_of;
use crate::guest::{Guest, Options, Watched, vm_name};
use crate::qmp::Qmp;

pub(super) fn run(setting: &Setting) -> Result<Vec<Row>> {
    Ok(vec![Row::new(
        "live migration",
        1,
        "the source's report ends `migrated`, the destination's begins with its own; no page in neither",
        migrated(setting),
    )])
}

fn migrated(setting: &Setting) -> Result<String> {
    let own = tempfile::tempdir()?;
    // Both QEMUs have the same disk, one after the other.
    let disk = own.path().join("root.qcow2");
    output_of(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(setting.image.disk())
            .arg(&disk),
    )?;
    let shared = |options: &mut Options| {
        options.disk = Some(disk.clone());
        options.alone = false;
    };
    let turn = crate::guest::turn()?;
    let scene = Scene::begin(setting, "source", None, shared)?;
    scene.settle().context("before the migration")?;
    let wire = own.path().join("migration.sock");
    let there = tempfile::tempdir()?;
    let vm = vm_name("faults-destination");
    let file = there.path().join("report.json");
    let mut options = Options {
        extra: ticks::options(there.path()),
        watched: Some(Watched {
            program: setting.program.clone(),
            catalog: setting.catalog.clone(),
            name: vm.clone(),
            report: Some(file.clone()),
            extra: Vec::new(),
        }),
        ..Options::default()
    };
    shared(&mut options);
    options
        .extra
        .extend(["-incoming".into(), format!("unix:{}", wire.display())]);
    let mut destination = Guest::boot(&setting.image, options)?;
    ours::wait_for("the destination's QEMU", Duration::from_secs(60), || {
        wire.exists()
    })?;
    let leash = Leash(ours::qemu(destination.folder())?);
    ours::wait_for("the destination's watch", Duration::from_secs(60), || {
        Origin::of(&vm).is_ok()
    })?;

    let mut qmp = Qmp::connect(scene.guest.folder())?;
    qmp.execute("migrate", json!({"uri": format!("unix:{}", wire.display())}))?;
    let mut status = Value::Null;
    ours::wait_for("the migration", Duration::from_secs(120), || {
        status = qmp
            .execute("query-migrate", json!({}))
            .map_or(Value::Null, |mut s| s["status"].take());
        status == "completed" || status == "failed"
    })?;
    ensure!(status == "completed", "the migration {status}");
    scene.ticks.go_on(there.path());
    scene.ticks.wait(20).with_context(|| {
        let said = destination.go_on().and_then(|()| {
            destination.run(
                "dmesg | tail -n 5; ps -C python3 -o pid,stat,wchan:30,time,args; tail -n 20 /tmp/ticker.log",
            )
        });
        format!("after the migration; the guest says {said:?}")
    })?;
    std::thread::sleep(Duration::from_secs(1));
    qmp.execute("quit", json!({}))?;
    let first_file = scene.folder().join("report.json");
    let Scene {
        guest,
        ticks,
        origin,
        folder,
        leash: first_leash,
        vm: first_vm,
        ..
    } = scene;
    let here = ours::whole_report(&first_file).context("the source")?;
    let second_origin = Origin::of(&vm)?;
    destination.go_on()?;
    destination.run_ok("true")?;
    let ran = ticks.end();
    ensure!(destination.power_off()? == 0, "the destination did not end well");
    let there_report = ours::whole_report(&file).context("the destination")?;

    let last = intervals(&here).last().context("no interval")?;
    ensure!(
        last["reason"]
            .as_str()
            .is_some_and(|why| why.contains("migrated")),
        "it ends with {last}"
    );
    ensure!(
        blind(&there_report, second_origin).is_empty(),
        "the destination was blind: {}",
        there_report["coverage"]
    );
    let account = account(&ran, &[(&here, origin), (&there_report, second_origin)])?;
    let spaces = |report: &Value| report["address_spaces"].as_array().map_or(0, Vec::len);
    drop((guest, folder, first_leash, first_vm, leash, turn));
    Ok(format!(
        "{}; {} address spaces on the source, {} on the destination",
        account.words(),
        spaces(&here),
        spaces(&there_report)
    ))
}
