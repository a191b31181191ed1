//! Prints what a kernel image's or a module's recipe holds: parts, sites per kind, sizes.
//!
//! `cargo run --release -p nephoscope-recipe --example recipe_info -- FILE…`

use std::collections::BTreeMap;
use std::time::Instant;

use nephoscope_recipe::kernel;

fn main() {
    for path in std::env::args().skip(1) {
        let file = match std::fs::read(&path) {
            Ok(file) => file,
            Err(error) => {
                eprintln!("{path}: {error}");
                continue;
            }
        };
        let start = Instant::now();
        match kernel::recognise_counting(&file) {
            Err(error) => eprintln!("{path}: {error}"),
            Ok((object, skipped)) => {
                println!(
                    "{path}: {:?} in {:?}, left out: {skipped:?}",
                    object.facts.name,
                    start.elapsed()
                );
                println!(
                    "  {} exports, build ID {:02x?}",
                    object.facts.exports.len(),
                    object.facts.build_id
                );
                for part in &object.parts {
                    let mut kinds = BTreeMap::<_, usize>::new();
                    part.sites
                        .iter()
                        .for_each(|s| *kinds.entry(s.kind).or_default() += 1);
                    println!(
                        "  {:?} {} at {:#x}: {} bytes, {} sites, {} sets, {} values, lists {:?}",
                        part.kind,
                        part.name,
                        part.link,
                        part.bytes.len(),
                        part.sites.len(),
                        part.values.sets.len(),
                        part.values.sets.iter().map(Vec::len).sum::<usize>(),
                        part.values.lists.iter().map(Vec::len).collect::<Vec<_>>(),
                    );
                    for (kind, count) in kinds {
                        println!("    {kind:?}: {count}");
                    }
                }
            }
        }
    }
}
