//! `cargo xtask bench identify`: how fast pages are identified, and look-ups in catalogs of up to 100 million pages.

use std::fmt::Write;

use anyhow::{Context, Result};
use clap::Args;
use nephoscope_e2e::{Catalog, Image, cache};
use serde_json::{Value, json};

use super::ratio::Spread;
use super::sheet::Out;
use super::tool::{self, numbers, spread};
use crate::build;

/// Measure identification beside the digest alone, and look-ups in large catalogs.
///
/// The largest catalog takes 7 GB in the cache while it is measured.
#[derive(Debug, Args)]
pub(crate) struct IdentifyArgs {
    /// Rounds of each measurement.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = crate::arguments::some::<usize>)]
    runs: usize,
    /// Make catalogs of so many pages; 0 for none.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1_000_000, 10_000_000, 100_000_000])]
    pages: Vec<u64>,
    #[command(flatten)]
    out: Out,
}

/// Runs it.
pub(crate) fn run(arguments: &IdentifyArgs) -> Result<()> {
    crate::setup::run()?;
    let built = build::run(true)?;
    let catalog = Catalog::ensure(&Image::ensure()?, &built.program)?.path();
    let runs = arguments.runs.to_string();
    let identify = tool::run("identify", [catalog.as_os_str(), runs.as_ref()])?;
    let mut text = identified(&identify)?;
    let sizes: Vec<String> = arguments
        .pages
        .iter()
        .filter(|n| **n > 0)
        .map(u64::to_string)
        .collect();
    let mut lookups = Value::Null;
    if !sizes.is_empty() {
        let folder = cache::folder()?;
        let mut line = vec![catalog.as_os_str(), folder.as_os_str(), runs.as_ref()];
        line.extend(sizes.iter().map(AsRef::<std::ffi::OsStr>::as_ref));
        lookups = tool::run("lookups", line)?;
        text.push_str(&looked_up(&lookups)?);
    }
    let command = format!(
        "cargo xtask bench identify --runs {runs} --pages {}",
        sizes.join(",")
    );
    let all = json!({"identify": identify, "lookups": lookups});
    arguments
        .out
        .write(&command, "Identifying pages, and looking them up", &text, all)
}

/// The first table.
fn identified(found: &Value) -> Result<String> {
    let pages = found["pages"].as_f64().context("no number of pages")?;
    let digest = numbers(&found["seconds"]["digest"]);
    let mut text = format!(
        "Pages of 4 KiB per second and core: {pages:.0} executable pages of the guest's programs and libraries, each in memory \
         of its own, by the\nthread's CPU time; median of the rounds with the least and the greatest. The digest is BLAKE3, \
         page by page, everywhere.\n\n\
         | | pages/s | GB/s | of the digest's speed, by rounds |\n|---|---:|---:|---|\n"
    );
    let rows = [
        ("read", "reading the bytes"),
        ("copy", "copying them"),
        ("digest", "the digest alone"),
        (
            "session",
            "digest and answer of a session that knows the page already",
        ),
        ("catalog", "digest and answer of the catalog"),
        (
            "unknown",
            "digest and answer of the catalog, pages that are in none",
        ),
    ];
    for (name, what) in rows {
        let seconds = numbers(&found["seconds"][name]);
        let rate = Spread::of(seconds.iter().map(|s| pages / s)).with_context(|| format!("no {name}"))?;
        let ratios = digest.iter().zip(&seconds).map(|(digest, own)| digest / own);
        let ratio = Spread::of(ratios).with_context(|| format!("no {name}"))?;
        let of_digest = if matches!(name, "read" | "copy" | "digest") {
            "–".to_owned()
        } else {
            format!("{:.3} [{:.3}–{:.3}]", ratio.median, ratio.min, ratio.max)
        };
        writeln!(
            text,
            "| {what} | {:.0} [{:.0}–{:.0}] | {:.2} | {of_digest} |",
            rate.median,
            rate.min,
            rate.max,
            rate.median * 4096.0 / 1e9
        )?;
    }
    Ok(text)
}

/// The second and the third.
fn looked_up(found: &Value) -> Result<String> {
    let shared = &found["shared_pages"];
    let share = |name: &str| shared[name].as_f64().unwrap_or_default();
    let mut text = format!(
        "\n## Look-ups\n\nMade catalogs: digests are drawn evenly; in how many places a page stands is drawn from the \
         distribution in the guest's own\ncatalog ({:.1} % of its pages stand in one place, {:.2} places on average, {} at most). \
         Asked in random order, 2 million\nat a time, every answer compared; per second of the thread's CPU time, once mapped.\n\n\
         | different pages | places | size, GB | open and one look-up, ms | the same, nothing in memory, ms | hits, million/s | \
         misses, million/s |\n|---:|---:|---:|---|---:|---|---|\n",
        share("in_one_place") * 100.0,
        share("mean_places"),
        shared["most_places"]
    );
    let catalogs = found["catalogs"].as_array().context("no catalogs")?;
    let told = |value: &Value, by: f64| {
        spread(value).map_or("–".into(), |s| {
            format!("{:.2} [{:.2}–{:.2}]", s.median / by, s.min / by, s.max / by)
        })
    };
    for catalog in catalogs {
        writeln!(
            text,
            "| {} | {} | {:.2} | {} | {:.1} | {} | {} |",
            catalog["pages"],
            catalog["rows"],
            catalog["bytes"].as_f64().unwrap_or_default() / 1e9,
            told(&catalog["open_ms"], 1.0),
            catalog["open_cold_ms"].as_f64().unwrap_or_default(),
            told(&catalog["hits_per_s"], 1e6),
            told(&catalog["misses_per_s"], 1e6),
        )?;
    }
    text.push_str(
        "\nResident memory of files after so many look-ups of different pages in a freshly opened catalog, MiB. The kernel maps \
         up to 16\npages around the one that is touched when they are in its cache.\n\n| different pages |",
    );
    let first = catalogs
        .first()
        .and_then(|catalog| catalog["resident"].as_array());
    let steps: Vec<&Value> = first
        .map(|list| list.iter().map(|row| &row["lookups"]).collect())
        .unwrap_or_default();
    for step in &steps {
        write!(text, " {step} |")?;
    }
    text.push_str("\n|---:|");
    text.push_str(&"---:|".repeat(steps.len()));
    text.push('\n');
    for catalog in catalogs {
        write!(text, "| {} |", catalog["pages"])?;
        for row in catalog["resident"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default()
        {
            write!(
                text,
                " {:.1} |",
                row["resident_kib"].as_f64().unwrap_or_default() / 1024.0
            )?;
        }
        text.push('\n');
    }
    Ok(text)
}
