//! A part that may be in a page, and what the executed bytes say of it.

use std::sync::Arc;

use nephoscope_catalog::ObjectId;
use nephoscope_guest::Gva;
use nephoscope_inventory::{Modified, Place};
use nephoscope_recipe::floating::Supposed;
use nephoscope_recipe::{Comparison, Part, Solver};

use crate::best;
use crate::identify::Question;
use crate::nearest::{self, MAX_DIFFERENT};

/// Fewer executed bytes that are equal than this, and a page is not called a modified one.
const MIN_NEAR: usize = 64;

/// A part that may be in the page.
pub(super) struct Candidate {
    pub(super) object: ObjectId,
    pub(super) number: u16,
    pub(super) part: Arc<Part>,
    pub(super) at: i64,
    pub(super) solver: Solver,
    /// Another page found it at this place.
    pub(super) vouched: bool,
    /// Where this page of the part is whose fields it has: elsewhere, for code that was copied after it was relocated.
    pub(super) fields: Option<Gva>,
}

/// A candidate, and what it explains.
pub(super) struct Explained<'a> {
    pub(super) by: &'a Candidate,
    pub(super) comparison: Comparison,
}

impl Candidate {
    fn supposed(&self, va: Gva) -> Supposed<'_> {
        Supposed {
            part: &self.part,
            at: self.at,
            va: self.fields.unwrap_or(va).0,
            solver: &self.solver,
        }
    }

    pub(super) fn place(&self) -> Place {
        Place {
            object: self.object,
            part: Some(self.number),
            link: self.part.link.wrapping_add_signed(self.at),
        }
    }

    fn explains(&self, question: &Question<'_>, ranges: &[(u16, u16)]) -> Option<Explained<'_>> {
        let comparison = self.supposed(question.va).explains(question.bytes, ranges)?;
        Some(Explained { by: self, comparison })
    }
}

/// The candidates that explain all that executed, alone or together.
pub(super) fn explain<'a>(
    candidates: &'a [Candidate],
    question: &Question<'_>,
) -> Option<Vec<Explained<'a>>> {
    whole(candidates, question).or_else(|| pieces(candidates, question))
}

/// Every candidate that explains all that executed. Those that the page itself vouches for come before those that only
/// another page does.
fn whole<'a>(candidates: &'a [Candidate], question: &Question<'_>) -> Option<Vec<Explained<'a>>> {
    let all = candidates
        .iter()
        .filter_map(|candidate| candidate.explains(question, question.executed));
    let (anchored, others): (Vec<_>, Vec<_>) =
        all.partition(|found| found.by.supposed(question.va).is_anchored(question.bytes));
    let vouched: Vec<_> = others.into_iter().filter(|found| found.by.vouched).collect();
    [anchored, vouched].into_iter().find(|found| !found.is_empty())
}

/// Every candidate that explains some of the executed ranges, each vouched for by what is around it, if together they
/// explain all.
fn pieces<'a>(candidates: &'a [Candidate], question: &Question<'_>) -> Option<Vec<Explained<'a>>> {
    let mut unexplained: Vec<(u16, u16)> = question.executed.to_vec();
    let mut pieces = Vec::new();
    for candidate in candidates {
        let supposed = candidate.supposed(question.va);
        let fits = |range: &(u16, u16)| {
            supposed.explains(question.bytes, &[*range]).is_some()
                && (candidate.vouched || supposed.is_anchored_around(question.bytes, *range))
        };
        let ranges: Vec<(u16, u16)> = question.executed.iter().copied().filter(fits).collect();
        // What ranges tell of one part must agree.
        if let Some(piece) = candidate.explains(question, &ranges) {
            unexplained.retain(|range| !ranges.contains(range));
            pieces.push(piece);
        }
    }
    unexplained.is_empty().then_some(pieces)
}

/// The candidate that most of what executed equals, if the page is near it with what did not execute too: another release has
/// a page of which a little is the same, and what ran first of it may be that.
pub(super) fn near(candidates: &[Candidate], question: &Question<'_>) -> Option<Modified> {
    let compared = candidates.iter().filter_map(|candidate| {
        let comparison = candidate
            .supposed(question.va)
            .compare(question.bytes, question.executed);
        let different = comparison.differences.len();
        let near = comparison.equal_bytes >= MIN_NEAR
            && comparison.outside == 0
            && different > 0
            && different <= MAX_DIFFERENT
            && best::is_near(&candidate.part, candidate.at, question.bytes);
        near.then_some((different, candidate, comparison))
    });
    let (_, candidate, comparison) = compared.min_by_key(|(different, ..)| *different)?;
    let differences = comparison.differences.iter();
    Some(Modified {
        nearest: candidate.place(),
        differences: nearest::runs(differences.map(|d| (d.offset, d.before, d.after))),
    })
}
