//! Which store carries the catalog's page table? LMDB (heed), redb and this crate's own immutable table, each
//! with the same random 32-byte keys and 16-byte values: build time, size, time to open, warm lookups on one
//! core, and what becomes of a flipped byte and of a kill while writing.
//!
//! `cargo run --release -p nephoscope-catalog --example store_bench -- [KEYS] [RUNS]`

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a bench; it may stop where it stands"
)]

use std::path::Path;
use std::time::Instant;

mod harm;
mod stores;

use stores::{Lmdb, Own, Redb, Store};

/// The `i`th key: random to the eye, remade at will.
fn key(i: u64) -> [u8; 32] {
    *blake3::hash(&i.to_le_bytes()).as_bytes()
}

/// Its value.
fn value(i: u64) -> [u8; 16] {
    u128::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
}

fn bench<S: Store>(dir: &Path, keys: u64, runs: u32) {
    let start = Instant::now();
    S::build(dir, keys);
    let built = start.elapsed();
    let bytes: u64 = walk(dir);
    // The keys are made beforehand: the digest of a page is not the store's cost.
    let asked: Vec<(u64, [u8; 32])> = (0..2_000_000u64)
        .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1) % keys)
        .map(|i| (i, key(i)))
        .collect();
    let absent: Vec<[u8; 32]> = (0..1_000_000u64).map(|i| key(keys + i)).collect();
    for run in 0..runs {
        let start = Instant::now();
        let store = S::open(dir).unwrap();
        assert_eq!(store.get(&key(1)).unwrap(), Some(value(1)));
        let opened = start.elapsed();
        for (i, key) in asked.iter().take(1000) {
            assert_eq!(store.get(key).unwrap(), Some(value(*i)));
        }
        let touched = mapped_mb();
        for (i, key) in &asked {
            assert_eq!(store.get(key).unwrap(), Some(value(*i)));
        }
        let start = cpu_seconds();
        for (i, key) in &asked {
            assert_eq!(store.get(key).unwrap(), Some(value(*i)));
        }
        let hits = asked.len() as f64 / (cpu_seconds() - start);
        let start = cpu_seconds();
        for key in &absent {
            assert_eq!(store.get(key).unwrap(), None);
        }
        let misses = absent.len() as f64 / (cpu_seconds() - start);
        println!(
            "{:5} run {run}: build {:6.1} s, {:5} MB, open+first {:7.3} ms, {touched} MB mapped after 1000 keys, \
             {:.2} M hits/s, {:.2} M misses/s",
            S::NAME,
            built.as_secs_f64(),
            bytes / 1_000_000,
            opened.as_secs_f64() * 1e3,
            hits / 1e6,
            misses / 1e6
        );
    }
}

fn walk(dir: &Path) -> u64 {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum()
}

/// What this thread had of a core: others may want it too while this runs.
fn cpu_seconds() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Resident bytes of mapped files (proc(5), `RssFile`), in MB.
fn mapped_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssFile:"));
    line.and_then(|kb| kb.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .unwrap_or(0)
        / 1000
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if harm::child(&args) {
        return;
    }
    let keys = args.first().map_or(10_000_000, |a| a.parse().unwrap());
    let runs = args.get(1).map_or(5, |a| a.parse().unwrap());
    let only = args.get(2).cloned().unwrap_or_default();
    let wanted = |name: &str| only.is_empty() || only == name;
    if wanted("own") {
        each::<Own>(keys, runs);
    }
    if wanted("lmdb") {
        each::<Lmdb>(keys, runs);
    }
    if wanted("redb") {
        each::<Redb>(keys, runs);
    }
}

fn each<S: Store>(keys: u64, runs: u32) {
    let dir = tempfile::tempdir().unwrap();
    bench::<S>(dir.path(), keys, runs);
    if std::env::var_os("NO_HARM").is_none() {
        harm::flips::<S>(200);
        harm::kills::<S>(20);
    }
}
