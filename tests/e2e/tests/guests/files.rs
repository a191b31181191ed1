//! Which files interpreters read, on a disk that is served.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nephoscope_e2e::{Catalog, Guest, Image, Kernel, Options, Watched, vm_name};
use serde_json::Value;

fn program() -> PathBuf {
    nephoscope_e2e::program().unwrap()
}

/// A disk of the guest's own, which it may write to. It has a journal, as guests' disks have; the image has none.
fn disk(image: &Image, folder: &Path) -> PathBuf {
    let disk = folder.join("root.raw");
    let copied = Command::new("cp")
        .arg("--sparse=always")
        .args([image.disk(), disk.clone()])
        .status()
        .unwrap();
    assert!(copied.success());
    let journal = Command::new("/usr/sbin/tune2fs")
        .args(["-O", "has_journal"])
        .arg(&disk)
        .output()
        .unwrap();
    assert!(journal.status.success(), "{journal:?}");
    disk
}

fn options(image: &Image, folder: &Path, report: &Path) -> Options {
    let watched = Watched {
        program: program(),
        catalog: Catalog::ensure(image, &program()).unwrap().path(),
        name: vm_name("files"),
        report: Some(report.to_path_buf()),
        extra: vec!["--watch-files".into()],
    };
    Options {
        kernel: Kernel::K6_1,
        plants: false,
        disk: Some(disk(image, folder)),
        watched: Some(watched),
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

#[test]
fn who_reads_a_file_is_told_and_who_only_could_is_not() {
    let image = Image::ensure().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let mut guest = Guest::boot_ready(&image, options(&image, folder.path(), &report)).unwrap();
    assert_eq!(guest.http_get("/index.php").unwrap().0, 200);
    guest.run_ok("python3 /opt/nephoscope/work.py").unwrap();
    // Written, brought to the disk, and read by one that is not an interpreter, and one that is.
    guest
        .run_ok(
            "echo '<?php echo 7;' > /var/www/html/new.php; echo 'print(7)' > /root/seen.py; sync; sleep 1",
        )
        .unwrap();
    guest.run_ok("md5sum /root/seen.py").unwrap();
    let (status, body) = guest.http_get("/new.php").unwrap();
    assert!(status == 200 && body == "7", "{status} {body}");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(guest.power_off().unwrap(), 0);

    let report: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    nephoscope_e2e::report::validate(&report).unwrap();
    let files = report["files"].as_array().unwrap();
    println!("{} files, {}", files.len(), report["counters"]);
    for path in [
        "/var/www/html/index.php",
        "/opt/nephoscope/work.py",
        "/var/www/html/new.php",
        "/root/seen.py",
    ] {
        println!("{path}: {:?}", readers(&report, path));
    }
    let read_by = |path: &str, program: &str| {
        let (file, programs) = readers(&report, path).unwrap_or_else(|| panic!("{path} was not read"));
        assert!(
            programs.iter().all(|reader| reader.contains(program)),
            "{path}: {programs:?}"
        );
        assert!(!programs.is_empty(), "{file}");
    };
    read_by("/var/www/html/index.php", "php-fpm");
    read_by("/var/www/html/new.php", "php-fpm");
    read_by("/opt/nephoscope/work.py", "python3");
    read_by("/root/seen.py", "md5sum");
    let known = files.iter().filter(|file| file["verdict"] == "known").count();
    println!("{known} of them are known");
    assert!(known * 10 > files.len() * 9, "nearly all are of packages");
}
