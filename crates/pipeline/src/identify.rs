//! What is this page?
//!
//! ```text
//!  user page        digest in the catalog ─────────────► identified (every place it stands)
//!                   equal to a vDSO's recipe ──────────► identified
//!                   near what its neighbours' file has there, or what its windows point to ► modified
//!  kernel page      what the image placed there must hold ► identified or modified
//!                   windows point to parts; compared with each ► identified, and the image is placed
//!  below the kernel the same, but firmware and boot code are judged by the bytes that executed
//!  otherwise        unknown
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use nephoscope_catalog::{Catalog, ObjectId, ReadError};
use nephoscope_guest::{Gva, PAGE_SIZE, PageBytes, Privilege};
use nephoscope_inventory::{Identified, Modified, Place, Unknown, Verdict};
use nephoscope_recipe::{Comparison, Part, PartKind, Placement, SiteKind, Solver, compare};

use crate::executed::Floating;
use crate::images::Images;
use crate::nearest::{self, MAX_DIFFERENT};

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct Question<'a> {
    /// The page.
    pub(crate) bytes: &'a PageBytes,
    /// Its BLAKE3.
    pub(crate) digest: [u8; 32],
    /// Where it runs.
    pub(crate) va: Gva,
    /// Whether paging was on.
    pub(crate) paging: bool,
    /// Who runs it.
    pub(crate) privilege: Privilege,
    /// Bytes that executed, sorted.
    pub(crate) executed: &'a [(u16, u16)],
    /// Files that neighbouring pages are of, and how far they were moved.
    pub(crate) neighbours: &'a [(ObjectId, u64)],
    /// One line about where the page came from, for an unknown one.
    pub(crate) origin: String,
}

/// The answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// What it is.
    pub(crate) verdict: Arc<Verdict>,
    /// An image was placed, so that pages that were undecided may be asked about again.
    pub(crate) placed: bool,
    /// It may become known when more images are placed or more of it executed.
    pub(crate) open: bool,
}

/// Answers, with what it remembers of this guest.
#[derive(Debug)]
pub(crate) struct Identifier {
    catalog: Arc<Catalog>,
    images: Images,
    floating: Floating,
    exact: HashMap<[u8; 32], Arc<Verdict>>,
}

/// Digests whose answer is kept. A guest that makes pages without end starts it anew.
const MAX_KEPT: usize = 64 << 10;
/// Parts that are compared with a page after its windows pointed to them.
const MAX_COMPARED: usize = 12;

impl Identifier {
    pub(crate) fn new(catalog: Arc<Catalog>) -> Self {
        Self {
            catalog,
            images: Images::default(),
            floating: Floating::default(),
            exact: HashMap::new(),
        }
    }

    /// The machine was reset.
    pub(crate) fn reset(&mut self) {
        self.images.clear();
        self.floating.clear();
    }

    /// The answer.
    ///
    /// # Errors
    /// If the catalog is damaged where it was asked.
    pub(crate) fn ask(&mut self, question: &Question<'_>) -> Result<Answer, ReadError> {
        match question.privilege {
            Privilege::User => self.user(question),
            Privilege::Supervisor => self.supervisor(question),
        }
    }

    /// What a page is that an address space maps; `None` if it is in no file, or in more than are told.
    ///
    /// # Errors
    /// If the catalog is damaged where it was asked.
    pub(crate) fn mapped(&mut self, bytes: &PageBytes) -> Result<Option<Arc<Verdict>>, ReadError> {
        let verdict = self.exact(blake3::hash(&bytes[..]).as_bytes())?;
        Ok(verdict.filter(|verdict| matches!(&**verdict, Verdict::Identified(found) if found.left_out == 0)))
    }

    fn user(&mut self, question: &Question<'_>) -> Result<Answer, ReadError> {
        if let Some(verdict) = self.exact(&question.digest)? {
            return Ok(Answer {
                verdict,
                placed: false,
                open: false,
            });
        }
        if let Some(place) = self.vdso(question)? {
            return Ok(Answer {
                verdict: place,
                placed: false,
                open: false,
            });
        }
        let modified = nearest::user(&self.catalog, question.bytes, question.va, question.neighbours)?;
        let verdict = match modified {
            Some(modified) => Verdict::Modified(modified),
            None => Verdict::Unknown(Unknown {
                origin: question.origin.clone(),
            }),
        };
        Ok(Answer {
            verdict: Arc::new(verdict),
            placed: false,
            open: false,
        })
    }

    fn exact(&mut self, digest: &[u8; 32]) -> Result<Option<Arc<Verdict>>, ReadError> {
        if let Some(verdict) = self.exact.get(digest) {
            return Ok(Some(verdict.clone()));
        }
        let found = self.catalog.pages_counted(digest)?;
        if found.refs.is_empty() {
            return Ok(None);
        }
        let places = found
            .refs
            .iter()
            .map(|r| Place {
                object: r.object,
                part: None,
                link: r.va,
            })
            .collect();
        let identified = Identified {
            places,
            left_out: found.left_out,
            ..Identified::default()
        };
        let verdict = Arc::new(Verdict::Identified(identified));
        if self.exact.len() >= MAX_KEPT {
            self.exact.clear();
        }
        self.exact.insert(*digest, verdict.clone());
        Ok(Some(verdict))
    }

    fn vdso(&mut self, question: &Question<'_>) -> Result<Option<Arc<Verdict>>, ReadError> {
        let mut places = Vec::new();
        let mut sites = Vec::new();
        let kernels: Vec<ObjectId> = self.images.kernels().collect();
        for object in kernels {
            let info = self.catalog.object(object)?;
            for (number, about) in (0_u16..).zip(&info.parts) {
                if about.kind != PartKind::Vdso {
                    continue;
                }
                let part = self.catalog.part(object, number)?;
                for at in (0..part.bytes.len()).step_by(PAGE_SIZE) {
                    let at = i64::try_from(at).unwrap_or(i64::MAX);
                    let solver = Solver::default();
                    let comparison = compare(&part, at, None, question.bytes, &solver, &self.images);
                    if comparison.is_equal() && within(&comparison, question) {
                        sites = tally(&comparison);
                        let link = part.link.wrapping_add_signed(at);
                        places.push(Place {
                            object,
                            part: Some(number),
                            link,
                        });
                    }
                }
            }
        }
        let found = !places.is_empty();
        let identified = Identified {
            places,
            sites,
            ..Identified::default()
        };
        Ok(found.then(|| Arc::new(Verdict::Identified(identified))))
    }

    fn supervisor(&mut self, question: &Question<'_>) -> Result<Answer, ReadError> {
        let mut best = Best::default();
        for (image, placed) in self.images.at(question.va.0) {
            let Some(image) = self.images.get(image) else {
                continue;
            };
            let at = signed_distance(question.va.0, placed.base);
            let comparison = compare(
                &placed.part,
                at,
                Some(question.va.0),
                question.bytes,
                &image.solver,
                &self.images,
            );
            let object = image.id;
            if let Some(answer) =
                self.settle(question, object, placed.number, &placed.part, at, &comparison)?
            {
                return Ok(answer);
            }
            best.consider(
                object,
                placed.number,
                &placed.part,
                at,
                &comparison,
                question.bytes,
            );
        }
        let mut equal: Vec<(Place, Answer)> = Vec::new();
        let candidates = nearest::by_windows(&self.catalog, question.bytes, MAX_COMPARED, |_| true)?;
        for candidate in &candidates {
            let part = self.catalog.part(candidate.object, candidate.part)?;
            if part.placement == Placement::Anywhere || part.kind == PartKind::UserText {
                continue;
            }
            if !aligned(&part, question.va.0, candidate.at) {
                continue;
            }
            let runs_here = question.va.is_high_half().then_some(question.va.0);
            let base = question.va.0.wrapping_add_signed(-candidate.at);
            let solver = self.images.solver(candidate.object, &part, candidate.part, base);
            let comparison = compare(
                &part,
                candidate.at,
                runs_here,
                question.bytes,
                &solver,
                &self.images,
            );
            let settled = self.settle(
                question,
                candidate.object,
                candidate.part,
                &part,
                candidate.at,
                &comparison,
            )?;
            if let Some(answer) = settled {
                let link = part.link.wrapping_add_signed(candidate.at);
                equal.push((
                    Place {
                        object: candidate.object,
                        part: Some(candidate.part),
                        link,
                    },
                    answer,
                ));
            } else {
                best.consider(
                    candidate.object,
                    candidate.part,
                    &part,
                    candidate.at,
                    &comparison,
                    question.bytes,
                );
            }
        }
        if let Some(answer) = join(equal) {
            return Ok(answer);
        }
        let floating = self.floating.identify(&self.catalog, question)?;
        let verdict = match (floating, best.verdict(question)) {
            (Some(identified @ Verdict::Identified(_)), _) | (Some(identified), Verdict::Unknown(_)) => {
                identified
            }
            (_, other) => other,
        };
        Ok(Answer {
            verdict: Arc::new(verdict),
            placed: false,
            open: true,
        })
    }

    /// An equal page places its image.
    fn settle(
        &mut self,
        question: &Question<'_>,
        object: ObjectId,
        number: u16,
        part: &Arc<Part>,
        at: i64,
        comparison: &Comparison,
    ) -> Result<Option<Answer>, ReadError> {
        if !comparison.is_equal() || !within(comparison, question) {
            return Ok(None);
        }
        let mut placed = false;
        if question.va.is_high_half() {
            let base = question.va.0.wrapping_add_signed(-at);
            placed = self
                .images
                .place(&self.catalog, object, number, part, base, comparison)?;
        }
        let link = part.link.wrapping_add_signed(at);
        let places = vec![Place {
            object,
            part: Some(number),
            link,
        }];
        let identified = Identified {
            places,
            sites: tally(comparison),
            ..Identified::default()
        };
        let verdict = Arc::new(Verdict::Identified(identified));
        Ok(Some(Answer {
            verdict,
            placed,
            open: false,
        }))
    }
}

/// Several parts that a page equals are several places of one verdict.
fn join(equal: Vec<(Place, Answer)>) -> Option<Answer> {
    let mut all: Vec<Place> = equal.iter().map(|(place, _)| *place).collect();
    all.sort_unstable();
    all.dedup();
    let placed = equal.iter().any(|(_, answer)| answer.placed);
    let (_, first) = equal.into_iter().next()?;
    let Verdict::Identified(identified) = &*first.verdict else {
        return Some(first);
    };
    let verdict = Arc::new(Verdict::Identified(Identified {
        places: all,
        ..identified.clone()
    }));
    Some(Answer {
        verdict,
        placed,
        open: false,
    })
}

/// Where the page begins in a part that lies at `base`.
fn signed_distance(va: u64, base: u64) -> i64 {
    va.wrapping_sub(base).cast_signed()
}

/// Whether a part can lie so that its byte `at` is at `va`.
fn aligned(part: &Part, va: u64, at: i64) -> bool {
    match part.placement {
        Placement::Anywhere => true,
        Placement::Aligned(align) => {
            va.wrapping_sub(part.link.wrapping_add_signed(at)) & align.wrapping_sub(1) == 0
        }
    }
}

/// Whether everything that executed is inside the part. A page at an image's end shows other bytes too.
fn within(comparison: &Comparison, question: &Question<'_>) -> bool {
    let _ = question;
    comparison.outside < PAGE_SIZE
}

pub(crate) fn tally(comparison: &Comparison) -> Vec<(SiteKind, u32, u32)> {
    let mut tally: Vec<(SiteKind, u32, u32)> = Vec::new();
    for usage in &comparison.uses {
        match tally.iter_mut().find(|(kind, ..)| *kind == usage.kind) {
            Some((_, sites, bytes)) => {
                *sites += 1;
                *bytes += u32::from(usage.len);
            }
            None => tally.push((usage.kind, 1, u32::from(usage.len))),
        }
    }
    tally.sort_unstable();
    tally
}

/// The nearest part so far.
#[derive(Debug, Default)]
struct Best {
    modified: Option<(usize, Modified)>,
}

impl Best {
    fn consider(
        &mut self,
        object: ObjectId,
        number: u16,
        part: &Part,
        at: i64,
        comparison: &Comparison,
        page: &PageBytes,
    ) {
        let count = comparison.differences.len() + comparison.undecided.len();
        if comparison.differences.is_empty()
            || count > MAX_DIFFERENT
            || comparison.equal_bytes < PAGE_SIZE / 2
        {
            return;
        }
        if self.modified.as_ref().is_some_and(|(best, _)| *best <= count) {
            return;
        }
        let _ = page;
        let link = part.link.wrapping_add_signed(at);
        let differences = nearest::runs(
            comparison
                .differences
                .iter()
                .map(|d| (d.offset, d.before, d.after)),
        );
        let nearest = Place {
            object,
            part: Some(number),
            link,
        };
        self.modified = Some((count, Modified { nearest, differences }));
    }

    fn verdict(self, question: &Question<'_>) -> Verdict {
        match self.modified {
            Some((_, modified)) => Verdict::Modified(modified),
            None => Verdict::Unknown(Unknown {
                origin: question.origin.clone(),
            }),
        }
    }
}
