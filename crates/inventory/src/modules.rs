//! From pages to modules: which files does an address space run, and which versions are still possible?
//!
//! A page can stand in several files, and in several versions of one. What decides is the module as a whole: all its
//! pages lie at one distance from where they were linked (the bias), and all must be of the same file.
//!
//! ```text
//!  every page with an address: each of its places gives (file, bias)
//!  repeat: take the bias and the set of files that explain the most pages still unexplained
//!          files that explain exactly those pages are the candidates; all others are contradicted
//!  pages that stand in more files than are listed join a module of one of those, and narrow nothing; the others are modules
//!  of which it is said that not all they can be is listed
//!  pages without an address join a module whose candidates they all can be of; they narrow nothing
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use nephoscope_catalog::ObjectId;
use nephoscope_guest::{Gva, PageId};
use nephoscope_recipe::ObjectKind;

use crate::verdict::{Place, Verdict};

/// A page that an address space uses.
#[derive(Clone, Copy, Debug)]
pub struct Use<'a> {
    /// The page; pages that are mapped and tell versions apart have no number.
    pub page: Option<PageId>,
    /// Whether it is only known to be mapped executable, and not to have executed.
    pub mapped: bool,
    /// Where it is seen.
    pub va: Option<Gva>,
    /// What it is.
    pub verdict: &'a Verdict,
}

/// What must be known of a file.
pub trait ObjectFacts {
    /// What kind of file it is; `None` if the catalog cannot say.
    fn kind(&self, object: ObjectId) -> Option<ObjectKind>;

    /// Where a program begins as linked; `None` if that is not known.
    fn entry(&self, object: ObjectId) -> Option<u64> {
        let _ = object;
        None
    }

    /// Where its bytes go as linked that nobody writes to while it runs, or an empty range.
    fn read_only(&self, object: ObjectId) -> Range<u64> {
        let _ = object;
        0..0
    }

    /// Where its code is as linked, from the first executable byte to behind the last; `None` if that is not known.
    fn code(&self, object: ObjectId) -> Option<Range<u64>> {
        let _ = object;
        None
    }
}

/// A file in an address space.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Module {
    /// The files that explain all its pages; at least one.
    pub candidates: Vec<ObjectId>,
    /// How many more files may, at least: its pages stand in more than are listed.
    pub left_out: u64,
    /// Load address minus link address, if any page's address is known.
    pub bias: Option<u64>,
    /// The executed pages that it explains.
    pub pages: Vec<PageId>,
    /// Pages that it explains and that are mapped executable; whether they executed is not known.
    pub mapped: Vec<PageId>,
    /// Pages near it that are modified, executed ones or mapped ones.
    pub modified: Vec<PageId>,
    /// What kind of file.
    pub kind: Option<ObjectKind>,
    /// Whether the address space can be named after it: see [`is_program`].
    pub program: bool,
}

/// Finds the modules of one address space. Pages that nothing explains are left out.
#[must_use]
pub fn resolve(uses: &[Use<'_>], facts: &(impl ObjectFacts + ?Sized)) -> Vec<Module> {
    let mut modules = with_addresses(uses, |usage| usage.verdict.left_out() == 0);
    modules.retain_mut(|module| is_there(module, uses, facts));
    in_many_files(uses, &mut modules);
    without_addresses(uses, &mut modules);
    // What is only mapped tells versions of what runs apart, and is no module by itself.
    modules.retain(|module| {
        !module.pages.is_empty() || !module.mapped.is_empty() || !module.modified.is_empty()
    });
    for module in &mut modules {
        module.kind = module.candidates.first().and_then(|object| facts.kind(*object));
        module.program = is_program(module, uses, facts);
        module.pages.sort_unstable();
        module.mapped.sort_unstable();
        module.modified.sort_unstable();
    }
    modules.sort_by_key(|module| {
        (
            module.kind != Some(ObjectKind::Executable),
            !module.program,
            module.bias,
            module.candidates.clone(),
        )
    });
    modules
}

/// Joins modules that can be the same files and no others, wherever their parts lie. Those of several candidates are not
/// narrowed by each other: two pages that may be of one file need not be.
#[must_use]
pub(crate) fn by_file(modules: Vec<Module>) -> Vec<Module> {
    let mut joined: Vec<Module> = Vec::new();
    for module in modules {
        match joined
            .iter_mut()
            .find(|other| other.candidates == module.candidates)
        {
            Some(other) => {
                other.pages.extend(module.pages);
                other.mapped.extend(module.mapped);
                other.modified.extend(module.modified);
                other.left_out = other.left_out.max(module.left_out);
                other.bias = other.bias.filter(|bias| module.bias == Some(*bias));
            }
            None => joined.push(module),
        }
    }
    joined
}

/// Leaves the candidates that this module can be. Programs that are linked statically share whole pages of libraries with
/// each other, so a page that stands in a file is no proof of the file: where most of what ran is not the file's, it is
/// not that file.
fn is_there(module: &mut Module, uses: &[Use<'_>], facts: &(impl ObjectFacts + ?Sized)) -> bool {
    let Some(bias) = module.bias else { return true };
    let known = module.pages.len() + module.mapped.len() + module.modified.len();
    module.candidates.retain(|object| {
        let Some(code) = facts.code(*object) else {
            return true;
        };
        let strange = uses.iter().filter(|usage| {
            let link = usage.va.map(|va| va.0.wrapping_sub(bias));
            usage.page.is_some()
                && usage.verdict.places().is_empty()
                && link.is_some_and(|link| code.contains(&link))
        });
        strange.count() < known.max(1)
    });
    !module.candidates.is_empty()
}

/// Whether an address space runs this file as its program. Any program can map another one's pages and run them; so the
/// page with the entry point has to have run, or (a child that was forked never begins there) the file's pages have to
/// outnumber those of nobody. A page that was changed names no program.
fn is_program(module: &Module, uses: &[Use<'_>], facts: &(impl ObjectFacts + ?Sized)) -> bool {
    let pages: BTreeSet<PageId> = module.pages.iter().chain(&module.mapped).copied().collect();
    if module.kind != Some(ObjectKind::Executable) || pages.is_empty() {
        return false;
    }
    let own = || {
        uses.iter()
            .filter(|usage| usage.page.is_some_and(|page| pages.contains(&page)))
    };
    let begins = |link: u64| {
        let entries = module.candidates.iter().filter_map(|object| facts.entry(*object));
        entries.map(|entry| entry & !0xfff).any(|entry| entry == link)
    };
    let entered = module
        .bias
        .is_some_and(|bias| own().any(|usage| usage.va.is_some_and(|va| begins(va.0.wrapping_sub(bias)))));
    let unknown = uses
        .iter()
        .filter(|usage| usage.page.is_some() && matches!(usage.verdict, Verdict::Unknown(_)));
    entered || pages.len() > unknown.count()
}

/// The pages of one file at one bias.
type Explained = BTreeMap<(u64, ObjectId), BTreeSet<usize>>;

fn bias(va: Gva, place: &Place) -> u64 {
    va.0.wrapping_sub(place.link)
}

/// Pages of which not all files are listed: they are of the module whose file is among the listed ones, or of any file at all.
fn in_many_files(uses: &[Use<'_>], modules: &mut Vec<Module>) {
    let is_of = |module: &Module, va: Gva, verdict: &Verdict| {
        let mut places = verdict.places().iter();
        places.any(|place| module.bias == Some(bias(va, place)) && module.candidates.contains(&place.object))
    };
    let mut alone = Vec::new();
    for usage in uses.iter().filter(|usage| usage.verdict.left_out() > 0) {
        let Some(va) = usage.va else { continue };
        match modules.iter_mut().find(|module| is_of(module, va, usage.verdict)) {
            Some(module) => add(module, usage),
            None => alone.push(*usage),
        }
    }
    modules.extend(with_addresses(&alone, |_| true));
}

fn with_addresses(uses: &[Use<'_>], may_narrow: impl Fn(&Use<'_>) -> bool) -> Vec<Module> {
    let mut explained: Explained = BTreeMap::new();
    for (number, usage) in uses.iter().enumerate().filter(|(_, usage)| may_narrow(usage)) {
        let Some(va) = usage.va else { continue };
        for place in usage.verdict.places() {
            explained
                .entry((bias(va, place), place.object))
                .or_default()
                .insert(number);
        }
    }
    let mut modules = Vec::new();
    let mut open: BTreeSet<usize> = explained.values().flatten().copied().collect();
    while !open.is_empty() {
        let best = explained
            .iter()
            .map(|(key, pages)| (pages.intersection(&open).count(), *key))
            .max_by_key(|(count, key)| (*count, std::cmp::Reverse(*key)));
        let Some((count, (bias, object))) = best.filter(|(count, _)| *count > 0) else {
            break;
        };
        let _ = count;
        let pages: BTreeSet<usize> = explained
            .get(&(bias, object))
            .map(|set| set.intersection(&open).copied().collect())
            .unwrap_or_default();
        // Every file that explains the same open pages, at this bias, is as good.
        let candidates = explained
            .iter()
            .filter(|((b, _), set)| *b == bias && set.is_superset(&pages))
            .map(|((_, object), _)| *object)
            .collect();
        open.retain(|number| !pages.contains(number));
        modules.push(module(uses, candidates, Some(bias), &pages));
    }
    join_by_bias(modules)
}

/// Two groups of pages at one bias with a common candidate are one module that the greedy choice had cut.
fn join_by_bias(modules: Vec<Module>) -> Vec<Module> {
    let mut joined: Vec<Module> = Vec::new();
    for module in modules {
        let same = joined.iter_mut().find(|other| {
            other.bias == module.bias
                && other
                    .candidates
                    .iter()
                    .any(|object| module.candidates.contains(object))
        });
        match same {
            Some(other) => {
                other
                    .candidates
                    .retain(|object| module.candidates.contains(object));
                other.left_out = other.left_out.max(module.left_out);
                other.pages.extend(module.pages);
                other.mapped.extend(module.mapped);
                other.modified.extend(module.modified);
            }
            None => joined.push(module),
        }
    }
    joined
}

fn without_addresses(uses: &[Use<'_>], modules: &mut Vec<Module>) {
    for (number, usage) in uses.iter().enumerate() {
        if usage.va.is_some() || usage.verdict.places().is_empty() {
            continue;
        }
        let objects: BTreeSet<ObjectId> = usage.verdict.places().iter().map(|place| place.object).collect();
        let home = modules
            .iter_mut()
            .filter(|module| module.candidates.iter().all(|object| objects.contains(object)))
            .max_by_key(|module| module.pages.len() + module.mapped.len());
        if let Some(home) = home {
            add(home, usage);
        } else {
            let pages = BTreeSet::from([number]);
            modules.push(module(uses, objects.into_iter().collect(), None, &pages));
        }
    }
}

fn module(
    uses: &[Use<'_>],
    candidates: Vec<ObjectId>,
    bias: Option<u64>,
    numbers: &BTreeSet<usize>,
) -> Module {
    let mut module = Module {
        candidates,
        left_out: 0,
        bias,
        pages: Vec::new(),
        mapped: Vec::new(),
        modified: Vec::new(),
        kind: None,
        program: false,
    };
    for number in numbers {
        if let Some(usage) = uses.get(*number) {
            module.left_out = module.left_out.max(usage.verdict.left_out());
            add(&mut module, usage);
        }
    }
    module
}

fn add(module: &mut Module, usage: &Use<'_>) {
    match (usage.page, usage.verdict) {
        (Some(page), Verdict::Modified(_)) => module.modified.push(page),
        (Some(page), _) if usage.mapped => module.mapped.push(page),
        (Some(page), _) => module.pages.push(page),
        (None, _) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Identified, Unknown};

    struct Kinds;
    impl ObjectFacts for Kinds {
        fn kind(&self, object: ObjectId) -> Option<ObjectKind> {
            Some(if object.0 >= 100 {
                ObjectKind::Executable
            } else {
                ObjectKind::SharedObject
            })
        }

        fn code(&self, _object: ObjectId) -> Option<Range<u64>> {
            Some(0x1000..0x10000)
        }

        fn entry(&self, _object: ObjectId) -> Option<u64> {
            Some(0x5123)
        }
    }

    fn identified(places: &[(u32, u64)]) -> Verdict {
        let places = places
            .iter()
            .map(|(o, link)| Place {
                object: ObjectId(*o),
                part: None,
                link: *link,
            })
            .collect();
        Verdict::Identified(Identified {
            places,
            ..Identified::default()
        })
    }

    /// The same, in so many more files.
    fn in_more(places: &[(u32, u64)], left_out: u64) -> Verdict {
        match identified(places) {
            Verdict::Identified(known) => Verdict::Identified(Identified { left_out, ..known }),
            other => other,
        }
    }

    fn run(pages: &[(u64, Option<u64>, Verdict)]) -> Vec<Module> {
        let uses: Vec<Use<'_>> = pages
            .iter()
            .map(|(id, va, verdict)| Use {
                page: Some(PageId(*id)),
                mapped: false,
                va: va.map(Gva),
                verdict,
            })
            .collect();
        resolve(&uses, &Kinds)
    }

    #[test]
    fn a_page_of_two_versions_is_decided_by_another_page_of_the_module() {
        let modules = run(&[
            (1, Some(0x7f00_1000), identified(&[(1, 0x1000), (2, 0x1000)])),
            (2, Some(0x7f00_2000), identified(&[(2, 0x2000)])),
        ]);
        assert_eq!(modules.len(), 1);
        assert_eq!(
            (modules[0].candidates.as_slice(), modules[0].pages.len()),
            (&[ObjectId(2)][..], 2)
        );
    }

    #[test]
    fn a_page_of_more_files_than_are_listed_contradicts_no_file() {
        let modules = run(&[
            (1, Some(0x7f00_1000), identified(&[(1, 0x1000), (2, 0x1000)])),
            (2, Some(0x7f00_2000), in_more(&[(2, 0x2000), (8, 0x2000)], 5)),
            // The file may be among those that are not listed, and may be another.
            (3, Some(0x7f00_3000), in_more(&[(7, 0x3000), (8, 0x3000)], 5)),
        ]);
        let told: Vec<_> = modules
            .iter()
            .map(|m| (m.candidates.clone(), m.left_out, m.pages.len()))
            .collect();
        let files = |ids: [u32; 2]| ids.map(ObjectId).to_vec();
        assert_eq!(told, [(files([1, 2]), 0, 2), (files([7, 8]), 5, 1)]);
    }

    #[test]
    fn where_nothing_else_ran_it_is_said_that_not_all_files_are_listed() {
        let modules = run(&[
            (1, Some(0x7f00_1000), in_more(&[(7, 0x1000), (8, 0x1000)], 5)),
            (2, Some(0x7f00_2000), in_more(&[(7, 0x2000), (8, 0x2000)], 9)),
            (3, None, in_more(&[(9, 0x2000)], 2)),
        ]);
        let told: Vec<_> = modules
            .iter()
            .map(|m| (m.candidates.len(), m.left_out, m.pages.len()))
            .collect();
        assert_eq!(told, [(1, 2, 1), (2, 9, 2)]);
    }

    #[test]
    fn a_mapped_page_decides_between_versions_and_is_no_module_by_itself() {
        let ran = identified(&[(1, 0x1000), (2, 0x1000)]);
        let (mapped, stray) = (identified(&[(2, 0x5000)]), identified(&[(7, 0x9000)]));
        let usage = |page, va, verdict| Use {
            page,
            mapped: false,
            va: Some(Gva(va)),
            verdict,
        };
        let uses = [
            usage(Some(PageId(1)), 0x7f00_1000, &ran),
            usage(None, 0x7f00_5000, &mapped),
            usage(None, 0x7f00_6000, &stray),
        ];
        let modules = resolve(&uses, &Kinds);
        assert_eq!(modules.len(), 1);
        assert_eq!(modules[0].candidates, [ObjectId(2)]);
        assert_eq!(modules[0].pages, [PageId(1)]);
    }

    #[test]
    fn parts_of_one_file_are_one_module_and_shared_parts_narrow_nothing() {
        let modules = by_file(run(&[
            (1, Some(0xffff_c000_1000), identified(&[(1, 0x1000)])),
            (2, Some(0xffff_d000_0000), identified(&[(1, 0x10_0000)])),
            (
                3,
                Some(0xffff_e000_0000),
                identified(&[(1, 0x20_0000), (2, 0x20_0000), (3, 0x20_0000)]),
            ),
            (
                4,
                Some(0xffff_f000_0000),
                identified(&[(2, 0x20_0000), (3, 0x20_0000)]),
            ),
        ]));
        let shape: Vec<_> = modules
            .iter()
            .map(|m| (m.candidates.len(), m.pages.len()))
            .collect();
        assert_eq!(shape.len(), 3, "{modules:?}");
        for wanted in [(1, 2), (3, 1), (2, 1)] {
            assert!(shape.contains(&wanted), "{modules:?}");
        }
    }

    #[test]
    fn two_versions_that_nothing_tells_apart_stay_two() {
        let modules = run(&[(1, Some(0x7f00_1000), identified(&[(1, 0x1000), (2, 0x1000)]))]);
        assert_eq!(modules[0].candidates, [ObjectId(1), ObjectId(2)]);
    }

    #[test]
    fn two_versions_loaded_at_two_places_are_two_modules() {
        let modules = run(&[
            (1, Some(0x7f00_1000), identified(&[(1, 0x1000)])),
            (2, Some(0x7e00_1000), identified(&[(2, 0x1000)])),
            (3, Some(0x7e00_3000), identified(&[(1, 0x3000), (2, 0x3000)])),
        ]);
        assert_eq!(modules.len(), 2);
        assert!(modules.iter().all(|m| m.candidates.len() == 1));
    }

    #[test]
    fn a_stranger_that_shares_a_page_with_a_known_program_is_not_that_program() {
        let strange = Verdict::Unknown(Unknown::default());
        let modules = run(&[
            (1, Some(0x40_2000), identified(&[(100, 0x2000)])),
            (2, Some(0x40_3000), strange.clone()),
            (3, Some(0x40_4000), strange.clone()),
        ]);
        assert_eq!(modules, []);
        // Code made at run time elsewhere in the address space says nothing against it.
        let modules = run(&[
            (1, Some(0x40_2000), identified(&[(100, 0x2000)])),
            (2, Some(0x7f00_3000), strange.clone()),
            (3, Some(0x7f00_4000), strange),
        ]);
        assert_eq!(modules.len(), 1);
    }

    #[test]
    fn who_runs_pages_of_a_program_is_not_it_unless_it_began_there_or_runs_nothing_else_to_speak_of() {
        let strange = |number: u64| (number, Some(number << 12), Verdict::Unknown(Unknown::default()));
        let page = |number: u64, link: u64| (number, Some(0x7f00_0000 + link), identified(&[(100, link)]));
        let named = |pages: &[(u64, Option<u64>, Verdict)]| run(pages).first().map(|module| module.program);
        // A stranger that borrows a page.
        assert_eq!(named(&[page(1, 0x2000), strange(2)]), Some(false));
        // A program that makes code at run time.
        assert_eq!(named(&[page(1, 0x5000), strange(2), strange(3)]), Some(true));
        // Its child.
        assert_eq!(named(&[page(1, 0x2000), page(2, 0x3000), strange(3)]), Some(true));
        // One that nothing but changed pages is of.
        let changed = Verdict::Modified(crate::verdict::Modified {
            nearest: Place {
                object: ObjectId(100),
                part: None,
                link: 0x5000,
            },
            differences: Vec::new(),
        });
        assert_eq!(named(&[(1, Some(0x7f00_5000), changed)]), Some(false));
    }

    #[test]
    fn a_shared_page_at_another_files_bias_does_not_invent_a_module() {
        // Page 3 stands in files 1 and 9; only file 1 is at the bias of the neighbours.
        let modules = run(&[
            (1, Some(0x7f00_1000), identified(&[(1, 0x1000)])),
            (2, Some(0x7f00_2000), identified(&[(1, 0x2000)])),
            (3, Some(0x7f00_3000), identified(&[(9, 0x8000), (1, 0x3000)])),
        ]);
        assert_eq!(modules.len(), 1);
        assert_eq!(
            (modules[0].candidates.as_slice(), modules[0].pages.len()),
            (&[ObjectId(1)][..], 3)
        );
    }

    #[test]
    fn pages_without_an_address_join_the_module_that_has_their_file() {
        let modules = run(&[
            (1, Some(0x5000_1000), identified(&[(100, 0x1000)])),
            (2, None, identified(&[(100, 0x2000), (101, 0x2000)])),
            (3, None, identified(&[(7, 0x2000)])),
        ]);
        assert_eq!(modules.len(), 2);
        assert_eq!(
            modules[0].kind,
            Some(ObjectKind::Executable),
            "the program comes first"
        );
        assert_eq!((modules[0].pages.len(), modules[1].bias), (2, None));
    }
}
