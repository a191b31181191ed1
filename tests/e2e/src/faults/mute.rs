//! A QEMU whose main loop stands still, as while a disk of its does: it answers no questions, and its CPUs go on.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

/// Between a monitor and QEMU's protocol: everything passes until QEMU is asked why its guest stands still.
#[derive(Debug)]
pub struct Mute {
    swallowed: Arc<AtomicUsize>,
    monitor: Arc<OnceLock<UnixStream>>,
}

impl Mute {
    /// Serves one monitor at `at`, in front of the QEMU at `qemu`.
    ///
    /// # Errors
    /// If it cannot listen there.
    pub fn before(qemu: &Path, at: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(at)?;
        let mute = Self {
            swallowed: Arc::default(),
            monitor: Arc::default(),
        };
        let (counts, connected, qemu) = (mute.swallowed.clone(), mute.monitor.clone(), qemu.to_owned());
        thread::spawn(move || -> io::Result<()> {
            let (monitor, _) = listener.accept()?;
            let qemu = UnixStream::connect(qemu)?;
            let (mut answers, mut to) = (qemu.try_clone()?, monitor.try_clone()?);
            thread::spawn(move || io::copy(&mut answers, &mut to));
            drop(connected.set(monitor.try_clone()?));
            pass_on(&monitor, &qemu, &counts)
        });
        Ok(mute)
    }

    /// Tells the monitor that the guest stands still, so that it asks why.
    ///
    /// # Errors
    /// If there is no monitor.
    pub fn say_that_it_stands_still(&self) -> io::Result<()> {
        let mut monitor = self.monitor.get().ok_or(io::ErrorKind::NotConnected)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let event = json!({
            "event": "STOP",
            "timestamp": { "seconds": now.as_secs(), "microseconds": now.subsec_micros() },
        });
        writeln!(monitor, "{event}")
    }

    /// Questions that were not answered.
    #[must_use]
    pub fn swallowed(&self) -> usize {
        self.swallowed.load(Ordering::Relaxed)
    }
}

fn pass_on(monitor: &UnixStream, mut qemu: &UnixStream, swallowed: &AtomicUsize) -> io::Result<()> {
    for line in BufReader::new(monitor).lines() {
        let line = line?;
        if swallowed.load(Ordering::Relaxed) > 0 || line.contains("query-status") {
            swallowed.fetch_add(1, Ordering::Relaxed);
        } else {
            writeln!(qemu, "{line}")?;
        }
    }
    Ok(())
}
