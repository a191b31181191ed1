//! Short parts of modules, which content windows do not find: initialisation code, and the text of small modules.
//!
//! A driver's init function is often one call with three arguments: some ten bytes between fields that loading it fills
//! in, so that no window of it is free of fields. But it begins where its page begins and the rest of the page is zeros,
//! and the modules of one kernel release are a few thousand. So the bytes outside fields of all of them are compared
//! with the page, which takes microseconds; what agrees is then compared field by field, like any candidate.
//!
//! Many drivers share one init function but for its fields. Then all that fit are named, until the rest of the module
//! decides.

use std::collections::{BTreeMap, HashMap};

use nephoscope_catalog::{Catalog, ObjectId, ReadError};
use nephoscope_guest::PAGE_SIZE;
use nephoscope_inventory::Place;
use nephoscope_recipe::{ObjectKind, Part, PartKind, SiteKind};

/// Releases that are kept: it stops a guest that starts one kernel after the other.
const MAX_RELEASES: usize = 8;
/// Short parts per release: more than any release has. The rest is counted.
const MAX_SHORT: usize = 64 << 10;

/// One short part.
#[derive(Debug)]
struct Short {
    object: ObjectId,
    number: u16,
    /// Up to its last byte that is not zero or in a field.
    bytes: Vec<u8>,
    /// Its fields, as ranges of `bytes`, sorted.
    fields: Vec<(usize, usize)>,
}

/// The short parts that one page can be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Alike {
    /// Those that it equals.
    pub(crate) places: Vec<Place>,
    /// Sites of the first of them that differ from the file.
    pub(crate) sites: Option<Vec<(SiteKind, u32, u32)>>,
    /// Those that it would equal if symbols that they refer to were known, and those that were left out.
    pub(crate) undecided: u64,
    /// How often all were compared.
    pub(crate) tries: u8,
}

/// Pages whose short parts are remembered: it stops a guest that loads modules for ever.
const MAX_REMEMBERED: usize = 4096;

/// The short parts of one release.
#[derive(Debug, Default)]
struct Release {
    shorts: Vec<Short>,
    /// Those over the bound.
    left_out: u64,
}

/// The short parts of the releases that run here.
#[derive(Debug, Default)]
pub(crate) struct Shorts {
    releases: BTreeMap<String, Release>,
    remembered: HashMap<[u8; 32], Alike>,
}

impl Shorts {
    /// What a page with this digest was found to be.
    pub(crate) fn remembered(&self, digest: &[u8; 32]) -> Option<Alike> {
        self.remembered.get(digest).cloned()
    }

    /// Remembers it.
    pub(crate) fn remember(&mut self, digest: [u8; 32], alike: Alike) {
        if self.remembered.len() >= MAX_REMEMBERED {
            self.remembered.clear();
        }
        self.remembered.insert(digest, alike);
    }

    /// The machine was reset: the kernel may lie elsewhere now.
    pub(crate) fn clear(&mut self) {
        self.remembered.clear();
    }

    /// The short parts of this release that the page can be, by what is outside of their fields.
    pub(crate) fn like(
        &mut self,
        catalog: &Catalog,
        release: &str,
        page: &[u8; PAGE_SIZE],
    ) -> Result<Vec<(ObjectId, u16)>, ReadError> {
        if !self.releases.contains_key(release) {
            if self.releases.len() >= MAX_RELEASES {
                self.releases.clear();
            }
            self.releases
                .insert(release.to_owned(), read(catalog, release, MAX_SHORT)?);
        }
        let used = page.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        let shorts = self
            .releases
            .get(release)
            .map_or(&[][..], |release| &release.shorts);
        Ok(shorts
            .iter()
            .filter(|short| used <= short.bytes.len() && short.agrees(page))
            .map(|short| (short.object, short.number))
            .collect())
    }

    /// How many short parts of this release are not looked at.
    pub(crate) fn left_out(&self, release: &str) -> u64 {
        self.releases.get(release).map_or(0, |release| release.left_out)
    }
}

/// At most `most` short parts of a release.
fn read(catalog: &Catalog, release: &str, most: usize) -> Result<Release, ReadError> {
    let mut found = Release::default();
    for object in catalog.objects_of_kind(ObjectKind::KernelModule)? {
        let module = catalog.once(object)?;
        if module.info().facts.kernel_release.as_deref() != Some(release) {
            continue;
        }
        for (number, about) in (0_u16..).zip(&module.info().parts) {
            let short = about.len <= PAGE_SIZE as u64;
            if !short || !matches!(about.kind, PartKind::ModuleInit | PartKind::ModuleText) {
                continue;
            }
            if found.shorts.len() < most {
                found
                    .shorts
                    .push(Short::of(object, number, &module.part(number)?));
            } else {
                found.left_out += 1;
            }
        }
    }
    Ok(found)
}

impl Short {
    fn of(object: ObjectId, number: u16, part: &Part) -> Self {
        let index = |at: u32| usize::try_from(at).unwrap_or(usize::MAX);
        let fields: Vec<(usize, usize)> = part
            .sites
            .iter()
            .map(|site| {
                (
                    index(site.at),
                    index(site.at).saturating_add(usize::from(site.len)),
                )
            })
            .collect();
        let used = part
            .bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1);
        let end = fields.last().map_or(used, |(_, end)| used.max(*end));
        let bytes = part
            .bytes
            .get(..end.min(part.bytes.len()))
            .unwrap_or(&[])
            .to_vec();
        Self {
            object,
            number,
            bytes,
            fields,
        }
    }

    fn agrees(&self, page: &[u8; PAGE_SIZE]) -> bool {
        let mut from = 0;
        let ends = [(self.bytes.len(), self.bytes.len())];
        for (start, end) in self.fields.iter().chain(&ends) {
            if self.bytes.get(from..*start) != page.get(from..*start) {
                return false;
            }
            from = *end;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{self, Module, of_kernel};
    use crate::identify::Identifier;
    use crate::images::tests::running;
    use nephoscope_inventory::Verdict;
    use nephoscope_recipe::{Placement, Site, SiteKind, Values};

    /// `mov rdi, field; jmp field`, in a page of its own.
    fn part() -> Part {
        let mut bytes = vec![0; PAGE_SIZE];
        bytes[..3].copy_from_slice(&[0x48, 0xc7, 0xc7]);
        bytes[7] = 0xe9;
        let site = |at| Site {
            at,
            len: 4,
            kind: SiteKind::Relocation,
            set: 0,
        };
        Part {
            kind: PartKind::ModuleInit,
            name: "init".into(),
            link: 0,
            placement: Placement::Aligned(4096),
            bytes,
            sites: vec![site(3), site(8)],
            values: Values::default(),
        }
    }

    fn page(code: &[u8]) -> [u8; PAGE_SIZE] {
        let mut page = [0; PAGE_SIZE];
        page[..code.len()].copy_from_slice(code);
        page
    }

    #[test]
    fn fields_may_hold_anything_and_nothing_else_may() {
        let init = Short::of(ObjectId(1), 0, &part());
        assert_eq!(init.bytes.len(), 12, "the field at the end is part of it");
        let code = [0x48, 0xc7, 0xc7, 1, 2, 3, 4, 0xe9, 5, 6, 7, 8];
        assert!(init.agrees(&page(&code)));
        for at in [0, 1, 2, 7] {
            let mut other = code;
            other[at] ^= 1;
            assert!(!init.agrees(&page(&other)), "byte {at}");
        }
    }

    #[test]
    fn max_short_bounds_the_short_parts_of_a_release_and_the_rest_is_counted() {
        let module = |name| {
            let code: &[u8] = if name == "a" { b"one" } else { b"other" };
            let module = Module {
                name,
                text: code,
                init: code,
                ..Module::default()
            };
            module.file()
        };
        let (catalog, _) = fixture::catalog(&["a", "b", "c"].map(module));
        let read = |release, most| {
            let release = read(&catalog, release, most).unwrap();
            (release.shorts.len(), release.left_out)
        };
        assert_eq!(
            (read("1.0", 6), read("1.0", 5), read("1.0", 2)),
            ((6, 0), (5, 1), (2, 4))
        );
        assert_eq!(read("2.0", 2), (0, 0));
    }

    #[test]
    fn what_max_short_leaves_out_may_be_what_a_page_is() {
        let module = Module {
            name: "a",
            init: b"code",
            ..Module::default()
        };
        let (catalog, _) = fixture::catalog(&[module.file()]);
        let bytes = fixture::page(b"code");
        for left_out in [0, 2] {
            let mut identifier = Identifier::new(catalog.clone());
            identifier.images = running(&[]);
            let mut release = read(&catalog, "1.0", 1).unwrap();
            release.left_out = left_out;
            identifier.shorts.releases.insert("1.0".into(), release);
            let question = of_kernel(&bytes, 0xffff_ffff_c000_0000, &[(0, 4)]);
            let answer = identifier.ask(&question).unwrap();
            let Verdict::Identified(found) = &*answer.verdict else {
                panic!("{:?}", answer.verdict);
            };
            assert_eq!((found.places.len(), found.left_out), (1, left_out));
            assert_eq!(
                answer.placed,
                left_out == 0,
                "it is surely that one if there is no other"
            );
        }
    }

    #[test]
    fn max_remembered_and_max_releases_bound_what_a_guest_that_loads_modules_for_ever_costs() {
        let folder = tempfile::tempdir().unwrap();
        nephoscope_catalog::Adder::new(folder.path())
            .unwrap()
            .commit()
            .unwrap();
        let catalog = Catalog::open(folder.path()).unwrap();
        let mut shorts = Shorts::default();
        for number in 0..=MAX_REMEMBERED {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&(number as u64).to_le_bytes());
            shorts.remember(digest, Alike::default());
            assert!(shorts.remembered.len() <= MAX_REMEMBERED);
            assert!(shorts.remembered(&digest).is_some());
        }
        for release in 0..=MAX_RELEASES {
            let like = shorts.like(&catalog, &release.to_string(), &[0; PAGE_SIZE]);
            assert_eq!(like.unwrap(), []);
            assert!(shorts.releases.len() <= MAX_RELEASES);
        }
    }
}
