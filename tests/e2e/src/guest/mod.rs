//! A running guest: boot it, ask it, switch it off.

mod channel;
mod options;
mod process;
mod turn;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::image::Image;
use crate::truth::Truth;
use channel::Channel;
pub use channel::Output;
pub use options::{Kernel, Options, Watched, vm_name};
use process::Process;
pub use turn::{TOGETHER, Turn, turn};

/// How long a guest may take to switch itself off, at least.
const POWER_OFF: Duration = Duration::from_secs(90);

/// What QEMU 10.0 says when it dies of a race of its own: several vCPUs of a guest run while its firmware moves devices about.
/// It does so without any plugin too: one of 70 boots with 4 vCPUs.
const QEMU_RACE: &str = "iotlb_to_section: Assertion `section_index < d->map.sections_nb' failed";

/// A guest that was started. Dropped, it is ended; its logs stay when it was not switched off in order.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    channel: Option<Channel>,
    options: Options,
    logs: Logs,
    http_port: u16,
    begun: Instant,
    _turn: Option<Turn>,
}

/// The folder with the guest's serial log, the emulator's own messages and the sockets.
#[derive(Debug)]
struct Logs {
    folder: PathBuf,
    keep: bool,
}

impl Drop for Logs {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("the guest's logs are kept in {}", self.folder.display());
        } else {
            // Nothing depends on their removal, and there is nobody to tell.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

impl Guest {
    /// Starts a guest and returns at once; [`Guest::wait_ready`] waits until it can be used.
    ///
    /// # Errors
    /// When the image cannot be had, the emulator cannot be started, or it ends at once.
    pub fn boot(image: &Image, options: Options) -> Result<Self> {
        let turn = match options.alone {
            true => Some(turn::for_vcpus(options.smp)?),
            false => None,
        };
        let folder = tempfile::Builder::new()
            .prefix("nephoscope-guest-")
            .tempdir()?
            .keep();
        let mut logs = Logs { folder, keep: true };
        let http_port = free_port()?;
        let command = options.command(image, &logs.folder, http_port)?;
        fs::write(logs.folder.join("command"), format!("{command:?}\n"))?;
        let process = Process::start(&command, &logs.folder.join("emulator.log"));
        logs.keep = process.is_err();
        let process = process?;
        logs.keep = true;
        let begun = Instant::now();
        Ok(Guest {
            process,
            channel: None,
            options,
            logs,
            http_port,
            begun,
            _turn: turn,
        })
    }

    /// Starts a guest and waits until its services are up. If QEMU ends by [its own race](QEMU_RACE) before that, the guest
    /// is started once more, and that is said.
    ///
    /// # Errors
    /// As [`Guest::boot`] and [`Guest::wait_ready`].
    pub fn boot_ready(image: &Image, options: Options) -> Result<Self> {
        let mut guest = Self::boot(image, options.clone())?;
        let Err(error) = guest.wait_ready() else {
            return Ok(guest);
        };
        if options.smp == 1 || !guest.emulator_log().contains(QEMU_RACE) {
            return Err(error);
        }
        eprintln!("QEMU ended by its own race ({QEMU_RACE}): the guest is started once more");
        drop(guest);
        let mut guest = Self::boot(image, options)?;
        guest.wait_ready()?;
        Ok(guest)
    }

    /// Waits until the guest's services are up and it takes commands; says after how long that was.
    ///
    /// # Errors
    /// When the emulator ends before, or [`Options::boot_timeout`] passes; with the end of the serial log.
    pub fn wait_ready(&mut self) -> Result<Duration> {
        if self.channel.is_none() {
            let deadline = self.begun + self.options.boot_timeout;
            let socket = self.logs.folder.join(options::COMMAND_SOCKET);
            let process = &mut self.process;
            let connected = Channel::connect(&socket, deadline, || process.check_alive());
            let channel =
                connected.with_context(|| format!("the guest did not come up\n{}", self.log_tail()))?;
            self.channel = Some(channel);
        }
        Ok(self.begun.elapsed())
    }

    /// Waits until the guest is up again after it began to boot anew, by itself or because the machine was reset.
    ///
    /// # Errors
    /// As [`Guest::wait_ready`].
    pub fn wait_again(&mut self) -> Result<Duration> {
        self.channel = None;
        self.begun = Instant::now();
        self.wait_ready()
    }

    /// Goes on with a guest that was ready before it came to this emulator.
    ///
    /// # Errors
    /// When the emulator does not offer the guest's port.
    pub fn go_on(&mut self) -> Result<()> {
        let socket = self.logs.folder.join(options::COMMAND_SOCKET);
        self.channel = Some(Channel::go_on(&socket)?);
        Ok(())
    }

    /// Runs a shell script in the guest, as root, and waits for its end, for [`Options::command_timeout`] at most.
    ///
    /// # Errors
    /// When the guest is not ready, or does not answer in time. That the script failed is not an error here: see
    /// [`Output::success`].
    pub fn run(&mut self, script: &str) -> Result<Output> {
        self.run_within(script, self.options.command_timeout)
    }

    /// [`Guest::run`] with another limit of time.
    ///
    /// # Errors
    /// As [`Guest::run`].
    pub fn run_within(&mut self, script: &str, limit: Duration) -> Result<Output> {
        self.ask(limit, &format!("`{script}`"), |channel, deadline| {
            channel.run(script, deadline)
        })
    }

    /// Runs a script that has to succeed, and returns what it wrote.
    ///
    /// # Errors
    /// As [`Guest::run`], and when the script's status is not zero.
    pub fn run_ok(&mut self, script: &str) -> Result<String> {
        let output = self.run(script)?;
        ensure!(
            output.success(),
            "`{script}` failed with {}: {}",
            output.status,
            output.stderr_text()
        );
        Ok(output.stdout_text())
    }

    /// Starts a script in the guest that goes on by itself, and returns the process id it has there.
    ///
    /// # Errors
    /// As [`Guest::run_ok`].
    pub fn start(&mut self, script: &str) -> Result<u32> {
        let quoted = script.replace('\'', "'\\''");
        let pid = self.run_ok(&format!(
            "setsid bash -c 'exec {quoted}' </dev/null >/dev/null 2>&1 & echo $!"
        ))?;
        pid.trim()
            .parse()
            .with_context(|| format!("the guest gave `{pid}` for a process id"))
    }

    /// Writes a file in the guest, executable for all.
    ///
    /// # Errors
    /// When the guest does not answer in time or cannot write it.
    pub fn put(&mut self, path: &str, content: &[u8]) -> Result<()> {
        let limit = self.options.command_timeout;
        let output = self.ask(limit, &format!("writing {path}"), |channel, by| {
            channel.put(path, content, by)
        })?;
        ensure!(
            output.success(),
            "the guest cannot write {path}: {}",
            output.stderr_text()
        );
        Ok(())
    }

    /// What the guest says about its own processes, at this moment.
    ///
    /// # Errors
    /// As [`Guest::run_ok`], or when what it says cannot be understood.
    pub fn truth(&mut self) -> Result<Truth> {
        Truth::parse(&self.run_ok("/opt/nephoscope/truth")?)
    }

    /// Fetches a page from the guest's web server from outside: the status code and the body.
    ///
    /// # Errors
    /// When the server cannot be reached or answers something else than HTTP.
    pub fn http_get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http_port))?;
        stream.set_read_timeout(Some(self.options.command_timeout))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: guest\r\n\r\n")?;
        let mut answer = Vec::new();
        stream
            .read_to_end(&mut answer)
            .with_context(|| format!("no answer to GET {path}"))?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .with_context(|| format!("GET {path}: not HTTP: {answer:?}"))?;
        let status = head.split_whitespace().nth(1).and_then(|code| code.parse().ok());
        Ok((
            status.with_context(|| format!("GET {path}: no status in {head:?}"))?,
            body.to_owned(),
        ))
    }

    /// The port on the host that leads to the guest's web server.
    pub fn http_port(&self) -> u16 {
        self.http_port
    }

    /// The process that was started: the emulator, or the monitor that started it.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The process that watches the guest: a child of the one that was started.
    ///
    /// # Errors
    /// When none comes.
    pub fn watcher(&self) -> Result<u32> {
        watcher_of(self.pid())
    }

    /// Where the serial log (`serial.log`), the emulator's messages (`emulator.log`), the command line (`command`)
    /// and the QMP socket (`qmp.sock`) are. Gone once the guest was switched off in order.
    pub fn folder(&self) -> &Path {
        &self.logs.folder
    }

    /// What the guest wrote to its serial console up to now.
    pub fn serial_log(&self) -> String {
        read_lossy(&self.logs.folder.join("serial.log"))
    }

    /// What the emulator, and the monitor around it, wrote up to now.
    pub fn emulator_log(&self) -> String {
        read_lossy(&self.logs.folder.join("emulator.log"))
    }

    /// Switches the guest off the way its owner would, and waits for the emulator's end. Returns its exit code.
    ///
    /// # Errors
    /// When the guest does not switch itself off in time; it is ended then.
    pub fn power_off(mut self) -> Result<i32> {
        // The guest goes away while it answers, or before: only the emulator's end counts.
        let _ = self.run_within("systemctl --no-block poweroff", Duration::from_secs(20));
        let limit = POWER_OFF.max(self.options.command_timeout);
        match self.process.wait(limit)? {
            Some(code) => {
                self.logs.keep = code != 0;
                Ok(code)
            }
            None => bail!(
                "the guest did not switch itself off within {limit:?}\n{}",
                self.log_tail()
            ),
        }
    }

    /// Ends the guest at once, as pulling its plug would. Its logs are not kept.
    pub fn pull_plug(mut self) {
        self.logs.keep = false;
    }

    fn ask<T>(
        &mut self,
        limit: Duration,
        what: &str,
        ask: impl FnOnce(&mut Channel, Instant) -> Result<T>,
    ) -> Result<T> {
        let channel = self
            .channel
            .as_mut()
            .context("the guest is not ready yet: call wait_ready first")?;
        let answer = ask(channel, Instant::now() + limit);
        answer.with_context(|| format!("{what} in the guest\n{}", self.log_tail()))
    }

    /// The end of both logs, for errors.
    fn log_tail(&self) -> String {
        let tail = |text: String| {
            let lines: Vec<&str> = text.lines().collect();
            lines
                .iter()
                .skip(lines.len().saturating_sub(12))
                .map(|line| format!("  {line}\n"))
                .collect::<String>()
        };
        format!(
            "serial console:\n{}emulator:\n{}",
            tail(self.serial_log()),
            tail(self.emulator_log())
        )
    }
}

fn read_lossy(path: &Path) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// A port that was free a moment ago. Somebody else may take it before the emulator does; then the emulator says so
/// and ends.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// The child of `nephoscope run` that watches, which comes a moment after the emulator.
///
/// # Errors
/// When none comes.
pub fn watcher_of(run: u32) -> Result<u32> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        let children = std::fs::read_to_string(format!("/proc/{run}/task/{run}/children"))?;
        for child in children.split_whitespace() {
            let command = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            if command.split(|byte| *byte == 0).nth(1) == Some(b"watch") {
                return Ok(child.parse()?);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("process {run} has nobody watch")
}
