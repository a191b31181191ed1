//! Pages of modules made on the spot.

use nephoscope_guest::PAGE_SIZE;

use super::*;
use crate::fixture::{self, Module, noise, of_kernel};
use crate::images::tests::running;

const VA: u64 = 0xffff_ffff_c000_0000;

/// What a page is that equals the text of each of so many modules.
fn identify(modules: usize) -> Identified {
    let text = noise(PAGE_SIZE, 1);
    let names: Vec<String> = (0..modules).map(|number| format!("m{number}")).collect();
    let module = |name| Module {
        name,
        text: &text,
        ..Module::default()
    };
    let files: Vec<_> = names.iter().map(|name| module(name).file()).collect();
    let (catalog, _) = fixture::catalog(&files);
    let bytes = fixture::page(&text);
    let answer = Identifier::new(catalog)
        .ask(&of_kernel(&bytes, VA, &[(0, 16)]))
        .unwrap();
    match &*answer.verdict {
        Verdict::Identified(identified) => identified.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn max_compared_bounds_the_modules_that_a_page_is_compared_with_and_the_rest_is_counted() {
    for (modules, left_out) in [(1, 0), (MAX_COMPARED, 0), (MAX_COMPARED + 3, 3)] {
        let found = identify(modules);
        assert_eq!(found.places.len(), modules.min(MAX_COMPARED));
        assert_eq!(found.left_out, left_out, "{modules}");
    }
    // More than the catalog itself tells of one window.
    let many = nephoscope_catalog::limits::MAX_REFS_PER_WINDOW + 7;
    let found = identify(many);
    assert_eq!(found.places.len() as u64 + found.left_out, many as u64);
}

#[test]
fn max_tries_is_how_often_short_parts_are_compared_that_depend_on_what_is_not_known() {
    let printk = 0xffff_ffff_8123_4567_u64;
    let module = Module {
        name: "short",
        // mov rdi, printk; ret
        init: &[0x48, 0xc7, 0xc7, 0, 0, 0, 0, 0xc3],
        field: Some((3, "printk")),
        ..Module::default()
    };
    let (catalog, _) = fixture::catalog(&[module.file()]);
    let bytes = fixture::page(&[0x48, 0xc7, 0xc7, 0x67, 0x45, 0x23, 0x81, 0xc3]);
    let ask = |identifier: &mut Identifier| {
        let answer = identifier.ask(&of_kernel(&bytes, VA, &[(0, 8)])).unwrap();
        answer.verdict.word()
    };
    let known = || running(&[("printk", printk)]);
    for (before, then) in [(MAX_TRIES - 1, "identified"), (MAX_TRIES, "unknown")] {
        let mut identifier = Identifier::new(catalog.clone());
        identifier.images = running(&[]);
        for _ in 0..before {
            assert_eq!(ask(&mut identifier), "unknown");
        }
        identifier.images = known();
        assert_eq!(ask(&mut identifier), then, "tried {before} times before");
        identifier.reset();
        identifier.images = known();
        assert_eq!(ask(&mut identifier), "identified", "a reset begins anew");
    }
}

#[test]
fn a_mapped_page_tells_of_its_module_only_once_what_it_refers_to_is_known() {
    let printk = 0xffff_ffff_8123_4567_u64;
    let mut text = noise(PAGE_SIZE, 1);
    // mov rdi, printk
    text[..7].copy_from_slice(&[0x48, 0xc7, 0xc7, 0, 0, 0, 0]);
    let module = Module {
        name: "refers",
        text: &text,
        field: Some((3, "printk")),
        field_in_text: true,
        ..Module::default()
    };
    let (catalog, _) = fixture::catalog(&[module.file()]);
    text[3..7].copy_from_slice(&0x8123_4567_u32.to_le_bytes());
    let bytes = fixture::page(&text);
    let mut identifier = Identifier::new(catalog);
    identifier.images = running(&[]);
    let place = |identifier: &mut Identifier| identifier.mapped_by_kernel(Gva(VA), &bytes).unwrap();
    assert!(!place(&mut identifier));
    identifier.images = running(&[("printk", printk)]);
    assert!(place(&mut identifier));
    assert!(!place(&mut identifier), "no news the second time");
}
