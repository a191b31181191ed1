//! Reports are what `docs/report.schema.json` says.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use nephoscope_catalog::ObjectId;
use nephoscope_finding::{Finding, Severity};
use nephoscope_guest::{Coverage, Executed, Gap, GapReason, Gpa, Gva, PageId, Privilege, Root};
use nephoscope_inventory::{
    CandidateReport, CoverageLog, Difference, Identified, Inventory, KnownSpaces, Modified, Names,
    ObjectFacts, PageRecord, Place, Unknown, Verdict, VmReport, build,
};
use nephoscope_recipe::ObjectKind;
use serde_json::Value;

const SCHEMA: &str = include_str!("../../../docs/report.schema.json");

/// A catalog of a program (100), two versions of a library (1, 2), a kernel (50), and a file outside any package (60).
struct Files;

impl ObjectFacts for Files {
    fn kind(&self, object: ObjectId) -> Option<ObjectKind> {
        Some(match object.0 {
            100 => ObjectKind::Executable,
            50 => ObjectKind::Kernel,
            _ => ObjectKind::SharedObject,
        })
    }

    fn entry(&self, object: ObjectId) -> Option<u64> {
        (object.0 == 100).then_some(0x1040)
    }
}

impl Names for Files {
    fn placements(&self, object: ObjectId) -> Vec<(String, CandidateReport)> {
        let of = |package: &str, version: &str| CandidateReport {
            package: Some(package.into()),
            source: Some(package.into()),
            version: Some(version.into()),
        };
        let outside = CandidateReport {
            package: None,
            source: None,
            version: None,
        };
        vec![match object.0 {
            100 => ("/usr/sbin/nginx".into(), of("nginx", "1.22.1-9")),
            1 => ("/usr/lib/libssl.so.3".into(), of("openssl", "3.0.15")),
            2 => ("/usr/lib/libssl.so.3".into(), of("openssl", "3.0.17")),
            50 => ("/boot/vmlinuz".into(), of("linux-image", "6.1.0")),
            _ => ("/opt/blob.bin".into(), outside),
        }]
    }

    fn build_id(&self, object: ObjectId) -> Option<Vec<u8>> {
        (object.0 == 100).then(|| vec![0xab; 20])
    }
}

fn place(object: u32, link: u64) -> Place {
    Place {
        object: ObjectId(object),
        part: None,
        link,
    }
}

fn identified(places: &[u32], link: u64) -> Verdict {
    Verdict::Identified(Identified {
        places: places.iter().map(|object| place(*object, link)).collect(),
        ..Identified::default()
    })
}

fn page(id: u64, va: u64, verdict: Verdict) -> PageRecord {
    let supervisor = va >> 63 == 1 || va < 0x10_0000;
    PageRecord {
        id: PageId(id),
        at_ns: id,
        gpa: id.is_multiple_of(2).then_some(Gpa(id << 12)),
        frame: id,
        generation: 1,
        root: Root(0x1000),
        va: Gva(va),
        privilege: if supervisor {
            Privilege::Supervisor
        } else {
            Privilege::User
        },
        paging: va >= 0x10_0000,
        bits: 64,
        first: 0,
        digest: [7; 32],
        verdict: Arc::new(verdict),
        executed: vec![(0, 16)],
    }
}

/// A report with every kind of content.
fn report() -> Value {
    report_after(|_| {})
}

/// The same after something more happened.
fn report_after(more: impl FnOnce(&mut Inventory)) -> Value {
    let (mut inventory, mut changes) = (Inventory::default(), Vec::new());
    let modified = Verdict::Modified(Modified {
        nearest: place(100, 0x2000),
        differences: vec![Difference {
            offset: 4095,
            before: vec![0x90],
            after: vec![0xcc],
        }],
    });
    let unknown = Verdict::Unknown(Unknown {
        origin: "user memory".into(),
        jit: false,
        undecided: false,
    });
    let pages = [
        page(1, 0x5555_0000_1000, identified(&[100], 0x1000)),
        page(2, 0x5555_0000_2000, modified),
        page(3, 0x7f00_0000_1000, identified(&[1, 2], 0x1000)),
        page(4, 0x7e00_0000_0000, unknown.clone()),
        page(5, 0xffff_ffff_8100_0000, identified(&[50], 0xffff_ffff_8100_0000)),
        page(6, 0xf_0000, identified(&[60], 0)),
        page(7, 0xe_0000, unknown),
    ];
    for page in pages {
        inventory.captured(page, &mut changes);
    }
    for (at_ns, page, incarnation) in [(10, 1, 1), (11, 2, 1), (12, 3, 1), (13, 4, 1), (20, 4, 2)] {
        let executed = Executed {
            page: PageId(page),
            root: Root(0x1000),
            vcpu: 0,
            incarnation,
        };
        inventory.executed(at_ns, executed, &mut changes);
    }
    more(&mut inventory);
    let mut coverage = CoverageLog::default();
    coverage.add(Gap {
        from_ns: 3,
        to_ns: 5,
        left: Coverage::BLIND,
        reason: GapReason::Detached,
        lost: 1,
    });
    let finding = |id, address_space, evidence| Finding {
        found_ns: Some(8),
        id,
        rule: "modified-code".into(),
        severity: Severity::High,
        address_space,
        at_ns: 9,
        summary: "changed".into(),
        evidence,
    };
    let findings = [
        finding(1, Some(2), serde_json::json!({"page": 2})),
        finding(2, None, Value::Null),
    ];
    let vm = VmReport {
        name: "web1".into(),
        vmm: "QEMU 10.0.2".into(),
        accelerator: "tcg".into(),
        isa: "x86-64".into(),
        vcpus: 2,
    };
    let counters = BTreeMap::from([("captures".to_owned(), 7)]);
    serde_json::to_value(build(
        vm,
        &inventory,
        &coverage,
        30,
        counters,
        &findings,
        &Files,
        &mut KnownSpaces::default(),
    ))
    .unwrap()
}

fn errors(report: &Value) -> Vec<String> {
    let validator = jsonschema::draft202012::new(&serde_json::from_str(SCHEMA).unwrap()).unwrap();
    validator
        .iter_errors(report)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

#[test]
fn the_schema_is_one() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    jsonschema::draft202012::meta::validate(&schema)
        .map_err(|error| error.to_string())
        .unwrap();
}

#[test]
fn a_report_with_every_kind_of_content_is_what_the_schema_says() {
    let report = report();
    // The content is there: an empty report would prove nothing.
    let spaces = report["address_spaces"].as_array().unwrap();
    let all = |name: &str| {
        spaces
            .iter()
            .map(|s| s[name].as_array().unwrap().len())
            .sum::<usize>()
    };
    assert_eq!((all("modified"), all("unknown")), (1, 3), "{report:#}");
    assert!(spaces.iter().any(|s| !s["ended"].is_null()) && spaces.iter().any(|s| s["program"].is_null()));
    assert!(spaces.iter().any(|s| s["program"]["path"] == "/usr/sbin/nginx"));
    for kind in ["user", "kernel", "firmware"] {
        assert!(spaces.iter().any(|s| s["kind"] == kind), "{kind}");
        assert_ne!(report["pages"][kind]["captured"], 0, "{kind}");
    }
    assert_eq!(errors(&report), Vec::<String>::new());
}

#[test]
fn a_report_of_which_a_part_is_only_counted_is_what_the_schema_says() {
    let report = report_after(|inventory| {
        let mut changes = Vec::new();
        // One address space with more pages than are told, and many that ended.
        for id in 100..20_000 {
            inventory.captured(
                PageRecord {
                    frame: 99,
                    ..page(id, 0x7d00_0000_0000, Verdict::Unknown(Unknown::default()))
                },
                &mut changes,
            );
            let executed = |page, root, incarnation| Executed {
                page: PageId(page),
                root: Root(root),
                vcpu: 0,
                incarnation,
            };
            inventory.executed(id, executed(id, 0x9000, 3), &mut changes);
            if id < 5000 {
                inventory.executed(id, executed(1, 0x5000, u32::try_from(id).unwrap()), &mut changes);
            }
        }
        inventory.summarise(30, &Files, &mut changes);
    });
    assert_eq!(errors(&report), Vec::<String>::new());
    let summary = &report["ended_summary"][0];
    assert_eq!(summary["program"]["path"], "/usr/sbin/nginx");
    assert_eq!(summary["count"], summary["modules"][0]["address_spaces"]);
    let spaces = report["address_spaces"].as_array().unwrap();
    // Two that `report` has, the kernel and the firmware, the one with many pages: and 4,900 of which the last one lives.
    let told = u64::try_from(spaces.len()).unwrap();
    assert_eq!(told + summary["count"].as_u64().unwrap(), 4 + 1 + 4900);
    let unlisted = spaces
        .iter()
        .filter_map(|space| space["unlisted"]["unknown"].as_u64());
    let listed = spaces
        .iter()
        .map(|space| space["unknown"].as_array().unwrap().len() as u64);
    assert_eq!(unlisted.sum::<u64>() + listed.sum::<u64>(), 3 + 19_900);
}

/// One wrong report: what is wrong, where, and the value that makes it so; `None` takes the field away.
type Wrong = (&'static str, &'static str, Option<Value>);

#[test]
fn a_wrong_report_is_refused() {
    let wrong: [Wrong; 9] = [
        ("another schema", "/schema", Some("nephoscope.report/2".into())),
        ("no coverage", "/coverage", None),
        ("a coverage that is none", "/coverage/code", Some("fine".into())),
        ("a field nobody knows", "/vm/colour", Some("blue".into())),
        ("a negative time", "/address_spaces/0/first_ns", Some((-1).into())),
        (
            "a kind nobody knows",
            "/address_spaces/0/kind",
            Some("jit".into()),
        ),
        (
            "a severity nobody knows",
            "/findings/0/severity",
            Some("fatal".into()),
        ),
        (
            "an end that is a word",
            "/address_spaces/0/ended",
            Some("yes".into()),
        ),
        ("pages without a class", "/pages/firmware", None),
    ];
    for (what, pointer, value) in wrong {
        let mut report = report();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        let parent = report.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Some(value) => parent.insert(field.into(), value),
            None => parent.remove(field),
        };
        assert_ne!(errors(&report), Vec::<String>::new(), "{what} is accepted");
    }
}
