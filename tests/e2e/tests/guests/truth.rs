//! What is seen from outside against what the guest says of itself, at quiet moments, and what the kernel ran.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use nephoscope_e2e::living::{disagreements, list, living, merged};
use nephoscope_e2e::{Catalog, Control, Guest, Image, Kernel, Options, Watched, report, vm_name};
use serde_json::Value;

fn program() -> PathBuf {
    nephoscope_e2e::program().unwrap()
}

struct Watch {
    guest: Guest,
    name: String,
    folder: tempfile::TempDir,
}

impl Watch {
    fn begin(options: Options) -> Self {
        let image = Image::ensure().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let name = vm_name("truth");
        let watched = Watched {
            program: program(),
            catalog: Catalog::ensure(&image, &program()).unwrap().path(),
            name: name.clone(),
            report: Some(folder.path().join("report.json")),
            extra: Vec::new(),
        };
        let watched = Some(watched);
        let guest = Guest::boot_ready(&image, Options { watched, ..options }).unwrap();
        Self { guest, name, folder }
    }

    /// A moment counts when nothing but the writers of the truth came or went. Timers of the guest may disturb one, so
    /// there are some tries; the last one's disagreements are what is wrong.
    fn agrees(&mut self, when: &str) {
        let mut control = Control::connect(&self.name).unwrap();
        let mut wrong = Vec::new();
        for _ in 0..5 {
            let before = self.guest.truth().unwrap();
            std::thread::sleep(Duration::from_secs(1));
            let report = control.report().unwrap();
            let after = self.guest.truth().unwrap();
            wrong = disagreements(&report, &before, &after);
            if wrong.is_empty() {
                println!("{when}: {} processes agree", living(&report).count());
                return;
            }
            println!("{when}, and something else happened: {wrong:#?}");
        }
        panic!("{when}: {wrong:#?}");
    }

    /// Which modules the kernel loaded, also those that did not stay (`trace_event=module:module_load`).
    fn loaded_modules(&mut self) -> BTreeSet<String> {
        let script = "mount -t tracefs none /sys/kernel/tracing 2>/dev/null; cat /sys/kernel/tracing/trace";
        let trace = self.guest.run_ok(script).unwrap();
        let names = trace.lines().filter_map(|line| line.split_once("module_load: "));
        names
            .filter_map(|(_, rest)| Some(rest.split_whitespace().next()?.replace('-', "_")))
            .collect()
    }

    fn finish(self) -> Value {
        let file = self.folder.path().join("report.json");
        assert_eq!(self.guest.power_off().unwrap(), 0);
        let report: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        println!("pages: {}\ncounters: {}", report["pages"], report["counters"]);
        report::validate(&report).unwrap();
        assert_eq!(report["coverage"]["code"], "complete");
        assert_eq!(report["coverage"]["attribution"], "complete");
        report
    }
}

/// Every kernel page is named, but for programs that the kernel's JIT made: systemd has some for its control groups.
fn the_kernel_is_known(report: &Value) {
    let kernel = list(report, "address_spaces")
        .iter()
        .find(|space| space["kind"] == "kernel");
    let kernel = kernel.unwrap();
    assert_eq!(kernel["modified"], Value::Array(Vec::new()));
    // The JIT packs programs into 2 MiB (`BPF_PROG_PACK_SIZE` in `kernel/bpf/core.c`) that begin at any page, wherever the
    // kernel found room; a page in the middle of a long program does not show a beginning.
    let at = |page: &Value| {
        let va = page["va"].as_str().unwrap().trim_start_matches("0x");
        u64::from_str_radix(va, 16).unwrap()
    };
    let mut unknown: Vec<&Value> = list(kernel, "unknown").iter().collect();
    unknown.sort_by_key(|page| at(page));
    let made = unknown.len() as u64;
    while let Some(first) = unknown.first().map(|page| at(page)) {
        let rest = unknown.split_off(unknown.partition_point(|page| at(page) - first < 2 << 20));
        let shows_a_beginning = |page: &&Value| page["origin"].as_str().unwrap().contains("eBPF");
        assert!(
            unknown.iter().any(shows_a_beginning),
            "unknown kernel code: {unknown:#?}"
        );
        unknown = rest;
    }
    table_of_sites(report);
    let counts = &report["pages"]["kernel"];
    let count = |name: &str| counts[name].as_u64().unwrap();
    assert_eq!(count("captured"), count("identified") + made, "{counts}");
    assert!(count("captured") > 2300, "a hole: {counts}");
    let user = &report["pages"]["user"];
    assert!(user["captured"].as_u64().unwrap() > 2500, "a hole: {user}");
}

/// Which mechanisms explain what differs from the image: kind, places, bytes.
fn table_of_sites(report: &Value) {
    let counters = report["counters"].as_object().unwrap();
    println!("{:<20} {:>9} {:>9}", "kind", "places", "bytes");
    for (name, places) in counters {
        if let Some(kind) = name
            .strip_prefix("site_")
            .and_then(|rest| rest.strip_suffix("_places"))
        {
            println!(
                "{kind:<20} {places:>9} {:>9}",
                counters[&format!("site_{kind}_bytes")]
            );
        }
    }
}

/// No module is named that was not loaded; where a page can be of several, none of them is.
fn modules_are_those_that_were_loaded(report: &Value, loaded: &BTreeSet<String>) {
    assert!(
        loaded.contains("ext4") && loaded.len() > 15,
        "the guest's trace: {loaded:?}"
    );
    let kernel = list(report, "address_spaces")
        .iter()
        .filter(|space| space["kind"] == "kernel");
    let mut named = 0;
    for module in kernel.flat_map(|space| list(space, "modules")) {
        let path = module["path"].as_str().unwrap();
        let file = path.rsplit('/').next().unwrap_or_default();
        let Some((name, _)) = file.split_once(".ko") else {
            continue;
        };
        if !path.ends_with(" others)") {
            assert!(
                loaded.contains(&name.replace('-', "_")),
                "{path} was not loaded: {loaded:?}"
            );
            named += 1;
        }
    }
    assert!(named > 10, "{named} modules are named");
}

fn the_living_are_who_the_guest_says(smp: u32, kernel: Kernel, cmdline: &str) {
    let options = Options {
        smp,
        kernel,
        cmdline: format!("trace_event=module:module_load {cmdline}"),
        ..Options::default()
    };
    let mut watch = Watch::begin(options);
    assert_eq!(watch.guest.http_get("/index.php").unwrap().0, 200);
    watch.guest.run_ok("python3 /opt/nephoscope/work.py").unwrap();
    watch.agrees("after the boot");
    watch.guest.run_ok("/opt/nephoscope/shortlived 2000").unwrap();
    watch.agrees("after 2,000 processes");
    let loaded = watch.loaded_modules();
    let report = watch.finish();
    let is_one_of_them =
        |of: &Value| merged(of["program"]["path"].as_str().unwrap_or_default()) == "/bin/true";
    let listed = list(&report, "address_spaces")
        .iter()
        .filter(|space| is_one_of_them(space) && !space["ended"].is_null())
        .count() as u64;
    // Those that ended long ago are counted by their program.
    let counted: u64 = list(&report, "ended_summary")
        .iter()
        .filter(|summary| is_one_of_them(summary))
        .filter_map(|summary| summary["count"].as_u64())
        .sum();
    assert_eq!(listed + counted, 2000, "each of them had an address space");
    the_kernel_is_known(&report);
    modules_are_those_that_were_loaded(&report, &loaded);
}

#[test]
fn the_living_are_who_the_guest_says_with_one_vcpu() {
    the_living_are_who_the_guest_says(1, Kernel::K6_1, "");
}

#[test]
fn the_living_are_who_the_guest_says_with_four_vcpus_and_isolated_page_tables() {
    the_living_are_who_the_guest_says(4, Kernel::K6_12, "pti=on");
}

fn a_kernel_where_it_was_linked_is_known(kernel: Kernel) {
    let options = Options {
        kernel,
        cmdline: "nokaslr".into(),
        ..Options::default()
    };
    the_kernel_is_known(&Watch::begin(options).finish());
}

#[test]
fn debian_12s_kernel_without_kaslr_is_known() {
    a_kernel_where_it_was_linked_is_known(Kernel::K6_1);
}

#[test]
fn debian_13s_kernel_without_kaslr_is_known() {
    a_kernel_where_it_was_linked_is_known(Kernel::K6_12);
}
