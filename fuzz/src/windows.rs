//! Content windows: the rolling hash against its definition, and what is skipped is skipped.

use arbitrary::Unstructured;
use nephoscope_recipe::windows::{WINDOW, sample};

/// Samples bytes with places to leave out, both ways.
pub fn run(bytes: &[u8]) {
    let _ = check(Unstructured::new(bytes));
}

fn check(mut input: Unstructured<'_>) -> arbitrary::Result<()> {
    let density = 1_u64 << input.int_in_range(0..=9_u8)?;
    let mut skip = Vec::new();
    let mut at = 0_u32;
    for _ in 0..input.int_in_range(0..=6_u8)? {
        let start = at + u32::from(input.arbitrary::<u8>()?);
        at = start + u32::from(input.int_in_range(0..=40_u8)?);
        skip.push(start..at);
    }
    let bytes = input.take_rest();
    let bytes = &bytes[..bytes.len().min(512)];
    let ours: Vec<_> = sample(bytes, density, &skip).collect();
    // All windows without rolling: the dense sample of each window alone.
    let naive = bytes.windows(WINDOW).zip(0_u32..).filter_map(|(window, at)| {
        let (hash, _) = sample(window, 1, &[]).next()?;
        let end = at + 24;
        let skipped = skip.iter().any(|range| range.start < end && range.end > at);
        (hash % density == 0 && !skipped).then_some((hash, at))
    });
    assert_eq!(ours, naive.collect::<Vec<_>>());
    Ok(())
}
