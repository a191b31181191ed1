//! What the pipeline counts.

use std::collections::BTreeMap;

/// Counters by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    /// Those that the pipeline counts itself.
    counted: BTreeMap<String, u64>,
    /// Those that the driver counts and says from time to time.
    told: BTreeMap<&'static str, u64>,
}

impl Counters {
    /// One more.
    pub(crate) fn count(&mut self, name: &'static str) {
        match self.counted.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(self.counted.insert(name.to_owned(), 1)),
        }
    }

    /// So many more, if any.
    pub(crate) fn add(&mut self, name: &'static str, more: u64) {
        if more > 0 {
            *self.counted.entry(name.to_owned()).or_default() += more;
        }
    }

    /// As many.
    pub(crate) fn set(&mut self, name: &'static str, value: u64) {
        self.told.insert(name, value);
    }

    /// Those that the pipeline counts itself.
    pub(crate) fn counted(&self) -> &BTreeMap<String, u64> {
        &self.counted
    }

    /// Goes on from these.
    pub(crate) fn go_on(&mut self, counted: BTreeMap<String, u64>) {
        self.counted = counted;
    }

    /// All, by name.
    pub(crate) fn all(&self) -> BTreeMap<String, u64> {
        let mut all = self.counted.clone();
        all.extend(self.told.iter().map(|(name, value)| ((*name).to_owned(), *value)));
        all
    }
}
