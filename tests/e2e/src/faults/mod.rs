//! Faults, and the proof that nothing is lost silently in any of them.
//!
//! While a fault is made, the guest executes pages that nobody ever saw before ([`ticks`]). Every one of them has to stand in
//! the report, or to have run in an interval that the report calls blind; and a watch may be blind only while it was away, and
//! a stated [`SLACK`] before and after.

mod kills;
mod machine;
mod migration;
pub mod mute;
pub mod ours;
mod proof;
mod scene;
pub mod slow;
pub mod ticks;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::image::Image;

/// How much longer than it was away a watch may be blind. What it takes is a few hundredths of a second (what is taken from the
/// rings and not yet written down, and the start of a process); on a machine with more to do than cores it is more.
pub const SLACK: Duration = Duration::from_secs(1);

/// What is needed to make faults.
#[derive(Debug)]
pub struct Setting {
    /// The program.
    pub program: PathBuf,
    /// The catalog of the guest.
    pub catalog: PathBuf,
    /// The guest.
    pub image: Image,
    /// How often a monitor is killed.
    pub kills: usize,
}

/// One fault, and what became of it.
#[derive(Debug, Clone)]
pub struct Row {
    /// Which.
    pub fault: &'static str,
    /// How often.
    pub times: usize,
    /// What has to be.
    pub expected: String,
    /// What was.
    pub seen: String,
    /// Whether that is right.
    pub ok: bool,
}

impl Row {
    fn new(fault: &'static str, times: usize, expected: &str, seen: Result<String>) -> Self {
        let ok = seen.is_ok();
        Row {
            fault,
            times,
            expected: expected.to_owned(),
            seen: seen.unwrap_or_else(|error| format!("{error:#}")),
            ok,
        }
    }

    /// For `--json`.
    pub fn json(&self) -> Value {
        json!({
            "fault": self.fault, "times": self.times, "expected": self.expected, "seen": self.seen, "ok": self.ok,
        })
    }
}

/// The groups: each is one boot, and the faults that share it.
pub const GROUPS: [(&str, Group); 3] = [
    ("watch", kills::run),
    ("machine", machine::run),
    ("migration", migration::run),
];

/// Makes the faults of a group.
pub type Group = fn(&Setting) -> Result<Vec<Row>>;
