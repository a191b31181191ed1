//! Findings, with the moment at which each could first be had from the watch.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::control::Control;

/// How often the watch is asked: what is told of latency is told too long by so much.
const EVERY: Duration = Duration::from_millis(5);

/// A finding, and when it was there.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// When the answer that held it came.
    pub at: Instant,
    /// The finding, as the watch gives it.
    pub finding: Value,
}

/// Listens to one watch from a thread of its own, so that a finding's moment does not depend on what the caller does.
#[derive(Debug)]
pub struct Arrivals {
    incoming: Receiver<Arrival>,
}

impl Arrivals {
    /// Begins to listen.
    ///
    /// # Errors
    /// When nobody answers for this VM.
    pub fn listen(vm: &str) -> Result<Self> {
        let control = Control::connect(vm)?;
        let (sender, incoming) = channel();
        std::thread::Builder::new()
            .name("arrivals".into())
            .spawn(move || ask(control, &sender))?;
        Ok(Arrivals { incoming })
    }

    /// The next finding, if one comes within `limit`.
    ///
    /// # Errors
    /// When the watch has ended.
    pub fn next(&mut self, limit: Duration) -> Result<Option<Arrival>> {
        match self.incoming.recv_timeout(limit) {
            Ok(arrival) => Ok(Some(arrival)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("the watch gives no more findings"),
        }
    }

    /// Waits for the first finding of which `wanted` gives something. Those before it are passed over for good.
    ///
    /// # Errors
    /// When the watch has ended, or `wanted` says so.
    pub fn wait<T>(
        &mut self,
        limit: Duration,
        mut wanted: impl FnMut(&Value) -> Result<Option<T>>,
    ) -> Result<Option<(Arrival, T)>> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(arrival) = self.next(left)? else {
                return Ok(None);
            };
            if let Some(found) = wanted(&arrival.finding)? {
                return Ok(Some((arrival, found)));
            }
        }
    }
}

/// Until the watch ends or nobody listens any more.
fn ask(mut control: Control, sender: &Sender<Arrival>) {
    let mut after = 0;
    while let Ok(findings) = control.findings(after) {
        let at = Instant::now();
        for finding in findings {
            after = finding["id"].as_u64().unwrap_or(after).max(after);
            if sender.send(Arrival { at, finding }).is_err() {
                return;
            }
        }
        std::thread::sleep(EVERY);
    }
}
