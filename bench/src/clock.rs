//! Time of this thread on a CPU, and on the wall.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Started when it is made.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    cpu: Duration,
    wall: Duration,
}

/// What something took.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    /// Of this thread on a CPU: what neighbours do matters less.
    pub cpu: Duration,
    /// On the wall.
    pub wall: Duration,
}

impl Clock {
    /// Starts.
    pub fn start() -> Self {
        Clock {
            cpu: now(ClockId::ThreadCPUTime),
            wall: now(ClockId::Monotonic),
        }
    }

    /// What passed since.
    pub fn took(self) -> Took {
        Took {
            cpu: now(ClockId::ThreadCPUTime).saturating_sub(self.cpu),
            wall: now(ClockId::Monotonic).saturating_sub(self.wall),
        }
    }
}

fn now(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanoseconds)
}
