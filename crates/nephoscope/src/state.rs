//! What a VM's directory says of it, so that whoever comes after a process that was killed can go on without being told.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nephoscope_judge::{FileRules, PatternError};
use rustix::time::ClockId;
use serde::{Deserialize, Serialize};

use crate::disks::Disk;
use crate::privilege::Account;
use crate::runtime::VmDir;

/// How a VM is watched. Written once, before it starts (or when it is attached to).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct VmState {
    /// The VMM and its version, for the report.
    pub(crate) vmm: String,
    /// The catalog.
    pub(crate) catalog: PathBuf,
    /// The plugin's socket.
    pub(crate) plugin: PathBuf,
    /// QEMU's monitor protocol, if there is a socket for us.
    pub(crate) qmp: Option<PathBuf>,
    /// Where the report goes when the VM ends.
    pub(crate) report: Option<PathBuf>,
    /// Findings go to standard error.
    pub(crate) watch: bool,
    /// Whom those who watch become.
    #[serde(default)]
    pub(crate) user: Option<Account>,
    /// It runs under KVM, and the kernel module watches it.
    #[serde(default)]
    pub(crate) kvm: bool,
    /// It was started without running: whoever attaches first lets it run.
    #[serde(default)]
    pub(crate) started_paused: bool,
    /// When it was started (`CLOCK_MONOTONIC`, ns): times of a watch under KVM count from then.
    #[serde(default)]
    pub(crate) begun_ns: u64,
    /// All mappings of a VM under KVM are looked at every second.
    #[serde(default)]
    pub(crate) audit: bool,
    /// Executable frames of a VM under KVM are guarded against writes by devices.
    #[serde(default)]
    pub(crate) guard: bool,
    /// Its disks that are served, so that files are watched.
    #[serde(default)]
    pub(crate) disks: Vec<Disk>,
    /// Disks that are left alone although files are to be watched.
    #[serde(default)]
    pub(crate) disks_left: u64,
    /// Which of the files that interpreters read are spoken of.
    #[serde(default)]
    pub(crate) files: FileLists,
    /// The VMM's process, if we started it.
    pub(crate) vmm_process: Option<Process>,
}

/// Lists of patterns for paths, as they were given.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct FileLists {
    /// Programs that are interpreters; `None`: those that are known.
    pub(crate) interpreters: Option<String>,
    /// Files that are not spoken of.
    pub(crate) allowed: String,
}

impl FileLists {
    /// What they say.
    pub(crate) fn rules(&self) -> Result<FileRules, PatternError> {
        FileRules::new(self.interpreters.as_deref(), &self.allowed)
    }
}

/// A process, told from a later one with the same number by when it was started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Process {
    pid: u32,
    /// In ticks since the machine's boot (`proc_pid_stat(5)`, field 22).
    started: u64,
}

impl Process {
    /// The process that has this number now.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the name in parentheses, which may hold anything.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        let dead = matches!(fields.next()?, "Z" | "X");
        let started = fields.nth(18)?.parse().ok()?;
        (!dead).then_some(Self { pid, started })
    }

    /// Its number.
    pub(crate) fn pid(self) -> u32 {
        self.pid
    }

    /// When it was started (`CLOCK_MONOTONIC`, ns). That clock stands still while the machine sleeps, and this is told by one that
    /// does not; so it may be too early, never in the future.
    pub(crate) fn started_ns(self) -> u64 {
        let ns = |id| {
            let time = rustix::time::clock_gettime(id);
            u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
        };
        let (now, since_boot) = (ns(ClockId::Monotonic), ns(ClockId::Boottime));
        let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
        now.saturating_sub(since_boot.saturating_sub(self.started.saturating_mul(tick_ns)))
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// More than any state: it stops a wrong file from being read whole.
const MAX_BYTES: u64 = 1 << 20;

impl VmState {
    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn write(&self, dir: &VmDir) -> io::Result<()> {
        let new = dir.state().with_extension("new");
        std::fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&new, dir.state())
    }

    /// Reads it; `None` if there is none, as after the VM has ended.
    ///
    /// # Errors
    /// If it cannot be read, or is not one of this version.
    pub(crate) fn read(dir: &VmDir) -> io::Result<Option<Self>> {
        let mut text = Vec::new();
        match File::open(dir.state()) {
            Ok(file) => file.take(MAX_BYTES).read_to_end(&mut text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(serde_json::from_slice(&text)?))
    }

    /// Whether the VM still runs: the process that was started, or, as that may have gone to the background as another one,
    /// whoever listens where the plugin does.
    pub(crate) fn is_running(&self) -> bool {
        self.vmm_process.is_some_and(Process::is_alive) || listens(&self.plugin)
    }
}

/// Whether a process listens on a socket. It is not connected to: whoever connects to a plugin is its monitor.
fn listens(socket: &Path) -> bool {
    let Ok(table) = std::fs::read_to_string("/proc/net/unix") else {
        return socket.exists();
    };
    let path = socket.to_string_lossy();
    // Flags with `__SO_ACCEPTCON` are of a listening socket.
    table.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        fields.nth(3) == Some("00010000") && fields.nth(3) == Some(&*path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_as_it_was_written_and_none_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let dir = VmDir::at("web1", folder.path());
        assert_eq!(VmState::read(&dir).unwrap(), None);
        let state = VmState {
            vmm: "QEMU 10.0.2".into(),
            catalog: "/cat".into(),
            plugin: dir.plugin(),
            qmp: None,
            report: Some("/r.json".into()),
            watch: true,
            user: None,
            kvm: false,
            started_paused: false,
            begun_ns: 0,
            audit: false,
            guard: false,
            disks: Vec::new(),
            files: FileLists::default(),
            disks_left: 0,
            vmm_process: Process::of(std::process::id()),
        };
        state.write(&dir).unwrap();
        assert_eq!(VmState::read(&dir).unwrap(), Some(state.clone()));
        assert!(state.is_running());
        std::fs::write(dir.state(), "{").unwrap();
        assert!(VmState::read(&dir).is_err());
    }

    #[test]
    fn a_process_that_ended_is_not_taken_for_the_next_one_with_its_number() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = Process::of(child.id());
        child.wait().unwrap();
        assert!(process.is_none_or(|process| !process.is_alive()));
        let me = Process::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        let earlier = Process {
            started: me.started + 1,
            ..me
        };
        assert!(!earlier.is_alive());
    }

    #[test]
    fn a_process_was_started_before_now_and_not_long_ago() {
        let now = rustix::time::clock_gettime(ClockId::Monotonic);
        let now_ns = u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let started = Process::of(child.id()).unwrap().started_ns();
        child.kill().unwrap();
        child.wait().unwrap();
        // A tick is ten milliseconds.
        assert!(
            started + 20_000_000 >= now_ns && started < now_ns + 5_000_000_000,
            "{started} {now_ns}"
        );
    }

    #[test]
    fn a_socket_is_listened_on_until_its_process_closes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plugin.sock");
        assert!(!listens(&path));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(listens(&path));
        drop(listener);
        assert!(path.exists() && !listens(&path));
    }
}
