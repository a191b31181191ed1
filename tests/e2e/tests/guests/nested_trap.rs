//! A Debian guest under stock KVM in the nested machine, watched by way of the kernel module.

use std::collections::BTreeSet;
use std::time::Duration;

use nephoscope_e2e::living::{disagreements, list};
use nephoscope_e2e::nested::{SLEEPER, Seen, attached, watch};
use nephoscope_e2e::{Image, Kernel, program};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(900);

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
    let (image, program) = (Image::ensure().unwrap(), program().unwrap());
    let seen = watch(&image, &program, Kernel::K6_1, 1, LIMIT, |line| {
        println!("{line}")
    })
    .unwrap();
    let Seen {
        report,
        truth,
        warnings,
    } = seen;
    assert_eq!(warnings, Vec::<String>::new());
    println!("pages: {}", report["pages"]);
    println!("counters: {}", report["counters"]);
    assert_eq!(report["vm"]["accelerator"], "kvm");

    assert!(counter(&report, "kvm_audits") > 10 && counter(&report, "kvm_audited_mappings") > 100_000);
    assert_eq!(counter(&report, "kvm_mappings_writable_and_executable"), 0);
    assert_eq!(counter(&report, "kvm_mappings_huge"), 0);

    // Devices cannot write to executed code unseen: a page that a disk brought into a frame that a known page was executed
    // from is code of its own, be the disk QEMU's or the host kernel's.
    assert_eq!(counter(&report, "kvm_frames_unguarded"), 0);
    let findings = report["findings"].as_array().unwrap();
    let by_dma: Vec<_> = findings
        .iter()
        .filter(|finding| {
            finding["rule"] == "unknown-code" && finding["evidence"]["program"] == "/usr/bin/python3.11"
        })
        .collect();
    assert_eq!(by_dma.len(), 3, "{findings:#?}");
    // The third disk had the frame's memory before it was executed for the last time, and wrote to it after that.
    let generations: Vec<_> = by_dma
        .iter()
        .map(|finding| finding["evidence"]["generation"].as_u64().unwrap())
        .collect();
    assert!(
        generations.iter().all(|generation| *generation > 0) && generations.contains(&2),
        "{by_dma:#?}"
    );
    // That was found by looking again, and what was seen until then is not sure.
    assert_eq!(counter(&report, "kvm_frames_changed_unseen"), 1);
    assert!(counter(&report, "kvm_frames_rechecked") > 10_000);
    let late = |interval: &&Value| {
        let reasons = interval["reason"].as_str().unwrap();
        interval["code"] == "sampled" && reasons.split(", ").any(|reason| reason == "device_writes_unseen")
    };
    let intervals = list(&report["coverage"], "intervals");
    assert!(intervals.iter().any(|interval| late(&interval)), "{intervals:#?}");

    // What else is not known, beside those three, was made at run time: PHP compiles its regular expressions.
    let user = &report["pages"]["user"];
    let of = |verdict: &str| user[verdict].as_u64().unwrap();
    assert!(
        of("captured") > 2500 && of("modified") == 0 && of("unknown") <= 5,
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

#[test]
fn a_guest_that_runs_under_kvm_is_attached_to_and_what_it_only_maps_is_listed_as_mapped() {
    let (image, program) = (Image::ensure().unwrap(), program().unwrap());
    let seen = attached(&image, &program, Kernel::K6_1, LIMIT, |line| println!("{line}")).unwrap();
    assert_eq!(seen.warnings, Vec::<String>::new());

    // Every process that there was, with every file of which code is mapped, and nobody else.
    let (before, after) = &seen.around;
    assert_eq!(disagreements(&seen.soon, before, after), Vec::<String>::new());
    // Who has slept since before the watch began has run nothing.
    let is_sleeper = |space: &&Value| space["program"]["path"].as_str().map(merged) == Some(merged(SLEEPER));
    let sleepers: Vec<&Value> = list(&seen.soon, "address_spaces")
        .iter()
        .filter(is_sleeper)
        .collect();
    let asleep: Vec<&&Value> = sleepers
        .iter()
        .filter(|space| {
            let modules = list(space, "modules");
            let sum = |name: &str| {
                modules
                    .iter()
                    .filter_map(|module| module[name].as_u64())
                    .sum::<u64>()
            };
            sum("pages_mapped") > 10 && sum("pages_executed") == 0
        })
        .collect();
    assert_eq!(asleep.len(), 1, "{sleepers:#?}");

    // What ran afterwards did, and is named by what is installed.
    let python = list(&seen.report, "address_spaces").iter().any(|space| {
        let executed = list(space, "modules")
            .iter()
            .filter_map(|module| module["pages_executed"].as_u64());
        space["program"]["path"].as_str().map(merged) == Some("/bin/python3.11")
            && executed.sum::<u64>() > 100
    });
    assert!(python, "{}", seen.report["address_spaces"]);
    let pages = &seen.report["pages"];
    assert!(
        pages["user"]["modified"] == 0 && pages["kernel"]["modified"] == 0,
        "{pages}"
    );
    assert!(pages["user"]["unknown"].as_u64() <= Some(3), "{pages}");
    assert_eq!(counter(&seen.report, "kvm_mappings_writable_and_executable"), 0);
    assert_eq!(counter(&seen.report, "kvm_mappings_huge"), 0);
    assert_eq!(counter(&seen.report, "kvm_frames_unguarded"), 0);

    // Before, nobody saw anything; and that is said.
    let first = &list(&seen.report["coverage"], "intervals")[0];
    assert!(
        first["from_ns"] == 0 && first["code"] == "blind" && first["to_ns"].as_u64() > Some(10_000_000_000),
        "{first}"
    );
}
