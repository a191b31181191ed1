//! One line about where an unknown page came from, as far as that was seen. It explains, and decides nothing.

use nephoscope_guest::{PageBytes, Privilege};
use nephoscope_inventory::{PageRecord, Unknown};

/// What is known of it. `near_known`: pages of known files lie near it in its address space.
pub(crate) fn of(record: &PageRecord, bytes: &PageBytes, near_known: bool) -> Unknown {
    let kernel = record.privilege == Privilege::Supervisor && record.paging && record.va.is_high_half();
    let jit = kernel && looks_like_ebpf(bytes);
    Unknown {
        origin: line(record, jit, near_known),
        jit,
        undecided: false,
    }
}

fn line(record: &PageRecord, jit: bool, near_known: bool) -> String {
    let written = if record.generation > 0 {
        "written and executed again"
    } else {
        "first execution in its frame"
    };
    match (record.privilege, record.paging, record.va.is_high_half()) {
        (Privilege::User, ..) if near_known => format!("user memory near known modules, {written}"),
        (Privilege::User, ..) => format!("user memory away from any known module, {written}"),
        (_, true, true) if jit => {
            format!("kernel memory in no known image, laid out like the eBPF JIT's output, {written}")
        }
        (_, true, true) => format!("kernel memory in no known image, {written}"),
        (_, true, false) => format!("supervisor code at a low address, with paging, {written}"),
        _ => format!("firmware phase, without paging, {written}"),
    }
}

/// The beginning of a program as Linux's JIT makes it, after an `endbr64` where the kernel has indirect-branch tracking: a
/// no-op that ftrace can make a call, maybe one that clears or keeps the tail-call count, a frame
/// (`emit_prologue` in `arch/x86/net/bpf_jit_comp.c`).
fn looks_like_ebpf(bytes: &PageBytes) -> bool {
    const NOP: &[u8] = &[0x0f, 0x1f, 0x44, 0x00, 0x00];
    const TAIL_CALLS: [&[u8]; 4] = [&[], &[0x31, 0xc0], &[0x66, 0x90], &[0x0f, 0x1f, 0x00]];
    const FRAME: &[u8] = &[0x55, 0x48, 0x89, 0xe5];
    (0..bytes.len()).any(|at| {
        let rest = bytes.get(at..).and_then(|rest| rest.strip_prefix(NOP));
        rest.is_some_and(|rest| {
            TAIL_CALLS.iter().any(|counts| {
                rest.strip_prefix(*counts)
                    .is_some_and(|rest| rest.starts_with(FRAME))
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jits_prologue_is_told_from_a_compilers() {
        let page = |code: &[u8]| {
            let mut page = PageBytes::zeroed();
            page[100..100 + code.len()].copy_from_slice(code);
            page
        };
        let jit = [0x0f, 0x1f, 0x44, 0, 0, 0x0f, 0x1f, 0, 0x55, 0x48, 0x89, 0xe5];
        assert!(looks_like_ebpf(&page(&jit)));
        // A kernel function keeps no frame pointer, and a module's does so after other registers.
        assert!(!looks_like_ebpf(&page(&[
            0x0f, 0x1f, 0x44, 0, 0, 0x41, 0x57, 0x48, 0x89, 0xe5
        ])));
        let mut cut = PageBytes::zeroed();
        cut[4090..].copy_from_slice(&jit[..6]);
        assert!(!looks_like_ebpf(&cut));
    }
}
