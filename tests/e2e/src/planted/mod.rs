//! Three things that a watch has to find: a program from a memfd, a program copied from nowhere, and a program whose
//! text was patched while it ran.
//!
//! Each is started in the guest, waited for on the watch's own socket, and held to what the guest and the planted program
//! say of it: the right address space, every byte, and the time it took.

mod patched;
mod stranger;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::arrivals::{Arrival, Arrivals};
use crate::control::Control;
use crate::guest::Guest;
use crate::image::Image;

/// A finding has to come so soon after the code first ran.
pub const WITHIN: Duration = Duration::from_secs(1);

/// How long a case is waited for: starting a program in an emulated guest takes a while, finding it does not.
const PATIENCE: Duration = Duration::from_secs(30);

/// What became of one case.
#[derive(Debug, Clone)]
pub struct Case {
    /// What was done.
    pub what: String,
    /// What the watch has to say.
    pub expected: String,
    /// What it said, or why that does not count.
    pub found: Result<Sighting, String>,
}

/// A finding that is the one for its case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Its number.
    pub finding: u64,
    /// Its sentence.
    pub summary: String,
    /// The address space it is about.
    pub address_space: u64,
    /// What was compared, and equal.
    pub equal: String,
    /// From the moment before the command went to the guest.
    pub since_start: Duration,
    /// From the code's first execution; at most a few hundredths of a second too long, never too short.
    pub since_first_run: Duration,
}

/// A guest under watch, into which things are planted.
#[derive(Debug)]
pub struct Planting<'a> {
    guest: &'a mut Guest,
    control: Control,
    arrivals: Arrivals,
    /// When the watch's clock began.
    origin: Instant,
    /// The program that belongs to no package.
    stranger: Vec<u8>,
    slowness: u32,
}

impl<'a> Planting<'a> {
    /// For a guest that is ready and watched under this name.
    ///
    /// # Errors
    /// When nobody answers for it.
    pub fn begin(guest: &'a mut Guest, image: &Image, vm: &str) -> Result<Self> {
        let mut control = Control::connect(vm)?;
        Ok(Planting {
            guest,
            origin: control.origin()?,
            control,
            arrivals: Arrivals::listen(vm)?,
            stranger: std::fs::read(image.plants().program("stranger"))?,
            slowness: 1,
        })
    }

    /// The same on a machine that is so many times slower than an ordinary one: everything may take so much longer.
    #[must_use]
    pub fn slower(mut self, times: u32) -> Self {
        self.slowness = times;
        self
    }

    /// How long a case is waited for here.
    fn patience(&self) -> Duration {
        PATIENCE * self.slowness
    }

    /// The report's part on the address space that a finding is about.
    fn address_space(&mut self, finding: &Value) -> Result<Value> {
        let report = self.control.report()?;
        let spaces = report["address_spaces"].as_array().into_iter().flatten();
        spaces
            .into_iter()
            .find(|space| !finding["address_space"].is_null() && space["id"] == finding["address_space"])
            .cloned()
            .with_context(|| format!("finding {} is about no address space", finding["id"]))
    }

    /// The sighting, unless it came too late.
    fn sighting(&self, arrival: &Arrival, begun: Instant, equal: String) -> Result<Sighting, String> {
        let finding = &arrival.finding;
        let first_run = Duration::from_nanos(finding["at_ns"].as_u64().unwrap_or(0));
        let sighting = Sighting {
            finding: finding["id"].as_u64().unwrap_or(0),
            summary: finding["summary"].as_str().unwrap_or_default().to_owned(),
            address_space: finding["address_space"].as_u64().unwrap_or(0),
            equal,
            since_start: arrival.at.saturating_duration_since(begun),
            since_first_run: arrival.at.saturating_duration_since(self.origin + first_run),
        };
        if sighting.since_first_run > WITHIN * self.slowness {
            let took = sighting.since_first_run.as_millis();
            return Err(format!(
                "finding f{} came {took} ms after the code ran",
                sighting.finding
            ));
        }
        Ok(sighting)
    }
}

/// A number as reports write addresses: `0x7f00`.
fn address(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}

/// The entries of a list, none when it is none.
fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}
