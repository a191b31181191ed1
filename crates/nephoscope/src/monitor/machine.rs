//! What happens to the machine as a whole, as QEMU says it.
//!
//! ```text
//!  RESET   every address space is gone
//!  STOP    nothing runs until RESUME; if QEMU says that it is `postmigrate`, the guest runs elsewhere meanwhile
//! ```
//!
//! A snapshot that is loaded needs nothing here: QEMU throws its translations away, so that everything that runs on is
//! compared with what was captured, and the plugin looks at all roots (`Plugin::flushed`).

use std::time::{SystemTime, UNIX_EPOCH};

use nephoscope_guest::{Coverage, Gap, GapReason};
use nephoscope_pipeline::Session;

use super::memory::Memory;

/// Something that the session has to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// The machine was reset.
    Reset,
    /// The guest ran under another QEMU, and this one saw nothing of it.
    Away { from_ns: u64, to_ns: u64 },
}

/// Where the machine stands.
#[derive(Debug, Default)]
pub(super) struct Machine {
    stopped_ns: Option<u64>,
    /// Until when it was said that the guest is elsewhere.
    away_ns: Option<u64>,
    /// When QEMU is asked next why nothing runs.
    ask_ns: u64,
}

/// The longest between two questions why a guest stands still. In between a guest that went elsewhere is not known to be
/// there; once it is, that holds from when it stopped.
const PATIENCE_NS: u64 = 3_000_000_000;

impl Machine {
    /// Looks at what QEMU said since the last time.
    pub(super) fn look(&mut self, now_ns: u64, memory: &mut Memory) -> Vec<Turn> {
        let mut turns = Vec::new();
        for event in memory.events() {
            let at_ns = event.at_us.map_or(now_ns, |at_us| since(at_us, now_ns));
            match event.name.as_str() {
                "RESET" => turns.push(Turn::Reset),
                "STOP" => (self.stopped_ns, self.ask_ns) = (Some(at_ns), 0),
                "RESUME" => {
                    turns.extend(self.away_until(at_ns));
                    (self.stopped_ns, self.away_ns) = (None, None);
                }
                _ => {}
            }
        }
        if let Some(stopped_ns) = self.stopped_ns
            && self.away_ns.is_none()
        {
            if memory.status(stopped_ns) == Some("postmigrate") {
                self.away_ns = Some(stopped_ns);
            } else if now_ns >= self.ask_ns {
                // The longer it stands still, the less often.
                self.ask_ns = now_ns + now_ns.saturating_sub(stopped_ns).min(PATIENCE_NS);
                memory.ask_status(stopped_ns);
            }
        }
        turns.extend(self.away_until(now_ns));
        turns
    }

    fn away_until(&mut self, now_ns: u64) -> Option<Turn> {
        let from_ns = self.away_ns?;
        self.away_ns = Some(now_ns.max(from_ns));
        Some(Turn::Away {
            from_ns,
            to_ns: now_ns.max(from_ns),
        })
    }

    /// The watch is over.
    pub(super) fn over(&mut self, now_ns: u64, session: &mut Session) {
        if let Some(Turn::Away { from_ns, to_ns }) = self.away_until(now_ns) {
            session.gap(away(from_ns, to_ns));
        }
    }
}

/// The gap for it.
pub(super) fn away(from_ns: u64, to_ns: u64) -> Gap {
    Gap {
        from_ns,
        to_ns,
        left: Coverage::BLIND,
        reason: GapReason::Migrated,
        lost: 0,
    }
}

/// A moment of QEMU's clock, which is the system's, on the watch's.
fn since(at_us: u64, now_ns: u64) -> u64 {
    let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let ago_us = u64::try_from(system.as_micros())
        .unwrap_or(u64::MAX)
        .saturating_sub(at_us);
    now_ns.saturating_sub(ago_us.saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn being_away_is_told_piece_by_piece_without_holes() {
        let mut machine = Machine {
            stopped_ns: Some(5),
            away_ns: Some(5),
            ask_ns: 0,
        };
        let mut told = Vec::new();
        for now in [10, 10, 25] {
            told.extend(machine.away_until(now));
        }
        let pieces: Vec<_> = told
            .iter()
            .map(|turn| match turn {
                Turn::Away { from_ns, to_ns } => (*from_ns, *to_ns),
                Turn::Reset => panic!("no reset"),
            })
            .collect();
        assert_eq!(pieces, [(5, 10), (10, 10), (10, 25)]);
    }

    #[test]
    fn a_moment_of_the_systems_clock_is_as_long_ago_on_the_watchs() {
        let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap();
        let at = since(now - 2_000_000, 10_000_000_000);
        assert!((7_000_000_000..=8_000_000_000).contains(&at), "{at}");
        assert_eq!(since(now + 1_000_000, 10), 10, "a clock that was set back");
    }
}
