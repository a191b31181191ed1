//! A set of numbers that come nearly in order, kept as ranges.

use std::collections::BTreeMap;

/// The numbers: each range from its first to behind its last.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a number.
    pub(crate) fn insert(&mut self, number: u64) {
        if self.contains(number) {
            return;
        }
        let end = self
            .0
            .remove(&(number.saturating_add(1)))
            .unwrap_or(number.saturating_add(1));
        match self.0.range_mut(..=number).next_back() {
            Some((_, before)) if *before == number => *before = end,
            _ => {
                self.0.insert(number, end);
            }
        }
    }

    /// Whether it is there.
    pub(crate) fn contains(&self, number: u64) -> bool {
        self.0
            .range(..=number)
            .next_back()
            .is_some_and(|(_, end)| number < *end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_any_order_join_to_ranges() {
        let mut ranges = Ranges::default();
        for number in [5, 7, 6, 1, 2, 9, 8, 5, 0] {
            ranges.insert(number);
        }
        assert_eq!(ranges.0, BTreeMap::from([(0, 3), (5, 10)]));
        assert!(
            (0..12)
                .map(|n| ranges.contains(n))
                .eq((0..12).map(|n| n < 3 || (5..10).contains(&n)))
        );
    }
}
