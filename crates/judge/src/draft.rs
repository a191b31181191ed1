//! What every rule takes and gives.

use nephoscope_finding::{Finding, Severity};
use nephoscope_inventory::{Change, Inventory, Names, SpaceId};

/// A finding without its number.
#[derive(Clone, PartialEq, Debug)]
pub struct Draft {
    /// The rule.
    pub rule: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// Whom it is about.
    pub space: Option<SpaceId>,
    /// When the code first ran.
    pub at_ns: u64,
    /// One sentence.
    pub summary: String,
    /// What it rests on.
    pub evidence: serde_json::Value,
}

/// A rule.
pub trait Judge {
    /// A finding that this rule made in an earlier part of the watch: it is not made again.
    fn remember(&mut self, finding: &Finding);
    /// Looks at one change.
    fn judge(&mut self, change: &Change, inventory: &Inventory, names: &dyn Names, out: &mut Vec<Draft>);
}
