//! One test per bit of an AArch64 descriptor that the walker reads. Sections are those of the Arm ARM, DDI 0487.

mod common;

use common::Memory;
use nephoscope_guest::{Gpa, Gva, Root};
use nephoscope_isa::{Fault, Mode, Translation, Walker};

const VA: Gva = Gva(1 << 39 | 1 << 30 | 1 << 21 | 1 << 12 | 0x123);
/// Valid page: AF, AP[1] (EL0), writable.
const PAGE: u64 = 0x9000 | 1 << 10 | 1 << 6 | 3;
const BLOCK: u64 = PAGE & !2 & !0xf000;
const GOOD: [u64; 4] = [0x2003, 0x3003, 0x4003, PAGE];

fn translate(chain: [u64; 4]) -> Result<Translation, Fault> {
    let mut memory = Memory::default();
    for (table, entry) in [0x1000, 0x2000, 0x3000, 0x4000].into_iter().zip(chain) {
        memory.write_u64(table + 8, entry);
    }
    Walker::new(Mode::aarch64(40), memory).translate(Root(0x1000), VA)
}

fn with(level: usize, entry: u64) -> [u64; 4] {
    let mut chain = GOOD;
    chain[level] = entry;
    chain
}

#[test]
fn four_levels_lead_to_a_page_d8_3() {
    let t = translate(GOOD).unwrap();
    assert_eq!((t.gpa, t.size_bytes), (Gpa(0x9123), 4096));
    assert!(
        t.accessed && t.global && t.permissions.user && t.permissions.write && t.permissions.execute_user
    );
}

#[test]
fn both_halves_are_walked_alike_from_their_own_root_d8_2() {
    let mut memory = Memory::default();
    for (table, entry) in [0x1000, 0x2000, 0x3000, 0x4000].into_iter().zip(GOOD) {
        memory.write_u64(table + 8, entry);
    }
    let walker = Walker::new(Mode::aarch64(40), memory);
    let high = Gva(VA.0 | 0xffff << 48);
    assert_eq!(
        walker.translate(Root(0x1000), high),
        walker.translate(Root(0x1000), VA)
    );
    let hole = Gva(VA.0 | 1 << 48);
    assert_eq!(
        walker.translate(Root(0x1000), hole),
        Err(Fault::NoSuchAddress { va: hole })
    );
}

#[test]
fn bit_0_clear_is_invalid_at_any_level_d8_3() {
    for (level, good) in GOOD.into_iter().enumerate() {
        assert!(matches!(
            translate(with(level, good & !1)),
            Err(Fault::NotPresent { .. })
        ));
    }
}

#[test]
fn bit_1_clear_is_a_block_at_levels_1_and_2_and_invalid_at_0_and_3_d8_3() {
    assert_eq!(translate(with(1, 3 << 30 | BLOCK)).unwrap().size_bytes, 1 << 30);
    let t = translate(with(2, 5 << 21 | BLOCK)).unwrap();
    assert_eq!((t.gpa, t.size_bytes), (Gpa(5 << 21 | 1 << 12 | 0x123), 1 << 21));
    assert!(matches!(
        translate(with(0, 0x2001)),
        Err(Fault::NotPresent { level: 4, .. })
    ));
    assert!(matches!(
        translate(with(3, PAGE & !2)),
        Err(Fault::NotPresent { level: 1, .. })
    ));
}

#[test]
fn ap_2_denies_writes_and_ap_1_allows_el0_d8_4_1() {
    assert!(!translate(with(3, PAGE | 1 << 7)).unwrap().permissions.write);
    let p = translate(with(3, PAGE & !(1 << 6))).unwrap().permissions;
    assert!(!p.user && !p.execute_user && p.execute_supervisor && p.write);
}

#[test]
fn uxn_and_pxn_deny_execution_each_to_its_own_d8_4_2() {
    assert!(
        !translate(with(3, PAGE | 1 << 54))
            .unwrap()
            .permissions
            .execute_user
    );
    let kernel = PAGE & !(1 << 6);
    assert!(
        !translate(with(3, kernel | 1 << 53))
            .unwrap()
            .permissions
            .execute()
    );
}

#[test]
fn what_users_can_write_the_supervisor_does_not_execute_d8_4_2() {
    assert!(!translate(GOOD).unwrap().permissions.execute_supervisor);
    assert!(
        translate(with(3, PAGE | 1 << 7))
            .unwrap()
            .permissions
            .execute_supervisor
    );
}

#[test]
fn table_descriptors_take_rights_from_everything_below_d8_4() {
    for (level, good) in GOOD.into_iter().enumerate().take(3) {
        let p = |bit: u32| translate(with(level, good | 1 << bit)).unwrap().permissions;
        assert!(!p(62).write, "APTable[1]");
        assert!(!p(61).user && !p(61).execute_user, "APTable[0]");
        assert!(!p(60).execute_user, "UXNTable");
        assert!(!p(59).execute_supervisor, "PXNTable");
    }
}

#[test]
fn af_ng_and_dbm_are_accessed_not_global_and_dirty_d8_4() {
    assert!(!translate(with(3, PAGE & !(1 << 10))).unwrap().accessed);
    assert!(!translate(with(3, PAGE | 1 << 11)).unwrap().global);
    assert!(translate(with(3, PAGE | 1 << 51)).unwrap().dirty);
    assert!(!translate(with(3, PAGE | 1 << 51 | 1 << 7)).unwrap().dirty);
}

#[test]
fn an_address_above_the_physical_size_is_a_fault_at_any_level_d8_1_6() {
    for (level, good) in GOOD.into_iter().enumerate() {
        assert!(matches!(
            translate(with(level, good | 1 << 40)),
            Err(Fault::Reserved { .. })
        ));
    }
}
