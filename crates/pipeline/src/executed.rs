//! Firmware and boot code, judged by the bytes that executed.
//!
//! Such code lies at odd addresses, next to data that changes: whole pages mean nothing. What executed must equal a
//! part's bytes at one displacement, up to fields that moving the code changes.
//!
//! ```text
//!  candidates: parts that lie over this page already, then parts that the page's windows point to
//!  one of them explains all that executed                       ► identified (all that do are named)
//!  each executed range is explained by one, and lies in a run
//!  of its bytes that says where it is from                      ► identified, as pieces (all that do are named)
//!  the same, with the fields of a part that lies elsewhere      ► identified: it copied that code out of itself
//!  the page is near one of them, but for what executed          ► modified
//! ```
//!
//! Few bytes are explained by many parts, so a part must be vouched for: by a window's worth of it in this page at this
//! displacement, or by another page that found it lying at the same place.

mod candidate;
#[cfg(test)]
mod tests;

use nephoscope_catalog::{Catalog, ObjectId, ReadError};
use nephoscope_guest::Gva;
use nephoscope_inventory::{Identified, Place, Verdict};
use nephoscope_recipe::{Part, PartKind, Placement, Solver, Unknown};

use crate::identify::{Question, tally};
use crate::nearest::Candidate as Pointed;
use candidate::{Candidate, Explained, explain, near};

/// Pieces that were found, at most so many: more than any machine has of firmware, which is 130 images that five files
/// have. It stops a guest that copies one about for ever; the oldest goes.
const MAX_PLACED: usize = 4096;
/// Parts that are compared with one page.
const MAX_COMPARED: usize = 48;
/// Where pieces of firmware and boot code lie in this guest.
#[derive(Debug, Default)]
pub(crate) struct Floating {
    placed: Vec<Placed>,
}

#[derive(Debug)]
struct Placed {
    object: ObjectId,
    number: u16,
    base: u64,
    len: usize,
    /// What its pages told of what it refers to.
    solver: Solver,
}

impl Floating {
    /// The machine was reset.
    pub(crate) fn clear(&mut self) {
        self.placed.clear();
    }

    /// What a page is by its executed bytes; `None` if that is not known.
    pub(crate) fn identify(
        &mut self,
        catalog: &Catalog,
        question: &Question<'_>,
        pointed_to: &[Pointed],
    ) -> Result<Option<Verdict>, ReadError> {
        let (candidates, beyond) = self.candidates(catalog, question, pointed_to)?;
        let mut copies = Vec::new();
        let explained = explain(&candidates, question).or_else(|| {
            copies = self.copies(&candidates, question.va);
            explain(&copies, question)
        });
        let Some(explained) = explained else {
            return Ok(near(&candidates, question).map(Verdict::Modified));
        };
        for found in explained.iter().filter(|found| found.by.fields.is_none()) {
            self.place(found, question.va);
        }
        let mut places: Vec<Place> = explained.iter().map(|found| found.by.place()).collect();
        places.sort_unstable();
        places.dedup();
        let sites = explained.first().map(|found| tally(&found.comparison));
        Ok(Some(Verdict::Identified(Identified {
            places,
            left_out: left_out(&explained, pointed_to, &beyond),
            sites: sites.unwrap_or_default(),
            executed_only: true,
        })))
    }

    /// What the page is compared with; and for each part that it is not compared with, though it floats too, how many of the
    /// page's windows point to that.
    fn candidates(
        &self,
        catalog: &Catalog,
        question: &Question<'_>,
        pointed_to: &[Pointed],
    ) -> Result<(Vec<Candidate>, Vec<u32>), ReadError> {
        let mut found: Vec<Candidate> = Vec::new();
        // The latest first: what was copied over something else is what lies there now.
        for placed in self.placed.iter().rev() {
            let at = question.va.0.wrapping_sub(placed.base).cast_signed();
            if at <= -4096 || usize::try_from(at.max(0)).is_ok_and(|at| at >= placed.len) {
                continue;
            }
            let part = catalog.part(placed.object, placed.number)?;
            if !may_lie_here(&part, question) {
                continue;
            }
            found.push(Candidate {
                object: placed.object,
                number: placed.number,
                part,
                at,
                solver: placed.solver.clone(),
                vouched: true,
                fields: None,
            });
            if found.len() >= MAX_COMPARED {
                break;
            }
        }
        let mut beyond = Vec::new();
        for pointed in pointed_to {
            let known = found
                .iter()
                .any(|c| (c.object, c.number, c.at) == (pointed.object, pointed.part, pointed.at));
            let info = catalog.object(pointed.object)?;
            let about = info.parts.get(usize::from(pointed.part));
            if known || about.is_none_or(|about| about.placement != Placement::Anywhere) {
                continue;
            }
            if found.len() >= MAX_COMPARED.saturating_mul(2) {
                beyond.push(pointed.votes);
                continue;
            }
            let part = catalog.part(pointed.object, pointed.part)?;
            if !may_lie_here(&part, question) {
                continue;
            }
            let base = question.va.0.wrapping_add_signed(pointed.at.wrapping_neg());
            let solver = at_base(&part, base);
            found.push(Candidate {
                object: pointed.object,
                number: pointed.part,
                part,
                at: pointed.at,
                solver,
                vouched: false,
                fields: None,
            });
        }
        Ok((found, beyond))
    }

    /// The candidates with the fields of the same part where it was found elsewhere.
    fn copies(&self, candidates: &[Candidate], va: Gva) -> Vec<Candidate> {
        let copies = candidates
            .iter()
            .filter(|c| !c.part.sites.is_empty())
            .flat_map(|c| {
                let base = va.0.wrapping_add_signed(c.at.wrapping_neg());
                let same = move |p: &&Placed| (p.object, p.number) == (c.object, c.number) && p.base != base;
                self.placed.iter().filter(same).map(|placed| Candidate {
                    object: c.object,
                    number: c.number,
                    part: c.part.clone(),
                    at: c.at,
                    solver: placed.solver.clone(),
                    vouched: c.vouched,
                    fields: Some(Gva(placed.base.wrapping_add_signed(c.at))),
                })
            });
        copies.take(MAX_COMPARED).collect()
    }

    /// Remembers where a part was found, and what it told.
    fn place(&mut self, found: &Explained<'_>, va: Gva) {
        let (object, number) = (found.by.object, found.by.number);
        let base = va.0.wrapping_add_signed(found.by.at.wrapping_neg());
        let same = |p: &&mut Placed| (p.object, p.number, p.base) == (object, number, base);
        if let Some(placed) = self.placed.iter_mut().find(same) {
            found.comparison.learn(&mut placed.solver);
            return;
        }
        let mut solver = found.by.solver.clone();
        found.comparison.learn(&mut solver);
        self.remember(Placed {
            object,
            number,
            base,
            len: found.by.part.bytes.len(),
            solver,
        });
    }

    fn remember(&mut self, placed: Placed) {
        if self.placed.len() >= MAX_PLACED {
            self.placed.remove(0);
        }
        self.placed.push(placed);
    }
}

/// How many more parts may be what was found: as many windows point to them as to that.
fn left_out(explained: &[Explained<'_>], pointed_to: &[Pointed], beyond: &[u32]) -> u64 {
    let led = |pointed: &&Pointed| {
        let to = |found: &Explained<'_>| {
            (found.by.object, found.by.number, found.by.at) == (pointed.object, pointed.part, pointed.at)
        };
        explained.iter().any(to)
    };
    let votes = pointed_to.iter().filter(led).map(|pointed| pointed.votes).min();
    votes.map_or(0, |votes| {
        let as_many = beyond.iter().filter(|other| **other >= votes);
        as_many.count() as u64
    })
}

/// At a kernel's addresses whole pages of the kernel are known; of what floats, only firmware is called there.
fn may_lie_here(part: &Part, question: &Question<'_>) -> bool {
    part.kind == PartKind::Firmware || !(question.paging && question.va.is_high_half())
}

/// What is known of a part by its place alone.
fn at_base(part: &Part, base: u64) -> Solver {
    let mut solver = Solver::default();
    for (number, unknown) in (0_u16..).zip(&part.values.unknowns) {
        if matches!(unknown, Unknown::RealModeBase) {
            solver.set(number, base);
        }
    }
    solver
}
