//! A Debian guest under stock KVM in the nested machine, watched by way of the kernel module.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use nephoscope_e2e::nested::{Nested, Shape};
use nephoscope_e2e::{Catalog, Image, Kernel, Truth, kbuild, program};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(900);

/// The module is there before the guest, and gone after it.
const SCRIPT: &str = "export HOME=/tmp\n\
    insmod /host/nephoscope_kvm.ko || exit 91\n\
    /host/inside /host 6.1 1 || exit 92\n\
    rmmod nephoscope_kvm || exit 93";

fn give(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            give(&entry.path(), &to.join(entry.file_name()));
        }
    } else if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).unwrap();
    }
}

fn watched(kernel: Kernel) -> (Value, Truth) {
    let image = Image::ensure().unwrap();
    let nested = Nested::ensure(&image).unwrap();
    let share = tempfile::tempdir().unwrap();
    let at = |name: &str| share.path().join(name);
    let program = program().unwrap();
    give(&program, &at("nephoscope"));
    give(&program.with_file_name("plugins"), &at("plugins"));
    give(&program.with_file_name("examples").join("inside"), &at("inside"));
    let catalog = Catalog::ensure_with(&image, &program, &nested.firmware().unwrap()).unwrap();
    give(&catalog.path(), &at("catalog"));
    give(
        &kbuild::trap_module(&image, kernel).unwrap(),
        &at("nephoscope_kvm.ko"),
    );
    fs::create_dir(at("image")).unwrap();
    for file in [image.kernel(Kernel::K6_1), image.initramfs(Kernel::K6_1)] {
        give(&file, &at("image").join(file.file_name().unwrap()));
    }
    std::os::unix::fs::symlink("/dev/vdb", at("image").join("disk.img")).unwrap();
    let shape = Shape {
        kernel,
        ..Shape::default()
    };
    let mut said = Vec::new();
    let code = nested
        .run(&shape, share.path(), SCRIPT, LIMIT, |line| {
            println!("{line}");
            said.push(line.to_owned());
        })
        .unwrap();
    assert_eq!(code, 0, "{said:#?}");
    let warned: Vec<_> = said
        .iter()
        .filter(|line| {
            ["WARNING:", "BUG:", "Oops"]
                .iter()
                .any(|word| line.contains(word))
        })
        .collect();
    assert_eq!(warned, Vec::<&String>::new());
    let report: Value = serde_json::from_slice(&fs::read(at("report.json")).unwrap()).unwrap();
    nephoscope_e2e::report::validate(&report).unwrap();
    (
        report,
        Truth::parse(&fs::read_to_string(at("truth")).unwrap()).unwrap(),
    )
}

fn merged(path: &str) -> &str {
    path.strip_prefix("/usr").unwrap_or(path)
}

fn counter(report: &Value, name: &str) -> u64 {
    report["counters"][name]
        .as_u64()
        .unwrap_or_else(|| panic!("no counter {name}"))
}

#[test]
fn a_guest_under_stock_kvm_is_named_and_no_mapping_is_writable_and_executable() {
    let (report, truth) = watched(Kernel::K6_1);
    println!("pages: {}", report["pages"]);
    println!("counters: {}", report["counters"]);
    assert_eq!(report["vm"]["accelerator"], "kvm");

    assert!(counter(&report, "kvm_audits") > 10 && counter(&report, "kvm_audited_mappings") > 100_000);
    assert_eq!(counter(&report, "kvm_mappings_writable_and_executable"), 0);
    assert_eq!(counter(&report, "kvm_mappings_huge"), 0);

    // Devices cannot write to executed code unseen: a page that the disk brought into a frame that a known page was executed
    // from is code of its own.
    assert_eq!(counter(&report, "kvm_frames_unguarded"), 0);
    let findings = report["findings"].as_array().unwrap();
    let by_dma: Vec<_> = findings
        .iter()
        .filter(|finding| {
            finding["rule"] == "unknown-code" && finding["evidence"]["program"] == "/usr/bin/python3.11"
        })
        .collect();
    assert_eq!(by_dma.len(), 1, "{findings:#?}");
    assert!(
        by_dma[0]["evidence"]["generation"].as_u64() > Some(0),
        "{by_dma:#?}"
    );

    // What else is not known was made at run time: PHP compiles its regular expressions.
    let user = &report["pages"]["user"];
    let of = |verdict: &str| user[verdict].as_u64().unwrap();
    assert!(
        of("captured") > 2500 && of("modified") == 0 && of("unknown") <= 3,
        "{user}"
    );

    let programs: BTreeSet<&str> = report["address_spaces"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|space| Some(merged(space["program"]["path"].as_str()?)))
        .collect();
    let mut checked = 0;
    for process in truth
        .processes
        .values()
        .filter(|process| truth.owner(&process.exe).is_some())
    {
        assert!(
            programs.contains(merged(&process.exe)),
            "{} is not named",
            process.exe
        );
        checked += 1;
    }
    assert!(checked > 10, "{checked} processes only");

    // Who runs what is sampled from the first moment to the last, and the report says so. Before the module was attached
    // nothing ran.
    assert_ne!(report["coverage"]["attribution"], "complete");
    let intervals = report["coverage"]["intervals"].as_array().unwrap();
    for (number, interval) in intervals.iter().enumerate() {
        let not_begun = number == 0 && interval["reason"] == "";
        assert!(not_begun || interval["attribution"] != "complete", "{interval}");
    }
}
