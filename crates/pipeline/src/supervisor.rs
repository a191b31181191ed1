//! What is this page of the kernel, of a module, or of what ran before them?
//!
//! ```text
//!  what the image placed there must hold                     ► identified, or near it: modified
//!  parts that the page's windows point to, compared with each ► identified; a single one is placed there
//!  short parts of the running release's modules, likewise     ► identified; a single one is placed there
//!  below the kernel: by the bytes that executed (`executed`)
//! ```
//!
//! What is only mapped can place an image too: a module whose functions another one calls may itself not have run. An init
//! part that many modules share is the one's whose sections are where the fields of the part say; as long as that is not
//! known, the page stays open, with all that it can be.

use std::sync::Arc;

use nephoscope_catalog::{ObjectId, ObjectInfo, PartInfo, ReadError};
use nephoscope_guest::{Gva, PageBytes};
use nephoscope_inventory::{Identified, Place, Unknown, Verdict};
use nephoscope_recipe::{Comparison, Part, PartKind, Placement, compare};

use crate::best::Best;
use crate::identify::{Answer, Identifier, Question, tally};
use crate::nearest;
use crate::shorts::Alike;

/// Parts that are compared with a page after its windows pointed to them.
const MAX_COMPARED: usize = 12;
/// How often all short parts are compared with one page. What they depend on is there before they run or soon after.
const MAX_TRIES: u8 = 4;

/// A part, and where a page would begin in it.
struct Candidate {
    object: ObjectId,
    number: u16,
    part: Arc<Part>,
    at: i64,
}

impl Candidate {
    fn place(&self) -> Place {
        Place {
            object: self.object,
            part: Some(self.number),
            link: self.part.link.wrapping_add_signed(self.at),
        }
    }

    fn base(&self, va: Gva) -> u64 {
        va.0.wrapping_add_signed(self.at.wrapping_neg())
    }
}

impl Identifier {
    pub(crate) fn supervisor(&mut self, question: &Question<'_>) -> Result<Answer, ReadError> {
        let mut best = Best::default();
        let mut lacking = false;
        if let Some(answer) = self.placed_there(question, &mut best, &mut lacking)? {
            return Ok(answer);
        }
        let pointers = self
            .pointers
            .of(&self.catalog, &question.digest, question.bytes)?;
        let pointed = self.pointed_to(&pointers, question.va, |_, _| true)?;
        // What windows that are everywhere point to was not compared, or is not even in the catalog.
        lacking |= pointers.len() > MAX_COMPARED || pointers.iter().any(|pointed| pointed.unseen > 0);
        if let Some(answer) = self.one_of(question, pointed, &pointers, &mut best, &mut lacking)? {
            return Ok(answer);
        }
        if let Some(answer) = self.short(question, &mut lacking)? {
            return Ok(answer);
        }
        let floating = self.floating.identify(&self.catalog, question, &pointers)?;
        let nearest = best.verdict();
        let verdict = match (floating, nearest) {
            (Some(identified @ Verdict::Identified(_)), _) => identified,
            (_, Some(modified)) | (Some(modified), None) => modified,
            (None, None) => Verdict::Unknown(Unknown {
                undecided: lacking,
                ..question.unknown.clone()
            }),
        };
        Ok(Answer {
            verdict: Arc::new(verdict),
            placed: false,
            open: true,
            lacking,
        })
    }

    /// A page of the kernel's address space is mapped executable and holds this. True if that placed an image.
    pub(crate) fn mapped_by_kernel(&mut self, va: Gva, bytes: &PageBytes) -> Result<bool, ReadError> {
        if !va.is_high_half() {
            return Ok(false);
        }
        // Only a module's text says where its module is, and modules of other releases than the running one are not loaded.
        let releases = self.images.releases();
        let may_be = |info: &ObjectInfo, about: &PartInfo| {
            let release = info.facts.kernel_release.as_ref();
            let is_running = releases.is_empty() || release.is_some_and(|release| releases.contains(release));
            about.kind == PartKind::ModuleText && is_running
        };
        let pointers = nearest::by_windows(&self.catalog, bytes, MAX_COMPARED, |_| true)?;
        let mut candidates = self.pointed_to(&pointers, va, may_be)?;
        if candidates.is_empty() {
            for release in &releases {
                for (object, number) in self.shorts.like(&self.catalog, release, bytes)? {
                    candidates.push(self.candidate(object, number)?);
                }
            }
        }
        let mut equal = Vec::new();
        for candidate in candidates {
            let comparison = self.compare(&candidate, va, bytes);
            if candidate.part.kind == PartKind::ModuleText && comparison.is_equal() {
                equal.push((candidate, comparison));
            }
        }
        match equal.as_slice() {
            [(only, comparison)] => self.place(only, va, comparison),
            _ => Ok(false),
        }
    }

    /// What images that lie there already must hold.
    fn placed_there(
        &mut self,
        question: &Question<'_>,
        best: &mut Best,
        lacking: &mut bool,
    ) -> Result<Option<Answer>, ReadError> {
        for (image, placed) in self.images.at(question.va.0) {
            let Some(image) = self.images.get(image) else {
                continue;
            };
            let candidate = Candidate {
                object: image.id,
                number: placed.number,
                part: placed.part.clone(),
                at: question.va.0.wrapping_sub(placed.base).cast_signed(),
            };
            let (bytes, solver) = (question.bytes, &image.solver);
            let comparison = compare(
                &candidate.part,
                candidate.at,
                Some(question.va.0),
                bytes,
                solver,
                &self.images,
            );
            if comparison.is_equal() {
                let placed = self.place(&candidate, question.va, &comparison)?;
                return Ok(Some(identified(vec![candidate.place()], 0, &comparison, placed)));
            }
            *lacking |= comparison.differences.is_empty();
            best.consider(
                candidate.place(),
                &candidate.part,
                candidate.at,
                &comparison,
                bytes,
            );
        }
        Ok(None)
    }

    /// Those of the candidates that the page equals. One alone is placed; of several, others decide. Of the pointers that led
    /// to them, those that may lead to more are counted.
    fn one_of(
        &mut self,
        question: &Question<'_>,
        candidates: Vec<Candidate>,
        pointers: &[nearest::Candidate],
        best: &mut Best,
        lacking: &mut bool,
    ) -> Result<Option<Answer>, ReadError> {
        let mut equal = Vec::new();
        for candidate in candidates {
            let comparison = self.compare(&candidate, question.va, question.bytes);
            if comparison.is_equal() {
                equal.push((candidate, comparison));
                continue;
            }
            *lacking |= comparison.differences.is_empty();
            best.consider(
                candidate.place(),
                &candidate.part,
                candidate.at,
                &comparison,
                question.bytes,
            );
        }
        // Where fields agree with what the rest of one module says of its sections, it is that module.
        if equal.iter().any(|(_, comparison)| comparison.confirmed > 0) {
            equal.retain(|(_, comparison)| comparison.confirmed > 0);
        }
        let placed = match equal.as_slice() {
            [(only, comparison)] => self.place(only, question.va, comparison)?,
            _ => false,
        };
        let mut places: Vec<Place> = equal.iter().map(|(candidate, _)| candidate.place()).collect();
        places.sort_unstable();
        places.dedup();
        let several = places.len() > 1;
        let left_out = self.left_out(&equal, pointers, question.va)?;
        Ok(equal.first().map(|(_, comparison)| Answer {
            open: several,
            lacking: several,
            ..identified(places, left_out, comparison, placed)
        }))
    }

    fn compare(&self, candidate: &Candidate, va: Gva, bytes: &PageBytes) -> Comparison {
        let runs_here = va.is_high_half().then_some(va.0);
        let base = candidate.base(va);
        let solver = self
            .images
            .solver(candidate.object, &candidate.part, candidate.number, base);
        compare(
            &candidate.part,
            candidate.at,
            runs_here,
            bytes,
            &solver,
            &self.images,
        )
    }

    fn place(&mut self, candidate: &Candidate, va: Gva, comparison: &Comparison) -> Result<bool, ReadError> {
        if !va.is_high_half() {
            return Ok(false);
        }
        let base = candidate.base(va);
        self.images.place(
            &self.catalog,
            candidate.object,
            candidate.number,
            &candidate.part,
            base,
            comparison,
        )
    }

    /// Of the parts that windows point to, those that can lie here and `may_be` it. No other is decoded.
    fn pointed_to(
        &self,
        pointers: &[nearest::Candidate],
        va: Gva,
        may_be: impl Fn(&ObjectInfo, &PartInfo) -> bool,
    ) -> Result<Vec<Candidate>, ReadError> {
        let mut candidates = Vec::new();
        for pointed in pointers.iter().take(MAX_COMPARED) {
            let info = self.catalog.object(pointed.object)?;
            let Some(about) = info.parts.get(usize::from(pointed.part)) else {
                continue;
            };
            if can_lie(about, va, pointed.at) && may_be(&info, about) {
                candidates.push(Candidate {
                    object: pointed.object,
                    number: pointed.part,
                    part: self.catalog.part(pointed.object, pointed.part)?,
                    at: pointed.at,
                });
            }
        }
        Ok(candidates)
    }

    /// How many parts may equal the page besides those that were found to: as many of its windows point to them, and they
    /// were not compared, or the catalog has left them out.
    fn left_out(
        &self,
        equal: &[(Candidate, Comparison)],
        pointers: &[nearest::Candidate],
        va: Gva,
    ) -> Result<u64, ReadError> {
        if equal.iter().any(|(_, comparison)| comparison.confirmed > 0) {
            return Ok(0);
        }
        let leads_to = |pointed: &nearest::Candidate, to: &Candidate| {
            (pointed.object, pointed.part, pointed.at) == (to.object, to.number, to.at)
        };
        let (compared, rest) = pointers.split_at(pointers.len().min(MAX_COMPARED));
        let led = compared
            .iter()
            .filter(|pointed| equal.iter().any(|(to, _)| leads_to(pointed, to)));
        let Some(votes) = led.clone().map(|pointed| pointed.votes).min() else {
            return Ok(0);
        };
        let mut left_out = led.map(|pointed| pointed.unseen).max().unwrap_or(0);
        for pointed in rest.iter().take_while(|pointed| pointed.votes >= votes) {
            let info = self.catalog.object(pointed.object)?;
            if info
                .parts
                .get(usize::from(pointed.part))
                .is_some_and(|about| can_lie(about, va, pointed.at))
            {
                left_out = left_out.saturating_add(1);
            }
        }
        Ok(left_out)
    }

    /// The init part of a module whose sections are where the page's fields say; else every short part of the running
    /// releases that it can be.
    fn short(&mut self, question: &Question<'_>, lacking: &mut bool) -> Result<Option<Answer>, ReadError> {
        if !question.paging || !question.va.is_high_half() {
            return Ok(None);
        }
        let mut own = Vec::new();
        for (object, number) in self.images.without_init() {
            own.push(self.candidate(object, number)?);
        }
        own.retain(|candidate| self.compare(candidate, question.va, question.bytes).confirmed > 0);
        if let Some(answer) = self.one_of(question, own, &[], &mut Best::default(), lacking)? {
            return Ok(Some(answer));
        }
        let alike = self.alike(question)?;
        let Some((first, sites)) = alike.places.first().zip(alike.sites.clone()) else {
            *lacking |= alike.undecided > 0;
            return Ok(None);
        };
        let several = alike.places.len() > 1 || alike.undecided > 0;
        let mut placed = false;
        if !several && let (object, Some(number)) = (first.object, first.part) {
            let only = self.candidate(object, number)?;
            let comparison = self.compare(&only, question.va, question.bytes);
            placed = self.place(&only, question.va, &comparison)?;
        }
        let identified = Identified {
            places: alike.places,
            left_out: alike.undecided,
            sites,
            ..Identified::default()
        };
        Ok(Some(Answer {
            verdict: Arc::new(Verdict::Identified(identified)),
            placed,
            open: several,
            lacking: several,
        }))
    }

    fn candidate(&self, object: ObjectId, number: u16) -> Result<Candidate, ReadError> {
        let part = self.catalog.part(object, number)?;
        Ok(Candidate {
            object,
            number,
            part,
            at: 0,
        })
    }

    /// Every short part of the running releases that equals the page, and how many more would if symbols were known. That
    /// is work, so it is remembered; while something is undecided it is done again, some times.
    fn alike(&mut self, question: &Question<'_>) -> Result<Alike, ReadError> {
        let before = self.shorts.remembered(&question.digest);
        if let Some(known) = before
            .as_ref()
            .filter(|known| known.undecided == 0 || known.tries >= MAX_TRIES)
        {
            return Ok(known.clone());
        }
        let mut alike = Alike {
            tries: before.map_or(1, |known| known.tries + 1),
            ..Alike::default()
        };
        for release in self.images.releases() {
            for (object, number) in self.shorts.like(&self.catalog, &release, question.bytes)? {
                let candidate = self.candidate(object, number)?;
                let comparison = self.compare(&candidate, question.va, question.bytes);
                if comparison.is_equal() {
                    alike.places.push(candidate.place());
                    alike.sites.get_or_insert_with(|| tally(&comparison));
                } else if comparison.differences.is_empty() {
                    alike.undecided += 1;
                }
            }
            alike.undecided += self.shorts.left_out(&release);
        }
        self.shorts.remember(question.digest, alike.clone());
        Ok(alike)
    }
}

fn identified(places: Vec<Place>, left_out: u64, comparison: &Comparison, placed: bool) -> Answer {
    let identified = Identified {
        places,
        left_out,
        sites: tally(comparison),
        ..Identified::default()
    };
    Answer {
        verdict: Arc::new(Verdict::Identified(identified)),
        placed,
        open: false,
        lacking: false,
    }
}

/// Whether a part of a kernel or module can lie so that its byte `at` is at `va`.
fn can_lie(part: &PartInfo, va: Gva, at: i64) -> bool {
    match part.placement {
        Placement::Anywhere => false,
        Placement::Aligned(align) => {
            let moved = va.0.wrapping_sub(part.link.wrapping_add_signed(at));
            part.kind != PartKind::UserText && moved & align.wrapping_sub(1) == 0
        }
    }
}

#[cfg(test)]
mod tests;
