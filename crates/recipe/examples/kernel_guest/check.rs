//! Every page of every part, compared.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use nephoscope_recipe::{
    Comparison, Env, FUNCTIONS, Object, PARAVIRT, Part, PartKind, SiteKind, Solver, compare, kernel, module,
};

use crate::Options;
use crate::guest::Snapshot;
use crate::modules::Module;
use crate::mutate::{Forgeries, Place};

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
    pub(crate) quiet: bool,
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
                let own = usize::try_from(at)
                    .ok()
                    .and_then(|at| part.bytes.get(at + offset));
                own != Some(&page[offset])
            });
            *bytes += changed.count();
        }
        self.unexplained += found.differences.len();
        if found.differences.is_empty() && !found.undecided.is_empty() && self.shown < 12 && !self.quiet {
            self.shown += 1;
            undecided(part, at, found);
        }
        if !found.differences.is_empty() && self.shown < 12 && !self.quiet {
            self.shown += 1;
            show(part, at, page, found);
        }
    }

    fn join(&mut self, other: &Self) {
        self.pages += other.pages;
        self.equal += other.equal;
        self.missing += other.missing;
        self.undecided += other.undecided;
        self.unexplained += other.unexplained;
        for (kind, (sites, bytes)) in &other.uses {
            let into = self.uses.entry(*kind).or_default();
            into.0 += sites;
            into.1 += bytes;
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
            println!(
                "    {:<16} {sites:>8} sites {bytes:>9} bytes",
                format!("{kind:?}")
            );
        }
    }
}

fn undecided(part: &Part, at: i64, found: &Comparison) {
    for used in found.undecided.iter().take(3) {
        let offset = at + i64::from(used.offset);
        let site = part.sites.iter().rev().find(|s| i64::from(s.at) <= offset);
        let set = site.and_then(|s| part.values.sets.get(s.set as usize));
        let fixes: Vec<_> = set
            .into_iter()
            .flatten()
            .flat_map(|v| &v.fixes)
            .map(|f| f.to)
            .collect();
        let unknowns: Vec<_> = fixes
            .iter()
            .map(|to| match to {
                nephoscope_recipe::Target::Unknown(u) => {
                    format!("{:?}", part.values.unknowns[usize::from(*u)])
                }
                other => format!("{other:?}"),
            })
            .collect();
        println!(
            "  {} {offset:#x}: {:?} of {} bytes undecided: {unknowns:?}",
            part.name, used.kind, used.len
        );
    }
}

fn show(part: &Part, at: i64, page: &[u8; 4096], found: &Comparison) {
    let first = usize::from(found.differences[0].offset);
    let link = part.link.wrapping_add_signed(at + i64::try_from(first).unwrap());
    let from = first.saturating_sub(4);
    let to = (first + 48).min(4096);
    let own: Vec<Option<u8>> = (from..to)
        .map(|o| {
            usize::try_from(at + i64::try_from(o).unwrap())
                .ok()
                .and_then(|o| part.bytes.get(o).copied())
        })
        .collect();
    let own: Vec<String> = own
        .iter()
        .map(|b| b.map_or("--".into(), |b| format!("{b:02x}")))
        .collect();
    println!(
        "  {} {link:#x}: {} differences",
        part.name,
        found.differences.len()
    );
    println!("    file  {}", own.join(" "));
    println!(
        "    guest {}",
        page[from..to]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<Vec<_>>()
            .join(" ")
    );
    let offset = u32::try_from(at + i64::try_from(first).unwrap()).unwrap_or(0);
    if let Some(site) = part
        .sites
        .iter()
        .find(|s| s.at <= offset && offset < s.at + u32::from(s.len))
    {
        let set = &part.values.sets[site.set as usize];
        println!(
            "    site {:?} +{} len {}, {} values",
            site.kind,
            site.at,
            site.len,
            set.len()
        );
        for value in set.iter().take(12) {
            println!("      {:02x?} {:?}", value.bytes, value.fixes);
        }
    }
}

/// The identified kernel and modules, as fields ask for them.
pub(crate) struct World<'a> {
    pub(crate) kernel: &'a Object,
    pub(crate) slide: u64,
    pub(crate) modules: Vec<Loaded>,
}

/// A module at its place.
pub(crate) struct Loaded {
    pub(crate) object: Object,
    pub(crate) base: u64,
    pub(crate) solver: Solver,
}

impl World<'_> {
    fn in_list(&self, va: u64, list: u16) -> bool {
        let link = va.wrapping_sub(self.slide);
        self.kernel.parts.iter().any(|p| {
            let offset = u32::try_from(link.wrapping_sub(p.values.lists_from)).ok();
            let list = p.values.lists.get(usize::from(list));
            list.zip(offset)
                .is_some_and(|(list, o)| list.binary_search(&o).is_ok())
        })
    }
}

fn export(object: &Object, name: &str) -> Option<u64> {
    let exports = &object.facts.exports;
    let at = exports.binary_search_by(|(n, _)| n.as_str().cmp(name)).ok()?;
    Some(exports[at].1)
}

impl Env for World<'_> {
    fn symbol(&self, name: &str) -> Option<u64> {
        if let Some(link) = export(self.kernel, name) {
            // Per-cpu symbols are offsets, and do not move.
            let moves = link >= 0xffff_ffff_8000_0000;
            return Some(if moves {
                link.wrapping_add(self.slide)
            } else {
                link
            });
        }
        let mut modules = self.modules.iter();
        modules.find_map(|m| module::resolve(&m.object, m.base, &m.solver, export(&m.object, name)?))
    }

    fn is_function(&self, va: u64) -> bool {
        self.in_list(va, FUNCTIONS)
            || self.modules.iter().any(|m| {
                let offset = u32::try_from(va.wrapping_sub(m.base)).ok();
                let part = m.object.parts.iter().find(|p| p.kind == PartKind::ModuleText);
                let list = part.and_then(|p| p.values.lists.first());
                list.zip(offset)
                    .is_some_and(|(list, o)| list.binary_search(&o).is_ok())
            })
    }

    fn is_paravirt(&self, va: u64) -> bool {
        self.in_list(va, PARAVIRT)
    }

    fn is_data(&self, name: &str) -> bool {
        self.modules
            .iter()
            .any(|m| export(&m.object, name).is_some_and(module::is_data))
    }
}

pub(crate) fn check(options: &Options, modules: &[Module], snapshot: &mut Snapshot) -> Result<bool> {
    let file = fs::read(&options.kernel)?;
    let (kernel, skipped) = kernel::recognise_counting(&file)?;
    println!(
        "{}: left out {skipped:?}",
        kernel.facts.name.as_deref().unwrap_or("?")
    );
    let text = kernel
        .parts
        .iter()
        .find(|p| p.kind == PartKind::KernelText)
        .context("no text")?;
    let slide = match slide(text, snapshot) {
        Some(slide) => slide,
        None => {
            // The user half of a page-table-isolation pair maps next to nothing of the kernel.
            snapshot.root &= !0x1000;
            slide(text, snapshot).context("no slide fits")?
        }
    };
    let snapshot = &*snapshot;
    println!(
        "slide {slide:#x}, {} levels",
        if snapshot.five_levels { 5 } else { 4 }
    );
    let mut world = World {
        kernel: &kernel,
        slide,
        modules: Vec::new(),
    };
    let mut refused = 0;
    for loaded in modules {
        let Some(base) = base(&snapshot.console, &loaded.name) else {
            println!("{}: not loaded", loaded.name);
            continue;
        };
        let (object, skipped) = module::recognise_counting(&loaded.file)?;
        refused += skipped.too_many_contents + skipped.outside;
        world.modules.push(Loaded {
            object,
            base,
            solver: Solver::default(),
        });
    }
    let mut good = true;
    let mut all = Tally::default();
    // Twice: a module's fields ask for addresses that only another module's pages tell.
    for last in [false, true] {
        all = Tally::default();
        for number in 0..world.modules.len() {
            let here = &world.modules[number];
            let text = here.object.parts.iter().find(|p| p.kind == PartKind::ModuleText);
            let text = text.with_context(|| format!("{:?} has no text", here.object.facts.name))?;
            let mut solver = here.solver.clone();
            let mut tally = Tally {
                quiet: !last,
                ..Tally::default()
            };
            part_pages(text, here.base, snapshot, &world, &mut solver, &mut tally);
            if last && (tally.pages != tally.equal || tally.missing != 0) {
                good = false;
                tally.print(here.object.facts.name.as_deref().unwrap_or("?"));
            }
            all.join(&tally);
            world.modules[number].solver = solver;
        }
    }
    all.print(&format!(
        "{} modules ({refused} sites left out)",
        world.modules.len()
    ));
    for part in &kernel.parts {
        let wanted = match part.kind {
            PartKind::KernelText => true,
            PartKind::KernelInit => options.stop_at.is_some(),
            _ => false,
        };
        if wanted {
            let mut tally = Tally::default();
            let mut solver = Solver::default();
            part_pages(part, slide, snapshot, &world, &mut solver, &mut tally);
            tally.print(&part.name);
            good &= tally.pages == tally.equal;
        }
    }
    if options.mutate {
        let forgeries = forge(&kernel, &world, slide, snapshot);
        println!(
            "forged: {} flips, {} retargets, {} hooks; {} unseen",
            forgeries.flips, forgeries.retargets, forgeries.hooks, forgeries.unseen
        );
        good &= forgeries.unseen == 0;
    }
    Ok(good)
}

/// Every eighth page of the kernel's and every page of the modules' text.
fn forge(kernel: &Object, world: &World<'_>, slide: u64, snapshot: &Snapshot) -> Forgeries {
    let mut forgeries = Forgeries::default();
    let kernel = kernel.parts.iter().filter(|p| p.kind == PartKind::KernelText);
    let kernel = kernel.map(|p| (p, slide, Solver::default(), 8));
    let modules = world.modules.iter().filter_map(|m| {
        let text = m.object.parts.iter().find(|p| p.kind == PartKind::ModuleText)?;
        Some((text, m.base, m.solver.clone(), 1))
    });
    for (part, slide, mut solver, step) in kernel.chain(modules) {
        for at in (0..part.bytes.len()).step_by(4096 * step) {
            let va = part.link.wrapping_add(slide).wrapping_add(at as u64);
            let Some(page) = snapshot.page(va) else { continue };
            let at = i64::try_from(at).unwrap_or(0);
            let found = compare(part, at, Some(va), page, &solver, world);
            found.learn(&mut solver);
            if found.is_equal() {
                forgeries.page(&Place { part, at, va, page }, &found, &solver, world);
            }
        }
    }
    forgeries
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

/// Where the console says that a module is.
fn base(console: &str, name: &str) -> Option<u64> {
    let prefix = format!("kernel-guest-module {name} ");
    let line = console
        .lines()
        .find_map(|l| l.find(&prefix).map(|at| &l[at + prefix.len()..]))?;
    let address = line.split(' ').find_map(|word| word.trim().strip_prefix("0x"))?;
    u64::from_str_radix(address, 16).ok()
}

/// `slide`: from link address to where it is.
pub(crate) fn part_pages(
    part: &Part,
    slide: u64,
    snapshot: &Snapshot,
    env: &dyn Env,
    solver: &mut Solver,
    tally: &mut Tally,
) {
    let end = part.link + part.bytes.len() as u64;
    let mut link = part.link & !0xfff;
    while link < end {
        let at = link.wrapping_sub(part.link).cast_signed();
        let va = link.wrapping_add(slide);
        match snapshot.page(va) {
            None => tally.missing += 1,
            Some(page) => {
                let mut found = compare(part, at, Some(va), page, solver, env);
                if !found.undecided.is_empty() && found.differences.is_empty() {
                    // What other pages of the instance tell may decide it.
                    learn_from_all(part, slide, snapshot, env, solver);
                    found = compare(part, at, Some(va), page, solver, env);
                }
                found.learn(solver);
                tally.add(part, at, page, &found);
            }
        }
        link += 4096;
    }
}

fn learn_from_all(part: &Part, slide: u64, snapshot: &Snapshot, env: &dyn Env, solver: &mut Solver) {
    for number in 0..part.bytes.len() as u64 / 4096 {
        let va = (part.link & !0xfff)
            .wrapping_add(slide)
            .wrapping_add(number * 4096);
        let at = va.wrapping_sub(slide).wrapping_sub(part.link).cast_signed();
        if let Some(page) = snapshot.page(va) {
            compare(part, at, Some(va), page, solver, env).learn(solver);
        }
    }
}
