//! A running monitor: what it has given up, who reaches it, and that one VM's trouble is not another's.
//!
//! The VMs run firmware and nothing else: that is enough to be watched.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nephoscope_e2e::{program, qemu};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// A folder for runtime directories, catalogs and reports, all of one test.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Place {
            folder: tempfile::tempdir().unwrap(),
        };
        let added = place.nephoscope(
            &["catalog", "add", "--catalog"],
            &["cat"],
            &["/usr/share/seabios/bios-256k.bin"],
        );
        assert!(added.status.success(), "{added:?}");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(program().unwrap());
        command
            .env("NEPHOSCOPE_RUNTIME_DIR", self.path("run"))
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command
    }

    fn nephoscope(&self, before: &[&str], paths: &[&str], after: &[&str]) -> Output {
        let paths = paths.iter().map(|name| self.path(name));
        self.command()
            .args(before)
            .args(paths)
            .args(after)
            .output()
            .unwrap()
    }

    /// Starts a VM that is watched, and waits until its watch answers.
    fn vm(&self, name: &str) -> Vm {
        self.vm_with(name, &[], Stdio::inherit())
    }

    /// The same, with more arguments for QEMU, and all that is said in a file.
    fn vm_with(&self, name: &str, arguments: &[&str], said: impl Into<Stdio>) -> Vm {
        let mut command = self.command();
        command
            .args(["run", "--catalog", "cat", "--name", name, "--report"])
            .arg(format!("{name}.json"))
            .arg("--")
            .arg(qemu::system().unwrap())
            .args(["-accel", "tcg", "-nodefaults", "-display", "none", "-m", "64M"])
            .args(arguments)
            .stderr(said);
        let run = command.spawn().unwrap();
        let mut vm = Vm {
            run,
            monitor: 0,
            qemu: None,
            folder: self.path("run").join(name),
        };
        let deadline = Instant::now() + PATIENCE;
        while !self.answers(name) {
            assert!(Instant::now() < deadline, "{name} is not watched");
            assert_eq!(vm.run.try_wait().unwrap(), None, "{name} ended");
            std::thread::sleep(Duration::from_millis(50));
        }
        let pid = vm.run.id();
        vm.monitor = nephoscope_e2e::guest::watcher_of(pid).unwrap();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        vm.qemu = Pid::from_raw(children.split_whitespace().next().unwrap().parse().unwrap());
        vm
    }

    fn answers(&self, name: &str) -> bool {
        self.command()
            .args(["ps", name, "--json"])
            .output()
            .unwrap()
            .status
            .success()
    }

    fn report(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(&format!("{name}.json"))).unwrap()).unwrap()
    }
}

/// A VM and its monitor; both are ended with the test.
struct Vm {
    run: Child,
    /// The process that watches, whom nothing was left.
    monitor: u32,
    qemu: Option<Pid>,
    folder: PathBuf,
}

impl Vm {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.run), signal).unwrap();
    }

    fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.run.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the monitor does not end");
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Who keeps the VM watched goes with it.
        if let Some(qemu) = self.qemu {
            let _ = kill_process(qemu, Signal::KILL);
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline && matches!(self.run.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.run.kill();
        let _ = self.run.wait();
    }
}

/// A line of a status file in `/proc`.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {status}"))
        .trim()
        .to_owned()
}

/// The status of every thread that a process has at one moment. Those that answer a client end with it.
fn threads(of: u32) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let entries = fs::read_dir(format!("/proc/{of}/task")).unwrap();
        let all: Result<Vec<_>, _> = entries
            .map(|entry| fs::read_to_string(entry?.path().join("status")))
            .collect();
        if let Ok(all) = all {
            return all;
        }
        assert!(Instant::now() < deadline, "its threads come and go");
    }
}

fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

#[test]
fn a_monitor_keeps_nothing_that_it_does_not_need_and_qemu_keeps_everything() {
    let place = Place::new();
    let mut vm = place.vm("kept");
    let threads = threads(vm.monitor);
    for status in &threads {
        assert_eq!(field(status, "NoNewPrivs:"), "1");
        assert_eq!(field(status, "Seccomp:"), "2", "a filter");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(
                u64::from_str_radix(&field(status, set), 16).unwrap(),
                0,
                "{set} {status}"
            );
        }
        if is_root() {
            assert_eq!(u64::from_str_radix(&field(status, "CapBnd:"), 16).unwrap(), 0);
            for id in ["Uid:", "Gid:"] {
                let ids = field(status, id);
                assert!(ids.split_whitespace().all(|id| id != "0"), "{id} {ids}");
            }
            assert_eq!(field(status, "Groups:"), "");
        }
    }
    assert!(threads.len() >= 2, "the threads that answer are confined too");
    let limits = fs::read_to_string(format!("/proc/{}/limits", vm.monitor)).unwrap();
    let limit = |name: &str| field(&limits, name).split_whitespace().next().unwrap().to_owned();
    assert_eq!(
        (limit("Max data size"), limit("Max core file size")),
        ("2147483648".into(), "0".into())
    );
    let qemu = vm.qemu.unwrap().as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{qemu}/status")).unwrap();
    assert_eq!(
        (field(&status, "NoNewPrivs:"), field(&status, "Seccomp:")),
        ("0".into(), "0".into())
    );
    let own = fs::read_to_string("/proc/self/status").unwrap();
    assert_eq!(field(&status, "Uid:"), field(&own, "Uid:"));
    assert_eq!(field(&status, "CapEff:"), field(&own, "CapEff:"));

    // A signal still ends the VM, and the report is there, the test's own, though the monitor is somebody else by now.
    vm.signal(Signal::TERM);
    assert_eq!(vm.wait(), Some(0));
    let report = place.report("kept");
    nephoscope_e2e::report::validate(&report).unwrap();
    let confinement = &report["confinement"];
    assert_eq!(confinement["capabilities"], "none");
    assert!(
        confinement["seccomp"]
            .as_str()
            .unwrap()
            .contains("system calls left"),
        "{confinement}"
    );
    assert!(report["pages"]["firmware"]["captured"].as_u64().unwrap() > 0);
    let left: Vec<_> = fs::read_dir(&vm.folder).into_iter().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!place.path("kept.json.partial").exists());
}

/// A question holds a CPU of the guest up, and a QEMU that ends while it has one is stuck.
#[test]
fn a_vm_that_runs_is_asked_nothing() {
    let place = Place::new();
    let said = place.path("said");
    let mut vm = place.vm_with(
        "quiet",
        &["-trace", "handle_qmp_command"],
        fs::File::create(&said).unwrap(),
    );
    let asked = || {
        let text = fs::read_to_string(&said).unwrap();
        text.matches("handle_qmp_command").count()
    };
    // The firmware moves about until it is where it stays, which takes a slow machine longer.
    let deadline = Instant::now() + PATIENCE;
    let mut before = 0;
    loop {
        std::thread::sleep(Duration::from_secs(3));
        let now = asked();
        if now == before {
            break;
        }
        before = now;
        assert!(
            Instant::now() < deadline,
            "{}",
            fs::read_to_string(&said).unwrap()
        );
    }
    assert!(before >= 3, "QEMU traces no questions");
    vm.signal(Signal::TERM);
    assert_eq!(vm.wait(), Some(0));
}

#[test]
fn nobody_but_the_owner_reaches_a_vms_sockets_even_if_its_folder_is_opened() {
    let place = Place::new();
    let mut vm = place.vm("own");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&vm.folder), 0o700);
    for socket in ["control.sock", "plugin.sock"] {
        assert_eq!(mode(&vm.folder.join(socket)), 0o600, "{socket}");
    }
    let monitor = fs::metadata(format!("/proc/{}", vm.monitor)).unwrap().uid();
    if !is_root() {
        eprintln!("who is not root cannot be somebody else: the rest is seen by root only");
        return;
    }
    assert_eq!(fs::metadata(&vm.folder).unwrap().uid(), 0);
    let watch = fs::metadata(vm.folder.join("watch")).unwrap();
    assert_eq!(
        (watch.uid(), watch.permissions().mode() & 0o777),
        (monitor, 0o700)
    );
    let stranger = if monitor == 65_534 { 65_533 } else { 65_534 };
    let socket = vm.folder.join("control.sock");
    fs::set_permissions(place.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(place.path("run"), fs::Permissions::from_mode(0o755)).unwrap();
    let refused = connect_as(stranger, &socket).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    // Somebody opens it: who connects is asked for, and hung up on.
    fs::set_permissions(&vm.folder, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(connect_as(stranger, &socket).unwrap(), "", "not a word");
    assert!(place.answers("own"), "and the owner is answered");
    vm.signal(Signal::TERM);
    vm.wait();
    assert_eq!(place.report("own")["counters"]["control_peers_refused"], 1);
}

/// Asks for the findings as another user; what is answered.
fn connect_as(uid: u32, socket: &Path) -> std::io::Result<String> {
    let socket = socket.to_owned();
    let thread = std::thread::spawn(move || {
        // Of this thread alone; it ends with it.
        let uid = rustix::process::Uid::from_raw(uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        let mut stream = UnixStream::connect(socket)?;
        let mut answer = String::new();
        let _ = std::io::Write::write_all(&mut stream, b"{\"ask\":\"findings\",\"after\":0}\n");
        match stream.read_to_string(&mut answer) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error),
            _ => Ok(answer),
        }
    });
    thread.join().unwrap()
}

#[test]
fn a_monitor_that_is_killed_leaves_its_own_vm_and_every_other_watch_alone() {
    let place = Place::new();
    let (killed, mut other) = (place.vm("killed"), place.vm("other"));
    if is_root() {
        let uid = |vm: &Vm| {
            let status = fs::read_to_string(format!("/proc/{}/status", vm.monitor)).unwrap();
            field(&status, "Uid:")
        };
        assert_ne!(uid(&killed), uid(&other), "neither may send the other a signal");
    }
    let watcher = Pid::from_raw(killed.monitor.try_into().unwrap()).unwrap();
    kill_process(watcher, Signal::KILL).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while nephoscope_e2e::guest::watcher_of(killed.run.id()).unwrap() == killed.monitor
        || !place.answers("killed")
    {
        assert!(Instant::now() < deadline, "nobody watches it again");
        std::thread::sleep(Duration::from_millis(20));
    }
    let qemu = killed.qemu.unwrap();
    rustix::process::test_kill_process(qemu).expect("the VM goes on");
    // Its successor has given up as much.
    let again = nephoscope_e2e::guest::watcher_of(killed.run.id()).unwrap();
    let status = fs::read_to_string(format!("/proc/{again}/status")).unwrap();
    assert_eq!(field(&status, "Seccomp:"), "2", "{status}");
    assert_eq!(field(&status, "CapEff:"), "0000000000000000");
    assert!(place.answers("other"));
    other.signal(Signal::TERM);
    assert_eq!(other.wait(), Some(0));
    let report = place.report("other");
    assert_eq!(report["coverage"]["code"], "complete", "{}", report["coverage"]);
}

#[test]
fn a_plugin_that_sends_nonsense_ends_its_own_watch_only_and_says_so() {
    let place = Place::new();
    let mut other = place.vm("sound");
    let socket = place.path("hostile.sock");
    let plugin = hostile_plugin(&socket);
    let output = place
        .command()
        .args(["attach", "--catalog", "cat", "--name", "hostile", "--plugin"])
        .arg(&socket)
        .output()
        .unwrap();
    plugin.join().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("holds a frame that cannot be right"), "{text}");
    assert!(place.answers("sound"));
    other.signal(Signal::TERM);
    assert_eq!(other.wait(), Some(0));
    assert_eq!(place.report("sound")["coverage"]["code"], "complete");
}

/// Shakes hands as a plugin does, and then fills its ring with nonsense.
fn hostile_plugin(socket: &Path) -> std::thread::JoinHandle<()> {
    use nephoscope_wire::{Hello, Producer, Request, RingMemory, WIRE_VERSION, receive, send};
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let ring = RingMemory::create("hostile", 1 << 20).unwrap();
        let wake = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        let hello = Hello {
            wire: WIRE_VERSION,
            version: "0".into(),
            api: 4,
            target: "x86_64".into(),
            vcpus: 1,
            pid: std::process::id(),
            installed_ns: 0,
            attached_ns: 0,
            blind_since_ns: None,
        };
        send(&mut stream, &hello, &[ring.fd(), std::os::fd::AsFd::as_fd(&wake)]).unwrap();
        // A length that is right, so that the ring is sound and what it holds is not.
        let mut nonsense = [0xff; 96];
        nonsense[..4].copy_from_slice(&96_u32.to_le_bytes());
        Producer::new(&ring).push(&nonsense).unwrap();
        // Until the monitor hangs up.
        while receive::<Request>(&mut stream).is_ok() {}
    })
}
