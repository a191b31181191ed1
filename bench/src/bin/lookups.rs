//! `lookups REAL FOLDER ROUNDS PAGES…`: makes catalogs of so many pages in the folder, one after the other, with the shared
//! pages of the real one, and measures opening, look-ups and what becomes resident. Each is removed before the next.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nephoscope_bench::{Clock, Made, Shares};
use nephoscope_catalog::Catalog;
use rustix::fs::{Advice, fadvise};
use serde_json::{Value, json};

/// Look-ups of each kind in one round.
const ASKED: u64 = 2_000_000;

/// After how many look-ups in a freshly opened catalog what is resident is read.
const TOUCHED: [u64; 6] = [0, 100, 1_000, 10_000, 100_000, 1_000_000];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, real, folder, rounds, sizes @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: lookups REAL FOLDER ROUNDS PAGES…")
    };
    let shares = Shares::of(&Catalog::open(Path::new(real))?)?;
    let rounds: u64 = rounds.parse()?;
    let mut results = Vec::new();
    for size in sizes {
        let dir = Path::new(folder).join("made-catalog");
        remove(&dir)?;
        let made = Made::new(size.parse()?, shares.clone());
        let measured = measure(&made, &dir, rounds);
        remove(&dir)?;
        results.push(measured?);
    }
    let result = json!({
        "shared_pages": {"mean_places": shares.mean, "in_one_place": shares.alone, "most_places": shares.most},
        "catalogs": results,
    });
    println!("{result:#}");
    Ok(())
}

fn measure(made: &Made, dir: &Path, rounds: u64) -> Result<Value> {
    eprintln!("{} pages: making the catalog", made.pages);
    let clock = Clock::start();
    made.write(dir)?;
    let built = clock.took();
    let info = Catalog::open(dir)?.info()?;
    eprintln!(
        "{} rows, {} MB, {:.0} s",
        info.pages,
        info.bytes / 1_000_000,
        built.wall.as_secs_f64()
    );
    forget(dir)?;
    let open_cold = open(dir, made)?;
    let (hits, misses) = (asked(made, 0), asked(made, made.pages));
    let touched = touched(dir, &hits)?;
    eprintln!("resident: {touched:?}");
    let mut opened = Vec::new();
    let (mut hit_rates, mut miss_rates) = (Vec::new(), Vec::new());
    let catalog = Catalog::open(dir)?;
    for round in 0..=rounds {
        opened.push(open(dir, made)?);
        let (hit, miss) = (look_up(&catalog, &hits, made)?, look_up(&catalog, &misses, made)?);
        eprintln!("{hit:.0} hits/s, {miss:.0} misses/s");
        // The first round maps what the others find.
        if round > 0 {
            hit_rates.push(hit);
            miss_rates.push(miss);
        }
    }
    Ok(json!({
        "pages": made.pages,
        "rows": info.pages,
        "bytes": info.bytes,
        "made_s": built.wall.as_secs_f64(),
        "open_cold_ms": open_cold,
        "open_ms": opened,
        "hits_per_s": hit_rates,
        "misses_per_s": miss_rates,
        "resident": touched,
    }))
}

/// Opens the catalog and asks for one page; how long that took on the wall, in milliseconds.
fn open(dir: &Path, made: &Made) -> Result<f64> {
    let clock = Clock::start();
    let catalog = Catalog::open(dir)?;
    let found = catalog.pages(&made.digest(1))?;
    let took = clock.took().wall.as_secs_f64() * 1e3;
    ensure!(found.first().copied() == made.first(1), "another page");
    Ok(took)
}

/// Pages to ask for, in no order; from `base` on.
fn asked(made: &Made, base: u64) -> Vec<(u64, [u8; 32])> {
    (0..ASKED)
        .map(|nth| base + (nth.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8) % made.pages)
        .map(|i| (i, made.digest(i)))
        .collect()
}

/// Look-ups per second of this thread on a CPU. All answers are compared: the number of places with what was put in.
fn look_up(catalog: &Catalog, asked: &[(u64, [u8; 32])], made: &Made) -> Result<f64> {
    let clock = Clock::start();
    let mut places = 0_u64;
    for (_, digest) in asked {
        let found = catalog.pages_counted(digest)?;
        places += u64::try_from(found.refs.len())? + found.left_out;
    }
    let took = clock.took().cpu.as_secs_f64();
    let there = asked.iter().map(|(i, _)| *i).filter(|i| *i < made.pages);
    let expected: u64 = there.map(|i| made.places(i)).sum();
    ensure!(places == expected, "{places} places instead of {expected}");
    let count = u32::try_from(asked.len())?;
    Ok(f64::from(count) / took)
}

/// What is resident of a freshly opened catalog after more and more look-ups.
fn touched(dir: &Path, asked: &[(u64, [u8; 32])]) -> Result<Vec<Value>> {
    let before = resident_kib()?;
    let catalog = Catalog::open(dir)?;
    let mut done = 0;
    let mut found = Vec::new();
    for count in TOUCHED {
        let count = usize::try_from(count)?;
        for (_, digest) in asked.get(done..count).unwrap_or_default() {
            catalog.pages(digest)?;
        }
        done = count;
        let now = resident_kib()?.saturating_sub(before);
        found.push(json!({"lookups": count, "resident_kib": now}));
    }
    Ok(found)
}

/// Pages of files that this process has mapped in memory.
fn resident_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssFile:"));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    Ok(number.context("no RssFile in /proc/self/status")?.parse()?)
}

/// Drops the catalog's files from the page cache.
fn forget(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let file = fs::File::open(entry?.path())?;
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}
