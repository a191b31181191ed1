//! What the pipeline counts.

use std::collections::BTreeMap;

/// Counters by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters(BTreeMap<&'static str, u64>);

impl Counters {
    /// One more.
    pub(crate) fn count(&mut self, name: &'static str) {
        *self.0.entry(name).or_default() += 1;
    }

    /// So many more, if any.
    pub(crate) fn add(&mut self, name: &'static str, more: u64) {
        if more > 0 {
            *self.0.entry(name).or_default() += more;
        }
    }

    /// As many.
    pub(crate) fn set(&mut self, name: &'static str, value: u64) {
        self.0.insert(name, value);
    }

    /// All, by name.
    pub(crate) fn all(&self) -> BTreeMap<String, u64> {
        self.0
            .iter()
            .map(|(name, value)| ((*name).to_owned(), *value))
            .collect()
    }
}
