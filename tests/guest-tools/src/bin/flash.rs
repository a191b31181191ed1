//! `flash [FILE] [SECONDS]`: maps a page of a known file's code privately, changes it, runs the change and restores the
//! page at once; then stays alive for a while, with nothing left to see.
//!
//! Writes one line: `FILE OFFSET ADDRESS BEFORE AFTER`, numbers hexadecimal, the offset that of the page in the file.
#![allow(
    unsafe_code,
    reason = "writing and running code by hand is what this program is for"
)]

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use object::{Object, ObjectSection};

/// A library that every guest has and every catalog knows.
const KNOWN_FILE: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";

const PAGE_BYTES: usize = 4096;

/// `mov eax, 0x2a; ret`
const CODE: [u8; 6] = [0xb8, 0x2a, 0x00, 0x00, 0x00, 0xc3];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap_or_else(|| KNOWN_FILE.to_owned());
    let seconds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(10);
    let offset = second_code_page(&path)?;
    let file = File::open(&path)?;
    let length = NonZeroUsize::new(PAGE_BYTES).context("no page")?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE | ProtFlags::PROT_EXEC;
    // SAFETY: a new private mapping at an address that the kernel chooses touches no memory that anything else uses.
    let page = unsafe {
        mmap(
            None,
            length,
            protection,
            MapFlags::MAP_PRIVATE,
            &file,
            i64::try_from(offset)?,
        )?
    };
    let page: *mut u8 = page.as_ptr().cast();
    let mut before = [0; CODE.len()];
    // SAFETY: `page` points to PAGE_BYTES of our own readable, writable, executable memory, `CODE` is shorter, and
    // nothing else runs in this process; `CODE` is a whole function without arguments in the C calling convention
    // that clobbers nothing but its result register.
    let answer = unsafe {
        page.copy_to_nonoverlapping(before.as_mut_ptr(), CODE.len());
        page.copy_from_nonoverlapping(CODE.as_ptr(), CODE.len());
        let function: extern "C" fn() -> u32 = std::mem::transmute(page);
        let answer = function();
        page.copy_from_nonoverlapping(before.as_ptr(), CODE.len());
        answer
    };
    ensure!(answer == 42, "the code that was written did not run");
    println!(
        "{path} {offset:x} {:x} {} {}",
        page.addr(),
        hex(&before),
        hex(&CODE)
    );
    std::thread::sleep(Duration::from_secs(seconds));
    Ok(())
}

/// The offset of the second page of the file's `.text`: surely full of code, and of nothing else.
fn second_code_page(path: &str) -> Result<u64> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {path}"))?;
    let object = object::File::parse(bytes.as_slice())?;
    let text = object
        .section_by_name(".text")
        .and_then(|section| section.file_range())
        .context("no .text")?;
    let page = u64::try_from(PAGE_BYTES)?;
    text.0
        .checked_next_multiple_of(page)
        .and_then(|first| first.checked_add(page))
        .context("no second page")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
