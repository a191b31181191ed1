//! A catalog with flipped bytes. With its checks, every answer is the right one or that it is damaged; behind them, with
//! every check believed, there is still an answer.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use arbitrary::Unstructured;
use nephoscope_catalog::fuzzing::BELIEVE;
use nephoscope_catalog::{Adder, Catalog, ObjectId};

use crate::made;
use crate::packages::{archive, tar};

/// The catalog that is harmed.
struct Good {
    folder: PathBuf,
    /// Each file, open for writing, and what is in it.
    files: Vec<(File, Vec<u8>)>,
    digests: Vec<[u8; 32]>,
    windows: Vec<u64>,
    /// Digests of programs, known here so that inputs spend their time in the catalog.
    programs: [[u8; 32]; 4],
    right: BTreeMap<String, String>,
}

/// A page of a program that is made of these bytes.
pub(crate) fn page(seed: u8) -> Vec<u8> {
    (0..4096_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed)
        .collect()
}

/// A program of three pages, one of which all programs share.
pub(crate) fn program(seed: u8) -> Vec<u8> {
    let text = [page(seed), page(seed ^ 0x55), page(0)].concat();
    let section = made::elf::Section {
        name: ".text",
        kind: 1,
        flags: 6,
        va: 0x1000,
        data: text,
        ..made::elf::Section::default()
    };
    let len = 3 * 4096;
    made::elf::file(2, 0x40_1000, &[(1, 5, 0x40_1000, 4096, len, len)], &[section], 12)
}

/// Makes a catalog of packages, programs, a kernel, a module and firmware in a folder.
pub(crate) fn make(folder: &Path) -> Catalog {
    let inputs = folder.join("inputs");
    std::fs::create_dir_all(&inputs).expect("a folder");
    let mut paths = Vec::new();
    let mut put = |name: String, bytes: &[u8]| {
        let path = inputs.join(name);
        std::fs::write(&path, bytes).expect("a file");
        paths.push(path);
    };
    for (number, version) in [(1, "1"), (2, "1"), (2, "2"), (3, "1")] {
        let control = format!("Package: p{number}\nVersion: {version}\nArchitecture: amd64\n");
        let data = tar(
            &format!("./usr/bin/p{number}"),
            &program(number + version.len() as u8),
        );
        let control = tar("./control", control.as_bytes());
        let deb = archive(&[
            ("debian-binary", b"2.0\n"),
            ("control.tar", &control),
            ("data.tar", &data),
        ]);
        put(format!("p{number}-{version}.deb"), &deb);
    }
    for (target, name, bytes) in made::seeds() {
        match (target, name.as_str()) {
            ("module", "all") => put("m.ko".into(), &bytes),
            ("kernel", "bzimage-symbols") => put("vmlinuz".into(), &bytes),
            ("kernel", "vdso") => put("vmlinux".into(), &bytes),
            ("firmware", "pe" | "rom-x86" | "application") => put(format!("{name}.bin"), &bytes[1..]),
            _ => {}
        }
    }
    let catalog = folder.join("catalog");
    let mut adder = Adder::new(&catalog).expect("a new catalog");
    adder.add(&paths).expect("to add");
    let summary = adder.commit().expect("to commit");
    assert!(summary.objects_added >= 6, "{summary:?}");
    Catalog::open(&catalog).expect("what was made")
}

fn good() -> &'static Good {
    static GOOD: OnceLock<Good> = OnceLock::new();
    GOOD.get_or_init(|| {
        let folder = crate::packages::scratch("catalog");
        let catalog = make(&folder);
        let folder = folder.join("catalog");
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&folder).expect("the catalog").flatten() {
            let bytes = std::fs::read(entry.path()).expect("its file");
            let file = File::options().write(true).open(entry.path()).expect("its file");
            if !bytes.is_empty() {
                files.push((file, bytes));
            }
        }
        files.sort_by_key(|(_, bytes)| std::cmp::Reverse(bytes.len()));
        let digests = (0..8).map(|seed| *blake3::hash(&page(seed)).as_bytes()).collect();
        let windows = nephoscope_recipe::windows::probes(&page(2))
            .map(|(hash, _)| hash)
            .take(8)
            .collect();
        let mut good = Good {
            folder,
            files,
            digests,
            windows,
            programs: [0, 1, 2, 3].map(|seed| *blake3::hash(&program(seed)).as_bytes()),
            right: BTreeMap::new(),
        };
        let mut right = BTreeMap::new();
        for question in 0..=u8::MAX {
            ask(&catalog, &good, question, &mut |question, answer| {
                right.insert(question, answer.expect("a good catalog answers"));
            });
        }
        good.right = right;
        good
    })
}

/// Asks one of the questions there are.
fn ask(catalog: &Catalog, good: &Good, question: u8, told: &mut dyn FnMut(String, Option<String>)) {
    let Good { digests, windows, .. } = good;
    let number = question >> 3;
    let object = ObjectId(u32::from(number % 16));
    let exists = catalog
        .info()
        .is_ok_and(|info| u64::from(object.0) < info.objects);
    match question & 7 {
        0 => {
            let pages = digests
                .get(usize::from(number) % digests.len())
                .map(|digest| catalog.pages_counted(digest));
            told(
                format!("pages {}", usize::from(number) % digests.len()),
                pages.and_then(Result::ok).map(|found| format!("{found:?}")),
            );
        }
        1 => {
            let hash = windows
                .get(usize::from(number) % windows.len())
                .copied()
                .unwrap_or(0);
            told(
                format!("windows {hash}"),
                catalog
                    .windows_counted(hash)
                    .ok()
                    .map(|found| format!("{found:?}")),
            );
        }
        2 if exists => told(
            format!("object {object:?}"),
            catalog.object(object).ok().map(|info| format!("{info:?}")),
        ),
        3 if exists => {
            let parts = catalog.object(object).map_or(0, |info| info.parts.len());
            for part in 0..u16::try_from(parts.min(4)).unwrap_or(0) {
                told(
                    format!("part {object:?} {part}"),
                    catalog
                        .part(object, part)
                        .ok()
                        .map(|part| format!("{} {}", blake3::hash(&part.bytes), part.sites.len())),
                );
            }
        }
        4 if exists => told(
            format!("placements {object:?}"),
            catalog.placements(object).ok().map(|all| format!("{all:?}")),
        ),
        5 if exists => {
            let page = catalog.page_bytes(object, u32::from(number & 3)).ok();
            told(
                format!("page {object:?} {}", number & 3),
                page.map(|page| format!("{:?}", page.map(|page| blake3::hash(&page[..])))),
            );
        }
        6 => told("info".into(), catalog.info().ok().map(|info| format!("{info:?}"))),
        7 => {
            let digest = &good.programs[usize::from(number % 4)];
            told(
                format!("digest {}", number % 4),
                catalog.by_digest(digest).ok().map(|found| format!("{found:?}")),
            );
        }
        _ => {}
    }
}

/// Harms the files as the input says, asks, and makes them good again.
fn harmed(bytes: &[u8], mut answered: impl FnMut(String, Option<String>, &Good)) {
    let good = good();
    let mut input = Unstructured::new(bytes);
    let mut changed = Vec::new();
    let count = input.int_in_range(1..=6_u8).unwrap_or(1);
    for _ in 0..count {
        let (Ok(which), Ok(at), Ok(byte)) = (
            input.arbitrary::<u8>(),
            input.arbitrary::<u16>(),
            input.arbitrary::<u8>(),
        ) else {
            break;
        };
        // Mostly the segment, from its end or its start: the tables and the trailer are at its end.
        let (file, bytes) = &good.files[usize::from(which & 1) % good.files.len()];
        let at = usize::from(at) % bytes.len();
        let at = if which & 2 == 0 { at } else { bytes.len() - 1 - at };
        let new = [
            byte ^ bytes[at].max(1),
            bytes[at] ^ (1 << (byte & 7)),
            byte,
            u8::MAX,
        ][usize::from(which >> 6)];
        file.write_all_at(&[new], at as u64).expect("memory");
        changed.push((file, at, bytes[at]));
    }
    if let Ok(catalog) = Catalog::open(&good.folder) {
        while let Ok(question) = input.arbitrary::<u8>() {
            ask(&catalog, good, question, &mut |question, answer| {
                answered(question, answer, good)
            });
            if input.is_empty() {
                break;
            }
        }
    }
    for (file, at, byte) in changed {
        file.write_all_at(&[byte], at as u64).expect("memory");
    }
}

/// With the checks: no answer is wrong.
pub fn flipped(bytes: &[u8]) {
    harmed(bytes, |question, answer, good| {
        if let (Some(answer), Some(right)) = (answer, good.right.get(&question)) {
            assert_eq!(&answer, right, "{question}");
        }
    });
}

/// Behind the checks: no panic, no end, no more memory than there may be.
pub fn believed(bytes: &[u8]) {
    // Made with its checks.
    let _ = good();
    BELIEVE.store(true, Ordering::Relaxed);
    harmed(bytes, |_, _, _| {});
}
