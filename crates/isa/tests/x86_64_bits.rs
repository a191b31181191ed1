//! One test per bit of an x86-64 entry. Sections are those of the Intel SDM, volume 3A.

mod common;

use common::{LA57, LMA, LONG, Memory, PAE, PGE, SMEP, x86};
use nephoscope_guest::{Gpa, Gva, Root};
use nephoscope_isa::{Fault, Mode, Translation, Walker, X86Controls};

const ROOT: Root = Root(0x1000);
/// Index 1 in every table, offset 0x123.
const VA: Gva = Gva(1 << 39 | 1 << 30 | 1 << 21 | 1 << 12 | 0x123);
const NX: u64 = 1 << 63;
const PS: u64 = 1 << 7;
/// Present, writable, user, accessed.
const OK: u64 = 0x27;

/// PML4E, PDPTE, PDE, PTE of [`VA`].
#[derive(Clone, Copy)]
struct Chain([u64; 4]);

const GOOD: Chain = Chain([0x2000 | OK, 0x3000 | OK, 0x4000 | OK, 0x9000 | OK]);

impl Chain {
    fn with(mut self, level: usize, f: impl Fn(u64) -> u64) -> Self {
        self.0[4 - level] = f(self.0[4 - level]);
        self
    }

    fn memory(self) -> Memory {
        let mut memory = Memory::default();
        for (table, entry) in [0x1000, 0x2000, 0x3000, 0x4000].into_iter().zip(self.0) {
            memory.write_u64(table + 8, entry);
        }
        memory
    }

    fn translate_with(self, controls: X86Controls) -> Result<Translation, Fault> {
        Walker::new(x86(controls), self.memory()).translate(ROOT, VA)
    }

    fn translate(self) -> Result<Translation, Fault> {
        self.translate_with(LONG)
    }
}

fn reserved(result: Result<Translation, Fault>) -> Option<u8> {
    match result {
        Err(Fault::Reserved { level, .. }) => Some(level),
        _ => None,
    }
}

#[test]
fn four_levels_lead_to_a_4_kib_page_4_5_4() {
    let t = GOOD.translate().unwrap();
    assert_eq!((t.gpa, t.size_bytes), (Gpa(0x9123), 4096));
    assert!(t.permissions.write && t.permissions.user);
    assert!(t.permissions.execute_user && t.permissions.execute_supervisor);
    assert!(t.accessed && !t.dirty && !t.global);
}

#[test]
fn bit_0_clear_at_any_level_is_not_present_4_5() {
    for level in 1..=4u8 {
        let result = GOOD.with(level.into(), |e| e & !1).translate();
        assert_eq!(
            result,
            Err(Fault::NotPresent {
                level,
                at: Gpa((5 - u64::from(level)) * 0x1000 + 8)
            })
        );
    }
}

#[test]
fn an_entry_that_is_not_present_has_no_reserved_bits_4_5() {
    let result = GOOD.with(2, |_| !1).translate();
    assert!(matches!(result, Err(Fault::NotPresent { level: 2, .. })));
}

#[test]
fn bit_1_clear_at_any_level_denies_writes_4_6() {
    for level in 1..=4 {
        let p = GOOD.with(level, |e| e & !2).translate().unwrap().permissions;
        assert!(!p.write && p.user && p.execute_user);
    }
}

#[test]
fn bit_2_clear_at_any_level_denies_user_access_and_execution_4_6() {
    for level in 1..=4 {
        let p = GOOD.with(level, |e| e & !4).translate().unwrap().permissions;
        assert!(p.write && !p.user && !p.execute_user && p.execute_supervisor);
    }
}

#[test]
fn bits_3_and_4_say_how_to_cache_and_change_nothing_4_9() {
    for level in 1..=4 {
        assert_eq!(GOOD.with(level, |e| e | 0x18).translate(), GOOD.translate());
    }
}

#[test]
fn bit_5_of_the_leaf_is_accessed_4_8() {
    assert!(!GOOD.with(1, |e| e & !0x20).translate().unwrap().accessed);
    assert!(GOOD.with(2, |e| e & !0x20).translate().unwrap().accessed);
}

#[test]
fn bit_6_of_the_leaf_is_dirty_and_elsewhere_ignored_4_8() {
    assert!(GOOD.with(1, |e| e | 0x40).translate().unwrap().dirty);
    for level in 2..=4 {
        assert_eq!(GOOD.with(level, |e| e | 0x40).translate(), GOOD.translate());
    }
}

#[test]
fn bit_7_of_a_pml4e_is_reserved_table_4_15() {
    assert_eq!(reserved(GOOD.with(4, |e| e | PS).translate()), Some(4));
}

#[test]
fn bit_7_of_a_pdpte_is_a_1_gib_page_table_4_16() {
    let t = GOOD.with(3, |_| 3 << 30 | PS | OK).translate().unwrap();
    assert_eq!(
        (t.gpa, t.size_bytes),
        (Gpa(3 << 30 | 1 << 21 | 1 << 12 | 0x123), 1 << 30)
    );
}

#[test]
fn bit_7_of_a_pdpte_is_reserved_without_1_gib_pages_4_1_4() {
    let controls = X86Controls {
        gib_pages: false,
        ..LONG
    };
    assert_eq!(
        reserved(GOOD.with(3, |_| 3 << 30 | PS | OK).translate_with(controls)),
        Some(3)
    );
}

#[test]
fn bit_7_of_a_pde_is_a_2_mib_page_table_4_18() {
    let t = GOOD.with(2, |_| 5 << 21 | PS | OK).translate().unwrap();
    assert_eq!((t.gpa, t.size_bytes), (Gpa(5 << 21 | 1 << 12 | 0x123), 1 << 21));
}

#[test]
fn bit_7_of_a_pte_is_pat_and_not_a_page_size_table_4_20() {
    assert_eq!(GOOD.with(1, |e| e | PS).translate(), GOOD.translate());
}

#[test]
fn bit_8_of_a_leaf_is_global_where_cr4_pge_is_set_4_10_2_4() {
    assert!(GOOD.with(1, |e| e | 1 << 8).translate().unwrap().global);
    let controls = X86Controls { cr4: PAE, ..LONG };
    assert!(
        !GOOD
            .with(1, |e| e | 1 << 8)
            .translate_with(controls)
            .unwrap()
            .global
    );
    for level in 2..=4 {
        assert!(!GOOD.with(level, |e| e | 1 << 8).translate().unwrap().global);
    }
}

#[test]
fn bits_11_to_9_are_ignored_4_5() {
    for level in 1..=4 {
        assert_eq!(GOOD.with(level, |e| e | 0xe00).translate(), GOOD.translate());
    }
}

#[test]
fn bit_12_of_a_large_leaf_is_pat_and_no_address_bit_tables_4_16_and_4_18() {
    let large = GOOD.with(2, |_| 5 << 21 | PS | OK);
    assert_eq!(large.with(2, |e| e | 1 << 12).translate(), large.translate());
    let huge = GOOD.with(3, |_| 3 << 30 | PS | OK);
    assert_eq!(huge.with(3, |e| e | 1 << 12).translate(), huge.translate());
}

#[test]
fn bits_20_to_13_of_a_2_mib_leaf_are_reserved_table_4_18() {
    for bit in 13..=20 {
        assert_eq!(
            reserved(GOOD.with(2, |_| 5 << 21 | PS | OK | 1 << bit).translate()),
            Some(2),
            "bit {bit}"
        );
    }
}

#[test]
fn bits_29_to_13_of_a_1_gib_leaf_are_reserved_table_4_16() {
    for bit in 13..=29 {
        assert_eq!(
            reserved(GOOD.with(3, |_| 3 << 30 | PS | OK | 1 << bit).translate()),
            Some(3),
            "bit {bit}"
        );
    }
}

#[test]
fn address_bits_from_maxphyaddr_up_are_reserved_at_every_level_4_5() {
    for level in 1..=4u8 {
        for bit in 46..=51 {
            assert_eq!(
                reserved(GOOD.with(level.into(), |e| e | 1 << bit).translate()),
                Some(level),
                "bit {bit}"
            );
        }
    }
    let t = GOOD.with(1, |e| e | 1 << 45).translate().unwrap();
    assert_eq!(t.gpa, Gpa(1 << 45 | 0x9123));
}

#[test]
fn bits_62_to_52_are_ignored_or_a_protection_key_4_5_and_4_6_2() {
    for level in 1..=4 {
        for bit in 52..=62 {
            assert_eq!(
                GOOD.with(level, |e| e | 1 << bit).translate(),
                GOOD.translate(),
                "bit {bit}"
            );
        }
    }
}

#[test]
fn bit_63_at_any_level_denies_execution_4_6() {
    for level in 1..=4 {
        let p = GOOD.with(level, |e| e | NX).translate().unwrap().permissions;
        assert!(p.write && p.user && !p.execute_user && !p.execute_supervisor && !p.execute());
    }
}

#[test]
fn bit_63_is_reserved_without_efer_nxe_4_1_4() {
    let controls = X86Controls { efer: LMA, ..LONG };
    for level in 1..=4u8 {
        assert_eq!(
            reserved(GOOD.with(level.into(), |e| e | NX).translate_with(controls)),
            Some(level)
        );
    }
}

#[test]
fn with_smep_the_supervisor_executes_no_user_page_4_6_1() {
    let controls = X86Controls {
        cr4: LONG.cr4 | SMEP,
        ..LONG
    };
    let p = GOOD.translate_with(controls).unwrap().permissions;
    assert!(p.execute_user && !p.execute_supervisor);
    let p = GOOD
        .with(3, |e| e & !4)
        .translate_with(controls)
        .unwrap()
        .permissions;
    assert!(!p.execute_user && p.execute_supervisor);
}

#[test]
fn addresses_that_are_not_canonical_do_not_exist_sdm_1_3_3_7_1() {
    let walker = Walker::new(x86(LONG), GOOD.memory());
    for va in [0x8000_0000_0000, 0xffff_7fff_ffff_ffff, 1 << 63] {
        assert_eq!(
            walker.translate(ROOT, Gva(va)),
            Err(Fault::NoSuchAddress { va: Gva(va) })
        );
    }
    assert!(matches!(
        walker.translate(ROOT, Gva(u64::MAX)),
        Err(Fault::NotPresent { level: 4, .. })
    ));
    assert!(matches!(
        walker.translate(ROOT, Gva(0x7fff_ffff_ffff)),
        Err(Fault::NotPresent { level: 4, .. })
    ));
}

#[test]
fn with_la57_a_fifth_level_stands_on_top_4_5_4() {
    let controls = X86Controls {
        cr4: LONG.cr4 | LA57,
        ..LONG
    };
    let mut memory = GOOD.memory();
    memory.write_u64(0x8000 + 3 * 8, 0x1000 | OK);
    let walker = Walker::new(x86(controls), &memory);
    let va = Gva(3 << 48 | VA.0);
    assert_eq!(walker.translate(Root(0x8000), va).unwrap().gpa, Gpa(0x9123));
    assert_eq!(
        walker.translate(ROOT, Gva(1 << 56)),
        Err(Fault::NoSuchAddress { va: Gva(1 << 56) })
    );
    assert!(
        walker
            .translate(Root(0x8000), Gva(0xff00 << 48))
            .is_err_and(|f| f != Fault::NoSuchAddress { va })
    );
    memory.write_u64(0x8000 + 3 * 8, 0x1000 | OK | PS);
    let result = Walker::new(x86(controls), &memory).translate(Root(0x8000), va);
    assert_eq!(reserved(result), Some(5));
}

#[test]
fn the_mode_follows_the_control_registers_4_1_1() {
    let name = |cr0, cr4, efer| {
        Mode::x86(&X86Controls {
            cr0,
            cr4,
            efer,
            ..LONG
        })
        .map(|mode| mode.name())
    };
    assert_eq!(name(0, PAE, LMA), None);
    assert_eq!(name(common::PG, PAE, LMA), Some("x86-64, 4 levels"));
    assert_eq!(name(common::PG, PAE | LA57, LMA), Some("x86-64, 5 levels"));
    assert_eq!(name(common::PG, PAE | LA57, 0), Some("i386 with PAE"));
    assert_eq!(name(common::PG, common::PSE, 0), Some("i386 with PSE"));
    assert_eq!(name(common::PG, PGE, 0), Some("i386"));
}

#[test]
fn a_root_drops_the_pcid_the_flags_and_what_lies_above_table_4_12() {
    assert_eq!(x86(LONG).root(0x8000_0000_1234_5fff), Root(0x1234_5000));
}

#[test]
fn a_table_where_no_memory_is_cannot_be_read_and_says_where() {
    let result = GOOD.with(3, |_| 0x7f00_0000 | OK).translate();
    assert_eq!(
        result,
        Err(Fault::Unreadable {
            level: 2,
            at: Gpa(0x7f00_0008)
        })
    );
    let walker = Walker::new(x86(LONG), Memory::default());
    assert_eq!(
        walker.translate(Root(u64::MAX), VA),
        Err(Fault::Unreadable {
            level: 4,
            at: Gpa(0x000f_ffff_ffff_f008)
        })
    );
}
