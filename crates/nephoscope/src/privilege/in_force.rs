//! What of the confinement is in force, in words.

use std::collections::BTreeMap;

/// Each part of it, and how it stands.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct InForce {
    parts: BTreeMap<String, String>,
    missing: Vec<String>,
}

impl InForce {
    /// A part that holds.
    pub(super) fn holds(&mut self, part: &str, how: impl Into<String>) {
        self.parts.insert(part.to_owned(), how.into());
    }

    /// A part that does not hold, and why.
    pub(super) fn lacks(&mut self, part: &str, why: impl std::fmt::Display) {
        let why = format!("not in force: {why}");
        self.missing.push(format!("{part} {why}"));
        self.parts.insert(part.to_owned(), why);
    }

    /// For the report.
    pub(crate) fn parts(&self) -> &BTreeMap<String, String> {
        &self.parts
    }

    /// Says what is missing.
    pub(crate) fn tell(&self) {
        for missing in &self.missing {
            eprintln!("nephoscope: the monitor is less confined than it could be: {missing}");
        }
    }
}
