//! A guest that executes, all along, pages that never were before; and when, by the host's clock.
//!
//! The host writes a number to a port of the guest, a program there (`guest-files/ticker.py`) makes a page of it and executes
//! it, and answers. So each page ran between two moments of the host's own clock, which is the watch's clock too, whatever the
//! guest thinks of time and whatever is done to the watch meanwhile.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::guest::Guest;

/// The program in the guest.
const TICKER: &[u8] = include_bytes!("../../guest-files/ticker.py");
/// Between two pages.
const PAUSE: Duration = Duration::from_millis(40);
/// A number whose answer does not come for so long is given up: a snapshot may have taken it along.
const PATIENCE: Duration = Duration::from_secs(8);

/// One page that ran: its number, and between which moments of `CLOCK_MONOTONIC` (ns).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    /// Its number.
    pub number: u32,
    /// Not before.
    pub from_ns: u64,
    /// Not after.
    pub to_ns: u64,
}

impl Tick {
    /// BLAKE3 of its page, as reports write it.
    pub fn digest(&self) -> String {
        let mut page = vec![0xb8];
        page.extend(self.number.to_le_bytes());
        page.extend([0xc3, 0, 0]);
        let word = u64::from(self.number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        while page.len() < 4096 {
            page.extend(word.to_le_bytes());
        }
        blake3::hash(&page).to_hex().to_string()
    }
}

/// `CLOCK_MONOTONIC`, in nanoseconds.
pub fn now_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    ticks: Mutex<Vec<Tick>>,
    socket: Mutex<PathBuf>,
}

/// The pages of one guest, made by a thread of its own until it is ended.
#[derive(Debug)]
pub struct Ticks {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What QEMU has to be given for the port, with its socket in this folder.
pub fn options(folder: &Path) -> Vec<String> {
    vec![
        "-chardev".into(),
        format!(
            "socket,id=ticks,path={},server=on,wait=off",
            socket(folder).display()
        ),
        "-device".into(),
        "virtserialport,chardev=ticks,name=nephoscope.ticks".into(),
    ]
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("ticks.sock")
}

/// Starts the program in the guest.
///
/// # Errors
/// When the guest does not answer.
pub fn start(guest: &mut Guest) -> Result<()> {
    guest.put("/tmp/ticker.py", TICKER)?;
    guest.start("python3 /tmp/ticker.py > /tmp/ticker.log 2>&1")?;
    Ok(())
}

impl Ticks {
    /// Begins, in a guest that is ready, through the port whose socket is in this folder. Numbers count from `after`.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn begin(guest: &mut Guest, folder: &Path, after: u32) -> Result<Self> {
        start(guest)?;
        let shared = Arc::new(Shared {
            socket: Mutex::new(socket(folder)),
            ..Shared::default()
        });
        let mine = shared.clone();
        let thread = std::thread::Builder::new()
            .name("ticks".into())
            .spawn(move || tick(&mine, after))?;
        let ticks = Ticks {
            shared,
            thread: Some(thread),
        };
        ticks.wait(1).context("the guest executes nothing")?;
        Ok(ticks)
    }

    /// Goes on through the port of another QEMU.
    pub fn go_on(&self, folder: &Path) {
        *self.shared.socket.lock().unwrap_or_else(PoisonError::into_inner) = socket(folder);
    }

    /// The pages up to now.
    pub fn so_far(&self) -> Vec<Tick> {
        self.shared
            .ticks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until so many more have run.
    ///
    /// # Errors
    /// When they do not within a minute.
    pub fn wait(&self, more: usize) -> Result<()> {
        let wanted = self.so_far().len() + more;
        super::ours::wait_for("pages to be executed", Duration::from_secs(60), || {
            self.so_far().len() >= wanted
        })
    }

    /// Runs no more pages, and leaves the port to somebody else.
    pub fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Ends, and gives all pages that surely ran.
    pub fn end(mut self) -> Vec<Tick> {
        self.stop();
        self.so_far()
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn tick(shared: &Shared, after: u32) {
    let mut number = after;
    let mut connected: Option<(PathBuf, UnixStream)> = None;
    let mut waiting = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let path = shared
            .socket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if connected.as_ref().is_none_or(|(open, _)| *open != path) {
            waiting.clear();
            connected = UnixStream::connect(&path).ok().and_then(|stream| {
                stream.set_read_timeout(Some(Duration::from_millis(100))).ok()?;
                stream.set_write_timeout(Some(Duration::from_secs(1))).ok()?;
                Some((path, stream))
            });
        }
        let Some((_, stream)) = &mut connected else {
            std::thread::sleep(PAUSE);
            continue;
        };
        number += 1;
        let from_ns = now_ns();
        let answered = stream
            .write_all(format!("{number}\n").as_bytes())
            .and_then(|()| answer(stream, &mut waiting, number, shared));
        match answered {
            Ok(true) => {
                let tick = Tick {
                    number,
                    from_ns,
                    to_ns: now_ns(),
                };
                shared
                    .ticks
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(tick);
            }
            // It ran or it did not: it counts for nothing.
            Ok(false) => {}
            Err(_) => connected = None,
        }
        std::thread::sleep(PAUSE);
    }
}

/// Whether this number came back; earlier ones that come late are passed over.
fn answer(
    stream: &mut UnixStream,
    waiting: &mut Vec<u8>,
    number: u32,
    shared: &Shared,
) -> std::io::Result<bool> {
    let begun = std::time::Instant::now();
    let mut bytes = [0; 256];
    let open = shared
        .socket
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    while begun.elapsed() < PATIENCE && !shared.stop.load(Ordering::Relaxed) {
        while let Some(end) = waiting.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = waiting.drain(..=end).collect();
            if String::from_utf8_lossy(&line).trim() == number.to_string() {
                return Ok(true);
            }
        }
        match stream.read(&mut bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => waiting.extend_from_slice(bytes.get(..count).unwrap_or_default()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                // The guest is elsewhere now.
                if *shared.socket.lock().unwrap_or_else(PoisonError::into_inner) != open {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}
