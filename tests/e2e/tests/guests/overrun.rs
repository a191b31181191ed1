//! A monitor that does not keep up: the guest goes on, what was lost is counted, and the report says from when to when. And one whose
//! QEMU answers nothing, which keeps up.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nephoscope_e2e::faults::mute::Mute;
use nephoscope_e2e::faults::ours::{self, Role};
use nephoscope_e2e::living::list;
use nephoscope_e2e::{Catalog, Control, Guest, Image, Options, report, vm_name};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

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

/// To the one process that watches this VM.
fn signal(vm: &str, signal: Signal) {
    let watchers = ours::of(vm, Role::Watch);
    assert_eq!(watchers.len(), 1, "{watchers:?}");
    kill_process(watchers[0], signal).unwrap();
}

#[test]
fn a_monitor_that_was_stopped_says_from_when_to_when_it_was_blind() {
    let image = Image::ensure().unwrap();
    let catalog = Catalog::ensure(&image, &program()).unwrap().path();
    let folder = tempfile::tempdir().unwrap();
    let (socket, file) = (
        folder.path().join("plugin.sock"),
        folder.path().join("report.json"),
    );
    // A ring for five hundred captures, and vCPUs that wait for a second only.
    let plugin = program()
        .parent()
        .unwrap()
        .join("plugins/libnephoscope-qemu-api4.so");
    let plugin = format!(
        "{},socket={},wait_ms=60000,ring_kib=2048,full_ms=1000",
        plugin.display(),
        socket.display()
    );
    let options = Options {
        extra: vec!["-plugin".into(), plugin],
        ..Options::default()
    };
    let mut guest = Guest::boot(&image, options).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !socket.exists() {
        assert!(Instant::now() < deadline, "the plugin does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    let name = vm_name("overrun");
    // QEMU answers nothing from the middle of the boot on.
    let qmp = folder.path().join("qmp.sock");
    let mute = Mute::before(&guest.folder().join("qmp.sock"), &qmp).unwrap();
    let mut monitor = attach(&[
        "--catalog".as_ref(),
        catalog.as_os_str(),
        "--name".as_ref(),
        name.as_ref(),
        "--plugin".as_ref(),
        socket.as_os_str(),
        "--qmp".as_ref(),
        qmp.as_os_str(),
        "--report".as_ref(),
        file.as_os_str(),
    ]);
    std::thread::sleep(Duration::from_secs(3));
    mute.say_that_it_stands_still().unwrap();
    guest.wait_ready().unwrap();
    let mut control = Control::connect(&name).unwrap();
    let before = control.report().unwrap();
    assert_eq!(
        before["coverage"]["code"], "complete",
        "until then it kept up: {}",
        before["coverage"]
    );

    assert!(mute.swallowed() > 0, "nothing was asked that was not answered");

    signal(&name, Signal::STOP);
    let work = "/opt/nephoscope/shortlived 400; python3 /opt/nephoscope/work.py; php -r 'echo 1;'; ls -lR /usr/bin | wc";
    guest.run_ok(work).unwrap();
    signal(&name, Signal::CONT);
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
    let until = |report: &Value| {
        list(&report["coverage"], "intervals").last().unwrap()["to_ns"]
            .as_u64()
            .unwrap()
    };
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

    assert_eq!(guest.power_off().unwrap(), 0);
    assert!(monitor.wait().unwrap().success());
    let ps = Command::new(program()).args(["ps", &name]).output().unwrap();
    let said = String::from_utf8_lossy(&ps.stderr).into_owned();
    assert!(
        ps.status.code() == Some(30) && said.contains("no VM named"),
        "{said}"
    );
    let saved: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    report::validate(&saved).unwrap();
    assert_eq!(saved["coverage"]["code"], "blind");
}
