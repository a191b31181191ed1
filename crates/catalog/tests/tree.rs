//! Root trees with a dpkg database.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use md5::Digest;
use nephoscope_catalog::{Catalog, Placement, Summary};
use support::*;

/// A root with one installed package, written file by file.
struct Root(tempfile::TempDir);

impl Root {
    fn new(status: &str) -> Self {
        let root = Self(tempfile::tempdir().unwrap());
        root.write("var/lib/dpkg/status", status.as_bytes());
        fs::create_dir_all(root.0.path().join("var/lib/dpkg/info")).unwrap();
        root
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// A file of a package: contents, list and checksum.
    fn own(&self, package: &str, path: &str, bytes: &[u8]) {
        self.write(path, bytes);
        self.list(package, path, bytes);
    }

    fn list(&self, package: &str, path: &str, bytes: &[u8]) {
        let append = |suffix: &str, line: String| {
            let file = format!("var/lib/dpkg/info/{package}.{suffix}");
            let old = fs::read_to_string(self.0.path().join(&file)).unwrap_or_default();
            self.write(&file, format!("{old}{line}\n").as_bytes());
        };
        append("list", format!("/{path}"));
        let md5: String = md5::Md5::digest(bytes)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        append("md5sums", format!("{md5}  {path}"));
    }

    fn add(&self, dir: &Path) -> (Catalog, Summary) {
        let summary = add(dir, &[self.0.path().to_owned()]);
        (Catalog::open(dir).unwrap(), summary)
    }
}

fn status(name: &str, version: &str) -> String {
    format!("Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n\n")
}

fn placements(catalog: &Catalog, bytes: &[u8]) -> Vec<Placement> {
    let object = catalog.by_digest(&digest(bytes)).unwrap().unwrap();
    catalog.placements(object).unwrap()
}

#[test]
fn each_file_has_its_package_and_others_are_kept_by_path() {
    let root = Root::new(
        &(status("hello", "1.2") + &status("gone", "1").replace("ok installed", "ok config-files")),
    );
    root.own("hello", "usr/bin/hello", &program(1));
    root.own("gone", "usr/bin/gone", &program(2));
    root.write("opt/stray", &program(3));
    root.write("etc/motd", b"hi");
    let dir = tempfile::tempdir().unwrap();
    let (catalog, summary) = root.add(dir.path());
    assert_eq!(whose(&catalog, &page(1)), ["hello 1.2 /usr/bin/hello"]);
    assert_eq!(
        whose(&catalog, &page(2)),
        ["- /usr/bin/gone"],
        "not installed: nobody vouches for it"
    );
    assert_eq!(whose(&catalog, &page(3)), ["- /opt/stray"]);
    assert_eq!(
        (summary.packages, summary.recognised, summary.refused_total),
        (1, 3, 0),
        "{summary:?}"
    );
    let origin = &placements(&catalog, &program(3))[0].origin;
    assert_eq!(
        origin,
        &root.0.path().canonicalize().unwrap().display().to_string()
    );
}

#[test]
fn a_package_that_says_bin_owns_what_stands_in_usr_bin() {
    let root = Root::new(&status("bash", "5"));
    root.write("usr/bin/bash", &program(1));
    symlink("usr/bin", root.0.path().join("bin")).unwrap();
    root.list("bash", "bin/bash", &program(1));
    let dir = tempfile::tempdir().unwrap();
    let (catalog, _) = root.add(dir.path());
    assert_eq!(whose(&catalog, &page(1)), ["bash 5 /bin/bash"]);
    // The same file of the same package from its .deb is the same placement, whichever way it is spelt.
    let members = [Member::File("./usr/bin/bash", program(1))];
    let control = "Package: bash\nVersion: 5\nArchitecture: amd64\n";
    let summary = add(dir.path(), &[deb(root.0.path(), control, &members, Pack::Gz)]);
    assert!(!summary.changed);
}

#[test]
fn a_file_that_was_changed_is_nobodys_and_counted() {
    let root = Root::new(&status("hello", "1"));
    root.own("hello", "usr/bin/hello", &program(1));
    root.write("usr/bin/hello", &program(66));
    let dir = tempfile::tempdir().unwrap();
    let (catalog, summary) = root.add(dir.path());
    assert_eq!(summary.altered, 1);
    assert_eq!(whose(&catalog, &page(66)), ["- /usr/bin/hello"]);
}

#[test]
fn a_diverted_file_belongs_to_the_package_that_brought_it() {
    let root = Root::new(&(status("dash", "1") + &status("mine", "2")));
    root.write("usr/bin/sh.distrib", &program(1));
    root.list("dash", "bin/sh", &program(1));
    root.own("mine", "bin/sh", &program(2));
    fs::create_dir_all(root.0.path().join("usr/bin")).unwrap();
    root.write("var/lib/dpkg/diversions", b"/bin/sh\n/bin/sh.distrib\nmine\n");
    let dir = tempfile::tempdir().unwrap();
    let (catalog, _) = root.add(dir.path());
    assert_eq!(whose(&catalog, &page(1)), ["dash 1 /bin/sh"]);
    assert_eq!(whose(&catalog, &page(2)), ["mine 2 /bin/sh"]);
}

#[test]
fn packages_of_two_architectures_are_told_apart() {
    let both = status("libc6", "2") + &status("libc6", "2").replace("amd64", "i386");
    let root = Root::new(&both.replace("Version", "Multi-Arch: same\nVersion"));
    root.own("libc6:amd64", "lib/x86_64-linux-gnu/libc.so.6", &program(1));
    root.own("libc6:i386", "lib/i386-linux-gnu/libc.so.6", &program(2));
    let dir = tempfile::tempdir().unwrap();
    let (catalog, _) = root.add(dir.path());
    let arch = |n| {
        placements(&catalog, &program(n))[0]
            .package
            .clone()
            .unwrap()
            .architecture
    };
    assert_eq!((arch(1).as_str(), arch(2).as_str()), ("amd64", "i386"));
}

#[test]
fn no_symbolic_link_is_followed_out_of_the_root() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), program(9)).unwrap();
    fs::create_dir(outside.path().join("info")).unwrap();
    let root = Root::new(&status("hello", "1"));
    root.own("hello", "usr/bin/hello", &program(1));
    symlink(outside.path(), root.0.path().join("out")).unwrap();
    symlink(
        outside.path().join("secret"),
        root.0.path().join("usr/bin/secret"),
    )
    .unwrap();
    symlink("/etc", root.0.path().join("usr/loop")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (catalog, summary) = root.add(dir.path());
    assert_eq!(whose(&catalog, &page(9)), [""; 0]);
    assert_eq!((summary.symbolic_links, summary.recognised), (3, 1));
    // Not for the database either: a root whose status leads outside has none.
    fs::remove_file(root.0.path().join("var/lib/dpkg/status")).unwrap();
    fs::write(outside.path().join("status"), status("fake", "9")).unwrap();
    symlink(
        outside.path().join("status"),
        root.0.path().join("var/lib/dpkg/status"),
    )
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (catalog, _) = root.add(dir.path());
    assert!(whose(&catalog, &page(1))[0].starts_with("- "));
}

#[test]
fn pipes_and_devices_are_counted_and_not_opened() {
    let root = Root::new(&status("hello", "1"));
    let made = std::process::Command::new("mkfifo")
        .arg(root.0.path().join("usr"))
        .status();
    if !made.is_ok_and(|status| status.success()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_, summary) = root.add(dir.path());
    assert_eq!(summary.devices, 1);
}

#[test]
fn max_tree_depth_stops_a_tree_that_never_ends() {
    let root = Root::new(&status("hello", "1"));
    let deep = "d/".repeat(nephoscope_catalog::limits::MAX_TREE_DEPTH + 2);
    root.write(&format!("{deep}x"), &program(1));
    let dir = tempfile::tempdir().unwrap();
    let (_, summary) = root.add(dir.path());
    assert_eq!((summary.refused_total, summary.recognised), (1, 0));
    assert!(summary.refused[0].reason.starts_with("deeper than"));
}

#[test]
fn max_database_file_bytes_stops_a_database_that_never_ends() {
    let root = Root::new(&status("hello", "1"));
    root.own("hello", "usr/bin/hello", &program(1));
    let list = root.0.path().join("var/lib/dpkg/info/hello.list");
    let len = nephoscope_catalog::limits::MAX_DATABASE_FILE_BYTES + 1;
    fs::File::options()
        .write(true)
        .open(list)
        .unwrap()
        .set_len(len)
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (catalog, summary) = root.add(dir.path());
    assert_eq!(summary.refused[0].path, "/var/lib/dpkg/info/hello.list");
    assert_eq!(whose(&catalog, &page(1)), ["- /usr/bin/hello"]);
}
