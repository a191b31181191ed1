//! Does the comparison see changes? Every kind of forgery that a rewritable place invites, tried on captured pages.

use nephoscope_recipe::{Comparison, Env, Part, SiteKind, Solver, compare};

/// What was tried, and what went unseen.
#[derive(Default)]
pub(crate) struct Forgeries {
    pub(crate) flips: usize,
    pub(crate) retargets: usize,
    pub(crate) hooks: usize,
    pub(crate) unseen: usize,
}

/// One page where a part is.
pub(crate) struct Place<'a> {
    pub(crate) part: &'a Part,
    pub(crate) at: i64,
    pub(crate) va: u64,
    pub(crate) page: &'a [u8; 4096],
}

impl Forgeries {
    /// Tries them on a page that was found equal.
    pub(crate) fn page(&mut self, place: &Place<'_>, found: &Comparison, solver: &Solver, env: &dyn Env) {
        for number in 0..24usize {
            let offset = (number * 173 + usize::try_from(place.va >> 12).unwrap_or(0) * 37) % 4096;
            for bit in [0x01, 0x80] {
                self.flips += 1;
                self.forge(place, "flip", offset, &[place.page[offset] ^ bit], solver, env);
            }
        }
        for used in found.uses.iter().filter(|u| u.len == 5 || u.len == 6) {
            let offset = usize::from(used.offset);
            match (used.kind, place.page[offset]) {
                (SiteKind::StaticCall | SiteKind::Paravirt | SiteKind::ReturnThunk, 0xe8 | 0xe9) => {
                    // Into the middle of whatever it called.
                    self.retargets += 1;
                    let low = place.page[offset + 1].wrapping_add(1);
                    self.forge(place, "retarget", offset + 1, &[low], solver, env);
                }
                (SiteKind::Ftrace, 0x0f) => {
                    // The usual hook: a call to some function of the kernel itself.
                    self.hooks += 1;
                    self.forge(place, "hook", offset, &[0xe8, 0, 0, 0, 0], solver, env);
                }
                _ => {}
            }
        }
    }

    fn forge(
        &mut self,
        place: &Place<'_>,
        what: &str,
        offset: usize,
        bytes: &[u8],
        solver: &Solver,
        env: &dyn Env,
    ) {
        let outside = usize::try_from(place.at).is_ok_and(|at| at + offset >= place.part.bytes.len());
        if outside || place.at < 0 {
            return;
        }
        let mut page = *place.page;
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
        let found = compare(place.part, place.at, Some(place.va), &page, solver, env);
        if found.differences.is_empty() {
            self.unseen += 1;
            if self.unseen < 20 {
                let near = offset.saturating_sub(6)..(offset + 8).min(4096);
                println!(
                    "  unseen {what} at {:#x}: {:02x?}",
                    place.va + offset as u64,
                    &page[near]
                );
            }
        }
    }
}
