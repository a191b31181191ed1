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

    /// What [`Row::json`] gave.
    pub fn parse(told: &Value, kernel: Kernel) -> Option<Self> {
        let text = |name: &str| Some(told.get(name)?.as_str()?.to_owned());
        let to_finding = match &told["to_finding_ms"] {
            Value::Null => None,
            ms => Some(Duration::try_from_secs_f64(ms.as_f64()? / 1000.0).ok()?),
        };
        Some(Row {
            attack: text("attack")?,
            kernel: kernel.version(),
            expected: text("expected")?,
            seen: text("seen")?,
            ok: told["ok"].as_bool()?,
            to_finding,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_as_it_was_written() {
        for to_finding in [None, Some(Duration::from_micros(1500))] {
            let row = Row {
                attack: "1 memfd".to_owned(),
                kernel: "6.12",
                expected: "unknown".to_owned(),
                seen: "\"it\"".to_owned(),
                ok: to_finding.is_some(),
                to_finding,
            };
            assert_eq!(Row::parse(&row.json(), Kernel::K6_12), Some(row));
        }
        assert_eq!(Row::parse(&json!({"attack": 1}), Kernel::K6_1), None);
    }
}
