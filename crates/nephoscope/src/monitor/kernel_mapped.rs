//! Reads what the kernel has mapped executable and did not run, when a page that ran may depend on it.
//!
//! A page that calls a function of another module is only right if that module lies where the call leads. If no page of
//! it ran, its mapped ones are looked at.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nephoscope_finding::Sink;
use nephoscope_guest::{Gpa, Gva, PAGE_SIZE, PageBytes, PhysicalMemory, Root};
use nephoscope_isa::{Bounds, Mode, Walker, Want};
use nephoscope_pipeline::{KernelLook, Session};

use super::paced::Paced;

/// Linux's kernel and modules are in the last 2 GiB, which is as far as their calls reach
/// (`Documentation/arch/x86/x86_64/mm.rst`).
const FROM: Gva = Gva(0xffff_ffff_8000_0000);
const TO: Gva = Gva(u64::MAX);
/// Work of one walk: it stops tables that never end.
const BOUNDS: Bounds = Bounds {
    tables: 4096,
    leaves: 1 << 16,
};
/// Pages given to the session before others have their turn.
const MAX_AT_ONCE: usize = 64;
/// Pages given in one look; the next goes on with the rest, and what the last one leaves is counted.
const MAX_PAGES: usize = 4096;
/// Pages whose contents are remembered; then all are read anew.
const MAX_KNOWN: usize = 64 << 10;
/// A module is there before its first instruction runs and may be gone soon after, so the first look is at once. Another follows
/// for what was being changed meanwhile.
const LOOKS: u8 = 2;
/// Between a look and the next for another page.
const PAUSE: Duration = Duration::from_millis(5);
/// Between a look and the next for the same page.
const AGAIN: Duration = Duration::from_millis(60);
/// A look that was due and could not be made for so long is not waited for: nobody says how the guest translates, or its memory is
/// out of reach.
const STUCK: Duration = Duration::from_secs(10);

/// When to look, and what was there.
#[derive(Debug)]
pub(super) struct KernelMapped {
    /// Where, and how many looks are left.
    pending: Option<(Root, u8)>,
    under_way: Option<Look>,
    looked: Instant,
    /// How long the last look took, without what was done between its parts.
    took: Duration,
    /// Since when a look is due and cannot be made.
    stuck: Option<Instant>,
    /// The look before, if it was cut short.
    cut: Option<KernelLook>,
    known: HashMap<Gva, Given>,
    left_out: u64,
}

/// A page that the session was given.
#[derive(Clone, Copy, Debug)]
struct Given {
    digest: [u8; 32],
    /// What was known of where images lie, if the page was given in vain: it is given again when more is.
    in_vain_at: Option<u64>,
}

/// A look that is under way.
#[derive(Debug)]
struct Look {
    look: KernelLook,
    leaves: std::vec::IntoIter<(Gva, Gpa)>,
    given: usize,
    took: Duration,
}

impl Given {
    /// Whether a page with this digest may tell more than when it was given.
    fn is_news(&self, digest: &[u8; 32], placements: u64) -> bool {
        self.digest != *digest || self.in_vain_at.is_some_and(|at| at != placements)
    }
}

impl Default for KernelMapped {
    fn default() -> Self {
        Self {
            pending: None,
            under_way: None,
            looked: Instant::now(),
            took: Duration::ZERO,
            stuck: None,
            cut: None,
            known: HashMap::new(),
            left_out: 0,
        }
    }
}

impl KernelMapped {
    /// Whether it is time to look, or to go on with it: rarely where looking takes long and what ran waits for its turn meanwhile.
    pub(super) fn is_due(&mut self, session: &mut Session, behind: bool) -> bool {
        if let Some(root) = session.lacking() {
            self.pending = Some((root, LOOKS));
        }
        let pause = match self.pending {
            Some((_, LOOKS)) => PAUSE,
            _ => AGAIN,
        };
        let pause = if behind {
            Paced::pause(pause, self.took)
        } else {
            pause.max(self.took)
        };
        self.under_way.is_some() || self.pending.is_some() && self.looked.elapsed() >= pause
    }

    /// Whether there is a look under way, or one to come that can.
    pub(super) fn is_at_it(&self) -> bool {
        let is_stuck = self.stuck.is_some_and(|since| since.elapsed() >= STUCK);
        (self.under_way.is_some() || self.pending.is_some()) && !is_stuck
    }

    /// It was time to look, and it could not be done.
    pub(super) fn cannot(&mut self) {
        self.stuck.get_or_insert_with(Instant::now);
    }

    /// The machine was reset: what was read was of before, and the session knows nothing of it any more.
    pub(super) fn forget(&mut self) {
        (self.pending, self.under_way, self.cut) = (None, None, None);
        self.known.clear();
    }

    /// Gives the session pages that it has not had with these contents, or could not place, a few at once, until all were looked
    /// at.
    pub(super) fn look(
        &mut self,
        session: &mut Session,
        mode: Mode,
        memory: &impl PhysicalMemory,
        now_ns: u64,
        sinks: &mut [&mut dyn Sink],
    ) {
        let now = Instant::now();
        let Some(mut look) = self
            .under_way
            .take()
            .or_else(|| self.begin(session, mode, memory, now_ns))
        else {
            return;
        };
        self.stuck = None;
        for _ in 0..MAX_AT_ONCE {
            if look.given == MAX_PAGES {
                break;
            }
            let Some((va, digest, bytes)) = self.next_of(&mut look, session, memory) else {
                self.cut = None;
                look.took += now.elapsed();
                session.looked_in_kernel(look.look, sinks);
                return self.end(look, session);
            };
            look.given += 1;
            let is_placed = session.mapped_by_kernel(va, &bytes);
            let in_vain_at = (!is_placed).then(|| session.placements());
            self.known.insert(va, Given { digest, in_vain_at });
        }
        look.took += now.elapsed();
        if look.given == MAX_PAGES {
            // A kernel whose pages change faster than they are read is not waited for.
            if let Some(before) = self.cut.replace(look.look) {
                session.looked_in_kernel(before, sinks);
            }
            self.end(look, session);
        } else {
            self.under_way = Some(look);
        }
    }

    fn begin(
        &mut self,
        session: &mut Session,
        mode: Mode,
        memory: &impl PhysicalMemory,
        now_ns: u64,
    ) -> Option<Look> {
        let (root, looks) = self.pending?;
        self.pending = looks
            .checked_sub(1)
            .filter(|left| *left > 0)
            .map(|left| (root, left));
        let mut found = Vec::new();
        let walker = Walker::new(mode, memory);
        let root = Roots::of(session).now(&walker, root);
        let census = walker.leaves(root, &(FROM..=TO), Want::Executable, BOUNDS, |leaf| {
            // What is mapped in large pages is the kernel itself, and what it makes at run time.
            if !leaf.permissions.user && leaf.size_bytes == PAGE_SIZE as u64 {
                found.push((leaf.va, leaf.gpa));
            }
        });
        session.walked(census.is_cut_short());
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        // If not all of them have their turn in one look, all have it in several.
        found.sort_by_key(|(va, _)| match self.known.get(va) {
            None => (0, 0),
            Some(Given {
                in_vain_at: Some(at), ..
            }) => (1, *at),
            Some(_) => (2, 0),
        });
        Some(Look {
            look: session.look_in_kernel_begins(now_ns),
            leaves: found.into_iter(),
            given: 0,
            took: Duration::ZERO,
        })
    }

    /// The next page with contents that are news.
    fn next_of(
        &self,
        look: &mut Look,
        session: &Session,
        memory: &impl PhysicalMemory,
    ) -> Option<(Gva, [u8; 32], PageBytes)> {
        look.leaves.find_map(|(va, gpa)| {
            let mut bytes = PageBytes::zeroed();
            memory.read(gpa, &mut bytes[..]).ok()?;
            let digest = *blake3::hash(&bytes[..]).as_bytes();
            let before = self.known.get(&va);
            let is_news = before.is_none_or(|before| before.is_news(&digest, session.placements()));
            is_news.then_some((va, digest, bytes))
        })
    }

    fn end(&mut self, look: Look, session: &mut Session) {
        (self.looked, self.took) = (Instant::now(), look.took);
        if self.pending.is_none() {
            let unread = look.leaves.filter(|(va, _)| !self.known.contains_key(va)).count();
            self.left_out = self.left_out.saturating_add(unread as u64);
            session.count("kernel_pages_left_out", self.left_out);
        }
    }
}

/// Where the kernel can be looked at now. A page that ran in a process which has ended since had a root that is none any more, or
/// another's; all processes map the kernel alike.
#[derive(Debug)]
pub(super) struct Roots {
    living: Vec<Root>,
    text: Option<(Gva, Gpa)>,
}

impl Roots {
    pub(super) fn of(session: &Session) -> Self {
        Self {
            living: session.living().map(|(_, root)| root).collect(),
            text: session.kernel_text(),
        }
    }

    /// This root if it leads to the kernel's text, or else the newest that does; this one as well if none does.
    pub(super) fn now(&self, walker: &Walker<impl PhysicalMemory>, root: Root) -> Root {
        let Some((va, gpa)) = self.text else { return root };
        let leads = |root: &Root| {
            let found = walker.translate(*root, va);
            found.is_ok_and(|found| found.gpa == gpa && found.permissions.execute_supervisor)
        };
        let mut all = std::iter::once(root).chain(self.living.iter().rev().copied());
        all.find(leads).unwrap_or(root)
    }
}

/// What is mapped executable at an address of the kernel: where it lies, and the BLAKE3 of its bytes.
pub(crate) fn there(
    mode: &Mode,
    memory: &impl PhysicalMemory,
    root: Root,
    va: Gva,
) -> Option<(Gpa, [u8; 32])> {
    let found = Walker::new(*mode, memory).translate(root, va).ok()?;
    let mut bytes = PageBytes::zeroed();
    memory.read(found.gpa, &mut bytes[..]).ok()?;
    let digest = *blake3::hash(&bytes[..]).as_bytes();
    found
        .permissions
        .execute_supervisor
        .then_some((found.gpa, digest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::fixture::{Memory, PRESENT, given, long_mode, session};

    /// A guest whose kernel has so many pages mapped executable, from the page of this number on.
    fn kernel(first: usize, pages: usize) -> (Memory, Root) {
        let mut memory = Memory::default();
        let root = Root(memory.frame());
        let text = Gpa(memory.frame());
        for number in first..first + pages {
            let va = Gva(FROM.0 + number as u64 * PAGE_SIZE as u64);
            memory.map(root, va, text, PRESENT);
        }
        (memory, root)
    }

    /// Looks so often, and says how many pages were given in all after each look.
    fn look(
        mapped: &mut KernelMapped,
        session: &mut Session,
        (memory, root): &(Memory, Root),
        looks: u8,
    ) -> Vec<usize> {
        mapped.pending = Some((*root, looks));
        let mut all = Vec::new();
        while mapped.pending.is_some() {
            mapped.look(session, long_mode(), memory, 0, &mut []);
            while mapped.under_way.is_some() {
                mapped.look(session, long_mode(), memory, 0, &mut []);
            }
            all.push(given(session));
        }
        all
    }

    #[test]
    fn a_look_that_takes_long_is_put_off_only_while_something_else_waits() {
        let mut session = session();
        let mut mapped = KernelMapped {
            pending: Some((Root(0x1000), LOOKS)),
            took: Duration::from_millis(200),
            ..KernelMapped::default()
        };
        let before = |by: u64| Instant::now().checked_sub(Duration::from_millis(by)).unwrap();
        mapped.looked = before(1000);
        assert!(!mapped.is_due(&mut session, true) && mapped.is_due(&mut session, false));
        mapped.looked = before(100);
        assert!(
            !mapped.is_due(&mut session, false),
            "as long as it took, at least"
        );
        mapped.looked = before(4000);
        assert!(mapped.is_due(&mut session, true));
    }

    #[test]
    fn max_at_once_pages_are_given_before_others_have_their_turn() {
        let (mut mapped, mut session) = (KernelMapped::default(), session());
        let (memory, root) = kernel(0, 2 * MAX_AT_ONCE + 1);
        mapped.pending = Some((root, 1));
        for pages in [MAX_AT_ONCE, 2 * MAX_AT_ONCE, 2 * MAX_AT_ONCE + 1] {
            mapped.look(&mut session, long_mode(), &memory, 0, &mut []);
            assert_eq!(given(&mut session), pages);
        }
        assert!(mapped.under_way.is_none());
    }

    #[test]
    fn where_a_process_has_ended_the_newest_living_root_is_looked_at() {
        let (mut memory, gone) = kernel(0, 0);
        let text = Gpa(memory.frame());
        let roots: Vec<Root> = (0..3).map(|_| Root(memory.frame())).collect();
        for root in &roots[..2] {
            memory.map(*root, FROM, text, PRESENT);
        }
        // One that ended, and whose table is something else now.
        let elsewhere = Gpa(memory.frame());
        memory.map(roots[2], FROM, elsewhere, PRESENT);
        let all = Roots {
            living: roots.clone(),
            text: Some((FROM, text)),
        };
        let walker = Walker::new(long_mode(), &memory);
        assert_eq!(all.now(&walker, gone), roots[1]);
        assert_eq!(all.now(&walker, roots[0]), roots[0]);
        let unknown = Roots { text: None, ..all };
        assert_eq!(unknown.now(&walker, gone), gone);
        let none = Roots {
            living: vec![roots[2]],
            text: Some((FROM, text)),
        };
        assert_eq!(none.now(&walker, gone), gone);
    }

    #[test]
    fn what_was_given_in_vain_is_news_again_when_more_is_known_of_where_images_lie() {
        let given = |in_vain_at| Given {
            digest: [1; 32],
            in_vain_at,
        };
        let news = |given: Given| [1, 2].map(|digest| [7, 8].map(|at| given.is_news(&[digest; 32], at)));
        assert_eq!(news(given(None)), [[false, false], [true, true]]);
        assert_eq!(news(given(Some(7))), [[false, true], [true, true]]);
    }

    #[test]
    fn after_a_reset_everything_is_given_again() {
        let (mut mapped, mut session) = (KernelMapped::default(), session());
        let guest = kernel(0, 7);
        assert_eq!(look(&mut mapped, &mut session, &guest, 2), [7, 7]);
        mapped.forget();
        assert_eq!(look(&mut mapped, &mut session, &guest, 2), [14, 14]);
    }

    #[test]
    fn max_pages_bounds_one_look_and_what_is_left_after_the_last_is_counted() {
        let (mut mapped, mut session) = (KernelMapped::default(), session());
        let most = MAX_PAGES * usize::from(LOOKS);
        let guest = kernel(0, most + 5);
        let all = look(&mut mapped, &mut session, &guest, LOOKS);
        assert_eq!(all, [MAX_PAGES, most]);
        let left = |session: &mut Session| session.report().counters.get("kernel_pages_left_out").copied();
        assert_eq!(left(&mut session), Some(5));
        let all = look(&mut mapped, &mut session, &guest, LOOKS);
        assert_eq!(all, [most + 5; 2], "the next that lacks something goes on");
        assert_eq!(left(&mut session), Some(5));
    }

    #[test]
    fn a_kernel_that_changes_faster_than_it_is_read_is_waited_for_until_the_second_look_was_cut_short() {
        let (mut mapped, mut session) = (KernelMapped::default(), session());
        let (memory, root) = kernel(0, 3 * MAX_PAGES);
        let mut cut = |mapped: &mut KernelMapped| {
            mapped.pending = Some((root, LOOKS));
            mapped.look(&mut session, long_mode(), &memory, 7, &mut []);
            while mapped.under_way.is_some() {
                mapped.look(&mut session, long_mode(), &memory, 7, &mut []);
            }
            mapped.cut.is_some()
        };
        // What is left is the last third.
        assert_eq!([(); 4].map(|()| cut(&mut mapped)), [true, true, true, false]);
    }

    #[test]
    fn a_look_that_cannot_begin_is_not_waited_for() {
        let mut mapped = KernelMapped::default();
        assert!(!mapped.is_at_it());
        mapped.pending = Some((Root(0), LOOKS));
        assert!(mapped.is_at_it());
        mapped.cannot();
        assert!(mapped.is_at_it());
        mapped.stuck = mapped.stuck.map(|since| since - STUCK);
        mapped.cannot();
        assert!(!mapped.is_at_it());
        let guest = kernel(0, 1);
        look(&mut mapped, &mut session(), &guest, 1);
        mapped.pending = Some((guest.1, LOOKS));
        assert!(mapped.is_at_it());
    }

    #[test]
    fn max_known_bounds_what_is_remembered_and_what_is_forgotten_is_read_again() {
        let (mut mapped, mut session) = (KernelMapped::default(), session());
        let guests: Vec<_> = (0..=MAX_KNOWN)
            .step_by(MAX_PAGES)
            .map(|first| kernel(first, MAX_PAGES))
            .collect();
        let (last, full) = guests.split_last().unwrap();
        let mut read = 0;
        for guest in full {
            read += MAX_PAGES;
            assert_eq!(look(&mut mapped, &mut session, guest, 1), [read]);
        }
        assert_eq!(mapped.known.len(), MAX_KNOWN);
        for guest in [last, &full[0]] {
            read += MAX_PAGES;
            assert_eq!(look(&mut mapped, &mut session, guest, 1), [read]);
            assert!(mapped.known.len() <= 2 * MAX_PAGES);
        }
    }
}
