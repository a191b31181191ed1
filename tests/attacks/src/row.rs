//! One line of the table: an attack in one boot, what had to be seen, and what was.

use std::time::Duration;

use nephoscope_e2e::Kernel;
use serde_json::{Value, json};

use crate::attack::{Attack, Seen};

/// One attack's result in one boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Number and name.
    pub attack: String,
    /// The guest's kernel.
    pub kernel: &'static str,
    /// The right answer.
    pub expected: String,
    /// The answer.
    pub seen: String,
    /// Whether it is right.
    pub ok: bool,
    /// From the first execution to the finding.
    pub to_finding: Option<Duration>,
}

impl Row {
    /// Of what an attack saw.
    pub fn new(attack: &dyn Attack, kernel: Kernel, seen: Seen) -> Self {
        Row {
            attack: format!("{} {}", attack.number(), attack.name()),
            kernel: kernel.version(),
            expected: attack.expected().to_owned(),
            seen: seen.text,
            ok: seen.ok,
            to_finding: seen.to_finding,
        }
    }

    /// As it stands in a file.
    pub fn json(&self) -> Value {
        json!({
            "attack": self.attack,
            "kernel": self.kernel,
            "expected": self.expected,
            "seen": self.seen,
            "ok": self.ok,
            "to_finding_ms": self.to_finding.map(|time| time.as_secs_f64() * 1000.0),
        })
    }
}
