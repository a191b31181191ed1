//! Something to do for a while.

use std::time::{Duration, Instant};

/// Computes for `seconds`, with pauses, so that the code runs many times and the guest stays usable. The result
/// depends on all of it: no compiler can leave it out.
pub fn for_seconds(seconds: u64) -> u64 {
    let begun = Instant::now();
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    while begun.elapsed() < Duration::from_secs(seconds) {
        for _ in 0..10_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    state
}

/// The first argument as a number of seconds, or `otherwise`.
pub fn seconds_from_arguments(otherwise: u64) -> u64 {
    std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(otherwise)
}
