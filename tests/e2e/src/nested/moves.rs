//! What a host does to a VM's memory while it runs: takes some of it away and gives it back, plugs some in and out, and begins
//! to migrate it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::qmp::Qmp;
use crate::{Control, Guest};

/// What QEMU needs for it.
pub(super) const ARGUMENTS: [&str; 4] = [
    "-m",
    "slots=1,maxmem=4G",
    "-device",
    "virtio-balloon-pci,id=balloon",
];

/// In an emulated machine, a guest takes its time to give memory up.
const WITHIN: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Memory that is plugged in: the least that Linux takes.
const PLUGGED: u64 = 128 << 20;
/// Bytes a second: far less than there are, so that it goes on until it is ended.
const SLOWLY: u64 = 1 << 20;

/// For Linux: what is plugged in is used at once, and only for what can be moved out of it again.
pub(super) const CMDLINE: &str = " memhp_default_state=online_movable";

/// Does all of it to a guest that was started with [`ARGUMENTS`] and [`CMDLINE`]; meanwhile the guest starts programs. `watch` is the
/// watch that has its memory guarded.
///
/// # Errors
/// When QEMU refuses, or the guest does not follow in time.
pub(super) fn moves(guest: &mut Guest, watch: Option<&str>, mut say: impl FnMut(&str)) -> Result<()> {
    let mut qmp = Qmp::connect(guest.folder())?;
    let programs = "for i in 1 2 3; do ls -l /proc/self/maps | md5sum; done";

    let all = balloon(&mut qmp)?;
    qmp.execute("balloon", json!({"value": all / 2}))?;
    within("the balloon to grow", || Ok(balloon(&mut qmp)? < all / 4 * 3))?;
    guest.run_ok(programs)?;
    qmp.execute("balloon", json!({"value": all}))?;
    within("the balloon to shrink", || Ok(balloon(&mut qmp)? == all))?;
    say("half of the memory was taken away and given back");

    qmp.execute(
        "object-add",
        json!({"qom-type": "memory-backend-ram", "id": "more", "size": PLUGGED}),
    )?;
    qmp.execute(
        "device_add",
        json!({"driver": "pc-dimm", "id": "dimm", "memdev": "more"}),
    )?;
    within("the guest to take memory that was plugged in", || {
        Ok(movable(guest)?.is_some_and(|zone| zone.managed > 0))
    })?;
    // Its code comes to lie there.
    guest.run_ok("cp /usr/bin/md5sum /var/tmp/plugged && /var/tmp/plugged /proc/self/maps")?;
    guest.run_ok(programs)?;
    let zone = movable(guest)?.context("the guest let memory go by itself")?;
    ensure!(
        zone.free + 16 < zone.managed,
        "nothing lies in plugged memory: {zone:?}"
    );
    if let Some(name) = watch {
        // The monitor notices it, and has it guarded.
        let mut control = Control::connect(name)?.slower(15)?;
        within("plugged memory to be guarded", || {
            Ok(control.report()?["counters"]["kvm_frames_exposed"] == 0)
        })?;
    }
    qmp.execute("device_del", json!({"id": "dimm"}))?;
    within("the guest to let memory go", || {
        let devices = qmp.execute("query-memory-devices", json!({}))?;
        Ok(devices.as_array().is_some_and(Vec::is_empty))
    })?;
    say("memory was plugged in and out");

    // Pages that were written to are told from then on, until it is ended.
    qmp.execute("migrate-set-parameters", json!({"max-bandwidth": SLOWLY}))?;
    qmp.execute("migrate", json!({"uri": "exec:cat > /dev/null"}))?;
    within("the migration to begin", || Ok(migration(&mut qmp)? == "active"))?;
    guest.run_ok(programs)?;
    ensure!(migration(&mut qmp)? == "active", "the migration did not last");
    qmp.execute("migrate_cancel", json!({}))?;
    within("the migration to end", || Ok(migration(&mut qmp)? == "cancelled"))?;
    guest.run_ok(programs)?;
    say("a migration was begun and ended");
    Ok(())
}

/// Linux's zone for what can be moved, in pages (`/proc/zoneinfo`).
#[derive(Debug)]
struct Zone {
    free: u64,
    managed: u64,
}

fn movable(guest: &mut Guest) -> Result<Option<Zone>> {
    let told = guest.run_ok("cat /proc/zoneinfo")?;
    let Some((_, zone)) = told.split_once("zone  Movable") else {
        return Ok(None);
    };
    let number = |name: &str| {
        let line = zone.lines().find_map(|line| line.trim().strip_prefix(name))?;
        line.trim().parse().ok()
    };
    Ok(number("pages free")
        .zip(number("managed"))
        .map(|(free, managed)| Zone { free, managed }))
}

/// Bytes that the guest has.
fn balloon(qmp: &mut Qmp) -> Result<u64> {
    let state = qmp.execute("query-balloon", json!({}))?;
    state["actual"].as_u64().context("no balloon")
}

fn migration(qmp: &mut Qmp) -> Result<String> {
    let state: Value = qmp.execute("query-migrate", json!({}))?;
    Ok(state["status"].as_str().unwrap_or_default().to_owned())
}

fn within(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + WITHIN;
    while !holds()? {
        ensure!(Instant::now() < deadline, "waited {WITHIN:?} for {what}");
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
