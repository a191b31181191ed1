//! `identify CATALOG ROUNDS`: pages identified per second on one core, digest included, beside the digest alone and beside
//! reading the same bytes.
//!
//! Identified as a session does it, which remembers answers (a guest runs most of its pages more than once), and by the
//! catalog each time anew.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use nephoscope_bench::Clock;
use nephoscope_catalog::{Catalog, ObjectId};
use nephoscope_guest::{PAGE_SIZE, PageBytes};
use nephoscope_pipeline::bench::Identify;
use nephoscope_recipe::{ObjectKind, PartKind};
use serde_json::json;

/// 512 MiB of pages.
const MOST: usize = 128 << 10;

/// What is measured, in the order of a row.
const MEASURED: [&str; 6] = ["read", "copy", "digest", "session", "catalog", "unknown"];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, catalog, rounds] = arguments.as_slice() else {
        anyhow::bail!("usage: identify CATALOG ROUNDS")
    };
    let catalog = Arc::new(Catalog::open(Path::new(catalog))?);
    let pages = pages(&catalog)?;
    let mut strange = pages.clone();
    for page in &mut strange {
        page[1000] ^= 0xa5;
    }
    let mut session = Identify::new(catalog.clone());
    let mut rows = Vec::new();
    for round in 0..=rounds.parse::<usize>()? {
        let mut row = [0.0; MEASURED.len()];
        let mut order: Vec<usize> = (0..MEASURED.len()).collect();
        if round % 2 == 1 {
            // What drifts falls on all.
            order.reverse();
        }
        for which in order {
            let clock = Clock::start();
            match which {
                0 => read(&pages),
                1 => copy(&pages),
                2 => digest(&pages),
                3 => {
                    for page in &pages {
                        ensure!(session.is_known(page)?, "a page of the catalog is not identified");
                    }
                }
                4 => ensure!(known(&catalog, &pages)? == pages.len(), "a page is not found"),
                _ => ensure!(known(&catalog, &strange)? == 0, "a page of nothing is found"),
            }
            if let Some(to) = row.get_mut(which) {
                *to = clock.took().cpu.as_secs_f64();
            }
        }
        eprintln!("{row:.4?}");
        // The first round brings the catalog into memory and the session to its answers.
        if round > 0 {
            rows.push(row);
        }
    }
    let columns: serde_json::Map<String, serde_json::Value> = (0..)
        .zip(MEASURED)
        .map(|(nth, name): (usize, _)| {
            let column: Vec<f64> = rows.iter().filter_map(|row| row.get(nth).copied()).collect();
            (name.to_owned(), json!(column))
        })
        .collect();
    println!("{:#}", json!({"pages": pages.len(), "seconds": columns}));
    Ok(())
}

/// Executable pages of the catalog's programs and libraries, from all over it, each in memory of its own.
fn pages(catalog: &Catalog) -> Result<Vec<PageBytes>> {
    let mut objects: Vec<ObjectId> = Vec::new();
    for kind in [ObjectKind::SharedObject, ObjectKind::Executable] {
        objects.extend(catalog.objects_of_kind(kind)?);
    }
    ensure!(!objects.is_empty(), "the catalog holds no programs");
    // Not in the order in which they lie in the catalog.
    objects.sort_by_key(|object| object.0.wrapping_mul(0x9e37_79b9));
    let mut pages = Vec::new();
    for object in objects {
        for number in 0..catalog.object(object)?.parts.len() {
            let part = catalog.part(object, u16::try_from(number)?)?;
            if part.kind != PartKind::UserText {
                continue;
            }
            for page in part
                .bytes
                .chunks_exact(PAGE_SIZE)
                .filter_map(PageBytes::from_slice)
            {
                let digest = blake3::hash(&page[..]);
                if pages.len() < MOST && !catalog.pages(digest.as_bytes())?.is_empty() {
                    pages.push(page);
                }
            }
        }
    }
    Ok(pages)
}

fn read(pages: &[PageBytes]) {
    let mut sums = [0_u64; 8];
    for page in pages {
        for line in page.as_chunks::<64>().0 {
            for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                *sum = sum.wrapping_add(u64::from_le_bytes(*word));
            }
        }
    }
    black_box(sums);
}

fn copy(pages: &[PageBytes]) {
    let mut to = PageBytes::zeroed();
    for page in pages {
        to.copy_from_slice(&page[..]);
        black_box(&to);
    }
}

fn digest(pages: &[PageBytes]) {
    for page in pages {
        black_box(blake3::hash(&page[..]));
    }
}

/// How many the catalog knows.
fn known(catalog: &Catalog, pages: &[PageBytes]) -> Result<usize> {
    let mut known = 0;
    for page in pages {
        let digest = blake3::hash(&page[..]);
        let found = catalog.pages_counted(digest.as_bytes())?;
        known += usize::from(!black_box(found).refs.is_empty());
    }
    Ok(known)
}
