//! What is done every so often, beside taking what ran.

use std::time::{Duration, Instant};

/// Something that is done every so often, and less often where it takes long: a monitor on a slow or busy host is to take what ran
/// first of all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paced {
    every: Duration,
    due: Instant,
}

impl Paced {
    /// So many times as long as it took it rests: five of the kind take less than a third of the time.
    pub(super) const REST: u32 = 16;

    /// Due for the first time when that time is over.
    pub(super) fn new(every: Duration) -> Self {
        Self {
            every,
            due: Instant::now() + every,
        }
    }

    /// When it begins, if it is due.
    pub(super) fn begin(&self) -> Option<Instant> {
        let now = Instant::now();
        (now >= self.due).then_some(now)
    }

    /// It was done, and began then.
    pub(super) fn end(&mut self, began: Instant) {
        let now = Instant::now();
        self.due = now + Self::pause(self.every, now.saturating_duration_since(began));
    }

    /// How long what is done so often rests after it took so long.
    pub(super) fn pause(every: Duration, took: Duration) -> Duration {
        every.max(took.saturating_mul(Self::REST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_is_done_less_often() {
        let ms = Duration::from_millis;
        assert_eq!(Paced::pause(ms(20), ms(1)), ms(20));
        assert_eq!(Paced::pause(ms(20), ms(50)), ms(800));
        let mut paced = Paced::new(Duration::ZERO);
        let began = paced.begin().unwrap();
        let before = began.checked_sub(Duration::from_secs(3600)).unwrap_or(began);
        paced.end(before);
        assert!(before == began || paced.begin().is_none());
    }
}
