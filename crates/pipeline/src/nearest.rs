//! The nearest known page, for one that equals none.

use std::collections::HashMap;
use std::sync::Arc;

use nephoscope_catalog::{Catalog, ObjectId, ReadError};
use nephoscope_guest::{Gva, PAGE_SIZE, PageBytes};
use nephoscope_inventory::{Difference, Modified, Place};
use nephoscope_recipe::{PartKind, windows};

/// A page with more different bytes than this is not a modified one: a quarter.
pub(crate) const MAX_DIFFERENT: usize = PAGE_SIZE / 4;

/// The same for a page of a file that nothing else in the address space is of: programs linked with the same libraries
/// have pages that are alike, and are not each other.
const MAX_DIFFERENT_ALONE: usize = PAGE_SIZE / 32;

/// A part that a page's windows point to, and where the page would begin in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Candidate {
    /// Windows that agree.
    pub(crate) votes: u32,
    /// The file.
    pub(crate) object: ObjectId,
    /// The part.
    pub(crate) part: u16,
    /// The page's first byte in the part.
    pub(crate) at: i64,
    /// How many more places the catalog has left out of each of these windows, at least: as many as that may hold them all.
    pub(crate) unseen: u64,
}

/// The parts that most of the page's windows point to, best first.
pub(crate) fn by_windows(
    catalog: &Catalog,
    page: &PageBytes,
    most: usize,
    wanted: impl Fn(&Candidate) -> bool,
) -> Result<Vec<Candidate>, ReadError> {
    by_these(catalog, windows::probes(&page[..]), most, wanted)
}

/// The parts that most of these windows point to, best first.
fn by_these(
    catalog: &Catalog,
    probes: impl Iterator<Item = (u64, u32)>,
    most: usize,
    wanted: impl Fn(&Candidate) -> bool,
) -> Result<Vec<Candidate>, ReadError> {
    let mut votes: HashMap<(ObjectId, u16, i64), (u32, u64)> = HashMap::new();
    for (hash, offset) in probes {
        let all = catalog.windows_counted(hash)?;
        for found in all.refs {
            let at = i64::from(found.offset) - i64::from(offset);
            let (votes, unseen) = votes
                .entry((found.object, found.part, at))
                .or_insert((0, u64::MAX));
            *votes += 1;
            *unseen = all.left_out.min(*unseen);
        }
    }
    let mut candidates: Vec<Candidate> = votes
        .into_iter()
        .map(|((object, part, at), (votes, unseen))| Candidate {
            votes,
            object,
            part,
            at,
            unseen,
        })
        .filter(wanted)
        .collect();
    candidates.sort_unstable_by_key(|c| (std::cmp::Reverse(c.votes), c.object, c.part, c.at));
    candidates.truncate(most);
    Ok(candidates)
}

/// Candidates kept per page: as many as anybody looks at.
const MAX_POINTED_TO: usize = 512;
/// Pages whose candidates are remembered. A guest that makes pages without end starts it anew.
const MAX_REMEMBERED: usize = 8192;

/// What the windows of pages point to, remembered: pages that are not decided are asked about again with all that is
/// learnt, and their windows stay what they are.
#[derive(Debug, Default)]
pub(crate) struct Pointers {
    by_digest: HashMap<[u8; 32], Arc<[Candidate]>>,
}

impl Pointers {
    /// The parts that most of the page's windows point to, best first.
    pub(crate) fn of(
        &mut self,
        catalog: &Catalog,
        digest: &[u8; 32],
        page: &PageBytes,
    ) -> Result<Arc<[Candidate]>, ReadError> {
        if let Some(known) = self.by_digest.get(digest) {
            return Ok(known.clone());
        }
        let candidates: Arc<[Candidate]> = by_windows(catalog, page, MAX_POINTED_TO, |_| true)?.into();
        if self.by_digest.len() >= MAX_REMEMBERED {
            self.by_digest.clear();
        }
        self.by_digest.insert(*digest, candidates.clone());
        Ok(candidates)
    }
}

/// The nearest page of a user program: what the neighbours' file has at this place, or what windows point to.
pub(crate) fn user(
    catalog: &Catalog,
    page: &PageBytes,
    va: Gva,
    neighbours: &[(ObjectId, u64)],
) -> Result<Option<Modified>, ReadError> {
    let mut best: Option<(usize, Modified)> = None;
    let mut consider = |object: ObjectId, link: u64, file: &[u8], most: usize| {
        let different = page.iter().zip(file).filter(|(a, b)| a != b).count();
        if file.len() == PAGE_SIZE
            && different > 0
            && different <= most
            && is_near(page, file, different)
            && best.as_ref().is_none_or(|(least, _)| different < *least)
        {
            let bytes = (0_u16..)
                .zip(file.iter().zip(page.iter()))
                .map(|(at, (before, after))| (at, *before, *after));
            let differences = runs(bytes.filter(|(_, before, after)| before != after));
            best = Some((
                different,
                Modified {
                    nearest: Place {
                        object,
                        part: None,
                        link,
                    },
                    differences,
                },
            ));
        }
    };
    for (object, bias) in neighbours {
        let link = va.0.wrapping_sub(*bias);
        let info = catalog.object(*object)?;
        for (number, about) in (0_u16..).zip(&info.parts) {
            let end = about.link.saturating_add(about.len);
            if about.kind == PartKind::UserText && about.link <= link && link < end {
                let part = catalog.part(*object, number)?;
                if let Some(file) = slice(&part.bytes, link.saturating_sub(part.link)) {
                    consider(*object, link, file, MAX_DIFFERENT);
                }
            }
        }
    }
    let page_aligned = |c: &Candidate| c.at >= 0 && c.at % 4096 == 0;
    let probes = windows::probes_for(PartKind::UserText, &page[..]);
    for candidate in by_these(catalog, probes, 8, page_aligned)? {
        let part = catalog.part(candidate.object, candidate.part)?;
        let at = u64::try_from(candidate.at).unwrap_or(u64::MAX);
        if part.kind == PartKind::UserText
            && let Some(file) = slice(&part.bytes, at)
        {
            let link = part.link.wrapping_add(at);
            let is_neighbour = neighbours.contains(&(candidate.object, va.0.wrapping_sub(link)));
            let most = if is_neighbour {
                MAX_DIFFERENT
            } else {
                MAX_DIFFERENT_ALONE
            };
            consider(candidate.object, link, file, most);
        }
    }
    Ok(best.map(|(_, modified)| modified))
}

/// Whether two pages that differ in so many bytes share three quarters of those that are not zero in one of them: padding is
/// no likeness.
fn is_near(page: &PageBytes, file: &[u8], different: usize) -> bool {
    let filled = page.iter().zip(file).filter(|(a, b)| **a != 0 || **b != 0);
    different.saturating_mul(4) <= filled.count()
}

fn slice(bytes: &[u8], at: u64) -> Option<&[u8]> {
    let at = usize::try_from(at).ok()?;
    bytes.get(at..at.checked_add(PAGE_SIZE)?)
}

/// Different bytes as runs: offset, before, after.
pub(crate) fn runs(bytes: impl Iterator<Item = (u16, u8, u8)>) -> Vec<Difference> {
    let mut runs: Vec<Difference> = Vec::new();
    for (offset, before, after) in bytes {
        match runs.last_mut() {
            Some(run) if usize::from(run.offset) + run.after.len() == usize::from(offset) => {
                run.before.push(before);
                run.after.push(after);
            }
            _ => runs.push(Difference {
                offset,
                before: vec![before],
                after: vec![after],
            }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{self, Module, noise, program};

    /// The page with the bytes at these places changed.
    fn changed(page: &[u8], places: impl Iterator<Item = usize>) -> PageBytes {
        let mut bytes = fixture::page(page);
        places.for_each(|at| bytes[at] = !bytes[at]);
        bytes
    }

    /// How many bytes it differs in from the nearest page, if one is near.
    fn different(catalog: &Catalog, bytes: &PageBytes, neighbours: &[(ObjectId, u64)]) -> Option<usize> {
        let nearest = user(catalog, bytes, Gva(0x40_1000), neighbours).unwrap()?;
        Some(nearest.differences.iter().map(|run| run.after.len()).sum())
    }

    #[test]
    fn max_different_is_for_the_page_that_a_neighbours_file_has_there() {
        let text = noise(PAGE_SIZE, 1);
        let (catalog, objects) = fixture::catalog(&[("program".into(), program(&text))]);
        let here = [(objects[0], 0)];
        // No window stays whole, so that nothing but the neighbour leads to the file.
        let places = || (0..MAX_DIFFERENT).map(|number| number * 4);
        let at_most = changed(&text, places());
        assert_eq!(different(&catalog, &at_most, &here), Some(MAX_DIFFERENT));
        let more = changed(&text, places().chain([1]));
        assert_eq!(different(&catalog, &more, &here), None);
        let elsewhere = [(objects[0], 0x1000)];
        assert_eq!(different(&catalog, &at_most, &elsewhere), None);
    }

    #[test]
    fn max_different_alone_is_for_the_page_of_a_file_that_nothing_else_is_of() {
        let text = noise(PAGE_SIZE, 1);
        let (catalog, _) = fixture::catalog(&[("program".into(), program(&text))]);
        let alone = |count| different(&catalog, &changed(&text, 0..count), &[]);
        assert_eq!(alone(MAX_DIFFERENT_ALONE), Some(MAX_DIFFERENT_ALONE));
        assert_eq!(alone(MAX_DIFFERENT_ALONE + 1), None);
    }

    #[test]
    fn max_pointed_to_bounds_what_a_page_of_well_known_bytes_makes_us_keep_and_the_best_stay() {
        // Sixteen times the blocks of one page in another order, no two of them equally far from where the page has them.
        let blocks: Vec<Vec<u8>> = (0..64).map(|seed| noise(64, seed)).collect();
        let mut text: Vec<u8> = blocks.iter().rev().flatten().copied().collect();
        text.resize(2 * PAGE_SIZE, 0);
        let mut text = text.repeat(15);
        text.extend(blocks.concat());
        let module = Module {
            name: "known",
            text: &text,
            ..Module::default()
        };
        let (catalog, _) = fixture::catalog(&[module.file()]);
        let page = fixture::page(&blocks.concat());
        let all = by_windows(&catalog, &page, usize::MAX, |_| true).unwrap();
        assert!(all.len() > MAX_POINTED_TO, "{}", all.len());
        let kept = Pointers::default().of(&catalog, &[0; 32], &page).unwrap();
        assert_eq!(*kept, all[..MAX_POINTED_TO]);
        assert_eq!(kept[0].at, 15 * 2 * 4096, "where the whole page is");
    }

    #[test]
    fn zeros_that_two_pages_have_in_common_make_them_no_more_alike() {
        let mut page = PageBytes::zeroed();
        let mut file = vec![0; PAGE_SIZE];
        page[..100].fill(0x90);
        file[..100].fill(0x90);
        page[..25].fill(0xcc);
        assert!(is_near(&page, &file, 25));
        page[25] = 0xcc;
        assert!(!is_near(&page, &file, 26));
    }

    #[test]
    fn different_bytes_side_by_side_are_one_run() {
        let runs = runs([(3, 1, 9), (4, 2, 8), (7, 0, 1)].into_iter());
        let shape: Vec<_> = runs
            .iter()
            .map(|r| (r.offset, r.before.clone(), r.after.clone()))
            .collect();
        assert_eq!(shape, [(3, vec![1, 2], vec![9, 8]), (7, vec![0], vec![1])]);
    }
}
