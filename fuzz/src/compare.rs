//! A page against a part whose sites and values are anything: what is called equal can be made from the part.

use std::sync::OnceLock;

use arbitrary::Unstructured;
use nephoscope_guest::PAGE_SIZE;
use nephoscope_recipe::floating::Supposed;
use nephoscope_recipe::{
    Env, Fix, Form, Part, PartKind, Placement, Site, SiteKind, Solver, Target, Unknown, Value, Values,
    compare, compare_ranges,
};

/// An environment that vouches for a few things.
struct Some3(u64);

impl Env for Some3 {
    fn symbol(&self, name: &str) -> Option<u64> {
        (name == "known").then_some(self.0)
    }

    fn is_function(&self, va: u64) -> bool {
        va == self.0
    }

    fn is_paravirt(&self, va: u64) -> bool {
        va & 1 == 0
    }
}

/// Compares whole and by ranges.
pub fn run(bytes: &[u8]) {
    let _ = check(&mut Unstructured::new(bytes));
}

fn check(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let part = part(input)?;
    let at = i64::from(input.arbitrary::<i8>()?) * 64;
    let va = input.arbitrary::<Option<u64>>()?;
    let env = Some3(input.arbitrary()?);
    let mut page = Box::new([0_u8; PAGE_SIZE]);
    // What the part has there; zeros before its beginning and behind its end.
    let before = usize::try_from(-at).unwrap_or(0).min(PAGE_SIZE);
    let own = part
        .bytes
        .get(usize::try_from(at).unwrap_or(0)..)
        .unwrap_or_default();
    let own = &own[..own.len().min(PAGE_SIZE - before)];
    page[before..before + own.len()].copy_from_slice(own);
    let mut changed = Vec::new();
    for _ in 0..input.int_in_range(0..=5_u8)? {
        let offset = usize::from(input.arbitrary::<u16>()?) % PAGE_SIZE;
        page[offset] ^= input.arbitrary::<u8>()?.max(1);
        changed.push(offset);
    }
    let mut solver = Solver::default();
    if input.arbitrary()? {
        solver.set(input.int_in_range(0..=4)?, input.arbitrary()?);
    }
    let whole = compare(&part, at, va, &page, &solver, &env);
    let in_site = |offset: usize| {
        let from = at + offset as i64;
        part.sites
            .iter()
            .any(|site| (i64::from(site.at)..i64::from(site.at) + i64::from(site.len)).contains(&from))
    };
    if whole.is_equal() {
        for (offset, (shown, own)) in (before..).zip(page[before..].iter().zip(own)) {
            assert!(own == shown || in_site(offset), "an unlisted byte is no identity");
        }
    }
    for difference in &whole.differences {
        let offset = usize::from(difference.offset);
        assert_eq!(difference.after, page[offset]);
        assert!(difference.before != difference.after || in_site(offset));
    }
    assert!(whole.equal_bytes + whole.outside <= PAGE_SIZE);
    let ranges = [
        (0, input.int_in_range(0..=4096)?),
        (input.int_in_range(0..=4096)?, input.arbitrary()?),
    ];
    let some = compare_ranges(&part, at, va, &page, &ranges, &solver, &env);
    assert!(some.equal_bytes <= PAGE_SIZE);
    let supposed = Supposed {
        part: &part,
        at,
        va: va.unwrap_or(0),
        solver: &solver,
    };
    if let Some(explained) = supposed.explains(&page, &ranges) {
        assert!(explained.differences.is_empty());
    }
    let _ = supposed.is_anchored(&page);
    let _ = supposed.is_anchored_around(&page, ranges[1]);
    whole.learn(&mut solver);
    Ok(())
}

/// As many bytes as the largest part has.
fn noise() -> &'static [u8] {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    NOISE.get_or_init(|| {
        (0..16 * 512 + 256_u32)
            .map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8)
            .collect()
    })
}

fn part(input: &mut Unstructured<'_>) -> arbitrary::Result<Part> {
    let len = 512 * usize::from(input.int_in_range(0..=16_u8)?) + usize::from(input.arbitrary::<u8>()?);
    let seed: u8 = input.arbitrary()?;
    let bytes = noise().iter().take(len).map(|byte| byte ^ seed).collect();
    let mut sites = Vec::new();
    let mut at = 0_u32;
    for _ in 0..input.int_in_range(0..=8_u8)? {
        at += u32::from(input.arbitrary::<u16>()?) % 700;
        let len = input.int_in_range(0..=12)?;
        sites.push(Site {
            at,
            len,
            kind: [SiteKind::Alternative, SiteKind::Kaslr, SiteKind::SelfModified]
                [usize::from(input.int_in_range(0..=2_u8)?)],
            set: input.int_in_range(0..=5)?,
        });
        at += u32::from(len);
    }
    let mut sets = Vec::new();
    for _ in 0..input.int_in_range(0..=5_u8)? {
        let mut set = Vec::new();
        for _ in 0..input.int_in_range(0..=3_u8)? {
            set.push(value(input)?);
        }
        sets.push(set);
    }
    Ok(Part {
        kind: [PartKind::KernelText, PartKind::ModuleText, PartKind::Firmware]
            [usize::from(input.int_in_range(0..=2_u8)?)],
        name: "fuzz".into(),
        link: input.arbitrary()?,
        placement: Placement::Aligned(4096),
        bytes,
        sites,
        values: Values {
            sets,
            unknowns: vec![
                Unknown::Slide,
                Unknown::Symbol("known".into()),
                Unknown::Symbol("unknown".into()),
                Unknown::Section {
                    name: ".data".into(),
                    align: input.arbitrary()?,
                    per_cpu: input.arbitrary()?,
                    link: input.arbitrary()?,
                    len: input.arbitrary()?,
                },
            ],
            lists_from: input.arbitrary()?,
            lists: vec![vec![0, 16, 32], vec![8]],
        },
    })
}

fn value(input: &mut Unstructured<'_>) -> arbitrary::Result<Value> {
    let len = input.int_in_range(0..=12)?;
    let mut fixes = Vec::new();
    for _ in 0..input.int_in_range(0..=2_u8)? {
        let forms = [
            Form::Abs64,
            Form::Abs32,
            Form::Negative32,
            Form::Pc32,
            Form::Pc64,
            Form::Abs8,
            Form::Segment16,
            Form::Pc24,
        ];
        let targets = [
            Target::Nothing,
            Target::Own,
            Target::Unknown(0),
            Target::Unknown(1),
            Target::Unknown(3),
            Target::Unknown(9),
            Target::OneOf(0),
            Target::OneOf(1),
            Target::OneOf(7),
        ];
        fixes.push(Fix {
            at: input.int_in_range(0..=10)?,
            form: forms[usize::from(input.int_in_range(0..=6_u8)?)],
            to: targets[usize::from(input.int_in_range(0..=8_u8)?)],
            addend: input.arbitrary()?,
        });
    }
    Ok(Value {
        bytes: input.bytes(len)?.to_vec(),
        fixes,
        poked: input.arbitrary()?,
    })
}
