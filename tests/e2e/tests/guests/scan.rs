//! A running guest that nobody watches, and dumps of it, looked at from outside: what it maps, against its own truth.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use nephoscope_e2e::qmp::Qmp;
use nephoscope_e2e::{Catalog, Guest, Image, Options};
use serde_json::{Value, json};

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

/// Paths before and after `/usr` was merged are the same file.
fn merged(path: &str) -> &str {
    path.strip_prefix("/usr").unwrap_or(path)
}

/// Bytes that there are of the memory that a QEMU shares.
fn memory(pid: u32) -> u64 {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let largest = descriptors.flatten().filter_map(|descriptor| {
        let of = std::fs::read_link(descriptor.path()).ok()?;
        let name = of.to_string_lossy().into_owned();
        let about = std::fs::metadata(descriptor.path()).ok()?;
        name.contains("memfd:").then(|| about.blocks() * 512)
    });
    largest.max().unwrap()
}

/// Scans and gives the report.
fn scan(catalog: &Path, what: &str) -> Value {
    let output = Command::new(nephoscope_e2e::program().unwrap())
        .args(["scan", "--json", "--catalog"])
        .arg(catalog)
        .arg(what)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    let report = serde_json::from_slice(&output.stdout).unwrap();
    assert_confined(&report);
    report
}

/// Who looked could do nothing else by then.
fn assert_confined(report: &Value) {
    let confinement = &report["confinement"];
    assert_eq!(confinement["capabilities"], "none", "{confinement}");
    let filter = confinement["seccomp"].as_str().unwrap_or_default();
    assert!(filter.contains("system calls left"), "{confinement}");
}

/// Looks twice from the same process, and gives what it says then; and of whoever gathers memory for it, what it may do and how much
/// it did.
fn second_look(catalog: &Path, what: &str) -> (Value, Option<(String, u64)>) {
    let mut scan = Command::new(nephoscope_e2e::program().unwrap())
        .args(["scan", "--json", "--every", "200ms", "--catalog"])
        .arg(catalog)
        .arg(what)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(scan.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    let second = lines.next().unwrap().unwrap();
    let status = |process: &str| std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let own = status(&scan.id().to_string());
    let gatherer = gatherer(scan.id()).map(|process| (status(&process), time(&process)));
    scan.kill().unwrap();
    scan.wait().unwrap();
    assert!(own.contains("Seccomp:\t2"), "{own}");
    assert!(!own.contains("Uid:\t0\t"), "{own}");
    let report = serde_json::from_str(&second).unwrap();
    assert_confined(&report);
    (report, gatherer)
}

/// The process that gathers memory for a scan, where there is one.
fn gatherer(scan: u32) -> Option<String> {
    let children = std::fs::read_to_string(format!("/proc/{scan}/task/{scan}/children")).unwrap();
    let mut children = children.split_whitespace().map(str::to_owned);
    children.find(|child| {
        let command = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).nth(1) == Some(b"gather")
    })
}

/// Ticks of a CPU that a process had (proc(5), `stat`, fields 14 and 15).
fn time(process: &str) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let behind_name = stat.rsplit_once(')').unwrap().1;
    let fields = behind_name.split_whitespace().skip(11).take(2);
    fields.map(|field| field.parse::<u64>().unwrap()).sum()
}

/// A process as it is compared: its program, and the files of which it has pages mapped executable.
type Shape = (String, BTreeSet<String>);

/// Comes and goes with each command that the guest is given (`guest-files/command-server`).
const OWN: &str = "/bin/head";

/// That, or a process that is being started, with no page of its program there yet to name it by: after `execve` its dynamic
/// loader runs first; after `fork` the C library, as a child gets no page table for what can be read from a file again
/// (`vma_needs_copy` in Linux's mm/memory.c).
fn comes_and_goes((program, files): &Shape) -> bool {
    let first = |file: &String| file.ends_with("/ld-linux-x86-64.so.2") || file.ends_with("/libc.so.6");
    program == OWN || program.is_empty() && files.iter().all(first)
}

/// What is mapped and present: pages that nobody touched are in no page table. The kernel's own page for user code, the vDSO,
/// is counted in one kernel and not in another.
const PRESENT: &str = "for p in /proc/[0-9]*; do \
      exe=$(readlink $p/exe 2>/dev/null) || continue; \
      awk -v p=$p -v exe=$exe '/^[0-9a-f]+-[0-9a-f]+ /{x=($2~/x/); f=$6} /^Rss:/{if(x && $2>0 && f~/^\\//) print p, exe, f}' \
        $p/smaps 2>/dev/null; \
    done";

/// The processes of a guest by their numbers.
type Truth = BTreeMap<String, Shape>;

fn truth(guest: &mut Guest) -> Truth {
    let mut all = Truth::new();
    for line in guest.run_ok(PRESENT).unwrap().lines() {
        let [pid, exe, file] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line:?}");
        };
        let shape = all
            .entry(pid.to_owned())
            .or_insert_with(|| (merged(exe).to_owned(), BTreeSet::new()));
        shape.1.insert(merged(file).to_owned());
    }
    all
}

/// How many processes there are of each shape.
fn count(shapes: impl Iterator<Item = Shape>) -> BTreeMap<Shape, usize> {
    let mut counts = BTreeMap::new();
    for shape in shapes {
        *counts.entry(shape).or_default() += 1;
    }
    counts
}

fn seen(report: &Value) -> BTreeMap<Shape, usize> {
    let spaces = list(report, "address_spaces").iter();
    count(spaces.filter(|space| space["kind"] == "user").map(|space| {
        let path = |value: &Value| merged(value["path"].as_str().unwrap_or_default()).to_owned();
        let modules = list(space, "modules").iter().map(path);
        let modules = modules.filter(|path| path != "[vdso]").collect();
        (path(&space["program"]), modules)
    }))
}

/// Those that were there before and after, the same.
fn stayed(before: &Truth, after: &Truth) -> BTreeMap<Shape, usize> {
    let both = before
        .iter()
        .filter(|(pid, shape)| after.get(*pid) == Some(shape));
    count(both.map(|(_, shape)| shape.clone()))
}

/// Every process that stayed is seen, with its program and all that it has mapped executable; and nothing is seen that was not
/// there before or after.
fn assert_same(report: &Value, before: &Truth, after: &Truth) {
    let (seen, stayed) = (seen(report), stayed(before, after));
    for (shape, number) in &stayed {
        let found = seen.get(shape).copied().unwrap_or(0);
        assert!(found >= *number, "{number} of {shape:?}, seen {found}: {seen:#?}");
    }
    // Those that worked meanwhile touch more and more: what is seen of one is no more than what it had before or after.
    for (program, files) in seen.keys().filter(|shape| !comes_and_goes(shape)) {
        let may_be = |shape: &Shape| shape.0 == *program && files.is_subset(&shape.1);
        assert!(
            before.values().chain(after.values()).any(may_be),
            "{program} with {files:?} is not there: {before:#?} {after:#?}"
        );
    }
    let programs = |shapes: &mut dyn Iterator<Item = (&Shape, usize)>| {
        let mut counts = BTreeMap::<String, usize>::new();
        shapes.for_each(|(shape, number)| *counts.entry(shape.0.clone()).or_default() += number);
        counts
    };
    let told = seen.iter().filter(|(shape, _)| !comes_and_goes(shape));
    let told = programs(&mut told.map(|(shape, number)| (shape, *number)));
    let there = [before, after].map(|truth| programs(&mut truth.values().map(|shape| (shape, 1))));
    for (program, number) in told {
        let most = there
            .iter()
            .map(|there| there.get(&program).copied().unwrap_or(0))
            .max();
        assert!(most >= Some(number), "{number} of {program}: {there:#?}");
    }
    assert_eq!(report["coverage"]["code"], "sampled");
}

/// The kernel and each of its modules, by the names that `/proc/modules` has.
fn assert_kernel(report: &Value, modules: &str) {
    let spaces = list(report, "address_spaces").iter();
    let kernel = spaces.clone().find(|space| space["kind"] == "kernel").unwrap();
    let seen: BTreeSet<String> = list(kernel, "modules")
        .iter()
        .filter_map(|module| module["path"].as_str()?.rsplit('/').next())
        .map(|name| {
            name.trim_end_matches(".xz")
                .trim_end_matches(".ko")
                .replace('-', "_")
        })
        .collect();
    for line in modules.lines() {
        let name = line.split(' ').next().unwrap();
        assert!(seen.contains(name), "{name} is not among {seen:?}");
    }
    assert!(seen.iter().any(|name| name.starts_with("vmlinuz")), "{seen:?}");
}

#[test]
fn a_look_at_a_running_guest_and_at_its_dumps_tells_all_that_it_maps_and_nothing_else() {
    let image = Image::ensure().unwrap();
    let catalog = Catalog::ensure(&image, &nephoscope_e2e::program().unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("qmp.sock");
    let options = Options {
        extra: vec![
            "-object".into(),
            "memory-backend-memfd,id=ram,size=1024M,share=on".into(),
            "-machine".into(),
            "memory-backend=ram".into(),
            "-qmp".into(),
            format!("unix:{},server=on,wait=off", socket.display()),
        ],
        ..Options::default()
    };
    let mut guest = Guest::boot_ready(&image, options).unwrap();
    assert_eq!(guest.http_get("/index.php").unwrap().0, 200);
    let modules = guest.run_ok("cat /proc/modules").unwrap();

    let before = truth(&mut guest);
    let untouched = (1 << 30) - memory(guest.pid());
    let report = scan(catalog.path().as_path(), &format!("qmp:{}", socket.display()));
    let after = truth(&mut guest);
    let now = (1 << 30) - memory(guest.pid());
    assert!(untouched > 256 << 20, "{untouched}");
    // The guest itself touches a little meanwhile.
    assert!(now + (64 << 20) > untouched, "{untouched} before, {now} after");
    println!("{}", report["counters"]);
    assert_same(&report, &before, &after);
    assert_kernel(&report, &modules);

    let before = truth(&mut guest);
    let report = scan(catalog.path().as_path(), &format!("pid:{}", guest.pid()));
    let after = truth(&mut guest);
    assert_same(&report, &before, &after);

    // Who looks again has not the right any more to open what it looks at.
    let before = truth(&mut guest);
    let (report, gatherer) = second_look(catalog.path().as_path(), &format!("pid:{}", guest.pid()));
    let after = truth(&mut guest);
    assert_same(&report, &before, &after);
    assert_eq!(gatherer, None, "all of it is mapped");

    let mut monitor = Qmp::connect(folder.path()).unwrap();
    monitor.execute("stop", json!({})).unwrap();
    let core = folder.path().join("guest.core");
    let to = json!({ "paging": false, "protocol": format!("file:{}", core.display()) });
    monitor.execute("dump-guest-memory", to).unwrap();
    let raw = folder.path().join("guest.raw");
    let to = json!({ "val": 0, "size": 1_u64 << 30, "filename": raw });
    monitor.execute("pmemsave", to).unwrap();
    monitor.execute("cont", json!({})).unwrap();
    drop(monitor);
    let then = truth(&mut guest);
    for dump in [&core, &raw] {
        let report = scan(catalog.path().as_path(), &dump.display().to_string());
        assert_same(&report, &after, &then);
        assert_kernel(&report, &modules);
    }
    assert_eq!(guest.power_off().unwrap(), 0);
}

#[test]
fn memory_that_is_not_shared_is_gathered_by_a_process_that_may_do_nothing_else() {
    let image = Image::ensure().unwrap();
    let catalog = Catalog::ensure(&image, &nephoscope_e2e::program().unwrap()).unwrap();
    let mut guest = Guest::boot_ready(&image, Options::default()).unwrap();
    let modules = guest.run_ok("cat /proc/modules").unwrap();
    let before = truth(&mut guest);
    let (report, gatherer) = second_look(catalog.path().as_path(), &format!("pid:{}", guest.pid()));
    let after = truth(&mut guest);
    assert_same(&report, &before, &after);
    assert_kernel(&report, &modules);
    let (status, ticks) = gatherer.unwrap();
    assert!(ticks > 0, "it did nothing");
    assert!(!status.contains("Uid:\t0\t"), "{status}");
    let mut lines = vec!["NoNewPrivs:\t1", "Seccomp:\t2"];
    if rustix::process::getuid().is_root() {
        lines.extend(["CapEff:\t0000000000080000", "CapBnd:\t0000000000000000"]);
    }
    for line in lines {
        assert!(status.contains(line), "{line}: {status}");
    }
    assert_eq!(guest.power_off().unwrap(), 0);
}

#[test]
fn what_cannot_be_looked_at_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let empty_catalog = folder.path().join("catalog");
    let text = folder.path().join("text");
    std::fs::write(&text, "no dump").unwrap();
    let added = Command::new(nephoscope_e2e::program().unwrap())
        .args(["catalog", "add", "--catalog"])
        .arg(&empty_catalog)
        .arg(nephoscope_e2e::program().unwrap())
        .output()
        .unwrap();
    assert!(added.status.success());
    let zeros = folder.path().join("zeros");
    std::fs::write(&zeros, vec![0; 4 << 20]).unwrap();
    let refused = |what: &str| {
        let output = Command::new(nephoscope_e2e::program().unwrap())
            .args(["scan", "--catalog"])
            .arg(&empty_catalog)
            .arg(what)
            .output()
            .unwrap();
        assert!(output.stdout.is_empty());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (what, code, says) in [
        (text.display().to_string(), 33, "no number of pages"),
        (zeros.display().to_string(), 33, "no page tables"),
        (
            folder.path().join("none").display().to_string(),
            2,
            "there is no file",
        ),
        ("pid:4194305".to_owned(), 30, "cannot read what process"),
        ("qmp:/nowhere".to_owned(), 30, "cannot be read"),
    ] {
        let (ended, message) = refused(&what);
        assert_eq!(ended, Some(code), "{what}: {message}");
        assert!(message.contains(says), "{what}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}
