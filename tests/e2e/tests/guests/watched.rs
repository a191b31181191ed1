//! One boot from power-on to power-off under watch, with work, and with three programs that no catalog knows.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use nephoscope_e2e::{Catalog, Guest, Image, Kernel, Options, Truth, Watched, vm_name};
use serde_json::Value;

fn program() -> PathBuf {
    nephoscope_e2e::program().unwrap()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Paths before and after `/usr` was merged are the same file.
fn merged(path: &str) -> &str {
    path.strip_prefix("/usr").unwrap_or(path)
}

fn user_spaces(report: &Value) -> impl Iterator<Item = &Value> {
    list(report, "address_spaces")
        .iter()
        .filter(|space| space["kind"] == "user")
}

fn program_of(space: &Value) -> &str {
    merged(text(&space["program"]["path"]))
}

#[test]
fn a_boot_is_named_from_power_on_to_power_off_and_what_is_not_known_is_found() {
    let image = Image::ensure().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let report_file = folder.path().join("report.json");
    let watched = Watched {
        program: program(),
        catalog: Catalog::ensure(&image, &program()).unwrap().path(),
        name: vm_name("e2e"),
        report: Some(report_file.clone()),
        extra: Vec::new(),
    };
    let options = Options {
        kernel: Kernel::K6_1,
        watched: Some(watched),
        ..Options::default()
    };
    let mut guest = Guest::boot(&image, options).unwrap();
    guest.wait_ready().unwrap();
    let (status, body) = guest.http_get("/index.php").unwrap();
    assert!(status == 200 && body.contains("\"php\":8"), "{status} {body}");
    guest.run_ok("python3 /opt/nephoscope/work.py").unwrap();
    let truth = guest.truth().unwrap();

    guest
        .run_ok("/opt/planted/plant-memfd /opt/planted/stranger 1")
        .unwrap();
    let worker = guest.run_ok("pgrep -o -f 'nginx: worker'").unwrap();
    let patched = guest
        .run_ok(&format!(
            "/opt/planted/plant-patch {} ngx_http_finalize_request",
            worker.trim()
        ))
        .unwrap();
    assert_eq!(guest.http_get("/").unwrap().0, 200);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(guest.power_off().unwrap(), 0);

    let report: Value = serde_json::from_slice(&std::fs::read(&report_file).unwrap()).unwrap();
    nephoscope_e2e::report::validate(&report).unwrap();
    assert_eq!(report["coverage"]["code"], "complete");
    assert_eq!(report["coverage"]["attribution"], "complete");
    let user = &report["pages"]["user"];
    println!("pages: {}", report["pages"]);
    assert!(user["captured"].as_u64().unwrap() > 2500, "a hole: {user}");
    every_process_is_named(&report, &truth);
    what_is_unknown_is_what_was_made_at_run_time(&report);
    the_patch_is_found_byte_by_byte(&report, &patched);
}

/// What the guest said of its processes stands in the report: program, package, source, version.
fn every_process_is_named(report: &Value, truth: &Truth) {
    let mut checked = 0;
    for process in truth.processes.values() {
        let Some(owner) = truth.owner(&process.exe) else {
            continue;
        };
        let named = user_spaces(report).any(|space| {
            let candidates = list(&space["program"], "candidates");
            program_of(space) == merged(&process.exe)
                && candidates.len() == 1
                && text(&candidates[0]["package"]) == owner.package
                && text(&candidates[0]["source"]) == owner.source
                && text(&candidates[0]["version"]) == owner.version
        });
        assert!(named, "{} of {owner:?} is not named so", process.exe);
        checked += 1;
    }
    assert!(
        checked > 10,
        "the guest runs {checked} processes from packages only"
    );
}

/// PHP compiles its regular expressions; the planted programs and their parent are in no package.
fn what_is_unknown_is_what_was_made_at_run_time(report: &Value) {
    let mut without_program = 0;
    for space in user_spaces(report) {
        if list(space, "unknown").is_empty() {
            continue;
        }
        let of = program_of(space);
        without_program += usize::from(of.is_empty());
        assert!(
            of.is_empty() || of.starts_with("/sbin/php-fpm"),
            "{of} runs unknown code: {}",
            space["unknown"]
        );
    }
    assert!(
        without_program >= 1,
        "the program from a memfd is not in the report"
    );
    let rules: BTreeSet<&str> = list(report, "findings")
        .iter()
        .map(|f| text(&f["rule"]))
        .collect();
    assert!(rules.contains("unknown-code"), "{rules:?}");
}

/// `plant-patch` says what it did: path, offset in the file, address, bytes before and after.
fn the_patch_is_found_byte_by_byte(report: &Value, patched: &str) {
    let said: Vec<&str> = patched.split_whitespace().collect();
    let [path, offset, address, before, after] = said.as_slice() else {
        panic!("plant-patch wrote {patched:?}")
    };
    let (address, offset) = (
        u64::from_str_radix(address, 16).unwrap(),
        u64::from_str_radix(offset, 16).unwrap() % 4096,
    );
    let changed: Vec<&Value> = user_spaces(report)
        .flat_map(|space| list(space, "modified"))
        .collect();
    assert_eq!(
        changed.len(),
        1,
        "one page of one process was changed: {changed:?}"
    );
    assert_eq!(merged(text(&changed[0]["path"])), merged(path));
    assert_eq!(text(&changed[0]["va"]), format!("{:#x}", address & !4095));
    let expected: Vec<(u64, String, String)> = (offset..)
        .zip(before.as_bytes().chunks(2).zip(after.as_bytes().chunks(2)))
        .filter(|(_, (before, after))| before != after)
        .map(|(at, (before, after))| {
            let text = |pair: &[u8]| String::from_utf8(pair.to_vec()).unwrap();
            (at, text(before), text(after))
        })
        .collect();
    let found: Vec<(u64, String, String)> = list(changed[0], "differences")
        .iter()
        .flat_map(|run| {
            let (before, after) = (text(&run["before"]), text(&run["after"]));
            let bytes = before.as_bytes().chunks(2).zip(after.as_bytes().chunks(2));
            let text = |pair: &[u8]| String::from_utf8(pair.to_vec()).unwrap();
            (run["offset"].as_u64().unwrap()..)
                .zip(bytes)
                .map(|(at, (before, after))| (at, text(before), text(after)))
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(found, expected);
}
