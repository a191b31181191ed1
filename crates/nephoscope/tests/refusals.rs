//! What cannot be done is said in one line that tells what to do, with a code of its own.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const QEMU_10: &str = "QEMU emulator version 10.0.2 (Debian 1:10.0.2)";
const WITH_PLUGINS: &str = "-plugin [file=]file[,argname=argvalue]";

struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.run_as(Path::new(env!("CARGO_BIN_EXE_nephoscope")), arguments)
    }

    fn run_as(&self, program: &Path, arguments: &[&str]) -> Output {
        Command::new(program)
            .args(arguments)
            .current_dir(self.dir.path())
            .env("NEPHOSCOPE_RUNTIME_DIR", self.path("run"))
            .env_remove("NEPHOSCOPE_CATALOG")
            .env_remove("NEPHOSCOPE_PLUGIN_DIR")
            .output()
            .unwrap()
    }

    /// A catalog of one program.
    fn catalog(&self) {
        let output = self.run(&[
            "catalog",
            "add",
            "--catalog",
            "cat",
            env!("CARGO_BIN_EXE_nephoscope"),
        ]);
        assert!(output.status.success(), "{output:?}");
    }

    /// Something that answers like a QEMU.
    fn qemu(&self, version: &str, help: &str) -> String {
        let path = self.path("qemu");
        let script =
            format!("#!/bin/sh\ncase $1 in --version) echo '{version}';; --help) echo '{help}';; esac\n");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }
}

/// The code, and one line that has these words.
fn refused(output: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("nephoscope: "))
        .collect();
    assert_eq!(lines.len(), 1, "one line: {text}");
    for word in words {
        assert!(lines[0].contains(word), "{word:?} is not in {:?}", lines[0]);
    }
}

#[test]
fn a_catalog_that_is_none_another_or_damaged() {
    let place = Place::new();
    let qemu = place.qemu(QEMU_10, WITH_PLUGINS);
    let run = ["run", "--catalog", "cat", "--", &qemu, "-m", "64"];
    refused(&place.run(&run), 10, &["cat", "catalog add"]);
    place.catalog();
    let current = place.path("cat/CURRENT");
    let good = fs::read_to_string(&current).unwrap();
    let (lines, _) = good.split_once("check ").unwrap();
    let other = lines.replacen("catalog 1", "catalog 9", 1);
    fs::write(
        &current,
        format!("{other}check {}\n", blake3::hash(other.as_bytes())),
    )
    .unwrap();
    refused(&place.run(&run), 11, &["9"]);
    fs::write(&current, good.replacen("segment ", "segmemt ", 1)).unwrap();
    refused(&place.run(&run), 12, &["CURRENT"]);
    fs::write(&current, &good).unwrap();
    let segment = fs::read_dir(place.path("cat"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "segment"))
        .unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&segment, bytes).unwrap();
    let output = place.run(&["catalog", "verify", "--catalog", "cat"]);
    assert_eq!(output.status.code(), Some(12), "{output:?}");
}

#[test]
fn a_qemu_that_is_none_or_cannot_be_watched() {
    let place = Place::new();
    place.catalog();
    let run = |qemu: &str, option: &str| place.run(&["run", "--catalog", "cat", "--", qemu, option]);
    refused(&run("./no-such-qemu", "-S"), 20, &["no-such-qemu", "install"]);
    refused(&run("/bin/true", "-S"), 20, &["no QEMU"]);
    let qemu = place.qemu(QEMU_10, "-monitor dev");
    refused(&run(&qemu, "-S"), 21, &["without plugins", "--enable-plugins"]);
    let qemu = place.qemu("QEMU emulator version 8.2.2", WITH_PLUGINS);
    refused(&run(&qemu, "-S"), 22, &["8.2.2", "9.2"]);
    let qemu = place.qemu(QEMU_10, WITH_PLUGINS);
    refused(&run(&qemu, "-enable-kvm"), 23, &["-accel tcg"]);
}

#[test]
fn a_plugin_library_that_is_not_there() {
    let place = Place::new();
    place.catalog();
    let alone = place.path("bin/nephoscope");
    fs::create_dir(place.path("bin")).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_nephoscope"), &alone).unwrap();
    let qemu = place.qemu(QEMU_10, WITH_PLUGINS);
    let output = place.run_as(&alone, &["run", "--catalog", "cat", "--", &qemu, "-S"]);
    refused(
        &output,
        24,
        &["libnephoscope-qemu-api4.so", "NEPHOSCOPE_PLUGIN_DIR"],
    );
}

#[test]
fn a_vm_that_nobody_watches_and_a_name_that_could_be_a_path() {
    let place = Place::new();
    place.catalog();
    let attach = |name: &str| place.run(&["attach", "--catalog", "cat", "--name", name]);
    refused(&attach("nobody"), 30, &["plugin", "nephoscope ps"]);
    refused(&attach("../etc"), 2, &["cannot be a VM's name"]);
}

#[test]
fn packages_and_programs_that_are_not_what_they_seem() {
    let place = Place::new();
    let mut hostile = vec![0xff; 4096];
    hostile[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0");
    fs::write(place.path("hostile"), hostile).unwrap();
    fs::write(place.path("cut.deb"), b"!<arch>\ndebian-binary   0  ").unwrap();
    for input in ["hostile", "cut.deb"] {
        let output = place.run(&["catalog", "add", "--catalog", "cat", input]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(14), "{text}");
        assert!(
            text.starts_with("refused ") && text.contains(&format!("{input}: ")),
            "{text}"
        );
    }
}
