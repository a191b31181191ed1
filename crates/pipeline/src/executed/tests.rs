//! Pages of OVMF as it runs, if it is installed: judged by a catalog of its files.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "test data is small"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nephoscope_catalog::{Adder, Catalog, ObjectId};
use nephoscope_guest::{Gva, PAGE_SIZE, PageBytes, Privilege};
use nephoscope_inventory::{Unknown, Verdict};
use nephoscope_recipe::{Form, Part, Solver};

use super::candidate::Candidate;
use super::{Floating, MAX_COMPARED, MAX_PLACED, Placed};
use crate::fixture;
use crate::identify::Question;
use crate::nearest::Candidate as Pointed;

/// One file's catalog and its object's parts.
struct Flash {
    catalog: Catalog,
    parts: Vec<Arc<Part>>,
    _folder: tempfile::TempDir,
}

fn flash(paths: &[&str]) -> Option<Flash> {
    if let Some(missing) = paths.iter().find(|path| !Path::new(path).is_file()) {
        println!("skipped: {missing} is not installed");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut adder = Adder::new(folder.path()).unwrap();
    adder
        .add(&paths.iter().map(PathBuf::from).collect::<Vec<_>>())
        .unwrap();
    adder.commit().unwrap();
    let catalog = Catalog::open(folder.path()).unwrap();
    let object = catalog
        .objects_of_kind(nephoscope_recipe::ObjectKind::Firmware)
        .unwrap()[0];
    let count = catalog.object(object).unwrap().parts.len();
    let parts = (0..count).map(|number| catalog.part(object, number as u16).unwrap());
    Some(Flash {
        parts: parts.collect(),
        catalog,
        _folder: folder,
    })
}

fn ovmf() -> Option<Flash> {
    flash(&["/usr/share/OVMF/OVMF_CODE_4M.fd"])
}

/// What the first page of a part with a field in it shows that lies at `base` and has the fields of one at `fields`:
/// the page's offset in the part, and the page.
fn page(part: &Part, base: u64, fields: u64) -> (usize, PageBytes) {
    let first = part.sites.iter().find(|site| site.at >= 0x400).unwrap();
    let from = (first.at as usize) & !(PAGE_SIZE - 1);
    assert_eq!(base % PAGE_SIZE as u64, 0);
    let mut bytes = part.bytes.clone();
    for site in &part.sites {
        let value = &part.values.sets[site.set as usize];
        let [value] = value.as_slice() else { continue };
        let (at, len) = (site.at as usize, value.fixes[0].form.len());
        let mut field = [0; 8];
        field[..len].copy_from_slice(&bytes[at..at + len]);
        let moved = u64::from_le_bytes(field).wrapping_add(fields.wrapping_sub(part.link));
        bytes[at..at + len].copy_from_slice(&moved.to_le_bytes()[..len]);
    }
    bytes.resize(bytes.len().next_multiple_of(PAGE_SIZE) + PAGE_SIZE, 0);
    (
        from,
        PageBytes::from_slice(&bytes[from..from + PAGE_SIZE]).unwrap(),
    )
}

/// The verdict's word.
fn ask(
    flash: &Flash,
    floating: &mut Floating,
    va: u64,
    bytes: &PageBytes,
    executed: &[(u16, u16)],
) -> &'static str {
    let question = Question {
        bytes,
        digest: [0; 32],
        va: Gva(va),
        paging: true,
        privilege: Privilege::Supervisor,
        executed,
        neighbours: &[],
        unknown: Unknown::default(),
    };
    let verdict = floating
        .identify(&flash.catalog, &question, &pointed(&flash.catalog, &question))
        .unwrap();
    verdict.as_ref().map_or("unknown", Verdict::word)
}

/// An image with fields of 32 bits in its code.
fn with_fields(flash: &Flash) -> &Part {
    let fits = |part: &&Arc<Part>| {
        let early = part
            .sites
            .iter()
            .filter(|site| (0x400..0x3000).contains(&site.at));
        part.bytes.len() > 0x4000
            && early
                .filter(|s| part.values.sets[s.set as usize][0].fixes[0].form == Form::Abs32)
                .count()
                > 8
    };
    flash.parts.iter().find(fits).expect("an image with fields")
}

const WHOLE: [(u16, u16); 1] = [(0, 4096)];

fn pointed(catalog: &Catalog, question: &Question<'_>) -> Vec<Pointed> {
    crate::nearest::by_windows(catalog, question.bytes, 512, |_| true).unwrap()
}

#[test]
fn an_image_is_found_wherever_it_was_loaded_if_its_fields_are_of_there() {
    let Some(flash) = ovmf() else { return };
    let part = with_fields(&flash);
    for base in [0x3f00_0000, 0x7654_3000, 0xffff_fffe_0040_0000] {
        let (at, bytes) = page(part, base, base);
        let mut floating = Floating::default();
        assert_eq!(
            ask(&flash, &mut floating, base + at as u64, &bytes, &WHOLE),
            "identified"
        );
        let (_, bytes) = page(part, base, base + 0x1000);
        assert_eq!(
            ask(&flash, &mut Floating::default(), base + at as u64, &bytes, &WHOLE),
            "modified"
        );
    }
}

#[test]
fn code_that_an_image_copied_out_of_itself_has_the_fields_of_that_image() {
    let Some(flash) = ovmf() else { return };
    let part = with_fields(&flash);
    let (image, copy) = (0x3f00_0000, 0x9_0000);
    let mut floating = Floating::default();
    let (at, copied) = page(part, copy, image);
    let va = copy + at as u64;
    assert_eq!(
        ask(&flash, &mut floating, va, &copied, &WHOLE),
        "modified",
        "no image is known there"
    );
    let (at, bytes) = page(part, image, image);
    assert_eq!(
        ask(&flash, &mut floating, image + at as u64, &bytes, &WHOLE),
        "identified"
    );
    assert_eq!(ask(&flash, &mut floating, va, &copied, &WHOLE), "identified");
    let mut flipped = copied.clone();
    flipped[100] ^= 1;
    assert_eq!(ask(&flash, &mut floating, va, &flipped, &WHOLE), "modified");
    let (_, elsewhere) = page(part, copy, image + 0x1000);
    assert_eq!(ask(&flash, &mut floating, va, &elsewhere, &WHOLE), "modified");
}

#[test]
fn a_page_is_a_modified_one_only_if_it_is_near_with_what_did_not_execute_too() {
    let Some(flash) = ovmf() else { return };
    let part = with_fields(&flash);
    let base = 0x1000_0000;
    let (from, known) = page(part, base, base);
    let va = base + from as u64;
    let ask = |bytes: &PageBytes, executed: &[(u16, u16)]| {
        ask(&flash, &mut Floating::default(), va, bytes, executed)
    };
    let hooked = |known: &PageBytes| {
        let mut bytes = known.clone();
        bytes[100..105].iter_mut().for_each(|byte| *byte = !*byte);
        bytes
    };
    let some = [(40, 300)];
    assert_eq!(ask(&known, &some), "identified");
    assert_eq!(ask(&hooked(&known), &some), "modified");
    assert_eq!(ask(&hooked(&known), &WHOLE), "modified");
    // Another release: of this page, only the beginning is as it was.
    let mut other = known.clone();
    other[1024..]
        .iter_mut()
        .for_each(|byte| *byte = byte.wrapping_mul(3).wrapping_add(1));
    assert_eq!(ask(&hooked(&other), &some), "unknown");
    assert_eq!(ask(&hooked(&other), &WHOLE), "unknown");
}

#[test]
fn a_page_of_pieces_names_every_file_that_has_them() {
    let files = [
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
    ];
    let Some(flash) = flash(&files) else { return };
    // Two images one after the other in one page, each with its fields, as they lie in a volume.
    let [first, second] = [4, 5].map(|number| &flash.parts[number].bytes[0x400..0xc00]);
    let page: Vec<u8> = [first, second].concat();
    let page = PageBytes::from_slice(&page).unwrap();
    let question = Question {
        bytes: &page,
        digest: [0; 32],
        va: Gva(0x82_7000),
        paging: true,
        privilege: Privilege::Supervisor,
        executed: &[(0x100, 0x120), (0x900, 0x920)],
        neighbours: &[],
        unknown: Unknown::default(),
    };
    let Some(Verdict::Identified(found)) = Floating::default()
        .identify(&flash.catalog, &question, &pointed(&flash.catalog, &question))
        .unwrap()
    else {
        panic!("not identified");
    };
    let objects: std::collections::BTreeSet<_> = found.places.iter().map(|place| place.object).collect();
    assert_eq!(objects.len(), 2, "{:?}", found.places);
}

#[test]
fn max_placed_stops_a_guest_that_copies_firmware_about_for_ever() {
    let mut floating = Floating::default();
    for copy in 0..MAX_PLACED as u64 + 10 {
        floating.remember(Placed {
            object: ObjectId(1),
            number: 0,
            base: copy << 12,
            len: 4096,
            solver: Solver::default(),
        });
    }
    assert_eq!(floating.placed.len(), MAX_PLACED);
    assert_eq!(floating.placed[0].base, 10 << 12, "the oldest went");
}

#[test]
fn max_compared_bounds_the_parts_that_a_page_is_compared_with_and_the_latest_come_first() {
    let (catalog, objects) = fixture::catalog(&[("a.rom".into(), fixture::option_rom(8192, 1))]);
    let (object, most, va) = (objects[0], MAX_COMPARED as i64, 0xf_0000_u64);
    let bytes = PageBytes::zeroed();
    let question = Question {
        paging: false,
        ..fixture::of_kernel(&bytes, va, &WHOLE)
    };
    let mut floating = Floating::default();
    for at in 0..most + 9 {
        floating.remember(Placed {
            object,
            number: 0,
            base: va - at as u64,
            len: 8192,
            solver: Solver::default(),
        });
    }
    let offsets = |pointed: &[Pointed]| {
        let (found, beyond) = floating.candidates(&catalog, &question, pointed).unwrap();
        let at: Vec<i64> = found.iter().map(|candidate| candidate.at).collect();
        (at, beyond.len())
    };
    let latest: Vec<i64> = (9..most + 9).rev().collect();
    assert_eq!(offsets(&[]), (latest.clone(), 0));
    // As many again may be those that its windows point to, the best first.
    let pointed: Vec<Pointed> = (1000..1000 + 2 * most)
        .map(|at| Pointed {
            votes: 1,
            object,
            part: 0,
            at,
            unseen: 0,
        })
        .collect();
    let best = 1000..1000 + most;
    let beyond = usize::try_from(most).unwrap();
    assert_eq!(
        offsets(&pointed),
        ([latest, best.collect()].concat(), beyond),
        "and the rest is counted"
    );
}

#[test]
fn max_compared_bounds_the_copies_of_a_part_whose_fields_a_page_may_have() {
    let site = nephoscope_recipe::Site {
        at: 0,
        len: 4,
        kind: nephoscope_recipe::SiteKind::Relocation,
        set: 0,
    };
    let part = Part {
        kind: nephoscope_recipe::PartKind::Firmware,
        name: "image".into(),
        link: 0,
        bytes: vec![0; 4096],
        sites: vec![site],
        placement: nephoscope_recipe::Placement::Anywhere,
        values: nephoscope_recipe::Values::default(),
    };
    let candidate = Candidate {
        object: ObjectId(1),
        number: 0,
        part: Arc::new(part),
        at: 0,
        solver: Solver::default(),
        vouched: true,
        fields: None,
    };
    for (copies, compared) in [(3, 3), (MAX_COMPARED as u64 + 9, MAX_COMPARED)] {
        let mut floating = Floating::default();
        for copy in 0..copies {
            floating.remember(Placed {
                object: ObjectId(1),
                number: 0,
                base: 0x10_0000 + (copy << 12),
                len: 4096,
                solver: Solver::default(),
            });
        }
        let found = floating.copies(std::slice::from_ref(&candidate), Gva(0xf_0000));
        assert_eq!(found.len(), compared);
    }
}
