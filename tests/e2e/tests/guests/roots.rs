//! Roots that are found by their shape alone, in the memory of guests that run, against those that their vCPUs were seen to
//! load: every one that is a process's, and no other.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nephoscope_e2e::pae::{self, Pae};
use nephoscope_e2e::{
    Catalog, Guest, Image, Kernel, Options, Watched, guest, initramfs, program, qemu, vm_name,
};
use rustix::process::{Pid, Signal};
use serde_json::Value;

/// How often each guest is looked at while it works.
const LOOKS: usize = 3;

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

fn asked(args: &[&str]) -> Value {
    let output = Command::new(program().unwrap()).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {}: {errors}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The processes: their numbers in the watch or in the scan, with their roots.
fn processes(report: &Value, ended_too: bool) -> BTreeSet<(u64, String)> {
    let spaces = list(report, "address_spaces").iter();
    let wanted = |space: &&Value| space["kind"] == "user" && (ended_too || space["ended"].is_null());
    spaces
        .filter(wanted)
        .filter_map(|space| Some((space["id"].as_u64()?, space["root"].as_str()?.to_owned())))
        .collect()
}

/// Their roots.
fn roots(processes: impl IntoIterator<Item = (u64, String)>) -> BTreeSet<String> {
    processes.into_iter().map(|(_, root)| root).collect()
}

/// The other root of the pair that this one would be in: two pages that are one (Linux, `Documentation/arch/x86/pti.rst`).
fn partner(root: &str) -> String {
    let root = u64::from_str_radix(root.trim_start_matches("0x"), 16).unwrap();
    format!("{:#x}", root ^ 0x1000)
}

/// Looks at a guest that is watched under this name.
///
/// The watch counts a process from its first instruction on; one that was made and did not run yet has a root as well, which
/// is loaded soon after. So what is found has to be known to the watch before, or a moment later.
fn are_found(catalog: &Path, name: &str, emulator: u32, least: usize) {
    let catalog = catalog.display().to_string();
    let watched = || asked(&["ps", name, "--json"]);
    // On a busy machine the watch comes to what the guest runs some seconds later.
    let deadline = Instant::now() + Duration::from_secs(60);
    while processes(&watched(), false).len() < least {
        assert!(Instant::now() < deadline, "{name}: too few processes are watched");
        std::thread::sleep(Duration::from_millis(200));
    }
    for look in 0..LOOKS {
        let before = watched();
        let scan = asked(&[
            "scan",
            "--json",
            "--catalog",
            &catalog,
            &format!("pid:{emulator}"),
        ]);
        std::thread::sleep(Duration::from_millis(500));
        let after = watched();
        let found = roots(processes(&scan, true));
        println!("{name}, look {look}: {} found; {}", found.len(), scan["counters"]);
        let [living, then] = [&before, &after].map(|report| processes(report, false));
        // A root may be another process's by now.
        let stayed = roots(living.intersection(&then).cloned());
        let missed: Vec<_> = stayed.difference(&found).collect();
        let of = |report: &Value| -> Vec<String> {
            let spaces = list(report, "address_spaces").iter();
            let missed = spaces.filter(|space| {
                missed
                    .iter()
                    .any(|root| space["root"].as_str() == Some(root.as_str()))
            });
            missed.map(Value::to_string).collect()
        };
        assert!(
            missed.is_empty(),
            "look {look}: {found:?} of {stayed:?}: not found: {missed:?}: {:#?}, {:#?}",
            of(&before),
            of(&after)
        );
        // Who came and went meanwhile has ended by now.
        let there = roots(living.into_iter().chain(processes(&after, true)));
        // While a process is made or taken down, the two roots that it may have do not look like a pair, and the one that the
        // kernel runs on stands for both.
        let none: Vec<_> = found
            .difference(&there)
            .filter(|root| !there.contains(&partner(root)))
            .collect();
        assert!(none.is_empty(), "look {look}: no roots: {none:?}");
        assert!(stayed.len() >= least, "{stayed:?}");
    }
}

/// The Debian guest, which starts processes all the time.
fn of_debian(name: &str, kernel: Kernel, cpu: &str, cmdline: &str) {
    let image = Image::ensure().unwrap();
    let catalog = Catalog::ensure(&image, &program().unwrap()).unwrap().path();
    let name = vm_name(&format!("roots-{name}"));
    let options = Options {
        kernel,
        cpu: cpu.into(),
        cmdline: cmdline.into(),
        watched: Some(Watched {
            program: program().unwrap(),
            catalog: catalog.clone(),
            name: name.clone(),
            report: None,
            extra: Vec::new(),
        }),
        ..Options::default()
    };
    let mut guest = Guest::boot_ready(&image, options).unwrap();
    guest.start("while :; do /bin/true; done").unwrap();
    are_found(&catalog, &name, emulator(guest.pid()), 10);
    assert_eq!(guest.power_off().unwrap(), 0);
}

#[test]
fn with_four_levels() {
    of_debian("four", Kernel::K6_1, "qemu64", "");
}

/// A process has two roots then, one for when user code runs: it has next to nothing of the kernel.
#[test]
fn with_five_levels_and_a_root_of_its_own_for_user_code() {
    of_debian("five", Kernel::K6_12, "max", "pti=on");
}

/// Ends a guest that a test left behind.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // The emulator gets it, too; there is nobody to tell that it has ended before.
        let _ = rustix::process::kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

/// The 32-bit guest.
fn of_pae(name: &str, cmdline: &str) {
    let guest = Pae::ensure().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let catalog = folder.path().join("catalog");
    let added = Command::new(program().unwrap())
        .args(["catalog", "add", "--catalog"])
        .arg(&catalog)
        .arg(&guest.busybox)
        .output()
        .unwrap();
    assert!(
        added.status.success(),
        "{}",
        String::from_utf8_lossy(&added.stderr)
    );
    let _turn = guest::turn().unwrap();
    let name = vm_name(&format!("roots-{name}"));
    let running = Ended(start(&guest, folder.path(), &catalog, &name, cmdline));
    let serial = folder.path().join("serial.log");
    let begun = Instant::now();
    let log = || String::from_utf8_lossy(&std::fs::read(&serial).unwrap_or_default()).into_owned();
    while !log().contains(initramfs::UP) {
        assert!(begun.elapsed() < Duration::from_secs(120), "{}", log());
        std::thread::sleep(Duration::from_millis(100));
    }
    are_found(&catalog, &name, emulator(running.0.id()), pae::SLEEPERS);
}

fn start(guest: &Pae, folder: &Path, catalog: &PathBuf, name: &str, cmdline: &str) -> Child {
    let log = std::fs::File::create(folder.join("emulator.log")).unwrap();
    Command::new(program().unwrap())
        .args(["run", "--catalog"])
        .arg(catalog)
        .args(["--name", name, "--"])
        .arg(qemu::system().unwrap())
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-accel", "tcg,thread=multi", "-cpu", "qemu64", "-m", "1G"])
        .arg("-serial")
        .arg(format!("file:{}", folder.join("serial.log").display()))
        .arg("-kernel")
        .arg(&guest.kernel)
        .arg("-initrd")
        .arg(&guest.initramfs)
        .args(["-append", &format!("console=ttyS0 quiet panic=-1 {cmdline}")])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

#[test]
fn with_three_levels() {
    of_pae("three", "");
}

#[test]
fn with_three_levels_and_a_root_of_its_own_for_user_code() {
    of_pae("three-isolated", "pti=on");
}

/// The QEMU that a watch started.
fn emulator(run: u32) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{run}/task/{run}/children")).unwrap();
    let is_qemu = |pid: &&str| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.starts_with("qemu")
    };
    let found = children.split_ascii_whitespace().find(is_qemu);
    found
        .unwrap_or_else(|| panic!("no QEMU among {children}"))
        .parse()
        .unwrap()
}
