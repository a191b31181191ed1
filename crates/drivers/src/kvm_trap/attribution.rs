//! Who runs a page that another address space ran first.
//!
//! Nested page tables belong to the VM: the first fetch from a frame names one root, and those that fetch from it later
//! raise nothing. So the page tables of every root that a vCPU was seen with are read now and then: what they let
//! user code execute, and was accessed, is counted as executed, if the frame still is what was captured: one that was
//! written since may hold another file, and only what is executable now was executed as it is. Sampled, and said to be.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nephoscope_guest::{
    CodeCaptured, Event, Executed, Gap, Gpa, MemoryFault, PAGE_SIZE, PageId, PhysicalMemory, Privilege, Root,
    VcpuId,
};
use nephoscope_isa::{Bounds, Mode, Recent, Roots, Walker, Want};
use nephoscope_wire::RamRange;

use super::missed::Missed;

/// A root that goes on being seen is read again so often.
const AGAIN: Duration = Duration::from_millis(50);
/// Work of one walk: it stops tables that never end.
const BOUNDS: Bounds = Bounds {
    tables: 2048,
    leaves: 1 << 16,
};
/// Roots that are remembered. Forgetting them only means to read them again.
const MAX_ROOTS: usize = 1 << 14;

/// Guest memory by way of the VMM's process.
#[derive(Debug)]
pub(super) struct Ram {
    process: File,
    pub(super) ranges: Vec<RamRange>,
}

impl Ram {
    /// The same once more.
    fn again(&self) -> std::io::Result<Self> {
        Ok(Self {
            process: self.process.try_clone()?,
            ranges: self.ranges.clone(),
        })
    }

    fn host(&self, gpa: u64) -> Option<u64> {
        let found = self
            .ranges
            .iter()
            .find(|range| gpa.wrapping_sub(range.gpa) < range.len)?;
        Some(found.hva + (gpa - found.gpa))
    }
}

impl PhysicalMemory for Ram {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        let fault = MemoryFault { at };
        let last = at.0.checked_add(buf.len() as u64 - 1).ok_or(fault)?;
        let (first, last) = (self.host(at.0).ok_or(fault)?, self.host(last).ok_or(fault)?);
        if last.wrapping_sub(first) != buf.len() as u64 - 1 {
            return Err(fault);
        }
        self.process.read_exact_at(buf, first).map_err(|_| fault)
    }
}

/// Who was first.
#[derive(Clone, Copy, Debug)]
pub(super) struct First {
    frame: u64,
    page: PageId,
    generation: u32,
    root: Root,
    vcpu: VcpuId,
    user: bool,
}

impl First {
    pub(super) fn of(captured: &CodeCaptured) -> Self {
        Self {
            frame: captured.frame,
            page: captured.page,
            generation: captured.generation,
            root: captured.root,
            vcpu: captured.vcpu,
            user: captured.privilege == Privilege::User && captured.paging,
        }
    }
}

#[derive(Debug, Default)]
struct Seen {
    incarnation: u32,
    /// `None`: not since it is this address space's.
    walked: Option<Instant>,
    /// At how many looks it was seen, and at which last.
    looks: u32,
    look: u64,
    /// It was the first to run a page.
    was_first: bool,
    said: HashSet<PageId>,
}

/// What is known of roots and frames.
#[derive(Debug)]
pub(super) struct Spaces {
    ram: Option<Ram>,
    process: Option<File>,
    roots: Arc<Roots>,
    mode: Mode,
    seen: HashMap<u64, Seen>,
    recent: Recent,
    look: u64,
    missed: Missed,
    /// Roots that were seen too soon after their tables were read, with the vCPU. They are read once more.
    again: HashMap<u64, VcpuId>,
    work: Work,
    /// The page that each frame, by its host address, was captured as last, and its generation then.
    frames: HashMap<u64, (PageId, u32)>,
}

impl Seen {
    /// Whether its tables may be read again.
    fn is_due(&self) -> bool {
        self.walked.is_none_or(|walked| walked.elapsed() >= AGAIN)
    }
}

impl Missed {
    fn count(&mut self, ended: &Seen) {
        if !ended.was_first {
            self.ended(ended.looks);
        }
    }
}

/// What looking took.
#[derive(Clone, Copy, Default, Debug)]
struct Work {
    walks: u64,
    executions: u64,
}

/// Tells the generations of frames that are executable at this moment.
pub(super) trait Now {
    /// One answer for each; `None`: it is not executable, or nobody knows.
    fn generations(&self, frames: &[u64]) -> Vec<Option<u32>>;
}

impl Spaces {
    /// Memory is read through this file, `/proc/PID/mem`. Address spaces have numbers from `first` on.
    pub(super) fn new(process: File, first: u32) -> Self {
        Self {
            ram: None,
            process: Some(process),
            roots: Arc::new(Roots::numbered_from(first)),
            mode: Mode::long(),
            seen: HashMap::new(),
            recent: Recent::default(),
            look: 0,
            missed: Missed::default(),
            again: HashMap::new(),
            work: Work::default(),
            frames: HashMap::new(),
        }
    }

    pub(super) fn set_ram(&mut self, ranges: Vec<RamRange>) {
        match (&mut self.ram, self.process.take()) {
            (Some(ram), _) => ram.ranges = ranges,
            (none, Some(process)) => *none = Some(Ram { process, ranges }),
            (None, None) => {}
        }
    }

    /// Memory, and how address spaces are told apart, for somebody else who looks.
    pub(super) fn for_another(&self) -> Option<(Ram, Arc<Roots>)> {
        Some((self.ram.as_ref()?.again().ok()?, self.roots.clone()))
    }

    /// The guest's CPUs translate like this; like long mode until it is said.
    pub(super) fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// What has to be said of address spaces that nobody saw.
    pub(super) fn missed(&mut self, now_ns: u64, last: bool) -> Option<Gap> {
        self.missed.gap(now_ns, last)
    }

    /// Whoever has a root from now on is another address space.
    pub(super) fn reset(&mut self) {
        self.roots.forget();
        self.seen.clear();
        self.again.clear();
    }

    /// A frame was fetched from for the first time in this generation.
    pub(super) fn captured(&mut self, first: &First, events: &mut Vec<Event>) {
        let First {
            frame,
            page,
            generation,
            root,
            vcpu,
            user,
        } = *first;
        self.frames.insert(frame, (page, generation));
        // Kernel code belongs to the kernel, whichever root is loaded.
        if !user {
            return;
        }
        let incarnation = self.now(root);
        if let Some(seen) = self.seen.get_mut(&root.0) {
            seen.said.insert(page);
            seen.was_first = true;
        }
        events.push(Event::Executed(Executed {
            page,
            root,
            vcpu,
            incarnation,
        }));
    }

    /// Which address space the root is now, in which user code ran.
    fn now(&mut self, root: Root) -> u32 {
        let Some(ram) = &self.ram else { return 0 };
        let incarnation = self.roots.loaded(ram, &self.mode, root.0);
        self.roots.ran_user_code(ram, root.0);
        self.is(root, incarnation);
        incarnation
    }

    /// The root is this address space's.
    fn is(&mut self, root: Root, incarnation: u32) {
        if self.seen.len() >= MAX_ROOTS {
            self.seen.clear();
        }
        let seen = self.seen.entry(root.0).or_default();
        if seen.incarnation != incarnation {
            let ended = std::mem::replace(
                seen,
                Seen {
                    incarnation,
                    ..Seen::default()
                },
            );
            self.missed.count(&ended);
        }
    }

    /// A look begins. Have address spaces of late ended, so that the next ones with their roots are told apart?
    pub(super) fn look(&mut self) {
        self.look += 1;
        if let Some(ram) = &self.ram {
            self.recent.glance(&self.roots, ram);
        }
    }

    /// A vCPU was seen with this root: what it may have executed meanwhile.
    pub(super) fn seen(
        &mut self,
        root: Root,
        vcpu: VcpuId,
        mode: Mode,
        frames_now: &impl Now,
        events: &mut Vec<Event>,
    ) {
        if !self.lives(root, mode) {
            return;
        }
        self.recent.remember(root.0);
        let Some(seen) = self.seen.get_mut(&root.0) else {
            return;
        };
        if std::mem::replace(&mut seen.look, self.look) != self.look {
            seen.looks = seen.looks.saturating_add(1);
        }
        if seen.is_due() {
            self.walk(root, vcpu, mode, frames_now, events);
        } else {
            self.again.insert(root.0, vcpu);
        }
    }

    /// Those that were seen again too soon, if it is time now: who ran for a moment and sleeps is not seen another time.
    pub(super) fn seen_again(&mut self, mode: Mode, frames_now: &impl Now, events: &mut Vec<Event>) {
        let due = |root: &u64| self.seen.get(root).is_none_or(Seen::is_due);
        let now: Vec<u64> = self.again.keys().copied().filter(due).collect();
        for root in now {
            let vcpu = self.again.remove(&root).unwrap_or_default();
            if self.lives(Root(root), mode) {
                self.walk(Root(root), vcpu, mode, frames_now, events);
            }
        }
    }

    /// Whether user code may run in this root, and which address space that is now. It is asked each time: children of one process
    /// come and go in milliseconds, with one root.
    fn lives(&mut self, root: Root, mode: Mode) -> bool {
        let living = |ram| self.roots.living(ram, &mode, root.0);
        if let Some(incarnation) = self.ram.as_ref().and_then(living) {
            self.is(root, incarnation);
            return true;
        }
        if let Some(ended) = self.seen.remove(&root.0) {
            self.missed.count(&ended);
        }
        false
    }

    fn walk(&mut self, root: Root, vcpu: VcpuId, mode: Mode, frames_now: &impl Now, events: &mut Vec<Event>) {
        self.again.remove(&root.0);
        let (Some(ram), Some(seen)) = (&self.ram, self.seen.get_mut(&root.0)) else {
            return;
        };
        seen.walked = Some(Instant::now());
        self.work.walks += 1;
        let incarnation = seen.incarnation;
        let Some(user) = mode.spaces().next() else { return };
        let (mut addresses, mut found) = (Vec::new(), Vec::new());
        Walker::new(mode, ram).leaves(root, &user, Want::Executable, BOUNDS, |leaf| {
            if !leaf.accessed || leaf.size_bytes != PAGE_SIZE as u64 {
                return;
            }
            let Some(frame) = ram.host(leaf.gpa.0) else { return };
            if let Some((page, generation)) = self.frames.get(&frame)
                && !seen.said.contains(page)
            {
                addresses.push(frame);
                found.push((*page, *generation, leaf.va));
            }
        });
        let generations = frames_now.generations(&addresses);
        for ((page, generation, va), now) in found.into_iter().zip(generations) {
            if now != Some(generation) || !seen.said.insert(page) {
                continue;
            }
            events.push(Event::Executed(Executed {
                page,
                root,
                vcpu,
                incarnation,
            }));
            events.push(Event::Located { page, root, va });
            self.work.executions += 1;
        }
    }

    /// Counters: looks, roots whose tables were read, and what was found executed by that.
    pub(super) fn counters(&self) -> [(&'static str, u64); 3] {
        [
            ("kvm_looks", self.look),
            ("kvm_roots_walked", self.work.walks),
            ("kvm_executions_sampled", self.work.executions),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nephoscope_isa::X86Controls;

    use super::*;

    const PRESENT_USER: u64 = 1 | 1 << 2;
    const ACCESSED: u64 = 1 << 5;
    const CODE: u64 = 0x5000;

    /// Guest memory in this process, with the tables of one root at each of the numbers; they map `CODE` at 4 MiB.
    struct Guest {
        memory: Vec<u64>,
        ranges: Vec<RamRange>,
    }

    impl Guest {
        fn new(leaf: u64) -> Self {
            let mut memory = vec![0_u64; 6 * 512];
            let mut set = |table: usize, entry: usize, value: u64| memory[table * 512 + entry] = value;
            set(1, 0, 0x2000 | PRESENT_USER);
            set(2, 0, 0x3000 | PRESENT_USER);
            set(3, 2, 0x4000 | PRESENT_USER);
            set(4, 0, CODE | leaf);
            let range = RamRange {
                gpa: 0,
                len: 6 * 4096,
                hva: memory.as_ptr() as u64,
            };
            Self {
                memory,
                ranges: vec![range],
            }
        }

        fn spaces(&self) -> Spaces {
            let mut spaces = Spaces::new(File::open("/proc/self/mem").unwrap(), 1);
            spaces.set_ram(self.ranges.clone());
            spaces
        }

        fn frame(&self) -> u64 {
            self.memory.as_ptr() as u64 + CODE
        }
    }

    fn long_mode() -> Mode {
        let controls = X86Controls {
            cr0: 1 << 31 | 1,
            cr4: 1 << 5,
            efer: 1 << 8 | 1 << 10 | 1 << 11,
            physical_bits: 40,
            gib_pages: true,
        };
        Mode::x86(&controls).unwrap()
    }

    /// All frames are executable and of this generation.
    struct All(Option<u32>);

    impl Now for All {
        fn generations(&self, frames: &[u64]) -> Vec<Option<u32>> {
            vec![self.0; frames.len()]
        }
    }

    const NOW: All = All(Some(3));

    fn first(frame: u64, user: bool) -> First {
        First {
            frame,
            generation: 3,
            page: PageId(7),
            root: Root(0xdead_b000),
            vcpu: 0,
            user,
        }
    }

    fn executed(events: &[Event]) -> Vec<(u64, u64)> {
        let of = |event: &Event| match event {
            Event::Executed(executed) => Some((executed.root.0, executed.page.0)),
            _ => None,
        };
        events.iter().filter_map(of).collect()
    }

    #[test]
    fn who_was_first_is_told_at_once_and_who_maps_the_page_when_it_is_seen() {
        let guest = Guest::new(PRESENT_USER | ACCESSED);
        let mut spaces = guest.spaces();
        let mut events = Vec::new();
        spaces.captured(&first(guest.frame(), true), &mut events);
        assert_eq!(executed(&events), [(0xdead_b000, 7)]);
        events.clear();
        for _ in 0..2 {
            spaces.seen(Root(0x1000), 0, long_mode(), &NOW, &mut events);
        }
        assert_eq!(executed(&events), [(0x1000, 7)], "once");
        assert!(events.contains(&Event::Located {
            page: PageId(7),
            root: Root(0x1000),
            va: nephoscope_guest::Gva(0x40_0000),
        }));
    }

    /// The address spaces that are said to have executed something in this root.
    fn incarnations(events: &[Event]) -> Vec<u32> {
        let of = |event: &Event| match event {
            Event::Executed(executed) if executed.root == Root(0x1000) => Some(executed.incarnation),
            _ => None,
        };
        events.iter().filter_map(of).collect()
    }

    #[test]
    fn who_comes_after_one_that_just_ended_is_another_at_once() {
        let mut guest = Guest::new(PRESENT_USER | ACCESSED);
        let mut spaces = guest.spaces();
        let mut events = Vec::new();
        spaces.captured(&first(guest.frame(), true), &mut events);
        let see = |spaces: &mut Spaces| {
            let mut events = Vec::new();
            spaces.seen(Root(0x1000), 0, long_mode(), &NOW, &mut events);
            incarnations(&events)
        };
        let one = see(&mut spaces);
        assert_eq!(one.len(), 1);
        // With its code at another address.
        guest.memory[3 * 512 + 3] = std::mem::take(&mut guest.memory[3 * 512 + 2]);
        let two = see(&mut spaces);
        assert!(two.len() == 1 && two != one, "{one:?} {two:?}");
        // With all of them where those of the one before were, which was seen to end.
        let top = std::mem::take(&mut guest.memory[512]);
        spaces.look();
        assert!(see(&mut spaces).is_empty(), "nobody");
        guest.memory[512] = top;
        let three = see(&mut spaces);
        assert!(three.len() == 1 && three != two, "{two:?} {three:?}");
        assert!(see(&mut spaces).is_empty(), "nothing new");
    }

    #[test]
    fn who_is_seen_once_says_that_others_were_missed() {
        let mut guest = Guest::new(PRESENT_USER | ACCESSED);
        let mut spaces = guest.spaces();
        let look = |guest: &mut Guest, spaces: &mut Spaces, looks: u32| {
            let top = std::mem::take(&mut guest.memory[512]);
            spaces.look();
            guest.memory[512] = top;
            for look in 0..looks {
                if look > 0 {
                    spaces.look();
                }
                spaces.seen(Root(0x1000), 0, long_mode(), &NOW, &mut Vec::new());
                // By another CPU at the same look.
                spaces.seen(Root(0x1000), 1, long_mode(), &NOW, &mut Vec::new());
            }
        };
        for looks in [1, 1, 1, 2, 1, 5] {
            look(&mut guest, &mut spaces, looks);
        }
        // The last one lives: four were seen once, and one twice.
        assert_eq!(spaces.missed(9, true).unwrap().lost, 3);
        let captured = first(guest.frame(), true);
        for _ in 0..9 {
            look(&mut guest, &mut spaces, 1);
            let root = Root(0x1000);
            spaces.captured(&First { root, ..captured }, &mut Vec::new());
        }
        assert_eq!(
            spaces.missed(9, true),
            None,
            "who runs something first is told of in any case"
        );
    }

    #[test]
    fn a_page_that_was_not_accessed_or_may_not_be_executed_was_not_executed() {
        for leaf in [PRESENT_USER, PRESENT_USER | ACCESSED | 1 << 63] {
            let guest = Guest::new(leaf);
            let mut spaces = guest.spaces();
            let mut events = Vec::new();
            spaces.captured(&first(guest.frame(), true), &mut events);
            events.clear();
            spaces.seen(Root(0x1000), 0, long_mode(), &NOW, &mut events);
            assert_eq!(executed(&events), []);
        }
    }

    #[test]
    fn a_frame_that_was_written_since_is_not_what_it_was() {
        for now in [None, Some(4)] {
            let guest = Guest::new(PRESENT_USER | ACCESSED);
            let mut spaces = guest.spaces();
            let mut events = Vec::new();
            spaces.captured(&first(guest.frame(), true), &mut events);
            events.clear();
            spaces.seen(Root(0x1000), 0, long_mode(), &All(now), &mut events);
            assert_eq!(executed(&events), []);
        }
    }

    #[test]
    fn kernel_code_is_nobodys() {
        let guest = Guest::new(PRESENT_USER | ACCESSED);
        let mut events = Vec::new();
        guest.spaces().captured(&first(guest.frame(), false), &mut events);
        assert_eq!(executed(&events), []);
    }

    #[test]
    fn after_a_reset_a_root_is_another_address_space() {
        let guest = Guest::new(PRESENT_USER | ACCESSED);
        let mut spaces = guest.spaces();
        let mut events = Vec::new();
        spaces.captured(&first(guest.frame(), true), &mut events);
        spaces.seen(Root(0x1000), 0, long_mode(), &NOW, &mut events);
        spaces.reset();
        spaces.seen(Root(0x1000), 0, long_mode(), &NOW, &mut events);
        let incarnations = incarnations(&events);
        assert!(
            matches!(incarnations.as_slice(), [one, other] if one != other),
            "{incarnations:?}"
        );
    }

    #[test]
    fn max_roots_bounds_the_roots_that_are_remembered() {
        let guest = Guest::new(PRESENT_USER | ACCESSED);
        let mut spaces = guest.spaces();
        for root in 0..MAX_ROOTS as u64 + 9 {
            spaces.now(Root(root << 12));
        }
        assert!(spaces.seen.len() <= MAX_ROOTS);
    }
}
