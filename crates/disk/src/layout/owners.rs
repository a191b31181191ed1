//! Whose each block is.
//!
//! Runs of blocks that follow each other on the disk as in the file, in order, in lists for 32,768 blocks each: a lookup is two
//! steps and a search in a short list, and a list is cheap to make anew. (A million runs take 16 MB; a tree of them would take twice
//! that, and twice the time.)

/// Blocks of a list.
const SPAN: u64 = 1 << 15;

/// Runs altogether: 256 MiB. It stops a disk in pieces of one block; of what is beyond, nobody is the owner.
const MAX_RUNS: usize = 16 << 20;

/// Who has blocks: a number that whoever keeps this gives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Owner(pub u32);

/// Blocks that follow each other, within a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    start: u16,
    /// Less one.
    more: u16,
    owner: Owner,
    /// What the first one is in the owner's file.
    file_block: u32,
}

impl Run {
    fn end(&self) -> u32 {
        u32::from(self.start) + u32::from(self.more) + 1
    }

    /// The part of it from here to there, of which something is there.
    fn part(&self, from: u32, to: u32) -> Option<Self> {
        let (from, to) = (from.max(self.start.into()), to.min(self.end()));
        let more = to.checked_sub(from)?.checked_sub(1)?;
        Some(Self {
            start: u16::try_from(from).ok()?,
            more: u16::try_from(more).ok()?,
            owner: self.owner,
            file_block: self.file_block.wrapping_add(from - u32::from(self.start)),
        })
    }
}

/// Whose each block is.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    lists: Vec<Vec<Run>>,
    runs: usize,
    left_out: u64,
}

impl Owners {
    /// Nobody's, of so many blocks.
    #[must_use]
    pub fn new(blocks: u64) -> Self {
        let lists = usize::try_from(blocks.div_ceil(SPAN)).unwrap_or(0);
        Self {
            lists: vec![Vec::new(); lists],
            ..Self::default()
        }
    }

    /// Who has this block, and which one of its file it is.
    #[must_use]
    pub fn get(&self, block: u64) -> Option<(Owner, u32)> {
        let (list, at) = place(block)?;
        let list = self.lists.get(list)?;
        let after = list.partition_point(|run| u32::from(run.start) <= at);
        let run = list.get(after.checked_sub(1)?)?;
        let within = at.checked_sub(run.start.into())?;
        (at < run.end()).then_some((run.owner, run.file_block.wrapping_add(within)))
    }

    /// From now on these blocks are this one's, whose they were before.
    pub fn set(&mut self, block: u64, len: u32, owner: Owner, file_block: u32) {
        self.each(block, len, |list, from, to, before| {
            let new = Run {
                start: u16::try_from(from).unwrap_or(u16::MAX),
                more: u16::try_from(to - from - 1).unwrap_or(u16::MAX),
                owner,
                file_block: file_block.wrapping_add(before),
            };
            replace(list, from, to, |_| true, Some(new));
        });
    }

    /// From now on these blocks are nobody's, as far as they were this one's.
    pub fn clear(&mut self, block: u64, len: u32, owner: Owner) {
        self.each(block, len, |list, from, to, _| {
            replace(list, from, to, |run| run.owner == owner, None);
        });
    }

    /// Blocks that are kept as nobody's, because there is no room for more runs.
    #[must_use]
    pub const fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Does something with each list that these blocks are in: the list, from where to where in it, and how many blocks were in
    /// those before.
    fn each(&mut self, block: u64, len: u32, mut work: impl FnMut(&mut Vec<Run>, u32, u32, u32)) {
        let (mut block, mut left, mut before) = (block, len, 0_u32);
        while left > 0 {
            let Some((list, from)) = place(block) else { return };
            let room = u32::try_from(SPAN).unwrap_or(u32::MAX) - from;
            let now = left.min(room);
            let Some(list) = self.lists.get_mut(list) else {
                return;
            };
            let had = list.len();
            // A change adds two runs at most.
            if self.runs + 2 > MAX_RUNS {
                self.left_out = self.left_out.saturating_add(now.into());
                replace(list, from, from + now, |_| true, None);
            } else {
                work(list, from, from + now, before);
            }
            self.runs = (self.runs + list.len()).saturating_sub(had);
            block = block.saturating_add(now.into());
            before = before.wrapping_add(now);
            left -= now;
        }
    }
}

/// Its list, and where in it.
fn place(block: u64) -> Option<(usize, u32)> {
    let list = usize::try_from(block / SPAN).ok()?;
    Some((list, u32::try_from(block % SPAN).ok()?))
}

/// Takes off what lies from here to there and is meant, and puts something there.
fn replace(list: &mut Vec<Run>, from: u32, to: u32, meant: impl Fn(&Run) -> bool, new: Option<Run>) {
    let first = list.partition_point(|run| run.end() <= from);
    let last = list.partition_point(|run| u32::from(run.start) < to);
    let mut kept: Vec<Run> = Vec::new();
    for run in list.get(first..last).unwrap_or_default() {
        if meant(run) {
            kept.extend(run.part(0, from));
            kept.extend(run.part(to, u32::MAX));
        } else {
            kept.push(*run);
        }
    }
    kept.extend(new);
    kept.sort_unstable_by_key(|run| run.start);
    list.splice(first..last.max(first), kept);
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_run_may_reach_over_lists() {
        let mut owners = Owners::new(4 * SPAN);
        owners.set(SPAN - 2, 40_000, Owner(1), 10);
        assert_eq!(owners.get(SPAN - 3), None);
        assert_eq!(owners.get(SPAN - 2), Some((Owner(1), 10)));
        assert_eq!(owners.get(SPAN), Some((Owner(1), 12)));
        assert_eq!(owners.get(SPAN - 2 + 39_999), Some((Owner(1), 10 + 39_999)));
        assert_eq!(owners.get(SPAN - 2 + 40_000), None);
        owners.set(9 * SPAN, 1, Owner(1), 0);
        assert_eq!(owners.get(9 * SPAN), None, "beyond the end");
    }

    #[test]
    fn max_runs_bounds_a_disk_in_pieces() {
        let mut owners = Owners::new(4 * SPAN);
        owners.set(5, 1, Owner(1), 0);
        owners.runs = MAX_RUNS - 1;
        owners.set(5, 3, Owner(2), 0);
        assert_eq!(
            (owners.get(5), owners.left_out()),
            (None, 3),
            "not the old owner's"
        );
    }

    #[derive(Clone, Debug)]
    enum Change {
        Set(u64, u32, u32, u32),
        Clear(u64, u32, u32),
    }

    fn change() -> impl Strategy<Value = Change> {
        let near = prop_oneof![0_u64..200, SPAN - 100..SPAN + 100];
        let len = prop_oneof![0_u32..30, 32_760_u32..32_800];
        (any::<bool>(), near, len, 0_u32..4, 0_u32..1000).prop_map(|(set, at, len, owner, file)| {
            if set {
                Change::Set(at, len, owner, file)
            } else {
                Change::Clear(at, len, owner)
            }
        })
    }

    proptest! {
        /// The same as a table of all blocks.
        #[test]
        fn it_says_what_a_table_of_blocks_says(changes in prop::collection::vec(change(), 0..30)) {
            let blocks = 3 * SPAN;
            let (mut owners, mut table) = (Owners::new(blocks), HashMap::new());
            for change in changes {
                match change {
                    Change::Set(at, len, owner, file) => {
                        owners.set(at, len, Owner(owner), file);
                        for n in 0..len {
                            table.insert(at + u64::from(n), (Owner(owner), file + n));
                        }
                    }
                    Change::Clear(at, len, owner) => {
                        owners.clear(at, len, Owner(owner));
                        for n in 0..len {
                            let block = at + u64::from(n);
                            if table.get(&block).is_some_and(|(has, _)| *has == Owner(owner)) {
                                table.remove(&block);
                            }
                        }
                    }
                }
            }
            for block in 0..blocks {
                prop_assert_eq!(owners.get(block), table.get(&block).copied(), "block {}", block);
            }
            let kept: usize = owners.lists.iter().map(Vec::len).sum();
            prop_assert_eq!(kept, owners.runs);
        }
    }
}
