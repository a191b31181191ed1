//! A monitor that does not keep up: the guest goes on, what was lost is counted, and the report says from when to when. One whose
//! QEMU answers nothing, which keeps up. And one that is far behind, which says late what it says, and the same.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nephoscope_e2e::faults::mute::Mute;
use nephoscope_e2e::faults::slow::Slow;
use nephoscope_e2e::living::list;
use nephoscope_e2e::{Catalog, Control, Guest, Image, Options, report, vm_name};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

fn program() -> PathBuf {
    nephoscope_e2e::program().unwrap()
}

/// Attaches when the plugin is there.
fn attach(arguments: &[&std::ffi::OsStr]) -> Child {
    Command::new(program())
        .arg("attach")
        .args(arguments)
        .spawn()
        .unwrap()
}

/// The process that watches this VM.
fn watcher(vm: &str) -> Pid {
    Control::connect(vm).unwrap().watcher().unwrap()
}

/// A guest whose plugin has a ring for five hundred captures, and its monitor.
struct Scene {
    guest: Guest,
    monitor: Child,
    name: String,
    mute: Mute,
    folder: TempDir,
}

impl Scene {
    /// Its vCPUs wait for so many milliseconds when the ring is full.
    fn begin(vm: &str, full_ms: u32) -> Self {
        let image = Image::ensure().unwrap();
        let catalog = Catalog::ensure(&image, &program()).unwrap().path();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("plugin.sock");
        let plugin = program()
            .parent()
            .unwrap()
            .join("plugins/libnephoscope-qemu-api4.so");
        let plugin = format!(
            "{},socket={},wait_ms=60000,ring_kib=2048,full_ms={full_ms}",
            plugin.display(),
            socket.display()
        );
        let options = Options {
            extra: vec!["-plugin".into(), plugin],
            ..Options::default()
        };
        let guest = Guest::boot(&image, options).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !socket.exists() {
            assert!(Instant::now() < deadline, "the plugin does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        let name = vm_name(vm);
        let qmp = folder.path().join("qmp.sock");
        let mute = Mute::before(&guest.folder().join("qmp.sock"), &qmp).unwrap();
        let monitor = attach(&[
            "--catalog".as_ref(),
            catalog.as_os_str(),
            "--name".as_ref(),
            name.as_ref(),
            "--plugin".as_ref(),
            socket.as_os_str(),
            "--qmp".as_ref(),
            qmp.as_os_str(),
            "--report".as_ref(),
            folder.path().join("report.json").as_os_str(),
        ]);
        Self {
            guest,
            monitor,
            name,
            mute,
            folder,
        }
    }

    /// Ends the guest, and gives the report that the monitor left.
    fn end(mut self) -> Value {
        assert_eq!(self.guest.power_off().unwrap(), 0);
        assert!(self.monitor.wait().unwrap().success());
        let saved = std::fs::read(self.folder.path().join("report.json")).unwrap();
        let saved = serde_json::from_slice(&saved).unwrap();
        report::validate(&saved).unwrap();
        saved
    }
}

/// Up to when a report goes.
fn until(report: &Value) -> u64 {
    let last = list(&report["coverage"], "intervals").last().unwrap();
    last["to_ns"].as_u64().unwrap()
}

#[test]
fn a_monitor_that_is_far_behind_says_the_same_as_one_that_is_not() {
    let mut scene = Scene::begin("behind", 60_000);
    let control = || Control::connect(&scene.name);
    let deadline = Instant::now() + Duration::from_secs(30);
    while control().is_err() {
        assert!(Instant::now() < deadline, "nobody watches");
        std::thread::sleep(Duration::from_millis(20));
    }
    let slow = Slow::begin(watcher(&scene.name), 12);
    scene.guest.wait_ready().unwrap();
    let behind = Control::connect(&scene.name)
        .unwrap()
        .slower(10)
        .unwrap()
        .report()
        .unwrap();
    drop(slow);
    report::validate(&behind).unwrap();
    let name = scene.name.clone();
    let saved = scene.end();
    println!("{name} {}", saved["coverage"]);
    assert_eq!(saved["coverage"]["code"], "complete", "{}", saved["coverage"]);
}

#[test]
fn a_monitor_that_was_stopped_says_from_when_to_when_it_was_blind() {
    // They wait for a second only.
    let mut scene = Scene::begin("overrun", 1000);
    let (guest, mute) = (&mut scene.guest, &scene.mute);
    // QEMU answers nothing from the middle of the boot on.
    std::thread::sleep(Duration::from_secs(3));
    mute.say_that_it_stands_still().unwrap();
    guest.wait_ready().unwrap();
    let mut control = Control::connect(&scene.name).unwrap();
    let before = control.report().unwrap();
    assert_eq!(
        before["coverage"]["code"], "complete",
        "until then it kept up: {}",
        before["coverage"]
    );

    assert!(mute.swallowed() > 0, "nothing was asked that was not answered");

    let watcher = watcher(&scene.name);
    kill_process(watcher, Signal::STOP).unwrap();
    let work = "/opt/nephoscope/shortlived 400; python3 /opt/nephoscope/work.py; php -r 'echo 1;'; ls -lR /usr/bin | wc";
    guest.run_ok(work).unwrap();
    kill_process(watcher, Signal::CONT).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    guest.run_ok("/bin/true").unwrap();
    std::thread::sleep(Duration::from_secs(1));

    let after = control.report().unwrap();
    report::validate(&after).unwrap();
    let lost = after["counters"]["ring_lost"].as_u64().unwrap();
    assert!(lost > 0, "{}", after["counters"]);
    assert_eq!(
        after["counters"]["lost_ringfull"], lost,
        "each frame that was lost is in an interval: {}",
        after["counters"]
    );
    let blind: Vec<&Value> = list(&after["coverage"], "intervals")
        .iter()
        .filter(|interval| interval["code"] == "blind")
        .collect();
    assert!(!blind.is_empty(), "{}", after["coverage"]);
    for interval in &blind {
        assert_eq!(interval["reason"], "ring_full");
        assert!(
            interval["from_ns"].as_u64().unwrap() > until(&before),
            "blind before it was stopped"
        );
        assert!(
            interval["to_ns"].as_u64().unwrap() < until(&after),
            "blind to this moment"
        );
    }
    let last = list(&after["coverage"], "intervals").last().unwrap();
    assert_eq!(last["code"], "complete", "it sees again: {last}");
    assert_eq!(
        after["coverage"]["code"], "blind",
        "the worst counts for the whole"
    );
    println!("{lost} frames lost, {} blind interval(s)", blind.len());

    let name = scene.name.clone();
    let saved = scene.end();
    let ps = Command::new(program()).args(["ps", &name]).output().unwrap();
    let said = String::from_utf8_lossy(&ps.stderr).into_owned();
    assert!(
        ps.status.code() == Some(30) && said.contains("no VM named"),
        "{said}"
    );
    assert_eq!(saved["coverage"]["code"], "blind");
}
