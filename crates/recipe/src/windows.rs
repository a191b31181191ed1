//! Content windows: how bytes are found that moved.
//!
//! A window is [`WINDOW`] bytes, hashed. Which windows are kept is decided by their contents alone (a window whose hash
//! is a multiple of the density), so the same bytes give the same windows wherever they lie. Windows of few distinct
//! bytes (padding, tables of zeros) say nothing and are left out. Hits are hints: what a page is, is decided by
//! comparing it with the part that they point to.
//!
//! The hash is stored in catalogs: a change of anything here is a change of their format.

use std::ops::Range;

use crate::object::PartKind;

/// Bytes of a window.
pub const WINDOW: usize = 24;
/// Fewer distinct bytes than this in a window, and it is left out.
const MIN_DISTINCT: u32 = 8;
/// Base of the rolling polynomial: odd, with well-spread bits (the 64-bit golden ratio).
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;
/// The densest sampling: what a page that is looked for is probed with.
const PROBES: u64 = 16;

/// Of how many windows one is kept. Powers of two, so that sparser samples are among the denser ones.
#[must_use]
pub fn density(kind: PartKind) -> u64 {
    match kind {
        PartKind::UserText => 512,
        PartKind::KernelText | PartKind::KernelInit => 32,
        PartKind::ModuleText
        | PartKind::ModuleInit
        | PartKind::Vdso
        | PartKind::BootCode
        | PartKind::Firmware => 16,
        PartKind::Script => 32,
    }
}

/// Text and code have their windows in one table, and must not be taken for each other, nor crowd each other out: a hash is
/// kept as the exclusive or of itself and this.
const fn salt(kind: PartKind) -> u64 {
    match kind {
        PartKind::Script => 0x5c0f_1e57_a9b3_d64d,
        _ => 0,
    }
}

/// The windows of these bytes, one of about `density`: hash, and offset of the first byte. Windows that touch a range of
/// `skip` (sorted, disjoint) are left out.
pub fn sample<'a>(
    bytes: &'a [u8],
    density: u64,
    skip: &'a [Range<u32>],
) -> impl Iterator<Item = (u64, u32)> + 'a {
    let mask = density.next_power_of_two() - 1;
    let mut next_skip = 0;
    Rolling::new(bytes).filter(move |(hash, offset)| {
        if hash & mask != 0 {
            return false;
        }
        let end = offset.saturating_add(WINDOW_U32);
        while skip.get(next_skip).is_some_and(|range| range.end <= *offset) {
            next_skip += 1;
        }
        skip.get(next_skip).is_none_or(|range| range.start >= end)
    })
}

/// The windows that are kept of a part of this kind.
pub fn kept<'a>(
    kind: PartKind,
    bytes: &'a [u8],
    skip: &'a [Range<u32>],
) -> impl Iterator<Item = (u64, u32)> + 'a {
    sample(bytes, density(kind), skip).map(move |(hash, offset)| (hash ^ salt(kind), offset))
}

/// The windows a page of code is looked for with, whatever it may be.
pub fn probes(page: &[u8]) -> impl Iterator<Item = (u64, u32)> + '_ {
    sample(page, PROBES, &[])
}

/// Those of the probes that can point to a part of this kind: all that are kept of one.
pub fn probes_for(kind: PartKind, page: &[u8]) -> impl Iterator<Item = (u64, u32)> + '_ {
    kept(kind, page, &[])
}

const WINDOW_U32: u32 = 24;

/// All informative windows with their finished hashes.
struct Rolling<'a> {
    bytes: &'a [u8],
    at: usize,
    hash: u64,
    counts: [u8; 256],
    distinct: u32,
}

/// `BASE` to the power of `WINDOW`: what the byte that leaves has become.
const LEAVING: u64 = {
    let mut power = 1_u64;
    let mut i = 0;
    while i < WINDOW {
        power = power.wrapping_mul(BASE);
        i += 1;
    }
    power
};

impl<'a> Rolling<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            hash: 0,
            counts: [0; 256],
            distinct: 0,
        }
    }

    /// Takes one more byte in, and the one out that is no longer in the window.
    fn step(&mut self) -> Option<()> {
        let entering = *self.bytes.get(self.at)?;
        self.hash = self.hash.wrapping_mul(BASE).wrapping_add(u64::from(entering) + 1);
        if let Some(count) = self.counts.get_mut(usize::from(entering)) {
            self.distinct += u32::from(*count == 0);
            *count += 1;
        }
        if let Some(leaving) = self.at.checked_sub(WINDOW).and_then(|at| self.bytes.get(at)) {
            self.hash = self
                .hash
                .wrapping_sub((u64::from(*leaving) + 1).wrapping_mul(LEAVING));
            if let Some(count) = self.counts.get_mut(usize::from(*leaving)) {
                *count -= 1;
                self.distinct -= u32::from(*count == 0);
            }
        }
        self.at += 1;
        Some(())
    }
}

impl Iterator for Rolling<'_> {
    type Item = (u64, u32);

    fn next(&mut self) -> Option<(u64, u32)> {
        loop {
            self.step()?;
            if self.at >= WINDOW && self.distinct >= MIN_DISTINCT {
                return Some((finish(self.hash), u32::try_from(self.at - WINDOW).ok()?));
            }
        }
    }
}

/// Spreads the polynomial's bits, whose low ones depend on few bytes (the finaliser of MurmurHash3).
fn finish(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(len: usize, mut seed: u64) -> Vec<u8> {
        (0..len)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                seed.to_le_bytes()[6]
            })
            .collect()
    }

    /// The same from the definition, without rolling.
    fn naive(bytes: &[u8], density: u64) -> Vec<(u64, u32)> {
        let mut all = Vec::new();
        for (at, window) in bytes.windows(WINDOW).enumerate() {
            let distinct = (0..=255_u8).filter(|b| window.contains(b)).count();
            let hash = window
                .iter()
                .fold(0_u64, |h, b| h.wrapping_mul(BASE).wrapping_add(u64::from(*b) + 1));
            if distinct >= MIN_DISTINCT as usize && finish(hash).is_multiple_of(density) {
                all.push((finish(hash), u32::try_from(at).unwrap()));
            }
        }
        all
    }

    proptest! {
        #[test]
        fn rolling_agrees_with_the_definition(bytes in proptest::collection::vec(any::<u8>(), 0..400), density in 0_u32..4) {
            let density = 1 << density;
            prop_assert_eq!(sample(&bytes, density, &[]).collect::<Vec<_>>(), naive(&bytes, density));
        }
    }

    #[test]
    fn bytes_that_moved_give_the_same_windows() {
        let code = noise(8192, 1);
        let mut moved = noise(777, 2);
        moved.extend_from_slice(&code);
        let here: Vec<u64> = sample(&code, 16, &[]).map(|(hash, _)| hash).collect();
        let there: Vec<u64> = sample(&moved, 16, &[])
            .filter(|(_, at)| *at >= 777)
            .map(|(hash, _)| hash)
            .collect();
        assert_eq!(here, there);
        assert!(
            (300..800).contains(&here.len()),
            "about one of 16: {}",
            here.len()
        );
    }

    #[test]
    fn sparser_windows_are_among_the_probes() {
        let code = noise(65_536, 3);
        let probes: Vec<_> = probes(&code).collect();
        assert!(sample(&code, 512, &[]).all(|window| probes.contains(&window)));
    }

    #[test]
    fn a_page_is_probed_with_all_windows_that_a_part_of_that_kind_keeps() {
        let code = noise(4096, 5);
        for kind in [PartKind::UserText, PartKind::KernelText, PartKind::Firmware] {
            let kept: Vec<_> = sample(&code, density(kind), &[]).collect();
            assert_eq!(probes_for(kind, &code).collect::<Vec<_>>(), kept);
        }
        assert_eq!(
            probes(&code).count(),
            probes_for(PartKind::Firmware, &code).count()
        );
    }

    #[test]
    fn text_and_code_have_no_window_in_common() {
        let bytes = noise(65_536, 6);
        let text: Vec<u64> = kept(PartKind::Script, &bytes, &[])
            .map(|(hash, _)| hash)
            .collect();
        assert!(text.len() > 1000);
        assert!(probes(&bytes).all(|(hash, _)| !text.contains(&hash)));
    }

    #[test]
    fn padding_gives_no_windows() {
        for byte in [0, 0x90, 0xcc, 0xff] {
            assert_eq!(sample(&[byte; 4096], 1, &[]).count(), 0);
        }
    }

    #[test]
    fn windows_that_touch_a_rewritten_place_are_left_out() {
        let code = noise(4096, 4);
        let skip = [100..105, 2000..2001];
        for (_, at) in sample(&code, 1, &skip) {
            assert!(
                skip.iter().all(|range| at + 24 <= range.start || range.end <= at),
                "{at}"
            );
        }
    }
}
