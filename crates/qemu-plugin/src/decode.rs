//! Instructions that can change the page-table root, recognised by their bytes.
//!
//! x86-64 has these ways (AMD APM 2 §5.5, §12.4, §15.5, §10.3; Intel SDM 3A §2.5, §7.3, §31.4):
//! MOV to CR3, and to CR0 and CR4, which decide whether CR3 means anything; RSM; VMRUN; and, outside long mode only,
//! task switches by far JMP, far CALL, IRET or a task gate. Interrupts through task gates, #VMEXIT, SMI, INIT and reset
//! come from no instruction; they are noticed because the root found later is not the one that was left.

/// How an instruction may change the root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RootChange {
    /// MOV CR3 from this general register (0 = RAX … 15 = R15).
    MovCr3(u8),
    /// The root afterwards is not known before the instruction ran.
    Other,
}

/// What must be known of the CPU to read an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mode {
    /// Code segment width in bits: 16, 32 or 64.
    pub(crate) bits: u8,
    /// EFER.LMA: hardware task switches do not exist.
    pub(crate) long: bool,
    /// CR0.PE: without it neither.
    pub(crate) protected: bool,
}

/// Looks at one instruction. `None`: it cannot change the root.
pub(crate) fn root_change(bytes: &[u8], mode: Mode) -> Option<RootChange> {
    let mut rest = bytes;
    while let [
        0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65,
        tail @ ..,
    ] = rest
    {
        rest = tail;
    }
    let mut rex = 0;
    if mode.bits == 64
        && let [prefix @ 0x40..=0x4f, tail @ ..] = rest
    {
        rex = *prefix;
        rest = tail;
    }
    let task_switches = mode.protected && !mode.long;
    match rest {
        [0x0f, 0x22, modrm, ..] => match (modrm >> 3) & 7 | (rex & 4) << 1 {
            3 => Some(RootChange::MovCr3(modrm & 7 | (rex & 1) << 3)),
            0 | 4 => Some(RootChange::Other),
            _ => None,
        },
        // RSM; VMRUN.
        [0x0f, 0xaa, ..] | [0x0f, 0x01, 0xd8, ..] => Some(RootChange::Other),
        [0xcf | 0xea | 0x9a, ..] if task_switches => Some(RootChange::Other),
        [0xff, modrm, ..] if task_switches && matches!((modrm >> 3) & 7, 3 | 5) => Some(RootChange::Other),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Mode = Mode {
        bits: 64,
        long: true,
        protected: true,
    };
    const LEGACY: Mode = Mode {
        bits: 32,
        long: false,
        protected: true,
    };
    const REAL: Mode = Mode {
        bits: 16,
        long: false,
        protected: false,
    };

    #[test]
    fn mov_to_cr3_names_its_source_register() {
        assert_eq!(
            root_change(&[0x0f, 0x22, 0xd8], LONG),
            Some(RootChange::MovCr3(0))
        );
        assert_eq!(
            root_change(&[0x0f, 0x22, 0xdf], LEGACY),
            Some(RootChange::MovCr3(7))
        );
        assert_eq!(
            root_change(&[0x41, 0x0f, 0x22, 0xdc], LONG),
            Some(RootChange::MovCr3(12))
        );
        assert_eq!(
            root_change(&[0x66, 0x48, 0x0f, 0x22, 0xde], LONG),
            Some(RootChange::MovCr3(6))
        );
    }

    #[test]
    fn cr8_and_reads_of_cr3_change_nothing() {
        assert_eq!(root_change(&[0x44, 0x0f, 0x22, 0xc0], LONG), None, "mov cr8, rax");
        assert_eq!(root_change(&[0x0f, 0x20, 0xd8], LONG), None, "mov rax, cr3");
        assert_eq!(root_change(&[0x0f, 0x22, 0xd0], LONG), None, "mov cr2, rax");
    }

    #[test]
    fn paging_switches_rsm_and_vmrun_leave_the_root_unknown() {
        for bytes in [
            &[0x0f, 0x22, 0xc0][..],
            &[0x0f, 0x22, 0xe0],
            &[0x0f, 0xaa],
            &[0x0f, 0x01, 0xd8],
        ] {
            assert_eq!(root_change(bytes, LONG), Some(RootChange::Other), "{bytes:x?}");
        }
    }

    #[test]
    fn task_switches_exist_only_in_protected_mode_outside_long_mode() {
        for bytes in [
            &[0xcf][..],
            &[0xea, 0, 0, 0, 0, 8, 0],
            &[0x9a, 0, 0, 0, 0, 8, 0],
            &[0xff, 0x2d],
            &[0xff, 0x1d],
        ] {
            assert_eq!(root_change(bytes, LEGACY), Some(RootChange::Other), "{bytes:x?}");
            assert_eq!(root_change(bytes, LONG), None, "{bytes:x?}");
            assert_eq!(root_change(bytes, REAL), None, "{bytes:x?}");
        }
        assert_eq!(root_change(&[0xff, 0xd0], LEGACY), None, "near call");
    }

    #[test]
    fn any_bytes_are_looked_at_without_a_panic() {
        for a in 0..=255 {
            for b in 0..=255 {
                for mode in [LONG, LEGACY, REAL] {
                    let _ = root_change(&[a, b], mode);
                    let _ = root_change(&[a], mode);
                }
            }
        }
        assert_eq!(root_change(&[], LONG), None);
    }
}
