//! Catalogs of made pages, as large as wanted, with the distribution of shared pages of a real one.
//!
//! Page `i` of `n` has a digest that `i` alone gives, so nothing need be kept to ask for any page in any order. The digests
//! come out sorted by going through all pages once for each of some ranges of digests.

use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use nephoscope_catalog::{Catalog, ObjectId, PageRef, bench};

/// Ranges of digests. Pages of one range are in memory at a time: 25 MB of a hundred million.
const RANGES: u64 = 64;

/// Pages per object of the Debian guest's catalog, in round numbers.
const PAGES_PER_OBJECT: u64 = 50;

/// How many pages stand in how many places, as shares of all pages.
#[derive(Debug, Clone)]
pub struct Shares {
    /// Places, and which part of 2^32 pages has at most so many.
    up_to: Vec<(u64, u64)>,
    /// Of all pages.
    pub mean: f64,
    /// Pages that stand in one place only, of all.
    pub alone: f64,
    /// The most places of a page.
    pub most: u64,
}

impl Shares {
    /// The distribution of a real catalog.
    ///
    /// # Errors
    /// When it holds no pages or is damaged.
    pub fn of(catalog: &Catalog) -> Result<Self> {
        let counts = bench::places_per_page(catalog)?;
        let pages: u64 = counts.values().sum();
        let places: u64 = counts.iter().map(|(places, pages)| places * pages).sum();
        let mut up_to = Vec::new();
        let mut sum = 0_u64;
        for (places, pages_with) in &counts {
            sum += pages_with;
            up_to.push((*places, (sum << 32) / pages));
        }
        let most = *counts.last_key_value().context("the catalog holds no pages")?.0;
        let alone = counts.get(&1).copied().unwrap_or(0);
        Ok(Shares {
            up_to,
            mean: to_f64(places) / to_f64(pages),
            alone: to_f64(alone) / to_f64(pages),
            most,
        })
    }

    fn places(&self, chance: u64) -> u64 {
        let at = self.up_to.partition_point(|(_, below)| *below <= chance);
        self.up_to.get(at).map_or(self.most, |(places, _)| *places)
    }
}

/// A made catalog, or what it would hold.
#[derive(Debug, Clone)]
pub struct Made {
    /// Different pages.
    pub pages: u64,
    shares: Shares,
}

impl Made {
    /// Of so many different pages.
    pub fn new(pages: u64, shares: Shares) -> Self {
        Made { pages, shares }
    }

    /// Writes it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, dir: &Path) -> Result<()> {
        // Pages with more places than a catalog keeps have one row that counts the rest; so this is enough.
        let rows = (0..self.pages).map(|i| self.places(i).min(257)).sum();
        let objects = u32::try_from(self.objects())?;
        bench::write_pages(dir, objects, rows, |push| {
            for range in 0..RANGES {
                let mut here: Vec<(u64, u64)> = (0..self.pages)
                    .map(|i| (mix(i), i))
                    .filter(|(head, _)| head >> (64 - RANGES.ilog2()) == range)
                    .collect();
                here.sort_unstable();
                for (_, i) in here {
                    let digest = self.digest(i);
                    for page in self.refs(i) {
                        push(&digest, page)?;
                    }
                }
            }
            io::Result::Ok(())
        })?;
        Ok(())
    }

    /// The digest of a page; past the last one, of a page that is not there.
    pub fn digest(&self, i: u64) -> [u8; 32] {
        let mut digest = [0; 32];
        for (salt, to) in (0..).zip(digest.chunks_exact_mut(8)) {
            // The first part is a bijection of `i`: no two pages are the same.
            let part = if salt == 0 { mix(i) } else { mix(mix(i) ^ salt) };
            to.copy_from_slice(&part.to_be_bytes());
        }
        digest
    }

    /// In how many places a page stands.
    pub fn places(&self, i: u64) -> u64 {
        self.shares.places(mix(i ^ PLACES) >> 32)
    }

    /// The first place of a page.
    pub fn first(&self, i: u64) -> Option<PageRef> {
        self.refs(i).into_iter().next()
    }

    fn refs(&self, i: u64) -> Vec<PageRef> {
        let objects = self.objects();
        let mut refs: Vec<PageRef> = (0..self.places(i))
            .map(|nth| {
                let at = mix(i ^ OBJECTS ^ nth << 40);
                let number = u32::try_from(at >> 52).unwrap_or(0);
                PageRef {
                    object: ObjectId(u32::try_from(at % objects).unwrap_or(0)),
                    number,
                    va: u64::from(number) << 12,
                    execute: true,
                }
            })
            .collect();
        refs.sort_unstable();
        refs
    }

    fn objects(&self) -> u64 {
        self.pages.div_ceil(PAGES_PER_OBJECT)
    }
}

/// Set apart what is drawn for one page.
const PLACES: u64 = 0x706c_6163_6573_0000;
const OBJECTS: u64 = 0x6f62_6a65_6374_7300;

/// A bijection that spreads numbers evenly (the finaliser of SplitMix64, by Sebastiano Vigna, in the public domain).
fn mix(i: u64) -> u64 {
    let mut z = i.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Counts are far below 2^53.
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_catalog_answers_each_page_with_all_its_places_and_no_other() {
        let dir = std::env::temp_dir().join(format!("nephoscope-made-{}", std::process::id()));
        let shares = Shares {
            up_to: vec![(1, 3 << 30), (2, 7 << 29), (300, 1 << 32)],
            mean: 38.5,
            alone: 0.75,
            most: 300,
        };
        let made = Made::new(2000, shares);
        made.write(&dir).unwrap();
        let catalog = Catalog::open(&dir).unwrap();
        for i in 0..2000 {
            let found = catalog.pages_counted(&made.digest(i)).unwrap();
            let refs = made.refs(i);
            assert_eq!(found.refs[..], refs[..refs.len().min(256)]);
            assert_eq!(found.left_out, refs.len().saturating_sub(256) as u64);
        }
        assert!(catalog.pages(&made.digest(2000)).unwrap().is_empty());
        let counts = bench::places_per_page(&catalog).unwrap();
        assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [1, 2, 300]);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
