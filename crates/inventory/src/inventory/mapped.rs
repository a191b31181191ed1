//! What address spaces have mapped executable, as drivers say that read memory and do not see what runs.

use std::collections::BTreeMap;

use nephoscope_guest::CodeMapped;

use super::{Change, Inventory};
use crate::space::{MappedCode, SpaceKind};

/// Pages mapped executable that are kept of one address space: 1 GiB of code, as much as a browser with all its libraries has
/// several times over. It stops a guest that maps all its memory executable.
const MAX_CODE_MAPPED: usize = 256 << 10;

impl Inventory {
    /// An address space has these pages mapped executable, and no others. Gives how many were left out: beyond
    /// [`MAX_CODE_MAPPED`], or pages that are not known.
    pub fn code_mapped(&mut self, at_ns: u64, mapped: CodeMapped, changes: &mut Vec<Change>) -> u64 {
        let id = match mapped.space {
            Some((root, incarnation)) => self.space_of(at_ns, root, incarnation, changes),
            None => self.supervisor(SpaceKind::Kernel, at_ns, changes),
        };
        let told = mapped.pages.len();
        let now: BTreeMap<_, _> = mapped
            .pages
            .into_iter()
            .filter(|mapped| self.pages.get(mapped.page).is_some())
            .take(MAX_CODE_MAPPED)
            .map(|mapped| {
                let code = MappedCode {
                    page: mapped.page,
                    accessed: mapped.accessed,
                };
                (mapped.va, code)
            })
            .collect();
        let left_out = told.saturating_sub(now.len()) as u64;
        let Some(space) = self.spaces.get_mut(&id) else {
            return left_out;
        };
        if space.code_mapped == now {
            return left_out;
        }
        space.version += 1;
        space.last_ns = space.last_ns.max(at_ns);
        for (va, code) in &now {
            let before = space.code_mapped.get(va).copied();
            let before = before.filter(|before| before.page == code.page);
            if before.is_none() {
                self.pages.use_it(code.page);
                if let Some(held) = self.pages.get(code.page) {
                    let verdict = held.verdict.clone();
                    self.anchors_left_out += space.anchor(*va, &verdict);
                }
            }
            if code.accessed && before.is_none_or(|before| !before.accessed) {
                changes.push(Change::Accessed {
                    space: id,
                    page: code.page,
                });
            }
        }
        let before = std::mem::replace(&mut space.code_mapped, now);
        let gone: Vec<_> = before
            .into_iter()
            .filter(|(va, code)| space.code_mapped.get(va).is_none_or(|now| now.page != code.page))
            .collect();
        for (_, code) in gone {
            self.pages.leave(code.page);
        }
        self.note_forgotten();
        left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::page;
    use nephoscope_guest::{Gva, MappedPage, PageId, Privilege, Root};

    fn seen(inventory: &mut Inventory, id: u64) {
        let mut page = page(id, Privilege::User, 0);
        page.executed.clear();
        inventory.captured(page, &mut Vec::new());
    }

    fn mapped(pages: &[(u64, u64, bool)]) -> CodeMapped {
        CodeMapped {
            space: Some((Root(0x1000), 1)),
            pages: pages
                .iter()
                .map(|(va, page, accessed)| MappedPage {
                    page: PageId(*page),
                    va: Gva(*va),
                    accessed: *accessed,
                })
                .collect(),
        }
    }

    #[test]
    fn what_is_mapped_replaces_what_was_and_only_what_becomes_accessed_is_a_change() {
        let mut inventory = Inventory::default();
        (1..=3).for_each(|id| seen(&mut inventory, id));
        let mut told = |pages: &[_], at_ns| {
            let mut changes = Vec::new();
            assert_eq!(inventory.code_mapped(at_ns, mapped(pages), &mut changes), 0);
            let accessed: Vec<u64> = changes
                .iter()
                .filter_map(|change| match change {
                    Change::Accessed { page, .. } => Some(page.0),
                    _ => None,
                })
                .collect();
            let now: Vec<u64> = inventory
                .spaces()
                .flat_map(|space| space.code_mapped.values().map(|code| code.page.0))
                .collect();
            (accessed, now)
        };
        assert_eq!(
            told(&[(0x1000, 1, false), (0x2000, 2, true)], 1),
            (vec![2], vec![1, 2])
        );
        assert_eq!(
            told(&[(0x1000, 1, true), (0x2000, 2, true)], 2),
            (vec![1], vec![1, 2])
        );
        assert_eq!(told(&[(0x2000, 3, true)], 3), (vec![3], vec![3]));
    }

    #[test]
    fn a_page_that_is_not_known_is_left_out_and_counted() {
        let mut inventory = Inventory::default();
        seen(&mut inventory, 1);
        let pages = [(0x1000, 1, false), (0x2000, 9, false)];
        assert_eq!(inventory.code_mapped(1, mapped(&pages), &mut Vec::new()), 1);
    }

    #[test]
    fn max_code_mapped_bounds_what_one_address_space_makes_us_keep() {
        let mut inventory = Inventory::default();
        seen(&mut inventory, 1);
        let pages: Vec<_> = (0..MAX_CODE_MAPPED as u64 + 5)
            .map(|number| (number << 12, 1, false))
            .collect();
        assert_eq!(inventory.code_mapped(1, mapped(&pages), &mut Vec::new()), 5);
        let space = inventory.spaces().next().unwrap();
        assert_eq!(space.code_mapped.len(), MAX_CODE_MAPPED);
    }
}
