//! Every page of every part, compared.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use nephoscope_recipe::{Comparison, Env, Object, Part, PartKind, SiteKind, Solver, compare, kernel};

use crate::Options;
use crate::guest::Snapshot;
use crate::modules::Module;

/// What was found in one object's pages.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) pages: usize,
    pub(crate) equal: usize,
    pub(crate) missing: usize,
    pub(crate) undecided: usize,
    pub(crate) uses: BTreeMap<SiteKind, (usize, usize)>,
    pub(crate) unexplained: usize,
    pub(crate) shown: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, part: &Part, at: i64, page: &[u8; 4096], found: &Comparison) {
        self.pages += 1;
        self.equal += usize::from(found.is_equal());
        self.undecided += found.undecided.len();
        for used in &found.uses {
            let (sites, bytes) = self.uses.entry(used.kind).or_default();
            *sites += 1;
            let changed = (0..used.len).filter(|i| {
                let offset = usize::from(used.offset + i);
                let own = usize::try_from(at).ok().and_then(|at| part.bytes.get(at + offset));
                own != Some(&page[offset])
            });
            *bytes += changed.count();
        }
        self.unexplained += found.differences.len();
        if !found.differences.is_empty() && self.shown < 12 {
            self.shown += 1;
            show(part, at, page, found);
        }
    }

    pub(crate) fn print(&self, name: &str) {
        println!(
            "{name}: {} pages, {} equal, {} differ, {} not mapped; {} unexplained bytes, {} sites undecided",
            self.pages,
            self.equal,
            self.pages - self.equal,
            self.missing,
            self.unexplained,
            self.undecided
        );
        for (kind, (sites, bytes)) in &self.uses {
            println!("    {:<16} {sites:>8} sites {bytes:>9} bytes", format!("{kind:?}"));
        }
    }
}

fn show(part: &Part, at: i64, page: &[u8; 4096], found: &Comparison) {
    let first = usize::from(found.differences[0].offset);
    let link = part.link.wrapping_add_signed(at + i64::try_from(first).unwrap());
    let from = first.saturating_sub(4);
    let to = (first + 48).min(4096);
    let own: Vec<Option<u8>> = (from..to)
        .map(|o| usize::try_from(at + i64::try_from(o).unwrap()).ok().and_then(|o| part.bytes.get(o).copied()))
        .collect();
    let own: Vec<String> = own.iter().map(|b| b.map_or("--".into(), |b| format!("{b:02x}"))).collect();
    println!("  {} {link:#x}: {} differences", part.name, found.differences.len());
    println!("    file  {}", own.join(" "));
    println!("    guest {}", page[from..to].iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" "));
    let offset = u32::try_from(at + i64::try_from(first).unwrap()).unwrap_or(0);
    if let Some(site) = part.sites.iter().find(|s| s.at <= offset && offset < s.at + u32::from(s.len)) {
        let set = &part.values.sets[site.set as usize];
        println!("    site {:?} +{} len {}, {} values", site.kind, site.at, site.len, set.len());
        for value in set.iter().take(12) {
            println!("      {:02x?} {:?}", value.bytes, value.fixes);
        }
    }
}

/// The identified kernel, as modules ask for it.
pub(crate) struct World<'a> {
    pub(crate) kernel: &'a Object,
    pub(crate) slide: u64,
}

impl Env for World<'_> {
    fn symbol(&self, name: &str) -> Option<u64> {
        let exports = &self.kernel.facts.exports;
        let at = exports.binary_search_by(|(n, _)| n.as_str().cmp(name)).ok()?;
        Some(exports[at].1.wrapping_add(self.slide))
    }

    fn is_function(&self, va: u64) -> bool {
        let link = va.wrapping_sub(self.slide);
        self.kernel.parts.iter().any(|p| {
            let offset = u32::try_from(link.wrapping_sub(p.values.lists_from)).ok();
            p.values.lists.first().zip(offset).is_some_and(|(list, o)| list.binary_search(&o).is_ok())
        })
    }
}

pub(crate) fn check(options: &Options, modules: &[Module], snapshot: &Snapshot) -> Result<bool> {
    let _ = modules;
    let file = fs::read(&options.kernel)?;
    let (kernel, skipped) = kernel::recognise_counting(&file)?;
    println!("{}: left out {skipped:?}", kernel.facts.name.as_deref().unwrap_or("?"));
    let text = kernel.parts.iter().find(|p| p.kind == PartKind::KernelText).context("no text")?;
    let slide = slide(text, snapshot).context("no slide fits")?;
    println!("slide {slide:#x}, {} levels", if snapshot.five_levels { 5 } else { 4 });
    let world = World { kernel: &kernel, slide };
    let mut good = true;
    for part in &kernel.parts {
        let wanted = match part.kind {
            PartKind::KernelText => true,
            PartKind::KernelInit => options.stop_at.is_some(),
            _ => false,
        };
        if wanted {
            let tally = part_pages(part, slide, snapshot, &world);
            tally.print(&part.name);
            good &= tally.pages == tally.equal;
        }
    }
    Ok(good)
}

/// The slide at which the most of the first pages is as in the file.
fn slide(text: &Part, snapshot: &Snapshot) -> Option<u64> {
    let likeness = |slide: u64| {
        let pages = (0..64u64).step_by(7);
        pages
            .filter_map(|n| {
                let page = snapshot.page(text.link + slide + 0x10_0000 + n * 4096)?;
                let at = usize::try_from(0x10_0000 + n * 4096).ok()?;
                Some(page.iter().zip(&text.bytes[at..]).filter(|(a, b)| a == b).count())
            })
            .sum::<usize>()
    };
    let best = (0..512u64).map(|n| n << 21).max_by_key(|s| likeness(*s))?;
    (likeness(best) > 20_000).then_some(best)
}

pub(crate) fn part_pages(part: &Part, slide: u64, snapshot: &Snapshot, env: &dyn Env) -> Tally {
    let mut tally = Tally::default();
    let mut solver = Solver::default();
    let end = part.link + part.bytes.len() as u64;
    let mut link = part.link & !0xfff;
    while link < end {
        let at = link.wrapping_sub(part.link).cast_signed();
        match snapshot.page(link.wrapping_add(slide)) {
            None => tally.missing += 1,
            Some(page) => {
                let found = compare(part, at, Some(link.wrapping_add(slide)), page, &solver, env);
                found.learn(&mut solver);
                tally.add(part, at, page, &found);
            }
        }
        link += 4096;
    }
    tally
}
