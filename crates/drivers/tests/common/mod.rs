//! A machine for tests: a real QEMU (`qemu-system-x86_64`, TCG) with its QMP socket.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers outside of what clippy takes for a test"
)]
#![allow(dead_code, reason = "every test file uses a part")]

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nephoscope_drivers::{ProcessRam, Qmp, RamMap};
use serde_json::json;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Machine {
    pub(crate) process: Child,
    pub(crate) qmp: Qmp,
    pub(crate) folder: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp");
        let process = Command::new("qemu-system-x86_64")
            .args(["-S", "-display", "none", "-nodefaults", "-accel", "tcg", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 is needed");
        let qmp = Qmp::connect_when_ready(&socket, PATIENCE).unwrap();
        let mut machine = Self { process, qmp, folder };
        assert_eq!(machine.qmp.peer_pid(), Some(machine.process.id()));
        machine.qmp.take_events();
        machine
    }

    pub(crate) fn ram(&mut self) -> ProcessRam {
        let map = RamMap::read(&mut self.qmp).unwrap();
        ProcessRam::open(self.process.id(), map).unwrap()
    }

    /// Lets the firmware run until the machine has a video mode and has locked its shadow RAM, then stops it.
    pub(crate) fn run_firmware(&mut self) {
        self.qmp.execute("cont", None).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mtree = self.qmp.monitor("info mtree -f").unwrap();
            // SeaBIOS makes the last 64 KiB below 1 MiB read-only RAM just before it boots.
            if mtree.contains("00000000000f0000-00000000000fffff (prio 0, rom): pc.ram") {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "the firmware never came to its end:\n{mtree}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        self.qmp.execute("stop", None).unwrap();
    }

    /// What QEMU itself reads there.
    pub(crate) fn saved(&mut self, gpa: u64, size: usize) -> Vec<u8> {
        let file = self.folder.path().join("saved");
        self.qmp
            .execute(
                "pmemsave",
                Some(json!({ "val": gpa, "size": size, "filename": file })),
            )
            .unwrap();
        fs::read(file).unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
