//! Modules that may still be several files, and the pages that would tell.
//!
//! Two versions of a library can have the same bytes in every page that ran. What an address space maps of the file
//! without executing it (its headers, its build ID, its constants) differs sooner. So for such a module, and for no
//! other, the driver's side reads mapped pages and gives them to the session.

use std::collections::HashMap;
use std::ops::Range;

use nephoscope_guest::{Gva, Root};
use nephoscope_inventory::{AddressSpace, Inventory, ObjectFacts, SpaceId, SpaceKind, modules_of};

/// Addresses in which a module lies that may be several files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ambiguous {
    /// In which address space.
    pub space: SpaceId,
    /// Its root.
    pub root: Root,
    /// From the first page of the file's constant bytes to behind the last.
    pub range: Range<Gva>,
}

/// A larger file than this is looked at in its first part only: it stops a file whose headers claim all addresses.
const MAX_RANGE: u64 = 256 << 20;

/// Address spaces looked at anew in one look, which it keeps short: a guest can start hundreds of processes meanwhile. The
/// next look goes on with the others.
const MAX_LOOKED_AT: usize = 64;

/// What was found, by address space, until the address space changes.
#[derive(Debug, Default)]
pub(crate) struct Narrow {
    found: HashMap<SpaceId, (u32, Vec<Range<Gva>>)>,
    /// The last that was looked at. The next look begins behind it: who changes all the time keeps nobody from a turn.
    last: Option<SpaceId>,
    /// Files that are looked at in their first part only.
    pub(crate) cut: u64,
}

impl Narrow {
    /// The ambiguous modules of the living.
    pub(crate) fn look(
        &mut self,
        inventory: &Inventory,
        facts: &(impl ObjectFacts + ?Sized),
    ) -> Vec<Ambiguous> {
        let mut all = Vec::new();
        let mut living = HashMap::new();
        let mut left = MAX_LOOKED_AT;
        let users = |s: &&AddressSpace| s.is_living() && s.kind == SpaceKind::User;
        let spaces: Vec<&AddressSpace> = inventory.spaces().filter(users).collect();
        let (had, next) = spaces.split_at(spaces.partition_point(|space| Some(space.id) <= self.last));
        for space in next.iter().chain(had) {
            let known = self.found.remove(&space.id);
            let (version, ranges) = match known {
                Some((at, ranges)) if at == space.version || left == 0 => (at, ranges),
                None if left == 0 => continue,
                _ => {
                    left -= 1;
                    self.last = Some(space.id);
                    (space.version, ranges(space, inventory, facts, &mut self.cut))
                }
            };
            all.extend(ranges.iter().map(|range| Ambiguous {
                space: space.id,
                root: space.root,
                range: range.clone(),
            }));
            living.insert(space.id, (version, ranges));
        }
        self.found = living;
        all
    }
}

fn ranges(
    space: &AddressSpace,
    inventory: &Inventory,
    facts: &(impl ObjectFacts + ?Sized),
    cut: &mut u64,
) -> Vec<Range<Gva>> {
    let modules = modules_of(space, inventory, facts);
    let ambiguous = modules.iter().filter(|module| module.candidates.len() > 1);
    let placed = ambiguous.filter_map(|module| Some((module.bias?, &module.candidates)));
    placed
        .map(|(bias, candidates)| {
            let images = || candidates.iter().map(|object| facts.read_only(*object));
            let start = images().map(|image| image.start).min().unwrap_or(0);
            let end = images().map(|image| image.end).max().unwrap_or(0);
            let most = start.saturating_add(MAX_RANGE);
            *cut += u64::from(end > most);
            let end = end.min(most);
            Gva(start.wrapping_add(bias))..Gva(end.wrapping_add(bias))
        })
        .filter(|range| range.start < range.end)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nephoscope_catalog::ObjectId;
    use nephoscope_guest::{Executed, Gpa, PageId, Privilege};
    use nephoscope_inventory::{Identified, PageRecord, Place, Verdict};
    use nephoscope_recipe::ObjectKind;

    use super::*;

    /// Where the one page of every program is linked and runs.
    const LINK: u64 = 0x1000;
    const VA: u64 = 0x40_1000;

    /// Libraries whose constant bytes, as linked, are these.
    struct Files(Range<u64>);

    impl ObjectFacts for Files {
        fn kind(&self, _: ObjectId) -> Option<ObjectKind> {
            Some(ObjectKind::SharedObject)
        }

        fn read_only(&self, _: ObjectId) -> Range<u64> {
            self.0.clone()
        }
    }

    /// So many address spaces, each with a page that may be of two files.
    fn spaces(count: u64) -> Inventory {
        let mut inventory = Inventory::default();
        for number in 1..=count {
            let place = |object| Place {
                object: ObjectId(object),
                part: None,
                link: LINK,
            };
            let record = PageRecord {
                id: PageId(number),
                at_ns: number,
                gpa: Some(Gpa(number << 12)),
                frame: number,
                generation: 0,
                root: Root(number << 12),
                va: Gva(VA),
                privilege: Privilege::User,
                paging: true,
                bits: 64,
                first: 0,
                digest: [0; 32],
                verdict: Arc::new(Verdict::Identified(Identified {
                    places: vec![place(1), place(2)],
                    ..Identified::default()
                })),
                executed: vec![(0, 1)],
            };
            inventory.captured(record, &mut Vec::new());
            let executed = Executed {
                page: PageId(number),
                root: Root(number << 12),
                vcpu: 0,
                incarnation: u32::try_from(number).unwrap(),
            };
            inventory.executed(number, executed, &mut Vec::new());
        }
        inventory
    }

    #[test]
    fn max_range_stops_a_file_whose_headers_claim_all_addresses() {
        let look = |range| {
            let mut narrow = Narrow::default();
            let found = narrow.look(&spaces(1), &Files(range));
            let [only] = found.as_slice() else {
                panic!("{found:?}");
            };
            (only.range.start.0, only.range.end.0, narrow.cut)
        };
        assert_eq!(look(0..MAX_RANGE), (VA - LINK, VA - LINK + MAX_RANGE, 0));
        assert_eq!(look(0..MAX_RANGE + 1), (VA - LINK, VA - LINK + MAX_RANGE, 1));
        assert_eq!(look(LINK..u64::MAX), (VA, VA + MAX_RANGE, 1));
    }

    #[test]
    fn max_looked_at_bounds_one_look_and_the_next_goes_on_with_the_others() {
        let most = MAX_LOOKED_AT as u64;
        let inventory = spaces(2 * most + 3);
        let files = Files(0..0x3000);
        let mut narrow = Narrow::default();
        let mut found = || {
            let found = narrow.look(&inventory, &files);
            let spaces: std::collections::BTreeSet<_> = found.iter().map(|f| f.space.0).collect();
            spaces.len() as u64
        };
        assert_eq!([found(), found(), found()], [most, 2 * most, 2 * most + 3]);
    }
}
