//! Which files interpreters read, on a disk that is served.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nephoscope_e2e::faults::ours;
use nephoscope_e2e::{Catalog, Guest, Image, Kernel, Options, Watched, vm_name};
use serde_json::Value;

fn program() -> PathBuf {
    nephoscope_e2e::program().unwrap()
}

/// A second disk, with XFS on it.
fn xfs(folder: &Path) -> PathBuf {
    let disk = folder.join("xfs.raw");
    std::fs::File::create(&disk).unwrap().set_len(400 << 20).unwrap();
    let made = Command::new("/usr/sbin/mkfs.xfs")
        .arg("-q")
        .arg(&disk)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    disk
}

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    assert!(
        done.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

const VERSIONS: [&str; 2] = ["1.0-1", "1.1-1"];
const APP: &str = "/usr/share/demo-app";
const LONE: &str = "/usr/share/demo-lone";

/// Packages and their files: of one, all are others in each version, of the other, all but the first.
const PACKAGES: [(&str, &[&str], usize); 2] = [
    ("demo-app", &["one", "two", "three"], 0),
    ("demo-lone", &["same", "lone", "quiet"], 1),
];

/// Both, in two versions.
fn packages(folder: &Path) -> Vec<PathBuf> {
    let all = PACKAGES
        .iter()
        .flat_map(|package| VERSIONS.map(|version| (package, version)));
    all.map(|((package, names, same), version)| {
        let tree = folder.join(format!("{package}-{version}"));
        let files = tree.join(format!("usr/share/{package}"));
        for path in [tree.join("DEBIAN"), files.clone()] {
            std::fs::create_dir_all(path).unwrap();
        }
        let control = format!(
            "Package: {package}\nVersion: {version}\nArchitecture: all\nMaintainer: Nobody <nobody@localhost>\nDescription: an application\n"
        );
        std::fs::write(tree.join("DEBIAN/control"), control).unwrap();
        for (number, name) in names.iter().enumerate() {
            let of = if number < *same { "all" } else { version };
            std::fs::write(files.join(format!("{name}.php")), format!("<?php echo '{name} of {of}';\n")).unwrap();
        }
        let deb = folder.join(format!("{package}-{version}.deb"));
        run(Command::new("dpkg-deb")
            .args(["--root-owner-group", "--build"])
            .args([&tree, &deb]));
        deb
    })
    .collect()
}

/// The guest's catalog, and the packages' files in it.
fn catalog(image: &Image, folder: &Path, packages: &[PathBuf]) -> PathBuf {
    let catalog = folder.join("catalog");
    let guests = Catalog::ensure(image, &program()).unwrap().path();
    run(Command::new("cp").arg("-r").args([&guests, &catalog]));
    run(Command::new(program())
        .args(["catalog", "add", "--catalog"])
        .arg(&catalog)
        .args(packages));
    catalog
}

/// The newer ones are installed, and files of the older put in their places.
fn outdated_files(guest: &mut Guest, packages: &[PathBuf]) {
    for package in packages {
        let name = package.file_name().unwrap().to_str().unwrap();
        guest
            .put(&format!("/root/{name}"), &std::fs::read(package).unwrap())
            .unwrap();
    }
    let [older, newer] = VERSIONS;
    let put = |package: &str, name: &str| {
        let file = format!("/usr/share/{package}/{name}.php");
        format!("dpkg-deb --fsys-tarfile /root/{package}-{older}.deb | tar -xO .{file} >{file}; ")
    };
    guest
        .run_ok(&format!(
            "set -e; dpkg -i /root/demo-app-{newer}.deb /root/demo-lone-{newer}.deb; \
             ln -s {APP} /var/www/html/app; ln -s {LONE} /var/www/html/lone; {}{}{}\
             sync; sleep 1; md5sum {APP}/* {LONE}/*",
            put("demo-app", "two"),
            put("demo-lone", "lone"),
            put("demo-lone", "quiet"),
        ))
        .unwrap();
    for (path, says) in [
        ("app/one", format!("one of {newer}")),
        ("app/two", format!("two of {older}")),
        ("app/three", format!("three of {newer}")),
        ("lone/same", "same of all".to_owned()),
        ("lone/lone", format!("lone of {older}")),
    ] {
        let answer = guest.http_get(&format!("/{path}.php")).unwrap();
        assert_eq!(answer, (200, says));
    }
}

fn options(image: &Image, folder: &Path, report: &Path, packages: &[PathBuf]) -> Options {
    let watched = Watched {
        program: program(),
        catalog: catalog(image, folder, packages),
        name: vm_name("files"),
        report: Some(report.to_path_buf()),
        extra: vec!["--watch-files".into()],
    };
    Options {
        kernel: Kernel::K6_1,
        plants: false,
        disk: Some(image.writable_disk(folder).unwrap()),
        watched: Some(watched),
        extra: [
            "-drive",
            &format!("if=none,id=xfs,format=raw,file={}", xfs(folder).display()),
            "-device",
            "virtio-blk-pci,drive=xfs",
        ]
        .map(str::to_owned)
        .to_vec(),
        ..Options::default()
    }
}

/// The file with this path, and the programs that read it.
fn readers<'a>(report: &'a Value, path: &str) -> Option<(&'a Value, Vec<&'a str>)> {
    let files = report["files"].as_array()?;
    let file = files.iter().find(|file| file["path"] == path)?;
    let readers = file["readers"].as_array()?.iter();
    let programs = readers.map(|reader| reader["program"].as_str().unwrap_or("?"));
    Some((file, programs.collect()))
}

/// Reads a file without a copy of it, and stays for a moment.
const MAPS: &str = "import mmap, time; f = open('/root/mapped.py'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); m[0]; time.sleep(1)";

/// What is like index.php and is not it: as it may have been before, with one line more; and what is like nothing.
const COPIES: [(&str, &str, u64, u64); 3] = [
    ("older", "sed -e 's/< 500/< 400/' -e '/^sort/d'", 1, 2),
    ("added", "sed -e '/^sort/a @eval($_GET[\"c\"] ?? \"\");'", 1, 0),
    ("never", "sed -e 's/.*/\\/\\/ &/' -e '1s/.*/<?php echo 8;/'", 0, 0),
];

/// Puts them there, has them read by one that is no interpreter, and then by one that is.
fn changed_copies(guest: &mut Guest) {
    for (name, how, ..) in COPIES {
        let put = format!(
            "{how} /var/www/html/index.php > /var/www/html/{name}.php; cp /var/www/html/{name}.php /root/{name}.php"
        );
        guest.run_ok(&put).unwrap();
    }
    guest
        .run_ok("sync; sleep 1; md5sum /root/*.php /var/www/html/*.php")
        .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    for (name, ..) in COPIES {
        let (status, body) = guest.http_get(&format!("/{name}.php")).unwrap();
        assert_eq!(status, 200, "{name}: {body}");
    }
}

/// Each is found when PHP-FPM has read it, and soon, with what it is like; and nothing that only md5sum has read.
fn judged(report: &Value) {
    let findings = report["findings"].as_array().unwrap().iter();
    let findings: Vec<&Value> = findings
        .filter(|finding| finding["rule"] == "interpreted-file")
        .collect();
    for finding in &findings {
        println!("{}: {}", finding["severity"], finding["summary"]);
    }
    let of = |path: &str| -> Vec<&&Value> {
        findings
            .iter()
            .filter(|finding| finding["evidence"]["path"] == path)
            .collect()
    };
    for (name, _, added, removed) in COPIES {
        let path = format!("/var/www/html/{name}.php");
        let [finding] = of(&path)[..] else {
            panic!("{path}: {:?}", of(&path))
        };
        let evidence = &finding["evidence"];
        assert!(
            evidence["program"].as_str().unwrap().contains("php-fpm"),
            "{finding}"
        );
        let late = finding["found_ns"].as_u64().unwrap() - finding["at_ns"].as_u64().unwrap();
        println!("{path}: found {} ms after it was read first", late / 1_000_000);
        assert!(late < 1_000_000_000, "{finding}");
        if name == "never" {
            assert!(evidence["nearest"].is_null(), "{finding}");
        } else {
            assert_eq!(
                evidence["nearest"]["path"], "/var/www/html/index.php",
                "{finding}"
            );
            let difference = &evidence["difference"];
            assert_eq!(
                (&difference["lines_added"], &difference["lines_removed"]),
                (&added.into(), &removed.into()),
                "{finding}"
            );
        }
        assert!(of(&format!("/root/{name}.php")).is_empty(), "{finding}");
        let (file, _) = readers(report, &format!("/root/{name}.php")).unwrap();
        assert_ne!(file["verdict"], "known");
    }
    let php = |folder: &str, name: &str| format!("{folder}/{name}.php");
    // Of one of the packages nothing else that was read tells its version.
    for (package, path) in [("demo-app", php(APP, "two")), ("demo-lone", php(LONE, "lone"))] {
        let [finding] = of(&path)[..] else {
            panic!("{path}: {:?}", of(&path))
        };
        let outdated = &finding["evidence"]["outdated"];
        assert_eq!(
            (&outdated["package"], &outdated["version"], &outdated["installed"]),
            (&package.into(), &VERSIONS[0].into(), &VERSIONS[1].into())
        );
        let program = finding["evidence"]["program"].as_str().unwrap();
        assert!(program.contains("php-fpm"), "{program}");
        let late = finding["found_ns"].as_u64().unwrap() - finding["at_ns"].as_u64().unwrap();
        assert!(late < 1_000_000_000, "{finding}");
    }
    for path in [
        php(APP, "one"),
        php(APP, "three"),
        php(LONE, "same"),
        // Older too, and read by md5sum alone.
        php(LONE, "quiet"),
    ] {
        assert!(of(&path).is_empty(), "{path}: {:?}", of(&path));
    }
    assert_eq!(of("/root/seen.py").len(), 0);
    assert_eq!(of("/var/www/html/index.php").len(), 0);
    assert_eq!(of("/var/www/html/new.php").len(), 1);
}

#[test]
fn who_reads_a_file_is_told_and_who_only_could_is_not() {
    let image = Image::ensure().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let packages = packages(folder.path());
    let options = options(&image, folder.path(), &report, &packages);
    let name = options.watched.as_ref().unwrap().name.clone();
    let mut guest = Guest::boot_ready(&image, options).unwrap();
    assert_eq!(guest.http_get("/index.php").unwrap().0, 200);
    guest.run_ok("python3 /opt/nephoscope/work.py").unwrap();
    // Written, brought to the disk, and read by one that is not an interpreter, and one that is.
    guest
        .run_ok(
            "echo '<?php echo 7;' > /var/www/html/new.php; echo 'print(7)' > /root/seen.py; sync; sleep 1",
        )
        .unwrap();
    guest.run_ok("md5sum /root/seen.py").unwrap();
    guest
        .run_ok(
            "cp /root/seen.py /root/mapped.py; sync; sleep 1; python3 -c \"$MAPS\""
                .replace("$MAPS", MAPS)
                .as_str(),
        )
        .unwrap();
    // It gets another name when it has been read.
    guest
        .run_ok("echo 'print(9)' >/root/was.py; sync; python3 /root/was.py; sleep 1; mv /root/was.py /root/is.py; sync")
        .unwrap();
    let (status, body) = guest.http_get("/new.php").unwrap();
    assert!(status == 200 && body == "7", "{status} {body}");
    // On the other disk it is in the log alone, for half a minute.
    guest
        .run_ok("mount /dev/vdb /mnt; mkdir /mnt/jobs; echo 'print(8)' >/mnt/jobs/job.py; sync; sleep 1; echo 3 >/proc/sys/vm/drop_caches")
        .unwrap();
    guest.run_ok("python3 /mnt/jobs/job.py").unwrap();
    // One that is started in its place goes on where it was.
    assert_eq!(
        ours::kill(&name, ours::Role::ServeDisk),
        2,
        "two disks, a server each"
    );
    changed_copies(&mut guest);
    outdated_files(&mut guest, &packages);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(guest.power_off().unwrap(), 0);

    let report: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    nephoscope_e2e::report::validate(&report).unwrap();
    let files = report["files"].as_array().unwrap();
    println!("{} files, {}", files.len(), report["counters"]);
    println!("missing: {}", report["coverage"]["files"]);
    for file in files.iter().filter(|file| file["disk"] == 1) {
        println!("on the other disk: {file}");
    }
    for path in [
        "/var/www/html/index.php",
        "/opt/nephoscope/work.py",
        "/var/www/html/new.php",
        "/root/seen.py",
    ] {
        println!("{path}: {:?}", readers(&report, path));
    }
    let read_by = |path: &str, expected: &[&str]| {
        let (_, programs) = readers(&report, path).unwrap_or_else(|| panic!("{path} was not read"));
        let names = programs
            .iter()
            .map(|path| path.rsplit('/').next().unwrap_or(path));
        let names: BTreeSet<&str> = names.collect();
        assert_eq!(names, expected.iter().copied().collect(), "{path}");
    };
    read_by("/var/www/html/index.php", &["php-fpm8.2", "sed", "md5sum"]);
    read_by("/var/www/html/new.php", &["php-fpm8.2", "md5sum"]);
    read_by("/opt/nephoscope/work.py", &["python3.11"]);
    read_by("/root/seen.py", &["md5sum", "cp"]);
    read_by("/jobs/job.py", &["python3.11"]);
    read_by("/root/is.py", &["python3.11"]);
    let (renamed, _) = readers(&report, "/root/is.py").unwrap();
    assert_eq!(renamed["former_paths"], serde_json::json!(["/root/was.py"]));
    assert_eq!(readers(&report, "/jobs/job.py").unwrap().0["disk"], 1);
    let how = |path: &str| -> Vec<&str> {
        let (file, _) = readers(&report, path).unwrap();
        let readers = file["readers"].as_array().unwrap().iter();
        readers.map(|reader| reader["how"].as_str().unwrap()).collect()
    };
    assert!(how("/var/www/html/index.php").contains(&"copied"));
    assert_eq!(how("/root/mapped.py"), ["mapped"]);
    judged(&report);
    let unknown: BTreeSet<&str> = files
        .iter()
        .filter(|file| file["verdict"] != "known")
        .map(|file| file["path"].as_str().unwrap())
        .collect();
    let ours = COPIES
        .iter()
        .flat_map(|(name, ..)| ["/root", "/var/www/html"].map(|folder| format!("{folder}/{name}.php")));
    let written = [
        "/root/seen.py",
        "/root/mapped.py",
        "/root/is.py",
        "/var/www/html/new.php",
        "/jobs/job.py",
    ]
    .map(str::to_owned);
    let expected: BTreeSet<String> = ours.chain(written).collect();
    assert_eq!(
        unknown,
        expected.iter().map(String::as_str).collect(),
        "all others are of packages"
    );
}
