//! The parts of a kernel: its executable sections, joined where they touch and filled up to whole pages.

use super::build::{Recipe, Skipped};
use super::bytes;
use super::elf::KernelElf;
use super::image::{Moving, Section};
use super::names::KernelNames;
use crate::object::{Part, PartKind, Placement};
use crate::site::{Fix, Form, Site, SiteKind, Target, Unknown, Value, Values};

const PAGE: u64 = 4096;
/// `CONFIG_PHYSICAL_ALIGN`: KASLR moves by multiples of it.
const KERNEL_ALIGN: u64 = 0x20_0000;

/// Every executable section.
pub(crate) fn text(
    elf: &KernelElf,
    recipe: &Recipe<'_>,
    names: &KernelNames,
    unknowns: &[Unknown],
    skipped: &mut Skipped,
) -> Vec<Part> {
    let sections = &recipe.image.sections;
    let mut parts = Vec::new();
    for group in groups(sections) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else {
            continue;
        };
        let (from, to) = pages(sections, first, last);
        let mut bytes = Vec::new();
        let mut at = from;
        for section in &group {
            bytes.extend_from_slice(gap(elf, at, section.va));
            at = from.wrapping_add(bytes::wide(bytes.len()));
            if at != section.va {
                break;
            }
            bytes.extend_from_slice(&section.raw);
            at = from.wrapping_add(bytes::wide(bytes.len()));
        }
        bytes.extend_from_slice(gap(elf, at, to));
        let (sites, mut values) = recipe.sites(from, bytes.len(), skipped);
        names.lists(recipe.image, &mut values);
        values.unknowns = unknowns.to_vec();
        let name = group
            .iter()
            .map(|s| s.name.as_str())
            .collect::<Vec<_>>()
            .join("+");
        let kind = if first.name == ".text" {
            PartKind::KernelText
        } else {
            PartKind::KernelInit
        };
        let placement = Placement::Aligned(KERNEL_ALIGN);
        parts.push(Part {
            kind,
            name,
            link: from,
            placement,
            bytes,
            sites,
            values,
        });
    }
    parts
}

/// Executable sections that touch.
fn groups(sections: &[Section]) -> Vec<Vec<&Section>> {
    let mut groups: Vec<Vec<&Section>> = Vec::new();
    let mut end = 0;
    for section in sections.iter().filter(|s| s.execute && !s.raw.is_empty()) {
        match groups.last_mut().filter(|_| end == section.va) {
            Some(group) => group.push(section),
            None => groups.push(vec![section]),
        }
        end = section.va.saturating_add(bytes::wide(section.raw.len()));
    }
    groups
}

/// The whole pages around sections, as far as no other section reaches into them.
fn pages(sections: &[Section], first: &Section, last: &Section) -> (u64, u64) {
    let end = last.va.saturating_add(bytes::wide(last.raw.len()));
    let mut from = first.va & !(PAGE - 1);
    let mut to = end.saturating_add(PAGE - 1) & !(PAGE - 1);
    for other in sections.iter().filter(|s| !s.raw.is_empty()) {
        let other_end = other.va.saturating_add(bytes::wide(other.raw.len()));
        if other_end <= first.va {
            from = from.max(other_end);
        }
        if other.va >= end {
            to = to.min(other.va);
        }
    }
    (from, to)
}

/// What a segment has between two addresses of one page.
fn gap(elf: &KernelElf, from: u64, to: u64) -> &[u8] {
    let len = to.saturating_sub(from);
    if len >= PAGE {
        return &[];
    }
    elf.segment_bytes(from, bytes::index(len)).unwrap_or(&[])
}

/// Names the sites of runtime constants for what they are: as fields they look like relocations.
pub(crate) fn runtime_constants(parts: &mut [Part], constants: &[Moving]) {
    for part in parts {
        for constant in constants {
            let Some(at) = constant.va.checked_sub(part.link) else {
                continue;
            };
            let found = part.sites.binary_search_by_key(&at, |s| s.at.into());
            if let Some(site) = found.ok().and_then(|i| part.sites.get_mut(i)) {
                site.kind = SiteKind::RuntimeConstant;
            }
        }
        // Until boot computes them they hold the placeholder. Where something else lies over one there is more to the site
        // than that: no kernel is built so.
        let lengths = lengths(part);
        for (value_set, len) in part.values.sets.iter_mut().zip(lengths) {
            let [Value { bytes, fixes, .. }] = value_set.as_slice() else {
                continue;
            };
            let [
                Fix {
                    at: 0,
                    form,
                    to: Target::Unknown(1..),
                    ..
                },
            ] = fixes.as_slice()
            else {
                continue;
            };
            let placeholder = placeholder(*form);
            if bytes.is_empty() && len == Some(placeholder.len()) {
                value_set.push(Value::fixed(placeholder));
            }
        }
    }
}

/// How long the sites of each set are, where all are alike.
fn lengths(part: &Part) -> Vec<Option<usize>> {
    let mut lengths: Vec<Option<Option<usize>>> = vec![None; part.values.sets.len()];
    for site in &part.sites {
        let len = usize::from(site.len);
        if let Some(of_set) = lengths.get_mut(bytes::index(site.set.into())) {
            *of_set = match *of_set {
                Some(other) if other != Some(len) => Some(None),
                _ => Some(Some(len)),
            };
        }
    }
    lengths.into_iter().map(Option::flatten).collect()
}

/// What the macros of `runtime-const.h` leave in the image.
fn placeholder(form: Form) -> Vec<u8> {
    match form {
        Form::Abs8 => vec![12],
        _ => 0x0123_4567_89ab_cdef_u64.to_le_bytes().to_vec(),
    }
}

/// The real-mode trampoline with the fields that `setup_real_mode` moves.
pub(crate) fn real_mode(blob: &[u8], fields: &[(u32, Form)]) -> Part {
    let mut fields: Vec<(u32, Form)> = fields.to_vec();
    fields.sort_by_key(|(at, _)| *at);
    // Sites do not overlap; of fields that do, which no kernel has, the first counts.
    let mut end = 0;
    fields.retain(|(at, form)| {
        let start = bytes::index(u64::from(*at));
        let apart = start >= end;
        if apart {
            end = start.saturating_add(form.len());
        }
        apart
    });
    let forms = [Form::Segment16, Form::Abs32];
    let set = |form| {
        let fix = Fix {
            at: 0,
            form,
            to: Target::Unknown(0),
            addend: 0,
        };
        vec![
            Value {
                fixes: vec![fix],
                ..Value::own()
            },
            Value::own(),
        ]
    };
    let sites = fields.iter().filter_map(|(at, form)| {
        let end = bytes::index(u64::from(*at)).checked_add(form.len())?;
        let set = u32::from(*form == Form::Abs32);
        (end <= blob.len()).then_some(Site {
            at: *at,
            len: u16::try_from(form.len()).ok()?,
            kind: SiteKind::Relocation,
            set,
        })
    });
    let base = Unknown::RealModeBase;
    Part {
        kind: PartKind::BootCode,
        name: "realmode".to_owned(),
        link: 0,
        placement: Placement::Anywhere,
        bytes: blob.to_vec(),
        sites: sites.collect(),
        values: Values {
            sets: forms.map(set).to_vec(),
            unknowns: vec![base],
            ..Values::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_constant_under_something_longer_holds_no_placeholder() {
        let fix = |form| Fix {
            at: 0,
            form,
            to: Target::Unknown(1),
            addend: 0,
        };
        let set = |form| {
            vec![Value {
                fixes: vec![fix(form)],
                ..Value::own()
            }]
        };
        let site = |at, len, set| Site {
            at,
            len,
            kind: SiteKind::Kaslr,
            set,
        };
        // Two of one byte; one of eight; one of one byte, and another field behind it.
        let mut part = Part {
            sites: vec![site(0, 1, 0), site(4, 1, 0), site(8, 8, 1), site(20, 5, 2)],
            values: Values {
                sets: vec![set(Form::Abs8), set(Form::Abs64), set(Form::Abs8)],
                ..Values::default()
            },
            ..real_mode(&[0; 32], &[])
        };
        runtime_constants(std::slice::from_mut(&mut part), &[]);
        let placeholders: Vec<_> = part.values.sets.iter().map(|set| set.get(1)).collect();
        let eight = 0x0123_4567_89ab_cdef_u64.to_le_bytes();
        assert_eq!(
            placeholders,
            [Some(&Value::fixed([12])), Some(&Value::fixed(eight)), None]
        );
    }

    #[test]
    fn fields_of_the_trampoline_that_overlap_make_one_site() {
        let fields = [
            (8, Form::Abs32),
            (2, Form::Segment16),
            (3, Form::Abs32),
            (4, Form::Abs32),
            (8, Form::Segment16),
        ];
        let part = real_mode(&[0; 16], &fields);
        let places: Vec<_> = part.sites.iter().map(|site| (site.at, site.len)).collect();
        assert_eq!(places, [(2, 2), (4, 4), (8, 4)]);
    }
}
