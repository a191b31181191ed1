//! `inner-guest FILE`: runs an instruction of a file's code, has a virtual machine of its own change that page, and runs the
//! instruction again.
//!
//! Writes one line: `FILE OFFSET BEFORE AFTER`, numbers hexadecimal, the offset that of the changed byte in the file.
#![allow(
    unsafe_code,
    reason = "running code by hand and giving memory to a virtual machine is what this program is for"
)]

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use anyhow::{Context, Result, ensure};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VmFd};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use object::{Object, ObjectSection};

const PAGE_BYTES: usize = 4096;
const RET: u8 = 0xc3;

/// Where the inner machine sees its program, and the page of the file.
const PROGRAM_AT: u16 = 0x1000;
const PAGE_AT: u16 = 0x2000;

/// A page of code, the instruction in it that is run, and the byte that is changed.
struct Place {
    /// In the file.
    page: u64,
    ret: usize,
    changed: usize,
}

fn main() -> Result<()> {
    let path = std::env::args().nth(1).context("usage: inner-guest FILE")?;
    let place = place(&path)?;
    let length = NonZeroUsize::new(PAGE_BYTES).context("no page")?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE | ProtFlags::PROT_EXEC;
    let file = File::options().read(true).write(true).open(&path)?;
    let offset = i64::try_from(place.page)?;
    // SAFETY: new mappings at addresses that the kernel chooses touch no memory that anything else uses.
    let (page, program) = unsafe {
        (
            mmap(None, length, protection, MapFlags::MAP_SHARED, &file, offset)?,
            mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE)?,
        )
    };
    let (page, program): (NonNull<u8>, NonNull<u8>) = (page.cast(), program.cast());
    // SAFETY: `ret` lies within the page, which holds the whole of that instruction; a function that does nothing else is sound
    // in any calling convention.
    let run = || unsafe {
        let function: extern "C" fn() = std::mem::transmute(page.add(place.ret));
        function();
    };
    // SAFETY: `changed` lies within the page, and is read as what others write.
    let byte = || unsafe { page.add(place.changed).read_volatile() };
    let before = byte();
    run();
    let [low, high] = (PAGE_AT + u16::try_from(place.changed)?).to_le_bytes();
    // mov byte [PAGE_AT + changed], !before; hlt
    let code = [0xc6, 0x06, low, high, !before, 0xf4];
    // SAFETY: the mapping is a page, and nothing else refers to it.
    unsafe { program.copy_from_nonoverlapping(NonNull::from(&code).cast(), code.len()) };
    inner(&[(PROGRAM_AT, program), (PAGE_AT, page)])?;
    ensure!(byte() == !before, "the inner guest did not change the page");
    run();
    let offset = place.page + u64::try_from(place.changed)?;
    println!("{path} {offset:x} {before:02x} {:02x}", !before);
    Ok(())
}

/// Runs the program until it halts, in real mode.
fn inner(slots: &[(u16, NonNull<u8>)]) -> Result<()> {
    let vm = Kvm::new().context("no /dev/kvm")?.create_vm()?;
    for (number, (at, page)) in (0..).zip(slots) {
        give(&vm, number, *at, *page)?;
    }
    let mut vcpu = vm.create_vcpu(0)?;
    let mut special = vcpu.get_sregs()?;
    (special.cs.base, special.cs.selector) = (0, 0);
    vcpu.set_sregs(&special)?;
    let mut registers = vcpu.get_regs()?;
    (registers.rip, registers.rflags) = (u64::from(PROGRAM_AT), 2);
    vcpu.set_regs(&registers)?;
    match vcpu.run()? {
        VcpuExit::Hlt => Ok(()),
        other => anyhow::bail!("the inner guest ended with {other:?}"),
    }
}

fn give(vm: &VmFd, number: u32, at: u16, page: NonNull<u8>) -> Result<()> {
    let region = kvm_userspace_memory_region {
        slot: number,
        flags: 0,
        guest_phys_addr: u64::from(at),
        memory_size: u64::try_from(PAGE_BYTES)?,
        userspace_addr: u64::try_from(page.as_ptr().addr())?,
    };
    // SAFETY: the page is mapped until this process ends, and is read and written here as what others write.
    unsafe { vm.set_user_memory_region(region) }.context("the inner machine takes no memory")
}

/// In the first page of the file's `.text` that has a byte of that value far enough from its beginning.
fn place(path: &str) -> Result<Place> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {path}"))?;
    let object = object::File::parse(bytes.as_slice())?;
    let (start, length) = object
        .section_by_name(".text")
        .and_then(|section| section.file_range())
        .context("no .text")?;
    let from = usize::try_from(start)?.next_multiple_of(PAGE_BYTES);
    let pages = bytes
        .get(from..usize::try_from(start + length)?)
        .context("cut off")?;
    let found = pages
        .chunks_exact(PAGE_BYTES)
        .enumerate()
        .find_map(|(number, page)| {
            let ret = page
                .iter()
                .rposition(|byte| *byte == RET)
                .filter(|ret| *ret > 64)?;
            Some((number, ret))
        });
    let (number, ret) = found.context("no page with a return in it")?;
    Ok(Place {
        page: u64::try_from(from + number * PAGE_BYTES)?,
        ret,
        changed: ret - 64,
    })
}
