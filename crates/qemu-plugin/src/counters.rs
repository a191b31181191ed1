//! What the plugin counts, in the order that the wire names.

use std::sync::atomic::{AtomicU64, Ordering};

use nephoscope_wire::COUNTER_NAMES;

/// One counter; the number is its place in [`COUNTER_NAMES`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub(crate) enum Count {
    Translations,
    Captures,
    Recaptures,
    CapturesWithoutFrame,
    CrossingInstructions,
    ExecutedSent,
    RootChanges,
    Collections,
    RingWaits,
    RingLost,
    MarksExhausted,
    FramesForgotten,
    RootChangesUnseen,
    CallbackFaults,
    CodeInvalidated,
    FramesArmed,
    FileAccesses,
    FileFramesLost,
    FileAccessesBlind,
}

/// All counters.
#[derive(Debug, Default)]
pub(crate) struct Counters([AtomicU64; COUNTER_NAMES.len()]);

impl Counters {
    pub(crate) fn add(&self, count: Count, by: u64) {
        if let Some(counter) = self.0.get(count as usize) {
            counter.fetch_add(by, Ordering::Relaxed);
        }
    }

    pub(crate) fn values(&self) -> [u64; COUNTER_NAMES.len()] {
        std::array::from_fn(|i| self.0.get(i).map_or(0, |c| c.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_has_the_place_of_its_name() {
        let counters = Counters::default();
        counters.add(Count::CallbackFaults, 2);
        counters.add(Count::RingLost, 3);
        let values = counters.values();
        let of = |name| values[COUNTER_NAMES.iter().position(|n| *n == name).unwrap()];
        assert_eq!(
            (of("callback_faults"), of("ring_lost"), of("translations")),
            (2, 3, 0)
        );
    }
}
