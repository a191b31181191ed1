//! One VM of the soak, from its start to its end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::guest::{Given, vmm};
use super::plan::{Ending, Inside, Moment, Vm, Watch};
use crate::faults::ours::{Role, is_alive, of, qemu};
use crate::initramfs::UP;
use crate::qmp::Qmp;

/// On a debug kernel in an emulator everything takes its time. Who is later is killed all the same, and that is told.
const WATCHED_WITHIN: Duration = Duration::from_secs(240);
const VM_WITHIN: Duration = Duration::from_secs(120);
const UP_WITHIN: Duration = Duration::from_secs(600);
const OFF_WITHIN: Duration = Duration::from_secs(900);
const ENDS_WITHIN: Duration = Duration::from_secs(120);
const WATCHER_ENDS_WITHIN: Duration = Duration::from_secs(300);

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A VM that runs. Dropped, it is ended.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) plan: Vm,
    given: Given,
    folder: PathBuf,
    /// QEMU, or the `nephoscope run` that it is a child of.
    first: Child,
    /// `nephoscope attach`.
    attach: Option<Child>,
    begun: Instant,
    /// What was waited for and did not come.
    late: Vec<&'static str>,
    was_watched: bool,
}

/// What became of one.
#[derive(Debug)]
pub(super) enum After {
    Ended(Value),
    /// It runs on, and nobody watches it.
    RunsOn(Box<Running>),
}

impl Running {
    pub(super) fn start(plan: Vm, given: &Given) -> Result<Self> {
        let folder = Path::new("/tmp/soak").join(&plan.name);
        fs::create_dir_all(&folder)?;
        let vmm = vmm(&plan, given, &folder);
        let mut command = match plan.watch {
            Watch::Attached | Watch::Not => Command::new(&vmm[0]),
            Watch::FromStart | Watch::Guarded => {
                let mut command = Command::new(&given.program);
                command.arg("run").arg("--catalog").arg(&given.catalog);
                command.args(["--name", &plan.name]);
                if plan.watch == Watch::FromStart {
                    command.arg("--no-guard");
                }
                if plan.audit {
                    command.arg("--audit");
                }
                command.arg("--").arg(&vmm[0]);
                command
            }
        };
        command.args(&vmm[1..]);
        let first = spawn(&mut command, &folder.join("first.log"))?;
        Ok(Running {
            plan,
            given: given.clone(),
            folder,
            first,
            attach: None,
            begun: Instant::now(),
            late: Vec::new(),
            was_watched: false,
        })
    }

    /// Lives and ends as planned.
    pub(super) fn live(mut self) -> Result<After> {
        if self.plan.watch == Watch::Attached {
            // At the start it may not have made its VM yet: then there is nothing to attach to.
            if self.plan.moment != Moment::Start {
                self.wait_vm();
            }
            std::thread::sleep(Duration::from_millis(self.plan.delay_ms));
            self.attach()?;
        }
        match self.plan.moment {
            Moment::Start => {}
            Moment::Watched => self.wait_watched(),
            Moment::Up => self.wait_up(),
        }
        std::thread::sleep(Duration::from_millis(self.plan.delay_ms));
        self.was_watched |= self.watcher().is_some();
        match self.plan.ending {
            Ending::VmmKilled => self.kill_vmm(),
            Ending::WatcherKilled => {
                self.kill_watcher();
                // `nephoscope run` starts another one. `attach` does not.
                if self.plan.watch == Watch::Attached {
                    return Ok(After::RunsOn(Box::new(self)));
                }
                self.wait_watched();
                self.kill_vmm();
            }
            Ending::BothKilled => {
                let all: Vec<Pid> = self.ours().into_iter().chain(self.vmm()).collect();
                kill_all(&all);
            }
            Ending::PoweredOff => self.power_off(),
            Ending::Detached => {
                self.detach();
                return Ok(After::RunsOn(Box::new(self)));
            }
        }
        self.gone()
    }

    /// Ends one that ran on, watched again before or not.
    pub(super) fn end(mut self) -> Result<After> {
        if self.plan.again && self.vmm().is_some() {
            self.attach()?;
            self.wait_watched();
            self.was_watched |= self.watcher().is_some();
        }
        std::thread::sleep(Duration::from_millis(self.plan.delay_ms));
        self.kill_vmm();
        self.gone()
    }

    /// Whether QEMU runs.
    pub(super) fn runs(&self) -> bool {
        self.vmm().is_some()
    }

    fn vmm(&self) -> Option<Pid> {
        qemu(&self.folder).ok().filter(|pid| is_alive(*pid))
    }

    /// Every process of ours for this VM.
    fn ours(&self) -> Vec<Pid> {
        let mut all: Vec<Pid> = [Role::Run, Role::Keep, Role::Watch]
            .into_iter()
            .flat_map(|role| of(&self.plan.name, role))
            .collect();
        all.extend(self.attach.as_ref().map(Pid::from_child));
        all.retain(|pid| is_alive(*pid));
        all
    }

    /// Who holds a watch of the module.
    fn watcher(&self) -> Option<Pid> {
        of(&self.plan.name, Role::Watch)
            .into_iter()
            .find(|pid| holds_watch(*pid))
    }

    fn attach(&mut self) -> Result<()> {
        let Some(vmm) = self.vmm() else {
            self.late.push("a QEMU to attach to");
            return Ok(());
        };
        if let Some(mut before) = self.attach.take() {
            before.kill()?;
            before.wait()?;
        }
        let mut command = Command::new(&self.given.program);
        command.arg("attach").arg("--catalog").arg(&self.given.catalog);
        command.args(["--name", &self.plan.name]);
        if self.plan.audit {
            command.arg("--audit");
        }
        command.args(["--pid", &vmm.as_raw_nonzero().to_string()]);
        self.attach = Some(spawn(&mut command, &self.folder.join("attach.log"))?);
        Ok(())
    }

    fn wait_vm(&mut self) {
        let has_vm = |pid| holds(pid, "kvm-vcpu");
        if !within(VM_WITHIN, || self.over() || self.vmm().is_some_and(has_vm)) {
            self.late.push("a VM to attach to");
        }
    }

    fn wait_watched(&mut self) {
        if !within(WATCHED_WITHIN, || self.watcher().is_some() || self.over()) {
            self.late.push("watched");
        }
        self.was_watched |= self.watcher().is_some();
    }

    fn wait_up(&mut self) {
        let serial = self.folder.join("serial");
        let is_up = || {
            let said = fs::read(&serial).unwrap_or_default();
            String::from_utf8_lossy(&said).contains(UP)
        };
        if !within(UP_WITHIN, || is_up() || self.over()) {
            self.late.push("up");
        }
    }

    /// Nothing of it is left.
    fn over(&mut self) -> bool {
        matches!(self.first.try_wait(), Ok(Some(_))) && self.vmm().is_none()
    }

    fn kill_vmm(&self) {
        kill_all(self.vmm().as_slice());
    }

    fn kill_watcher(&self) {
        match self.watcher() {
            Some(watcher) => kill_all(&[watcher]),
            // Before it watches.
            None => kill_all(&of(&self.plan.name, Role::Watch)),
        }
    }

    /// `nephoscope run` passes a signal on to QEMU, so all who watch are killed; who attached is asked to end.
    fn detach(&mut self) {
        if self.plan.watch == Watch::Attached
            && let Some(watcher) = self.watcher()
        {
            let _ = kill_process(watcher, Signal::TERM);
            if !within(ENDS_WITHIN, || !holds_watch(watcher)) {
                self.late.push("detached");
            }
        }
        // One that was about to start another one may have done so.
        for _ in 0..2 {
            kill_all(&self.ours());
        }
    }

    /// Linux does so by itself, when it has started so many processes as it was told to.
    fn power_off(&mut self) {
        if self.plan.inside == Inside::Firmware {
            let folder = self.folder.clone();
            let quit = || Qmp::connect(&folder)?.execute("quit", json!({}));
            if !within(ENDS_WITHIN, || quit().is_ok() || self.over()) {
                self.late.push("QEMU's monitor");
            }
        }
        if !within(OFF_WITHIN, || self.over()) {
            self.late.push("off");
            self.kill_vmm();
        }
    }

    /// Waits for all of its processes to be gone.
    fn gone(mut self) -> Result<After> {
        ensure!(
            within(ENDS_WITHIN, || self.vmm().is_none()),
            "{} was killed and does not end",
            self.plan.name
        );
        // Those who watch end by themselves.
        if !within(WATCHER_ENDS_WITHIN, || self.settled()) {
            self.late.push("the end of the watch");
            kill_all(&self.ours());
        }
        let status = self.first.wait()?;
        let attach = self.attach.as_mut().map(Child::wait).transpose()?;
        let mut row = self.plan.json();
        row["watched"] = self.was_watched.into();
        row["seconds"] = self.begun.elapsed().as_secs().into();
        row["late"] = json!(self.late);
        row["status"] = status.to_string().into();
        row["attach_status"] = json!(attach.map(|status| status.to_string()));
        row["said"] = json!(self.said());
        Ok(After::Ended(row))
    }

    fn settled(&mut self) -> bool {
        let first = matches!(self.first.try_wait(), Ok(Some(_)));
        let attach = self
            .attach
            .as_mut()
            .is_none_or(|child| matches!(child.try_wait(), Ok(Some(_))));
        first && attach && self.ours().is_empty()
    }

    /// What the program and QEMU said last, to understand what was not as expected.
    fn said(&self) -> Vec<String> {
        let logs = ["first.log", "attach.log"].map(|name| fs::read(self.folder.join(name)));
        let texts = logs.into_iter().flatten();
        texts
            .filter_map(|text| {
                let text = String::from_utf8_lossy(&text);
                text.trim().lines().last().map(str::to_owned)
            })
            .collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for _ in 0..2 {
            kill_all(&self.ours());
            self.kill_vmm();
        }
        let _ = self.first.kill();
        let _ = self.first.wait();
        if let Some(attach) = &mut self.attach {
            let _ = attach.wait();
        }
    }
}

fn spawn(command: &mut Command, log: &Path) -> Result<Child> {
    let output = File::options().create(true).append(true).open(log)?;
    let name = command.get_program().to_string_lossy().into_owned();
    ensure!(!name.is_empty(), "no command");
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("cannot start {name}"))
}

/// Whether something came to hold in time.
fn within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !holds() {
        if Instant::now() > deadline {
            return false;
        }
        // Looking through all processes is work for a kernel like this.
        std::thread::sleep(LOOK_EVERY);
    }
    true
}

fn kill_all(pids: &[Pid]) {
    for pid in pids {
        // It may have ended by itself meanwhile.
        let _ = kill_process(*pid, Signal::KILL);
    }
}

fn holds_watch(pid: Pid) -> bool {
    holds(pid, "nephoscope-kvm")
}

/// Whether a process has a file of this name open.
fn holds(pid: Pid, name: &str) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()));
    let mut targets = descriptors
        .into_iter()
        .flatten()
        .flatten()
        .flat_map(|entry| fs::read_link(entry.path()));
    targets.any(|target| target.to_string_lossy().contains(name))
}
