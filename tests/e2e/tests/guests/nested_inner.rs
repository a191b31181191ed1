//! A guest that runs a guest, and one whose memory is of huge pages, under stock KVM in the nested machine.

use std::time::Duration;

use nephoscope_e2e::nested::{Inner, inner};
use nephoscope_e2e::{Image, Kernel, program};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(600);

fn reasons(report: &Value) -> Vec<&str> {
    let intervals = report["coverage"]["intervals"].as_array().unwrap();
    intervals
        .iter()
        .flat_map(|interval| interval["reason"].as_str().unwrap().split(", "))
        .collect()
}

fn counter(report: &Value, name: &str) -> u64 {
    report["counters"][name]
        .as_u64()
        .unwrap_or_else(|| panic!("no counter {name}"))
}

#[test]
fn what_a_guest_of_the_guest_writes_into_code_is_seen_and_what_cannot_be_is_coverage() {
    let (image, program) = (Image::ensure().unwrap(), program().unwrap());
    let seen = inner(&image, &program, Kernel::K6_1, LIMIT, |line| println!("{line}")).unwrap();
    let Inner {
        nested,
        huge,
        changed,
        warnings,
    } = seen;
    assert_eq!(warnings, Vec::<String>::new());
    for report in [&nested, &huge] {
        assert_eq!(counter(report, "kvm_mappings_writable_and_executable"), 0);
        assert_eq!(counter(report, "kvm_mappings_huge"), 0);
        assert!(counter(report, "kvm_audits") > 0 && counter(report, "kvm_audited_mappings") > 1000);
    }

    // The page of a known file was known code, and is not any more once the inner guest has written into it.
    let findings = nested["findings"].as_array().unwrap();
    let modified: Vec<&Value> = findings
        .iter()
        .filter(|finding| finding["rule"] == "modified-code")
        .map(|finding| &finding["evidence"])
        .collect();
    assert_eq!(modified.len(), 1, "{findings:#?}");
    let path = modified[0]["path"].as_str().unwrap();
    assert!(path.contains("libz.so.1"), "{path}");
    let differences = modified[0]["differences"].as_array().unwrap();
    assert_eq!(differences.len(), 1, "{differences:?}");
    assert_eq!(differences[0]["offset"], changed % 4096);

    // What the inner guest executes itself is not seen, and that is said; of the other guest, nothing of the kind.
    assert!(counter(&nested, "kvm_nested_exits") > 0);
    assert!(
        reasons(&nested).contains(&"nested_guest_unseen"),
        "{}",
        nested["coverage"]
    );
    assert_eq!(counter(&huge, "kvm_nested_exits"), 0);
    assert!(
        !reasons(&huge).contains(&"nested_guest_unseen"),
        "{}",
        huge["coverage"]
    );
}
