//! From rewrites to the sites of a part: what overlaps becomes one site, and equal sets of values are kept once.

use std::collections::HashMap;

use super::alternative::Alternative;
use super::bytes;
use super::content::{self, Content, How, Rewrite, Stage};
use super::image::Image;
use super::insn;
use super::tables::branch;
use super::torn;
use crate::site::{Fix, Form, Site, SiteKind, Target, Value, Values};

/// Longest site: bounds the work on a hostile image.
const MAX_SITE_BYTES: usize = 4096;
/// Rewrites of one site: alternatives nest a dozen deep at most. It stops a table that names one place for ever.
const MAX_REWRITES: usize = 256;

/// What was left out of a recipe, and why the pages there may look modified.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Skipped {
    /// Places with more contents than are listed (they keep only their linked bytes).
    pub too_many_contents: usize,
    /// Places whose entry reaches outside the part.
    pub outside: usize,
}

/// The image with everything that rewrites it.
pub(crate) struct Recipe<'a> {
    pub(crate) image: &'a Image,
    /// Sorted by address, then stage.
    pub(crate) rewrites: Vec<Rewrite>,
    /// The kind that a moving field is reported as.
    pub(crate) moving: SiteKind,
    /// What a direct paravirt call can go to.
    pub(crate) paravirt: Target,
    /// The pages of the code that does the rewriting: see [`super::torn`].
    pub(crate) writers: torn::Writers,
}

/// One range of overlapping rewrites and moving fields.
struct Cluster<'r> {
    va: u64,
    end: u64,
    rewrites: Vec<&'r Rewrite>,
}

#[derive(Default)]
struct Interner {
    sets: Vec<Vec<Value>>,
    known: HashMap<Vec<Value>, u32>,
}

impl Interner {
    fn set(&mut self, values: Vec<Value>) -> u32 {
        if let Some(known) = self.known.get(&values) {
            return *known;
        }
        let number = u32::try_from(self.sets.len()).unwrap_or(u32::MAX);
        self.sets.push(values.clone());
        self.known.insert(values, number);
        number
    }
}

/// Whether a value is as long as its site, and every fix-up lies in it.
fn fits(value: &Value, len: usize) -> bool {
    let inside = |fix: &Fix| usize::from(fix.at).saturating_add(fix.form.len()) <= len;
    (value.bytes.is_empty() || value.bytes.len() == len) && value.fixes.iter().all(inside)
}

impl Recipe<'_> {
    /// The sites of `[va, va + len)`.
    pub(crate) fn sites(&self, va: u64, len: usize, skipped: &mut Skipped) -> (Vec<Site>, Values) {
        let end = va.saturating_add(bytes::wide(len));
        let mut interner = Interner::default();
        let mut sites = Vec::new();
        for cluster in self.clusters(va, end) {
            let site_len = bytes::index(cluster.end.saturating_sub(cluster.va));
            if cluster.va < va || cluster.end > end || site_len > MAX_SITE_BYTES {
                skipped.outside = skipped.outside.saturating_add(1);
                continue;
            }
            let (Some(mut values), Ok(at), Ok(short)) = (
                self.values(&cluster, site_len),
                u32::try_from(cluster.va.saturating_sub(va)),
                u16::try_from(site_len),
            ) else {
                skipped.too_many_contents = skipped.too_many_contents.saturating_add(1);
                continue;
            };
            // A call in less bytes than a call has, for instance: no kernel is built so.
            if !values.iter().all(|value| fits(value, site_len)) {
                skipped.outside = skipped.outside.saturating_add(1);
                continue;
            }
            if !cluster.rewrites.is_empty() {
                let own = self.image.raw(cluster.va, site_len).unwrap_or(&[]);
                let half_written = self.writers.torn(cluster.va, cluster.end, &values, own);
                if half_written.len() >= torn::MAX_TORN {
                    skipped.too_many_contents = skipped.too_many_contents.saturating_add(1);
                }
                values.extend(half_written);
            }
            let kind = cluster
                .rewrites
                .iter()
                .map(|r| r.kind)
                .min()
                .unwrap_or(self.moving);
            sites.push(Site {
                at,
                len: short,
                kind,
                set: interner.set(values),
            });
        }
        (
            sites,
            Values {
                sets: interner.sets,
                ..Values::default()
            },
        )
    }

    fn clusters(&self, va: u64, end: u64) -> Vec<Cluster<'_>> {
        let from = self.rewrites.partition_point(|r| r.va < va);
        let to = self.rewrites.partition_point(|r| r.va < end);
        let rewrites = self.rewrites.get(from..to).unwrap_or(&[]).iter();
        let rewrites = rewrites.map(|r| (r.va, r.len, Some(r)));
        let moving = self.image.moving_in(va, bytes::index(end.saturating_sub(va)));
        let mut items: Vec<_> = moving
            .iter()
            .map(|m| (m.va, m.form.len(), None))
            .chain(rewrites)
            .collect();
        items.sort_by_key(|(va, ..)| *va);
        let mut clusters: Vec<Cluster<'_>> = Vec::new();
        for (va, len, rewrite) in items {
            let end = va.saturating_add(bytes::wide(len));
            match clusters.last_mut().filter(|c| va < c.end) {
                Some(cluster) => {
                    cluster.end = cluster.end.max(end);
                    cluster.rewrites.extend(rewrite);
                }
                None => clusters.push(Cluster {
                    va,
                    end,
                    rewrites: rewrite.into_iter().collect(),
                }),
            }
        }
        // Where entries name one place twice, the kernel takes the second for done already.
        for cluster in &mut clusters {
            cluster.rewrites.sort_by_key(|r| r.stage);
        }
        clusters
    }

    fn values(&self, cluster: &Cluster<'_>, len: usize) -> Option<Vec<Value>> {
        let own = Value {
            bytes: Vec::new(),
            fixes: self.image.fixes_in(cluster.va, len),
            poked: false,
        };
        if cluster.rewrites.is_empty() {
            return Some(vec![own]);
        }
        if cluster.rewrites.len() > MAX_REWRITES {
            return None;
        }
        if let [one] = cluster.rewrites.as_slice()
            && one.len == len
            && let Some(values) = self.simple(one, &own)
        {
            return Some(values);
        }
        let poked = cluster.rewrites.iter().any(|r| r.poked && r.va == cluster.va);
        let replacements = |alternative: &Alternative| self.replacements(alternative);
        let contents = content::all_contents(self.image, cluster.va, len, &cluster.rewrites, &replacements)?;
        let raw = self.image.raw(cluster.va, len)?;
        let values = contents.into_iter().map(|c| {
            if c.bytes == raw && c.fixes == own.fixes {
                Value { poked, ..own.clone() }
            } else {
                c.into_value(poked)
            }
        });
        Some(values.collect())
    }

    /// The values of a rewrite that overlaps nothing, in a form that many sites share.
    fn simple(&self, rewrite: &Rewrite, own: &Value) -> Option<Vec<Value>> {
        let mut values = vec![Value {
            poked: rewrite.poked,
            ..own.clone()
        }];
        match &rewrite.how {
            How::Any(contents) => {
                values.extend(contents.iter().map(|c| c.clone().into_value(rewrite.poked)));
            }
            How::LockPrefix => values.extend([0xf0, 0x3e].map(|b| Value::fixed([b]))),
            How::CallEarlier(by) => {
                let is_call = self.image.raw(rewrite.va, 1)? == [insn::CALL];
                if !is_call || !own.fixes.is_empty() {
                    return None;
                }
                let addend = by.checked_neg()?;
                let fix = Fix {
                    at: 1,
                    form: Form::Abs32,
                    to: Target::Nothing,
                    addend,
                };
                values.push(Value {
                    fixes: vec![fix],
                    ..Value::own()
                });
            }
            How::Alternative(_) => return None,
        }
        Some(values)
    }

    /// What a replacement can hold when alternatives are applied: earlier rewrites have been at work in it.
    fn replacements(&self, alternative: &Alternative) -> Vec<Content> {
        if alternative.direct_call {
            return vec![branch(&[insn::CALL], self.paravirt, 0), Content::fixed(&[])];
        }
        let (va, len) = (alternative.replacement, alternative.replacement_len);
        if len == 0 {
            return vec![Content::fixed(&[])];
        }
        let end = va.saturating_add(bytes::wide(len));
        let from = self.rewrites.partition_point(|r| r.va < va);
        let to = self.rewrites.partition_point(|r| r.va < end);
        let mut inside: Vec<_> = self.rewrites.get(from..to).unwrap_or(&[]).iter().collect();
        inside.retain(|r| r.stage < Stage::Alternative && r.va.saturating_add(bytes::wide(r.len)) <= end);
        inside.sort_by_key(|r| r.stage);
        content::all_contents(self.image, va, len, &inside, &|_| Vec::new()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::image::Section;
    use super::*;

    /// What is skipped of 12 KiB of text with so many rewrites of so many bytes at one place.
    fn skipped(count: usize, len: usize) -> Skipped {
        skipped_with(count, len, len)
    }

    /// The same with so many bytes to write there.
    fn skipped_with(count: usize, len: usize, contents: usize) -> Skipped {
        let text = Section {
            name: ".text".to_owned(),
            va: 0x1000,
            execute: true,
            raw: vec![0xf0; 0x3000],
            linked: None,
        };
        let rewrite = Rewrite {
            va: 0x1100,
            len,
            stage: Stage::SmpLock,
            kind: SiteKind::SmpLock,
            how: if len == 1 {
                How::LockPrefix
            } else {
                How::Any(vec![Content::fixed(&vec![0xcc; contents])])
            },
            poked: false,
        };
        let image = Image::new(vec![text], Vec::new());
        let recipe = Recipe {
            image: &image,
            rewrites: vec![rewrite; count],
            moving: SiteKind::Kaslr,
            paravirt: Target::Nothing,
            writers: torn::Writers::default(),
        };
        let mut skipped = Skipped::default();
        recipe.sites(0x1000, 0x3000, &mut skipped);
        skipped
    }

    #[test]
    fn max_site_bytes_leaves_out_a_place_that_no_kernel_rewrites_at_once() {
        assert_eq!(skipped(1, MAX_SITE_BYTES).outside, 0);
        assert_eq!(skipped(1, MAX_SITE_BYTES + 1).outside, 1);
    }

    #[test]
    fn what_is_longer_or_shorter_than_the_place_where_it_would_be_written_is_left_out() {
        for (contents, outside) in [(4, 1), (5, 0), (6, 1)] {
            assert_eq!(skipped_with(1, 5, contents).outside, outside, "{contents}");
        }
        let value = |at| Value {
            bytes: vec![0xe8; 4],
            fixes: vec![Fix {
                at,
                form: Form::Pc32,
                to: Target::Nothing,
                addend: 0,
            }],
            poked: false,
        };
        assert!(fits(&value(0), 4) && !fits(&value(1), 4));
    }

    #[test]
    fn max_rewrites_stops_a_table_that_names_one_place_for_ever() {
        assert_eq!(skipped(MAX_REWRITES, 1), Skipped::default());
        assert_eq!(skipped(MAX_REWRITES + 1, 1).too_many_contents, 1);
    }
}
