//! Code that no catalog knows, and known code that was changed: found within a second of its first execution, in the right
//! address space, byte for byte; under each QEMU that there is.

use std::path::PathBuf;

use nephoscope_e2e::{Catalog, Guest, Image, Kernel, Options, Planting, Watched, qemu, report, vm_name};
use serde_json::Value;

fn program() -> PathBuf {
    nephoscope_e2e::program().unwrap()
}

fn everything_planted_is_found(options: Options) -> Value {
    let image = Image::ensure().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let name = vm_name("planted");
    let file = folder.path().join("report.json");
    let watched = Some(Watched {
        program: program(),
        catalog: Catalog::ensure(&image, &program()).unwrap().path(),
        name: name.clone(),
        report: Some(file.clone()),
        extra: Vec::new(),
    });
    let mut guest = Guest::boot_ready(&image, Options { watched, ..options }).unwrap();
    let mut planting = Planting::begin(&mut guest, &image, &name).unwrap();
    let cases = [
        planting.memfd().unwrap(),
        planting.copied().unwrap(),
        planting.flashed().unwrap(),
        planting.patched().unwrap(),
    ];
    for case in cases {
        let found = case
            .found
            .unwrap_or_else(|why| panic!("{}: expected {}; {why}", case.what, case.expected));
        println!(
            "{}: {} ms after it ran",
            case.what,
            found.since_first_run.as_millis()
        );
    }
    assert_eq!(guest.power_off().unwrap(), 0);
    let report: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    report::validate(&report).unwrap();
    assert_eq!(report["coverage"]["code"], "complete");
    assert_eq!(report["coverage"]["attribution"], "complete");
    report
}

#[test]
fn what_is_planted_is_found_with_four_vcpus() {
    everything_planted_is_found(Options {
        smp: 4,
        kernel: Kernel::K6_12,
        ..Options::default()
    });
}

/// QEMU 11.1 takes plugin API 7 and nothing older.
#[test]
fn what_is_planted_is_found_under_a_newer_qemu() {
    let newer = qemu::newer()
        .unwrap()
        .expect("no newer QEMU: run `cargo xtask qemu11`");
    let report = everything_planted_is_found(Options {
        qemu: Some(newer),
        ..Options::default()
    });
    assert!(
        report["vm"]["vmm"].as_str().unwrap().starts_with("QEMU 11."),
        "{}",
        report["vm"]
    );
}
