//! The disks, what they must hold, and what they do.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::Account;
use crate::command::{output_of, write_file};

/// Of each data disk.
const MIB: u64 = 400;
/// Where the package's files are.
pub(super) const INSTALLED: &str = "/usr/share/nephoscope-upgraded";
/// Of each version of it.
const PACKAGE_FILES: usize = 200;

/// A disk for the guest's work.
#[derive(Debug)]
pub(super) struct Data {
    file: PathBuf,
    format: &'static str,
}

/// What files must hold: their names, bytes and digests.
pub(super) type MustBe = BTreeMap<String, (u64, u64)>;

/// A version of a package.
#[derive(Debug)]
pub(super) struct Package {
    pub(super) file: PathBuf,
    pub(super) files: MustBe,
}

/// Two disks with ext4, raw and qcow2.
pub(super) fn data(folder: &Path) -> Result<[Data; 2]> {
    let raw = folder.join("data.raw");
    File::create(&raw)?.set_len(MIB << 20)?;
    output_of(
        Command::new("/usr/sbin/mke2fs")
            .args(["-q", "-t", "ext4"])
            .arg(&raw),
    )?;
    let qcow2 = folder.join("data.qcow2");
    output_of(
        Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .args([&raw, &qcow2]),
    )?;
    let data = |file, format| Data { file, format };
    Ok([data(raw, "raw"), data(qcow2, "qcow2")])
}

impl Data {
    /// For QEMU.
    pub(super) fn arguments(&self) -> [String; 4] {
        let (file, format) = (self.file.display(), self.format);
        [
            "-drive".into(),
            format!("if=none,id={format},format={format},file={file}"),
            "-device".into(),
            format!("virtio-blk-pci,drive={format}"),
        ]
    }

    /// Its contents as they are on a disk; what holds them is found to be whole.
    pub(super) fn raw(&self) -> Result<PathBuf> {
        if self.format == "raw" {
            return Ok(self.file.clone());
        }
        output_of(Command::new("qemu-img").args(["check", "-q"]).arg(&self.file))
            .context("the image is not whole")?;
        let raw = self.file.with_extension("checked");
        output_of(
            Command::new("qemu-img")
                .args(["convert", "-f", self.format, "-O", "raw"])
                .args([&self.file, &raw]),
        )?;
        Ok(raw)
    }
}

/// FNV-1a, 64 bits (RFC 9923), as the work in the guest has it.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Two versions of a package, all of whose files differ.
pub(super) fn packages(folder: &Path) -> Result<[Package; 2]> {
    Ok([package(folder, 0)?, package(folder, 1)?])
}

fn package(folder: &Path, version: usize) -> Result<Package> {
    let tree = folder.join(format!("package-{version}"));
    write_file(
        &tree.join("DEBIAN/control"),
        format!(
            "Package: nephoscope-upgraded\nVersion: 1.{version}\nArchitecture: all\nMaintainer: nobody\nDescription: files\n"
        ),
    )?;
    let mut files = MustBe::new();
    for number in 0..PACKAGE_FILES {
        let line = format!("# file {number} of version {version}\n");
        // From a line to some pages.
        let text = line.repeat(1 + number * number % 700);
        let name = format!("{number:03}.py");
        write_file(&tree.join(&INSTALLED[1..]).join(&name), &text)?;
        files.insert(name, (text.len() as u64, digest(text.as_bytes())));
    }
    let file = folder.join(format!("package-{version}.deb"));
    output_of(
        Command::new("dpkg-deb")
            .args(["--root-owner-group", "-Znone", "--build"])
            .args([&tree, &file]),
    )?;
    Ok(Package { file, files })
}

/// What the work told in the guest.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) upgrades: u64,
    /// Folder, kind of step, how many.
    pub(super) steps: Vec<(String, String, u64)>,
    files: BTreeMap<String, MustBe>,
}

impl Told {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let (mut told, mut folder) = (Self::default(), String::new());
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["upgrades", count] => told.upgrades = count.parse()?,
                ["folder", path] => folder = (*path).to_owned(),
                ["step", times, ..] => {
                    let kind = words[2..].join(" ");
                    told.steps.push((folder.clone(), kind, times.parse()?));
                }
                ["file", name, bytes, digest] => {
                    let file = (bytes.parse()?, u64::from_str_radix(digest, 16)?);
                    let files = told.files.entry(folder.clone()).or_default();
                    files.insert((*name).to_owned(), file);
                }
                _ => bail!("the work in the guest said {line:?}"),
            }
        }
        ensure!(told.upgrades > 0, "no package was upgraded");
        Ok(told)
    }

    /// What the files of a folder must hold.
    pub(super) fn files(&self, folder: &str) -> impl Iterator<Item = (&String, &(u64, u64))> {
        self.files.get(folder).into_iter().flatten()
    }
}

/// Checks the file system of a disk, and compares files in a folder of it.
pub(super) fn compare<'a>(
    disk: &Path,
    folder: &str,
    must_be: impl Iterator<Item = (&'a String, &'a (u64, u64))>,
    account: &mut Account,
) -> Result<()> {
    output_of(Command::new("/usr/sbin/e2fsck").arg("-fn").arg(disk)).context("not clean")?;
    let dumped = tempfile::tempdir()?;
    output_of(
        Command::new("/usr/sbin/debugfs")
            .arg("-R")
            .arg(format!("rdump {folder} {}", dumped.path().display()))
            .arg(disk),
    )?;
    // Of a folder, `rdump` makes one with its name; of the root, nothing.
    let files = match Path::new(folder).file_name() {
        Some(name) => dumped.path().join(name),
        None => dumped.path().to_owned(),
    };
    let mut compared = 0;
    for (name, (bytes, wanted)) in must_be {
        let held = fs::read(files.join(name)).with_context(|| format!("{name} is not on the disk"))?;
        ensure!(
            held.len() as u64 == *bytes && digest(&held) == *wanted,
            "{name} has {} bytes, {:016x}, and must have {bytes}, {wanted:016x}",
            held.len(),
            digest(&held)
        );
        compared += 1;
        account.files += 1;
        account.bytes += bytes;
    }
    ensure!(compared > 0, "nothing to compare");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_lost_a_byte_or_a_file_or_is_not_clean_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        write_file(&tree.join("app/a"), "hello").unwrap();
        let disk = folder.path().join("disk");
        File::create(&disk).unwrap().set_len(8 << 20).unwrap();
        output_of(
            Command::new("/usr/sbin/mke2fs")
                .args(["-q", "-t", "ext4", "-d"])
                .args([&tree, &disk]),
        )
        .unwrap();
        let compared = |files: MustBe, folder: &str| {
            let mut account = Account::default();
            let done = compare(&disk, folder, files.iter(), &mut account);
            done.map(|()| (account.files, account.bytes))
        };
        let must_be = |name: &str, text: &str| {
            MustBe::from([(name.to_owned(), (text.len() as u64, digest(text.as_bytes())))])
        };
        assert_eq!(compared(must_be("a", "hello"), "/app").unwrap(), (1, 5));
        assert_eq!(compared(must_be("app/a", "hello"), "/").unwrap(), (1, 5));
        assert!(compared(must_be("a", "hellO"), "/app").is_err());
        assert!(compared(must_be("b", "hello"), "/app").is_err());
        assert!(compared(MustBe::new(), "/app").is_err());
        output_of(
            Command::new("/usr/sbin/debugfs")
                .args(["-w", "-R", "clri /app/a"])
                .arg(&disk),
        )
        .unwrap();
        assert!(format!("{:#}", compared(must_be("a", "hello"), "/app").unwrap_err()).contains("not clean"));
    }

    #[test]
    fn what_the_work_tells_is_understood_or_refused() {
        let told =
            Told::parse("upgrades 3\nfolder /mnt/raw\nstep 7 direct write\nfile f 5 00000000000000ff\n")
                .unwrap();
        assert_eq!((told.upgrades, told.steps.len()), (3, 1));
        assert_eq!(told.steps[0].1, "direct write");
        assert_eq!(told.files("/mnt/raw").next().unwrap().1, &(5, 255));
        assert!(Told::parse("upgrades 0").is_err() && Told::parse("hello").is_err());
    }
}
