//! What was concluded, on what evidence, and where it goes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How much a finding matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth keeping, not worth waking anybody.
    Info,
    /// Code that nobody vouches for, in a place where programs make code.
    Low,
    /// Code that nobody vouches for.
    Medium,
    /// Known code that is no longer what it was.
    High,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        })
    }
}

/// A conclusion worth telling somebody.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// Unique in one watch, from 1, in the order in which they were made.
    pub id: u64,
    /// The rule that made it: a word with dashes, the file name of the judge.
    pub rule: String,
    /// How much it matters.
    pub severity: Severity,
    /// The address space it is about, if it is about one.
    pub address_space: Option<u32>,
    /// Nanoseconds since the watch began: when the code first ran.
    pub at_ns: u64,
    /// When it was concluded, likewise; absent if what was watched has no time of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_ns: Option<u64>,
    /// One sentence.
    pub summary: String,
    /// What it rests on; the shape belongs to the rule.
    pub evidence: serde_json::Value,
}

/// A finding could not be delivered.
#[derive(Debug, thiserror::Error)]
#[error("{sink} did not take finding {finding}")]
pub struct SinkError {
    /// Which sink.
    pub sink: &'static str,
    /// Which finding.
    pub finding: u64,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

/// Where findings go.
pub trait Sink {
    /// Takes one finding.
    ///
    /// # Errors
    /// If it could not be delivered; the caller counts it and keeps the finding in the report.
    fn emit(&mut self, finding: &Finding) -> Result<(), SinkError>;
}
