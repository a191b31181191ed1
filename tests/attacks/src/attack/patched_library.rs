//! A copy of a catalogued library with one function changed, put before the real one by the library path: what an attacker
//! who can write files does, and what no look at the running process shows.
//!
//! Right is `modified-code`: the package's library, and exactly the bytes that were changed, at the address where the guest
//! has the copy mapped, in the program that uses it. The change keeps the function's meaning (another encoding of a move),
//! so that the program goes on as ever.

use anyhow::{Context, Result, ensure};
use nephoscope_guest_tools::equivalent;
use object::{Object, ObjectSegment, ObjectSymbol};

use super::{Attack, Seen};
use crate::check;
use crate::group::{COMMON, Group};
use crate::said::{PAGE_BYTES, changes};
use crate::scene::Scene;

const FOLDER: &str = "usr/lib/x86_64-linux-gnu";
const LIBRARY: &str = "libz.so.1";
const PROGRAM: &str = "/usr/bin/python3.11";

/// Functions that the program calls; one of them begins with a plain move.
const FUNCTIONS: [&str; 6] = [
    "deflate",
    "inflate",
    "adler32_z",
    "crc32_z",
    "deflateEnd",
    "inflateEnd",
];

/// Calls all of them, and stays.
const WORK: &str = "import time, zlib\nx = zlib.compress(bytes(5000))\nassert zlib.decompress(x) == bytes(5000)\n\
                    print(zlib.crc32(x), zlib.adler32(x))\ntime.sleep(1000)";

/// How far into a function we look.
const LOOK_BYTES: usize = 128;

/// Number 11.
#[derive(Debug)]
pub(super) struct PatchedLibrary;

impl Attack for PatchedLibrary {
    fn number(&self) -> u8 {
        11
    }

    fn name(&self) -> &'static str {
        "patched-library"
    }

    fn expected(&self) -> &'static str {
        "modified-code in python3, libz, the changed bytes"
    }

    fn group(&self) -> Group {
        COMMON
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        let path = std::fs::canonicalize(scene.image.root().join(FOLDER).join(LIBRARY))?;
        let real = std::fs::read(&path)?;
        let (offset, patched) = patch(&real)?;
        scene.guest.run_ok("mkdir -p /tmp/patched")?;
        scene.guest.put(&format!("/tmp/patched/{LIBRARY}"), &patched)?;
        scene.guest.put("/tmp/patched/work.py", WORK.as_bytes())?;
        let attack = scene.launch("env LD_LIBRARY_PATH=/tmp/patched python3 -u /tmp/patched/work.py")?;
        scene.output(&attack, |text| text.ends_with('\n'))?;
        let page = offset - offset % PAGE_BYTES;
        let whole = |file: &[u8]| file.get(page..page + PAGE_BYTES).map(<[u8]>::to_vec);
        let wanted = whole(&real).zip(whole(&patched)).context("no such page")?;
        let wanted = changes(&wanted.0, &wanted.1);
        let mapped = scene.maps(attack.pid)?;
        let at = mapped
            .iter()
            .filter(|m| m.executable() && m.path == format!("/tmp/patched/{LIBRARY}"));
        let page = page as u64;
        let at = at.filter(|m| m.offset <= page && page - m.offset < m.end - m.start);
        let at = at.map(|m| m.start + page - m.offset).next();
        let at = at.context("the program does not use the patched library")?;
        let name = path
            .file_name()
            .context("a library without a name")?
            .to_string_lossy();
        let seen = check::modified_page(scene, &format!("/{FOLDER}/{name}"), Some(at), &wanted, PROGRAM)?;
        scene.kill(attack.pid)?;
        Ok(seen)
    }
}

/// The library with the change, and the offset of the change.
fn patch(real: &[u8]) -> Result<(usize, Vec<u8>)> {
    let object = object::File::parse(real)?;
    for function in FUNCTIONS {
        let symbol = object
            .dynamic_symbols()
            .find(|symbol| symbol.name() == Ok(function) && symbol.is_definition());
        let Some(address) = symbol.map(|symbol| symbol.address()) else {
            continue;
        };
        let segment = object
            .segments()
            .find(|segment| (segment.address()..segment.address() + segment.size()).contains(&address));
        let segment = segment.context("a function in no segment")?;
        let start = usize::try_from(address - segment.address() + segment.file_range().0)?;
        let code = real
            .get(start..start + LOOK_BYTES)
            .context("a function outside its file")?;
        let Some(change) = equivalent::first_move(code) else {
            continue;
        };
        let offset = start + change.offset;
        let mut patched = real.to_vec();
        let place = patched
            .get_mut(offset..offset + change.after.len())
            .context("no place")?;
        ensure!(place == change.before, "the function is not what it was");
        place.copy_from_slice(&change.after);
        return Ok((offset, patched));
    }
    anyhow::bail!("none of {FUNCTIONS:?} begins with a plain move")
}
