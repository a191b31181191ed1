//! Executables that are made to look like other programs.
//!
//! *Padding*: a page that is almost all zeros, with a few dozen bytes of code and one short stretch that a catalogued program
//! has in an almost empty page too. Of 4,096 bytes all but a hundred are the same; of those that say something, most are not.
//! Right is `unknown-code`: padding is no likeness.
//!
//! *Shared pages*: a program of nobody maps one real page of `sshd` and calls into it. That page is `sshd`'s, and may be
//! said to be; the process is not `sshd`. Right is an address space without a program's name, with the stranger's own code
//! unknown.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nephoscope_recipe::windows;
use object::{Object, ObjectKind, ObjectSegment, SegmentFlags};

use super::{Attack, Seen};
use crate::check::{self, Host, named};
use crate::group::{COMMON, Group};
use crate::said::{self, PAGE_BYTES};
use crate::scene::{PATIENCE, Scene};

/// Number 19, with padding.
#[derive(Debug)]
pub(super) struct Padding;

/// Number 19, with real pages of another program.
#[derive(Debug)]
pub(super) struct SharedPages;

/// How many bytes of the disguised page are not zero.
const FILLED: std::ops::Range<usize> = 40..150;

/// Where programs and libraries are.
const FOLDERS: [&str; 4] = [
    "usr/bin",
    "usr/sbin",
    "usr/lib/systemd",
    "usr/lib/x86_64-linux-gnu",
];

/// As catalogs sample the code of programs: one window of so many.
const DENSITY: u64 = 512;

/// `mov eax, 42; ret`
const CODE: [u8; 6] = [0xb8, 0x2a, 0, 0, 0, 0xc3];

impl Attack for Padding {
    fn number(&self) -> u8 {
        19
    }

    fn name(&self) -> &'static str {
        "disguise-padding"
    }

    fn expected(&self) -> &'static str {
        "unknown-code, likened to no program"
    }

    fn group(&self) -> Group {
        COMMON
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let (model, page, entry) = disguised(&scene.image.root())?;
        let tool = scene.tool("runpage")?;
        scene.guest.put("/tmp/disguised", &page)?;
        let attack = scene.launch(&format!("{tool} /tmp/disguised {entry}"))?;
        let said = scene.said(&attack, 1)?;
        let mut seen = check::unknown_pages(scene, &said, Host { program: None })?;
        if !seen.ok {
            let findings = scene.findings()?;
            let wrong = findings
                .iter()
                .rev()
                .find(|finding| finding["rule"] == "modified-code");
            let wrong = wrong.map_or("", |finding| finding["summary"].as_str().unwrap_or_default());
            seen.text = format!("{} (like {}): {wrong}", seen.text, model.display());
        }
        scene.kill(attack.pid)?;
        Ok(seen)
    }
}

/// An almost empty page of a program of the guest, of which only one stretch is left that a catalog may find it by, with
/// code in it; and where the code is.
fn disguised(root: &Path) -> Result<(PathBuf, Vec<u8>, usize)> {
    for folder in FOLDERS {
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(root.join(folder))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                files.push(entry.path());
            }
        }
        files.sort();
        for path in files {
            let Ok(file) = std::fs::read(&path) else { continue };
            for page in code_pages(&file) {
                if let Some((page, entry)) = disguise(page) {
                    return Ok((path, page, entry));
                }
            }
        }
    }
    anyhow::bail!("nothing in the guest has a page that is almost empty and can be found by a window")
}

/// The whole pages of a program's executable segments.
fn code_pages(file: &[u8]) -> Vec<&[u8]> {
    let Ok(object) = object::File::parse(file) else {
        return Vec::new();
    };
    if !matches!(object.kind(), ObjectKind::Executable | ObjectKind::Dynamic) {
        return Vec::new();
    }
    let executable = object.segments().filter(|segment| {
        matches!(segment.flags(), SegmentFlags::Elf { p_flags, .. } if p_flags.0 & object::elf::PF_X.0 != 0)
    });
    let ranges = executable.map(|segment| segment.file_range());
    ranges
        .filter_map(|(start, len)| {
            let start = usize::try_from(start).ok()?;
            let end = start
                .checked_add(usize::try_from(len).ok()?)?
                .next_multiple_of(PAGE_BYTES);
            file.get(start..end.min(file.len()))
        })
        .flat_map(|bytes| bytes.chunks_exact(PAGE_BYTES))
        .collect()
}

fn disguise(model: &[u8]) -> Option<(Vec<u8>, usize)> {
    let filled = model.iter().filter(|byte| **byte != 0).count();
    if !FILLED.contains(&filled) {
        return None;
    }
    let (_, kept) = windows::sample(model, DENSITY, &[]).next()?;
    let kept = usize::try_from(kept).ok()?;
    let kept = kept..kept + windows::WINDOW;
    let mut page = vec![0; PAGE_BYTES];
    for (at, byte) in page.iter_mut().enumerate() {
        let before = *model.get(at)?;
        *byte = match (kept.contains(&at), before) {
            (true, _) => before,
            (false, 0) => 0,
            (false, _) => !before | 1,
        };
    }
    let entry = kept.end.checked_add(CODE.len())?;
    page.get_mut(entry..entry + CODE.len())?.copy_from_slice(&CODE);
    Some((page, entry))
}

impl Attack for SharedPages {
    fn number(&self) -> u8 {
        19
    }

    fn name(&self) -> &'static str {
        "disguise-shared-page"
    }

    fn expected(&self) -> &'static str {
        "unknown-code of a stranger, not named sshd"
    }

    fn group(&self) -> Group {
        COMMON
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let sshd = std::fs::read(scene.image.root().join("usr/sbin/sshd"))?;
        let (number, at) = a_return(&sshd).context("sshd has no return in its code")?;
        let tool = scene.tool("runpage")?;
        let own = said::digests(&scene.tools.bytes("runpage")?);
        let since = scene.now_ns();
        let attack = scene.launch(&format!("{tool} /usr/sbin/sshd {at}"))?;
        let said = scene.said(&attack, 1)?;
        let page = said.first().context("nothing was said")?;
        anyhow::ensure!(page.digest() == number, "it ran another page");
        let space = scene.soon(PATIENCE, |report| {
            let mut spaces = nephoscope_e2e::living::living(report);
            spaces
                .find(|space| {
                    space["first_ns"].as_u64() >= Some(since)
                        && crate::scene::unknown_digests(space)
                            .iter()
                            .any(|digest| own.iter().any(|page| page == digest))
                })
                .cloned()
        })?;
        let Some(space) = space else {
            return Ok(Seen::wrong("the stranger's own code is not found"));
        };
        // Long enough for the borrowed page to be there too.
        scene.wait(std::time::Duration::from_secs(2));
        let space = scene.space(&space["id"])?;
        scene.kill(attack.pid)?;
        if !space["program"].is_null() {
            return Ok(Seen::wrong(format!("{} is a stranger", named(&space))));
        }
        let arrival = scene.about(PATIENCE, "unknown-code", &space["id"])?;
        let arrival = arrival.context("there is no finding about it")?;
        let to_finding = scene.to_finding(&arrival)?;
        Ok(Seen::right(
            format!("f{}: {}", arrival.finding["id"], named(&space)),
            Some(to_finding),
        ))
    }
}

/// The digest of a page of code that has a return in it, and the return's offset in the file.
fn a_return(file: &[u8]) -> Option<(String, usize)> {
    let page = *code_pages(file).get(3)?;
    let start = page.as_ptr().addr() - file.as_ptr().addr();
    let at = page.iter().position(|byte| *byte == 0xc3)?;
    Some((said::digest(page), start + at))
}
