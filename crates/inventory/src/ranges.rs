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

    /// Adds numbers from `first` to before `end`.
    pub(crate) fn insert_range(&mut self, first: u64, end: u64) {
        if first >= end {
            return;
        }
        let (mut first, mut end) = (first, end);
        // Those that touch it become one with it.
        while let Some((from, to)) = self.0.range(..=end).next_back().map(|(from, to)| (*from, *to))
            && to >= first
        {
            self.0.remove(&from);
            (first, end) = (first.min(from), end.max(to));
        }
        self.0.insert(first, end);
    }

    /// Each range: its first number, and the one behind its last.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(first, end)| (*first, *end))
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

    #[test]
    fn ranges_join_with_all_that_they_touch() {
        let mut ranges = Ranges::default();
        for (first, end) in [(10, 20), (30, 40), (50, 60), (5, 5), (20, 31), (0, 2), (55, 56)] {
            ranges.insert_range(first, end);
        }
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(0, 2), (10, 40), (50, 60)]);
    }
}
