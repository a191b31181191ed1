//! What a guest that ran before had mapped executable when it was attached to.
//!
//! It is captured and named when it is fetched from the next time, and until then it is only known to be mapped. All of the
//! guest's memory is searched for roots once, in a thread of its own, so that nothing waits for it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use nephoscope_guest::{Event, Gpa};
use nephoscope_isa::{Mode, RootFinder, Roots};

use super::attribution::Ram;
use crate::sampler::Sampler;

/// Events on their way: most of them carry a page.
const MAX_WAITING: usize = 256;
/// Their pages have numbers that no page has which the module captures: those count microseconds since the host's boot.
const NUMBERS: u64 = 1 << 50;

/// The search, and what it gives.
#[derive(Debug)]
pub(super) struct Around {
    events: Receiver<Event>,
}

impl Around {
    /// Begins. `since_us` keeps numbers of pages apart from those of an earlier look at this VM.
    pub(super) fn begin(ram: Ram, roots: Arc<Roots>, mode: Mode, since_us: u64) -> std::io::Result<Self> {
        let (sender, events) = sync_channel(MAX_WAITING);
        std::thread::Builder::new()
            .name("look-around".into())
            .spawn(move || look(&ram, roots, mode, NUMBERS + since_us, &sender))?;
        Ok(Self { events })
    }

    /// What was found since the last time. False: that was all.
    pub(super) fn take(&self, out: &mut Vec<Event>) -> bool {
        for _ in 0..MAX_WAITING {
            match self.events.try_recv() {
                Ok(event) => out.push(event),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        true
    }
}

fn look(ram: &Ram, roots: Arc<Roots>, mode: Mode, first_page: u64, sender: &SyncSender<Event>) {
    let ranges: Vec<(Gpa, u64)> = ram
        .ranges
        .iter()
        .map(|range| (Gpa(range.gpa), range.len))
        .collect();
    let found = RootFinder::default().find(&mode, ram, &ranges, &mut |_| {});
    // Nobody receives any more: the watch is over.
    let mut give = |event| drop(sender.send(event));
    let pass = Sampler::among(roots, first_page).pass(ram, &mode, &found.roots, &mut give, &mut |_| {});
    give(Event::Counters(vec![
        ("attached_roots_found", found.roots.len() as u64),
        ("attached_pages_mapped", pass.mapped),
        ("attached_frames_read", pass.frames),
        ("attached_frames_unreadable", pass.unreadable),
        (
            "attached_pages_left_out",
            pass.left_out + pass.cut_short + u64::from(found.cut_short),
        ),
    ]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_waiting_events_are_on_their_way_and_the_search_waits_until_they_are_taken() {
        let (sender, events) = sync_channel(MAX_WAITING);
        let around = Around { events };
        let event = || Event::Counters(Vec::new());
        let mut sent = 0;
        while sender.try_send(event()).is_ok() {
            sent += 1;
        }
        assert_eq!(sent, MAX_WAITING);
        let mut out = Vec::new();
        assert!(around.take(&mut out), "there is more to come");
        assert_eq!(out.len(), MAX_WAITING);
        sender.try_send(event()).unwrap();
        drop(sender);
        assert!(!around.take(&mut out), "that was all");
        assert_eq!(out.len(), MAX_WAITING + 1);
    }
}
