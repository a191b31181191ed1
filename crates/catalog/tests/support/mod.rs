//! Packages and programs made on the spot, so that the tests need no network.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses its part"
)]

use std::io::Write;
use std::path::{Path, PathBuf};

use nephoscope_catalog::{Adder, Catalog, Summary};

/// A page of a program: `seed` decides all its bytes.
pub fn page(seed: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// The digest of a page.
pub fn digest(page: &[u8]) -> [u8; 32] {
    *blake3::hash(page).as_bytes()
}

/// A static x86-64 ELF program: a page with the headers, and an executable segment of these pages, which are the
/// file's pages 1 and on, linked at 0x401000.
pub fn elf(pages: &[Vec<u8>]) -> Vec<u8> {
    let text: Vec<u8> = pages.concat();
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for word in [0x40_1000u64, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for half in [1u32, 5] {
        file.extend(half.to_le_bytes());
    }
    for word in [
        4096u64,
        0x40_1000,
        0x40_1000,
        text.len() as u64,
        text.len() as u64,
        4096,
    ] {
        file.extend(word.to_le_bytes());
    }
    file.resize(4096, 0);
    file.extend(text);
    file
}

/// A program of one page.
pub fn program(seed: u32) -> Vec<u8> {
    elf(&[page(seed)])
}

/// What goes into a package.
pub enum Member<'a> {
    File(&'a str, Vec<u8>),
    Hardlink(&'a str, &'a str),
    Symlink(&'a str, &'a str),
    Device(&'a str),
}

/// How a package's members are compressed.
#[derive(Clone, Copy)]
pub enum Pack {
    Plain,
    Gz,
    Xz,
    Zst,
}

impl Pack {
    fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Gz => ".gz",
            Self::Xz => ".xz",
            Self::Zst => ".zst",
        }
    }

    fn pack(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => bytes.to_vec(),
            Self::Gz => {
                let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(bytes).unwrap();
                out.finish().unwrap()
            }
            Self::Xz => {
                let mut out = liblzma::write::XzEncoder::new(Vec::new(), 1);
                out.write_all(bytes).unwrap();
                out.finish().unwrap()
            }
            Self::Zst => zstd::encode_all(bytes, 1).unwrap(),
        }
    }
}

fn tarball(members: &[Member<'_>]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for member in members {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(0);
        match member {
            Member::File(path, bytes) => {
                header.set_size(bytes.len() as u64);
                header.set_entry_type(tar::EntryType::Regular);
                // Not `append_data`: it refuses the paths that hostile packages have.
                let name = &mut header.as_mut_bytes()[..100];
                name[..path.len()].copy_from_slice(path.as_bytes());
                header.set_cksum();
                tar.append(&header, bytes.as_slice()).unwrap();
            }
            Member::Hardlink(path, target) => {
                header.set_entry_type(tar::EntryType::Link);
                tar.append_link(&mut header, path, target).unwrap();
            }
            Member::Symlink(path, target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                tar.append_link(&mut header, path, target).unwrap();
            }
            Member::Device(path) => {
                header.set_entry_type(tar::EntryType::Char);
                tar.append_data(&mut header, path, std::io::empty()).unwrap();
            }
        }
    }
    tar.into_inner().unwrap()
}

/// A package file.
pub fn deb(dir: &Path, control: &str, members: &[Member<'_>], pack: Pack) -> PathBuf {
    let name = format!(
        "{}.deb",
        blake3::hash(control.as_bytes()).to_hex().get(..12).unwrap()
    );
    let path = dir.join(name);
    let mut ar = ar::Builder::new(std::fs::File::create(&path).unwrap());
    let control = tarball(&[Member::File("./control", control.as_bytes().to_vec())]);
    let suffix = pack.suffix();
    let mut add = |name: String, bytes: &[u8]| {
        ar.append(&ar::Header::new(name.into_bytes(), bytes.len() as u64), bytes)
            .unwrap();
    };
    add("debian-binary".to_owned(), b"2.0\n");
    add(format!("control.tar{suffix}"), &pack.pack(&control));
    add(format!("data.tar{suffix}"), &pack.pack(&tarball(members)));
    path
}

/// A control file.
pub fn control(name: &str, version: &str) -> String {
    format!("Package: {name}\nSource: {name}-src (0.{version})\nVersion: {version}\nArchitecture: amd64\n")
}

/// A package of one program.
pub fn simple(dir: &Path, name: &str, version: &str, program: Vec<u8>) -> PathBuf {
    let path = format!("./usr/bin/{name}");
    deb(
        dir,
        &control(name, version),
        &[Member::File(&path, program)],
        Pack::Gz,
    )
}

/// Adds and commits.
pub fn add(dir: &Path, paths: &[PathBuf]) -> Summary {
    let mut adder = Adder::new(dir).unwrap();
    adder.add(paths).unwrap();
    adder.commit().unwrap()
}

/// Every file of a directory with its contents.
pub fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                std::fs::read(&path).unwrap(),
            )
        })
        .collect();
    all.sort();
    all
}

/// "package version path" of every place where a page stands.
pub fn whose(catalog: &Catalog, page: &[u8]) -> Vec<String> {
    let mut all = Vec::new();
    for found in catalog.pages(&digest(page)).unwrap() {
        for placement in catalog.placements(found.object).unwrap() {
            let package = placement
                .package
                .map_or("-".to_owned(), |p| format!("{} {}", p.name, p.version));
            all.push(format!("{package} {}", placement.path));
        }
    }
    all.sort();
    all
}
