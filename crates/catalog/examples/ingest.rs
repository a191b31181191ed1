//! How fast are packages taken in? `dpkg-deb --fsys-tarfile` of the same packages is the yardstick.
//!
//! `cargo run --release -p nephoscope-catalog --example ingest -- CATALOG PATH…`

use std::path::{Path, PathBuf};
use std::time::Instant;

use nephoscope_catalog::{Adder, Catalog};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let dir = args.next().ok_or("give a directory for the catalog")?;
    let paths: Vec<PathBuf> = args.collect();
    let start = Instant::now();
    let mut adder = Adder::new(&dir)?;
    adder.add(&paths)?;
    let taken = start.elapsed();
    let summary = adder.commit()?;
    println!("{summary:#?}");
    println!(
        "taken in {:.2} s, committed after {:.2} s",
        taken.as_secs_f64(),
        start.elapsed().as_secs_f64()
    );
    let packages: u64 = paths.iter().map(|path| bytes(path)).sum();
    println!(
        "{:.1} MB of inputs/s",
        packages as f64 / 1e6 / start.elapsed().as_secs_f64()
    );
    let start = Instant::now();
    let catalog = Catalog::open(&dir)?;
    println!(
        "opened in {:.3} ms: {:#?}",
        start.elapsed().as_secs_f64() * 1e3,
        catalog.info()?
    );
    Ok(())
}

/// Bytes of the packages at a path.
fn bytes(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return path.metadata().map_or(0, |meta| meta.len());
    };
    entries
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|meta| meta.len())
        .sum()
}
