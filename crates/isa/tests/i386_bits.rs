//! One test per bit of an i386 entry, without and with PAE. Sections are those of the Intel SDM, volume 3A.

mod common;

use common::{LONG, Memory, NXE, PAE, PG, PGE, PSE, x86};
use nephoscope_guest::{Gpa, Gva, Root};
use nephoscope_isa::{Fault, Translation, Walker, X86Controls};

const CLASSIC: X86Controls = X86Controls {
    cr0: PG,
    cr4: PSE | PGE,
    efer: 0,
    ..LONG
};
/// PDE 1, PTE 1, offset 0x123.
const VA: Gva = Gva(1 << 22 | 1 << 12 | 0x123);

fn classic(controls: X86Controls, pde: u32, pte: u32) -> Result<Translation, Fault> {
    let mut memory = Memory::default();
    memory.write_u32(0x1000 + 4, pde);
    memory.write_u32(0x2000 + 4, pte);
    Walker::new(x86(controls), memory).translate(Root(0x1000), VA)
}

fn is_reserved(result: Result<Translation, Fault>) -> bool {
    matches!(result, Err(Fault::Reserved { .. }))
}

#[test]
fn two_levels_of_4_byte_entries_lead_to_a_4_kib_page_4_3() {
    let t = classic(CLASSIC, 0x2007, 0xffff_f167).unwrap();
    assert_eq!((t.gpa, t.size_bytes), (Gpa(0xffff_f123), 4096));
    assert!(t.accessed && t.dirty && t.global);
    assert!(t.permissions.execute_user && t.permissions.execute_supervisor && t.permissions.write);
}

#[test]
fn rights_are_the_and_of_both_levels_4_6() {
    assert!(!classic(CLASSIC, 0x2005, 0x9007).unwrap().permissions.write);
    assert!(!classic(CLASSIC, 0x2007, 0x9005).unwrap().permissions.write);
    assert!(!classic(CLASSIC, 0x2003, 0x9007).unwrap().permissions.user);
    assert!(!classic(CLASSIC, 0x2007, 0x9003).unwrap().permissions.execute_user);
}

#[test]
fn bit_0_clear_is_not_present_4_3() {
    assert_eq!(
        classic(CLASSIC, 0x2006, 0x9007),
        Err(Fault::NotPresent {
            level: 2,
            at: Gpa(0x1004)
        })
    );
    assert_eq!(
        classic(CLASSIC, 0x2007, 0x9006),
        Err(Fault::NotPresent {
            level: 1,
            at: Gpa(0x2004)
        })
    );
}

#[test]
fn bit_7_of_a_pde_is_a_4_mib_page_with_pse_and_ignored_without_4_3() {
    let t = classic(CLASSIC, 0x0080_0087, 0).unwrap();
    assert_eq!((t.gpa, t.size_bytes), (Gpa(0x80_1123), 4 << 20));
    let without = X86Controls { cr4: PGE, ..CLASSIC };
    assert_eq!(classic(without, 0x2087, 0x9007).unwrap().gpa, Gpa(0x9123));
}

#[test]
fn bits_20_to_13_of_a_4_mib_pde_are_address_bits_39_to_32_table_4_4() {
    for bit in 13..=20 {
        let t = classic(CLASSIC, 0x0080_0087 | 1 << bit, 0).unwrap();
        assert_eq!(t.gpa, Gpa(1 << (bit + 19) | 0x80_1123), "bit {bit}");
    }
}

#[test]
fn pse_36_bits_that_maxphyaddr_forbids_are_reserved_table_4_4() {
    for (physical_bits, first_reserved) in [(32, 13), (36, 17), (40, 21)] {
        let controls = X86Controls {
            physical_bits,
            ..CLASSIC
        };
        for bit in 13..=21 {
            let result = classic(controls, 0x0080_0087 | 1 << bit, 0);
            assert_eq!(is_reserved(result), bit >= first_reserved, "bit {bit}");
        }
    }
}

#[test]
fn bit_12_of_a_4_mib_pde_is_pat_table_4_4() {
    assert_eq!(classic(CLASSIC, 0x0080_1087, 0), classic(CLASSIC, 0x0080_0087, 0));
}

#[test]
fn bit_7_of_a_pte_is_pat_table_4_6() {
    assert_eq!(classic(CLASSIC, 0x2007, 0x9087), classic(CLASSIC, 0x2007, 0x9007));
}

#[test]
fn bits_11_to_9_and_the_cache_bits_are_ignored_4_3() {
    assert_eq!(classic(CLASSIC, 0x2e1f, 0x9e1f), classic(CLASSIC, 0x2007, 0x9007));
}

#[test]
fn addresses_above_4_gib_do_not_exist_in_32_bit_modes() {
    for controls in [CLASSIC, X86Controls { cr4: PAE, ..CLASSIC }] {
        let walker = Walker::new(x86(controls), Memory::default());
        assert_eq!(
            walker.translate(Root(0), Gva(1 << 32)),
            Err(Fault::NoSuchAddress { va: Gva(1 << 32) })
        );
    }
}

const WITH_PAE: X86Controls = X86Controls {
    cr0: PG,
    cr4: PAE | PGE,
    efer: NXE,
    physical_bits: 36,
    gib_pages: true,
};
/// PDPTE 3, PDE 1, PTE 1, offset 0x123.
const PAE_VA: Gva = Gva(3 << 30 | 1 << 21 | 1 << 12 | 0x123);
/// 32-byte aligned, in the middle of a page.
const PAE_ROOT: Root = Root(0x1fe0);

fn pae(controls: X86Controls, pdpte: u64, pde: u64, pte: u64) -> Result<Translation, Fault> {
    let mut memory = Memory::default();
    memory.write_u64(PAE_ROOT.0 + 24, pdpte);
    memory.write_u64(0x3000 + 8, pde);
    memory.write_u64(0x4000 + 8, pte);
    Walker::new(x86(controls), memory).translate(PAE_ROOT, PAE_VA)
}

const NX: u64 = 1 << 63;

#[test]
fn pae_walks_three_levels_from_a_root_of_32_bytes_4_4() {
    let t = pae(WITH_PAE, 0x3001, 0x4007, 0xf_0000_9167).unwrap();
    assert_eq!((t.gpa, t.size_bytes), (Gpa(0xf_0000_9123), 4096));
    assert!(t.accessed && t.dirty && t.global && t.permissions.write && t.permissions.user);
    assert_eq!(x86(WITH_PAE).root(0x1fff), PAE_ROOT);
}

#[test]
fn a_pae_pdpte_reserves_what_lies_above_maxphyaddr_table_4_8() {
    for bit in [36, 51, 52, 62, 63] {
        assert!(
            is_reserved(pae(WITH_PAE, 0x3001 | 1 << bit, 0x4007, 0x9007)),
            "bit {bit}"
        );
    }
}

#[test]
fn a_pae_pdpte_carries_no_rights_and_its_low_bits_are_checked_only_with_cr3_4_4_1() {
    for bit in 1..=11 {
        assert_eq!(
            pae(WITH_PAE, 0x3001 | 1 << bit, 0x4007, 0x9007),
            pae(WITH_PAE, 0x3001, 0x4007, 0x9007),
            "bit {bit}"
        );
    }
}

#[test]
fn pae_reserves_bits_62_to_maxphyaddr_tables_4_10_and_4_11() {
    for bit in 36..=62 {
        assert!(
            is_reserved(pae(WITH_PAE, 0x3001, 0x4007 | 1 << bit, 0x9007)),
            "bit {bit} of a PDE"
        );
        assert!(
            is_reserved(pae(WITH_PAE, 0x3001, 0x4007, 0x9007 | 1 << bit)),
            "bit {bit} of a PTE"
        );
        assert!(
            is_reserved(pae(WITH_PAE, 0x3001, 0x20_0087 | 1 << bit, 0)),
            "bit {bit} of a 2 MiB PDE"
        );
    }
}

#[test]
fn pae_bit_63_denies_execution_or_is_reserved_without_nxe_4_6() {
    let without = X86Controls { efer: 0, ..WITH_PAE };
    for (pde, pte) in [(0x4007 | NX, 0x9007), (0x4007, 0x9007 | NX), (0x20_0087 | NX, 0)] {
        assert!(!pae(WITH_PAE, 0x3001, pde, pte).unwrap().permissions.execute());
        assert!(is_reserved(pae(without, 0x3001, pde, pte)));
    }
}

#[test]
fn pae_rights_are_the_and_of_pde_and_pte_4_6() {
    assert!(!pae(WITH_PAE, 0x3001, 0x4005, 0x9007).unwrap().permissions.write);
    assert!(!pae(WITH_PAE, 0x3001, 0x4007, 0x9005).unwrap().permissions.write);
    assert!(!pae(WITH_PAE, 0x3001, 0x4003, 0x9007).unwrap().permissions.user);
    assert!(!pae(WITH_PAE, 0x3001, 0x4007, 0x9003).unwrap().permissions.user);
}

#[test]
fn pae_bit_7_of_a_pde_is_a_2_mib_page_with_pat_and_reserved_bits_table_4_9() {
    let t = pae(WITH_PAE, 0x3001, 0x60_1087, 0).unwrap();
    assert_eq!((t.gpa, t.size_bytes), (Gpa(0x60_1123), 2 << 20));
    for bit in 13..=20 {
        assert!(
            is_reserved(pae(WITH_PAE, 0x3001, 0x60_0087 | 1 << bit, 0)),
            "bit {bit}"
        );
    }
}
