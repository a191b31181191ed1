//! What a watch has to write down so that another one can go on after it: the inventory, change by change.

use std::collections::BTreeSet;
use std::sync::Arc;

use nephoscope_guest::{Gva, PageId, Root};
use serde::{Deserialize, Serialize};

use crate::inventory::Inventory;
use crate::page::PageRecord;
use crate::report::{PageCounts, PagesReport, SummaryReport};
use crate::space::{AddressSpace, SpaceId, SpaceKind};
use crate::verdict::Verdict;

/// One fact of an inventory. Later ones of the same thing replace earlier ones.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// A page.
    Page(PageRecord),
    /// The bytes of a page that ran, all of them.
    Executed {
        /// Which page.
        page: PageId,
        /// [`PageRecord::executed`].
        ranges: Vec<(u16, u16)>,
    },
    /// An address space, without its pages.
    Space(KeptSpace),
    /// An address space executed a page.
    Ran {
        /// Who.
        space: SpaceId,
        /// What.
        page: PageId,
        /// Where it sees it.
        va: Option<Gva>,
    },
    /// An address space maps a page that was looked at.
    Mapped {
        /// Who.
        space: SpaceId,
        /// Where.
        va: Gva,
        /// What it is.
        #[serde(with = "shared")]
        verdict: Arc<Verdict>,
    },
    /// A page is not among those any more that an address space is told to have executed.
    Left {
        /// Who.
        space: SpaceId,
        /// What.
        page: PageId,
    },
    /// An address space is only counted from now on.
    Gone {
        /// Which.
        space: SpaceId,
    },
    /// Incarnations of address spaces that are only counted: from the first to before the last.
    Summarised {
        /// The first.
        first: u64,
        /// Behind the last.
        end: u64,
    },
    /// Pages that are only counted.
    Forgotten {
        /// The first.
        first: u64,
        /// Behind the last.
        end: u64,
    },
    /// Address spaces of one program that are only counted.
    Summary(SummaryReport),
    /// How much is only counted.
    Totals(Totals),
}

/// Numbers of what the inventory does not hold any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Forgotten pages by class and verdict.
    pub forgotten: PagesReport,
    /// How many they are.
    pub forgotten_count: u64,
    /// Executions told after their page or address space had been reduced to a number.
    pub late: u64,
    /// Executions whose page never came.
    pub dropped: u64,
    /// The highest number of an address space.
    pub last_id: u32,
    /// When the machine was reset last.
    #[serde(default)]
    pub reset_ns: Option<u64>,
}

/// Verdicts are shared in memory, and written each by itself.
pub(crate) mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<T: Serialize, S: Serializer>(value: &Arc<T>, to: S) -> Result<S::Ok, S::Error> {
        (**value).serialize(to)
    }

    pub(crate) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(from).map(Arc::new)
    }
}

/// An address space as it is written down: [`AddressSpace`] has the words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of `AddressSpace`")]
pub struct KeptSpace {
    pub id: SpaceId,
    pub root: Root,
    pub incarnation: u32,
    pub kind: SpaceKind,
    pub first_ns: u64,
    pub last_ns: u64,
    pub ended_ns: Option<u64>,
    #[serde(default)]
    pub unlisted: PageCounts,
}

impl KeptSpace {
    pub(crate) fn empty(self) -> AddressSpace {
        AddressSpace {
            id: self.id,
            root: self.root,
            incarnation: self.incarnation,
            kind: self.kind,
            first_ns: self.first_ns,
            last_ns: self.last_ns,
            ended_ns: self.ended_ns,
            pages: std::collections::BTreeMap::new(),
            mapped: std::collections::BTreeMap::new(),
            code_mapped: std::collections::BTreeMap::new(),
            unlisted: self.unlisted,
            anchors: std::collections::BTreeMap::new(),
            listed_from: PageId(0),
            version: 0,
        }
    }

    fn of(space: &AddressSpace) -> Self {
        Self {
            id: space.id,
            root: space.root,
            incarnation: space.incarnation,
            kind: space.kind,
            first_ns: space.first_ns,
            last_ns: space.last_ns,
            ended_ns: space.ended_ns,
            unlisted: space.unlisted,
        }
    }
}

/// What changed. In this order it can be taken again: pages and address spaces before what ties them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Touched {
    Page(PageId),
    Extended(PageId),
    Space(SpaceId),
    Ran(SpaceId, PageId),
    Mapped(SpaceId, Gva),
    Gone(SpaceId),
    Summarised(u32),
    Forgotten(PageId),
}

/// What changed since somebody asked, once somebody has. Whoever asks once asks again and again, or says that it is over
/// ([`Inventory::changes_end`]).
#[derive(Debug, Default)]
pub(crate) struct Touches {
    set: Option<BTreeSet<Touched>>,
    totals: Totals,
}

impl Touches {
    pub(crate) fn add(&mut self, touched: Touched) {
        if let Some(set) = &mut self.set {
            set.insert(touched);
        }
    }
}

impl Inventory {
    /// What changed since the last call; everything there is at the first.
    pub fn changes(&mut self) -> Vec<Record> {
        let summaries = self.summaries.take_changed();
        let Some(touched) = self.touched.set.replace(BTreeSet::new()) else {
            self.touched.totals = self.totals();
            return self.everything();
        };
        // Of a page that is written down whole, what ran of it is too.
        let is_news =
            |t: &Touched| !matches!(t, Touched::Extended(page) if touched.contains(&Touched::Page(*page)));
        let news = touched.iter().filter(|t| is_news(t));
        let mut records: Vec<Record> = news.filter_map(|t| self.record(*t)).collect();
        records.extend(summaries.into_iter().map(Record::Summary));
        let totals = self.totals();
        if totals != self.touched.totals {
            self.touched.totals = totals;
            records.push(Record::Totals(totals));
        }
        records
    }

    /// Nobody will ask what changed any more.
    pub fn changes_end(&mut self) {
        self.touched = Touches::default();
    }

    /// Everything, as [`Inventory::changes`] gives it.
    #[must_use]
    pub fn everything(&self) -> Vec<Record> {
        let mut all: Vec<Touched> = self.pages().map(|page| Touched::Page(page.id)).collect();
        // What lies in a frame now comes after what lay there before.
        all.sort_unstable();
        for space in self.spaces() {
            all.push(Touched::Space(space.id));
            all.extend(space.pages.keys().map(|page| Touched::Ran(space.id, *page)));
            all.extend(space.mapped.keys().map(|va| Touched::Mapped(space.id, *va)));
        }
        let mut records: Vec<Record> = all.into_iter().filter_map(|t| self.record(t)).collect();
        let forgotten = self.pages.forgotten_ranges();
        records.extend(forgotten.map(|(first, end)| Record::Forgotten { first, end }));
        let summarised = self.summarised.iter();
        records.extend(summarised.map(|(first, end)| Record::Summarised { first, end }));
        records.extend(self.summaries.report().into_iter().map(Record::Summary));
        let totals = self.totals();
        if totals != Totals::default() {
            records.push(Record::Totals(totals));
        }
        records
    }

    fn record(&self, touched: Touched) -> Option<Record> {
        Some(match touched {
            Touched::Page(page) => Record::Page(self.page(page)?.clone()),
            Touched::Extended(page) => Record::Executed {
                page,
                ranges: self.page(page)?.executed.clone(),
            },
            Touched::Space(space) => Record::Space(KeptSpace::of(self.space(space)?)),
            Touched::Ran(space, page) => match self.space(space)?.pages.get(&page) {
                Some(va) => Record::Ran { space, page, va: *va },
                None => Record::Left { space, page },
            },
            Touched::Mapped(space, va) => Record::Mapped {
                space,
                va,
                verdict: self.space(space)?.mapped.get(&va)?.clone(),
            },
            Touched::Gone(space) => Record::Gone { space },
            Touched::Summarised(incarnation) => Record::Summarised {
                first: incarnation.into(),
                end: u64::from(incarnation) + 1,
            },
            Touched::Forgotten(page) => Record::Forgotten {
                first: page.0,
                end: page.0.saturating_add(1),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use nephoscope_guest::{Gpa, Privilege};

    use super::*;
    use crate::fixture::{self, NoNames, ran};
    use crate::verdict::Unknown;

    fn page(id: u64, privilege: Privilege, va: u64) -> PageRecord {
        PageRecord {
            gpa: Some(Gpa(id << 12)),
            digest: [7; 32],
            ..fixture::page(id, privilege, va)
        }
    }

    /// Writes down what changed and reads it into another inventory, through the text that a journal has.
    fn carry(from: &mut Inventory, to: &mut Inventory) -> usize {
        let changes = from.changes();
        for record in &changes {
            let text = serde_json::to_string(record).unwrap();
            to.restore(serde_json::from_str(&text).unwrap());
        }
        to.restored();
        changes.len()
    }

    #[test]
    fn what_was_written_down_change_by_change_is_the_same_inventory() {
        let (mut first, mut second, mut changes) = (Inventory::default(), Inventory::default(), Vec::new());
        first.captured(page(1, Privilege::User, 0x1000), &mut changes);
        first.executed(5, ran(1, 0x1000, 1), &mut changes);
        first.captured(
            page(2, Privilege::Supervisor, 0xffff_ffff_8100_0000),
            &mut changes,
        );
        carry(&mut first, &mut second);
        first.executed(9, ran(1, 0x1000, 2), &mut changes);
        let verdict = Arc::new(Verdict::Unknown(Unknown::default()));
        first.mapped(SpaceId(3), Gva(0x7000), verdict);
        first.extended(PageId(1), 8, 9);
        // Page 1 grew, space 1 ended, space 3 began, ran page 1 and maps a page; and numbers went up.
        assert_eq!(carry(&mut first, &mut second), 6);
        assert_eq!(carry(&mut first, &mut second), 0);
        let all = |inventory: &Inventory| {
            let mut all: Vec<String> = inventory.everything().iter().map(|r| format!("{r:?}")).collect();
            all.sort();
            all
        };
        assert_eq!(all(&second), all(&first));
    }

    #[test]
    fn a_restored_inventory_goes_on_with_the_same_address_spaces() {
        let (mut first, mut second, mut changes) = (Inventory::default(), Inventory::default(), Vec::new());
        for inventory in [&mut first, &mut second] {
            inventory.captured(page(1, Privilege::User, 0x1000), &mut changes);
        }
        first.executed(5, ran(1, 0x1000, 1), &mut changes);
        first.executed(6, ran(1, 0x1000, 2), &mut changes);
        carry(&mut first, &mut second);
        second.executed(7, ran(1, 0x1000, 2), &mut changes);
        assert_eq!(second.spaces().count(), 2, "the second goes on");
        second.executed(8, ran(1, 0x1000, 3), &mut changes);
        let ended: Vec<_> = second.spaces().map(|space| space.ended_ns).collect();
        assert_eq!(ended, [Some(6), Some(8), None]);
    }

    #[test]
    fn of_a_page_that_ran_more_only_what_ran_is_written_again() {
        let (mut first, mut second, mut changes) = (Inventory::default(), Inventory::default(), Vec::new());
        first.captured(page(1, Privilege::User, 0x1000), &mut changes);
        carry(&mut first, &mut second);
        first.extended(PageId(1), 8, 9);
        let ranges = first.page(PageId(1)).unwrap().executed.clone();
        let record = Record::Executed {
            page: PageId(1),
            ranges: ranges.clone(),
        };
        assert_eq!(first.changes(), std::slice::from_ref(&record));
        second.restore(record);
        assert_eq!(second.page(PageId(1)).unwrap().executed, ranges);
        first.captured(page(2, Privilege::User, 0x2000), &mut changes);
        first.extended(PageId(2), 8, 9);
        assert_eq!(
            first.changes().len(),
            1,
            "a new page is written with what ran of it"
        );
    }

    #[test]
    fn a_restored_inventory_knows_of_the_reset_too() {
        let (mut first, mut second, mut changes) = (Inventory::default(), Inventory::default(), Vec::new());
        first.captured(page(1, Privilege::User, 0x1000), &mut changes);
        first.captured(
            page(2, Privilege::Supervisor, 0xffff_ffff_8100_0000),
            &mut changes,
        );
        first.reset(10, &mut changes);
        carry(&mut first, &mut second);
        let straggler = PageRecord {
            at_ns: 9,
            ..page(3, Privilege::Supervisor, 0xffff_ffff_8100_0000)
        };
        second.captured(straggler, &mut changes);
        second.executed(9, ran(1, 0x1000, 1), &mut changes);
        let ended: Vec<_> = second.spaces().map(|space| space.ended_ns).collect();
        assert_eq!(
            ended,
            [Some(10), Some(10)],
            "the old kernel, and a process of before"
        );
    }

    #[test]
    fn what_is_only_counted_is_written_down_too() {
        let (mut first, mut second, mut changes) = (Inventory::default(), Inventory::default(), Vec::new());
        carry(&mut first, &mut second);
        // Generations without end of one frame, and processes without end; some of them are written down before they go.
        for id in 1..=20_000 {
            let generation = PageRecord {
                frame: 0x7000,
                ..page(id, Privilege::User, 0x1000)
            };
            first.captured(generation, &mut changes);
            first.executed(id, ran(id, 0x1000, u32::try_from(id).unwrap()), &mut changes);
            if id % 999 == 0 {
                first.summarise(id, &NoNames, &mut changes);
                carry(&mut first, &mut second);
            }
        }
        first.summarise(20_000, &NoNames, &mut changes);
        carry(&mut first, &mut second);
        let mut anew = Inventory::default();
        first
            .everything()
            .into_iter()
            .for_each(|record| anew.restore(record));
        anew.restored();
        for other in [&mut second, &mut anew] {
            assert_eq!(other.summaries().report(), first.summaries().report());
            assert_eq!((other.counts(), other.totals()), (first.counts(), first.totals()));
            let spaces = |of: &Inventory| of.spaces().map(|s| (s.id, s.pages.clone())).collect::<Vec<_>>();
            assert_eq!(spaces(other), spaces(&first));
            // What is told of one that is only counted is no new address space, and its page is not waited for.
            let (late, count) = (other.late(), other.spaces().count());
            other.executed(20_001, ran(1, 0x1000, 1), &mut changes);
            assert_eq!((other.late(), other.spaces().count()), (late + 1, count));
        }
    }
}
