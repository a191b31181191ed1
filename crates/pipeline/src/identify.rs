//! What is this page?
//!
//! ```text
//!  user page        digest in the catalog ─────────────► identified (every place it stands)
//!                   equal to a vDSO's recipe ──────────► identified
//!                   near what its neighbours' file has there, what its windows point to, or a vDSO ► modified
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
use nephoscope_recipe::{Comparison, ObjectKind, Part, PartKind, SiteKind, Solver, compare};

use crate::best::Best;
use crate::executed::Floating;
use crate::images::Images;
use crate::nearest::{self, Pointers};
use crate::shorts::Shorts;

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
    /// What is known of an unknown one.
    pub(crate) unknown: Unknown,
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
    /// What the kernel has mapped besides may tell: a symbol of a module that did not run, or the module itself.
    pub(crate) lacking: bool,
}

/// Answers, with what it remembers of this guest.
#[derive(Debug)]
pub(crate) struct Identifier {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) images: Images,
    pub(crate) floating: Floating,
    pub(crate) shorts: Shorts,
    pub(crate) pointers: Pointers,
    exact: HashMap<[u8; 32], Arc<Verdict>>,
}

/// Digests whose answer is kept. A guest that makes pages without end starts it anew.
const MAX_KEPT: usize = 64 << 10;

impl Identifier {
    pub(crate) fn new(catalog: Arc<Catalog>) -> Self {
        Self {
            catalog,
            images: Images::default(),
            floating: Floating::default(),
            shorts: Shorts::default(),
            pointers: Pointers::default(),
            exact: HashMap::new(),
        }
    }

    /// The machine was reset.
    pub(crate) fn reset(&mut self) {
        self.images.clear();
        self.floating.clear();
        self.shorts.clear();
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
                lacking: false,
            });
        }
        let (vdso, near_vdso) = self.vdso(question)?;
        if let Some(verdict) = vdso {
            return Ok(Answer {
                verdict,
                placed: false,
                open: false,
                lacking: false,
            });
        }
        let modified = match nearest::user(&self.catalog, question.bytes, question.va, question.neighbours)? {
            Some(modified) => Some(modified),
            None => near_vdso,
        };
        let verdict = match modified {
            Some(modified) => Verdict::Modified(modified),
            None => Verdict::Unknown(question.unknown.clone()),
        };
        Ok(Answer {
            verdict: Arc::new(verdict),
            placed: false,
            open: false,
            lacking: false,
        })
    }

    fn exact(&mut self, digest: &[u8; 32]) -> Result<Option<Arc<Verdict>>, ReadError> {
        if let Some(verdict) = self.exact.get(digest) {
            return Ok(Some(verdict.clone()));
        }
        let found = self.catalog.pages_counted(digest)?;
        let mut places = Vec::new();
        for place in &found.refs {
            // What an interpreter reads runs on no processor, even if its bytes are the same.
            if place.execute || self.catalog.object(place.object)?.kind != ObjectKind::Interpreted {
                places.push(Place {
                    object: place.object,
                    part: None,
                    link: place.va,
                });
            }
        }
        if places.is_empty() {
            return Ok(None);
        }
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

    /// The page of a vDSO that it equals, and if it equals none, the nearest: a vDSO is mapped by the kernel and has no file
    /// of its own next to it, so its neighbours tell nothing.
    fn vdso(&self, question: &Question<'_>) -> Result<(Option<Arc<Verdict>>, Option<Modified>), ReadError> {
        let (mut places, mut sites) = (Vec::new(), Vec::new());
        let mut best = Best::default();
        self.each_vdso_page(|place, part, at| {
            let comparison = compare(part, at, None, question.bytes, &Solver::default(), &self.images);
            if comparison.is_equal() {
                sites = tally(&comparison);
                places.push(place);
            } else {
                best.consider(place, part, at, &comparison, question.bytes);
            }
        })?;
        if places.is_empty() {
            return Ok((None, best.modified()));
        }
        let identified = Identified {
            places,
            sites,
            ..Identified::default()
        };
        Ok((Some(Arc::new(Verdict::Identified(identified))), None))
    }

    /// The pages of the vDSOs of the kernels that run: where each stands, its part, and where it begins in that.
    fn each_vdso_page(&self, mut visit: impl FnMut(Place, &Part, i64)) -> Result<(), ReadError> {
        for object in self.images.kernels() {
            let info = self.catalog.object(object)?;
            for (number, about) in (0_u16..).zip(&info.parts) {
                if about.kind != PartKind::Vdso {
                    continue;
                }
                let part = self.catalog.part(object, number)?;
                for at in (0..part.bytes.len()).step_by(PAGE_SIZE) {
                    let at = i64::try_from(at).unwrap_or(i64::MAX);
                    let place = Place {
                        object,
                        part: Some(number),
                        link: part.link.wrapping_add_signed(at),
                    };
                    visit(place, &part, at);
                }
            }
        }
        Ok(())
    }
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
