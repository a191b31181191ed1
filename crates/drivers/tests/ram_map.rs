//! The map of guest memory from what QEMU 10.0.2 printed, recorded in `fixtures/`: both outputs of the same moment
//! of one machine, the flat view of the I/O ports cut short.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers outside of what clippy takes for a test"
)]

use nephoscope_drivers::{Hva, MemoryKind, RamMap, RamMapError, WhyLeftOut};
use nephoscope_guest::Gpa;

macro_rules! recorded {
    ($name:literal) => {
        (
            include_str!(concat!("fixtures/qemu-10.0.2-", $name, ".ramblock.txt")),
            include_str!(concat!("fixtures/qemu-10.0.2-", $name, ".mtree.txt")),
        )
    };
}

const PC_RESET: (&str, &str) = recorded!("pc-512m-reset");
const PC_AFTER_FIRMWARE: (&str, &str) = recorded!("pc-512m-after-firmware");
const Q35_5G: (&str, &str) = recorded!("q35-5g-memfd");
const PFLASH: (&str, &str) = recorded!("q35-256m-pflash");
const DIMM: (&str, &str) = recorded!("q35-256m-dimm");
const TWO_VGA: (&str, &str) = recorded!("pc-64m-two-vga");
const KVM: (&str, &str) = recorded!("q35-64m-kvm");
const ALL: [(&str, &str); 7] = [PC_RESET, PC_AFTER_FIRMWARE, Q35_5G, PFLASH, DIMM, TWO_VGA, KVM];

fn map((ramblock, mtree): (&str, &str)) -> RamMap {
    RamMap::from_monitor_text(ramblock, mtree).unwrap()
}

/// Segments as guest-physical start and end, block, offset in it, and whether it is ROM.
fn segments(map: &RamMap) -> Vec<(u64, u64, &str, u64, bool)> {
    map.segments()
        .iter()
        .map(|s| {
            let (block, offset) = map.block_of(s.hva).unwrap();
            (
                s.gpa.0,
                s.gpa.0 + s.size_bytes,
                block.name.as_str(),
                offset,
                s.kind == MemoryKind::Rom,
            )
        })
        .collect()
}

#[test]
fn a_pc_at_reset_sees_its_firmware_below_1_mib_and_below_4_gib() {
    let map = map(PC_RESET);
    assert_eq!(
        segments(&map),
        [
            (0, 0xc_0000, "pc.ram", 0, false),
            (0xc_0000, 0xe_0000, "pc.rom", 0, true),
            (0xe_0000, 0x10_0000, "pc.bios", 0x2_0000, true),
            (0x10_0000, 0x2000_0000, "pc.ram", 0x10_0000, false),
            (0xfffc_0000, 0x1_0000_0000, "pc.bios", 0, true),
        ]
    );
    assert!(map.left_out().is_empty());
    assert_eq!(map.blocks().len(), 6);
}

#[test]
fn an_alias_has_several_guest_physical_addresses_of_which_the_lowest_is_given() {
    let map = map(PC_RESET);
    let shared = map.hva_of(Gpa(0xffff_0000)).unwrap();
    assert_eq!(map.hva_of(Gpa(0xf_0000)), Some(shared));
    assert_eq!(map.gpa_of(shared), Some(Gpa(0xf_0000)));
    assert_eq!(
        map.gpas_of(shared).collect::<Vec<_>>(),
        [Gpa(0xf_0000), Gpa(0xffff_0000)]
    );
    // The half of the firmware that is visible only below 4 GiB.
    let upper_only = map.hva_of(Gpa(0xfffc_0000)).unwrap();
    assert_eq!(map.gpa_of(upper_only), Some(Gpa(0xfffc_0000)));
}

#[test]
fn ram_under_a_rom_has_no_guest_physical_address_but_a_block() {
    let map = map(PC_RESET);
    let ram = map.hva_of(Gpa(0)).unwrap();
    let hidden = Hva(ram.0 + 0xf_0000);
    assert_eq!(map.gpa_of(hidden), None);
    assert_eq!(
        map.block_of(hidden)
            .map(|(block, offset)| (block.name.as_str(), offset)),
        Some(("pc.ram", 0xf_0000))
    );
}

#[test]
fn after_the_firmware_the_pam_ranges_are_ram_again_and_the_vga_hole_is_not() {
    let map = map(PC_AFTER_FIRMWARE);
    let (block, offset) = map.block_of(map.hva_of(Gpa(0xf_1234)).unwrap()).unwrap();
    assert_eq!((block.name.as_str(), offset), ("pc.ram", 0xf_1234));
    assert_eq!(map.segment_of(Gpa(0xf_1234)).unwrap().kind, MemoryKind::Rom);
    assert_eq!(map.hva_of(Gpa(0xa_0000)), None);
}

#[test]
fn a_devices_region_is_found_in_the_block_with_its_path() {
    let map = map(PC_AFTER_FIRMWARE);
    let (block, _) = map.block_of(map.hva_of(Gpa(0xfd00_0000)).unwrap()).unwrap();
    assert_eq!(block.name, "0000:00:02.0/vga.vram");
}

#[test]
fn memory_above_4_gib_goes_on_in_the_same_block() {
    let map = map(Q35_5G);
    let low = map.hva_of(Gpa(0)).unwrap();
    assert_eq!(map.hva_of(Gpa(0x1_0000_0000)), Some(Hva(low.0 + 0x8000_0000)));
    assert_eq!(map.gpa_of(Hva(low.0 + 0x8000_0000 - 1)), Some(Gpa(0x7fff_ffff)));
    assert_eq!(map.hva_of(Gpa(0x8000_0000)), None);
    assert_eq!(map.hva_of(Gpa(0x1_c000_0000)), None);
}

#[test]
fn flash_that_is_read_as_memory_is_rom() {
    let map = map(PFLASH);
    assert_eq!(
        segments(&map).split_off(4),
        [
            (0xfffd_0000, 0xfffe_0000, "system.flash1", 0, true),
            (0xfffe_0000, 0x1_0000_0000, "system.flash0", 0, true),
        ]
    );
    assert_eq!(map.hva_of(Gpa(0xe_0000)), map.hva_of(Gpa(0xfffe_0000)));
}

#[test]
fn a_memory_module_is_a_block_of_its_own() {
    let map = map(DIMM);
    assert_eq!(
        segments(&map).last(),
        Some(&(0x1_0000_0000, 0x1_1000_0000, "mymem", 0, false))
    );
}

#[test]
fn two_devices_with_regions_of_one_name_are_left_out_and_not_guessed() {
    let map = map(TWO_VGA);
    let left_out: Vec<_> = map
        .left_out()
        .iter()
        .map(|l| (l.range.gpa.0, l.range.region.as_str(), l.why))
        .collect();
    assert_eq!(
        left_out,
        [
            (0xfc00_0000, "vga.vram", WhyLeftOut::SeveralBlocks),
            (0xfd00_0000, "vga.vram", WhyLeftOut::SeveralBlocks),
        ]
    );
}

#[test]
fn the_mark_that_kvm_puts_behind_each_range_is_no_part_of_a_name() {
    let map = map(KVM);
    assert!(map.left_out().is_empty());
    assert_eq!(
        segments(&map)[2],
        (0xe_0000, 0x10_0000, "pc.bios", 0x2_0000, true)
    );
    assert_eq!(segments(&map).len(), 5);
}

#[test]
fn every_address_of_every_segment_goes_to_the_host_and_back() {
    for recording in ALL {
        let map = map(recording);
        for segment in map.segments() {
            for offset in [0, 1, 4095, segment.size_bytes / 2, segment.size_bytes - 1] {
                let gpa = Gpa(segment.gpa.0 + offset);
                let hva = map.hva_of(gpa).unwrap();
                assert!(map.gpas_of(hva).any(|alias| alias == gpa));
                assert_eq!(map.gpas_of(hva).next(), map.gpa_of(hva));
            }
        }
        let ends: Vec<_> = map
            .segments()
            .iter()
            .map(|s| Hva(s.hva.0 + s.size_bytes))
            .collect();
        for end in ends {
            assert_eq!(map.gpa_of(end), map.gpas_of(end).next());
        }
    }
}

#[test]
fn text_cut_anywhere_is_an_error_or_a_smaller_map_but_no_panic() {
    for (ramblock, mtree) in ALL {
        let whole = map((ramblock, mtree)).segments().len();
        for cut in 0..mtree.len() {
            if let Ok(map) = RamMap::from_monitor_text(ramblock, &mtree[..cut]) {
                assert!(map.segments().len() <= whole);
            }
        }
        for cut in 0..ramblock.len() {
            let _ = RamMap::from_monitor_text(&ramblock[..cut], mtree);
        }
    }
}

#[test]
fn a_qemu_that_prints_no_host_addresses_is_told_so() {
    let old = "              Block Name    PSize              Offset               Used              Total\n";
    assert!(matches!(
        RamMap::from_monitor_text(old, PC_RESET.1),
        Err(RamMapError::NoHostAddresses)
    ));
    assert!(matches!(
        RamMap::from_monitor_text("", PC_RESET.1),
        Err(RamMapError::NoHostAddresses)
    ));
    let unknown = "unknown command: 'info ramblock'\r\n";
    assert!(matches!(
        RamMap::from_monitor_text(unknown, PC_RESET.1),
        Err(RamMapError::NoHostAddresses)
    ));
}

#[test]
fn a_line_of_another_form_is_an_error_that_names_it() {
    let damaged = PC_RESET.0.replace("0x00007ff87fe00000", "(nil)");
    let error = RamMap::from_monitor_text(&damaged, PC_RESET.1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "info ramblock, line 2: expected a memory block"
    );
    let damaged = PC_RESET.1.replace("00000000000c0000-", "00000000000c0000 ");
    assert!(matches!(
        RamMap::from_monitor_text(PC_RESET.0, &damaged),
        Err(RamMapError::Malformed { .. })
    ));
    assert!(matches!(
        RamMap::from_monitor_text(PC_RESET.0, "FlatView #0\r\n"),
        Err(RamMapError::NoFlatView)
    ));
}

#[test]
fn numbers_that_overflow_overlap_or_leave_their_block_never_reach_the_map() {
    let end = PC_RESET.1.replace("000000001fffffff", "ffffffffffffffff");
    assert!(matches!(
        RamMap::from_monitor_text(PC_RESET.0, &end).map(|map| map.left_out()[0].why),
        Ok(WhyLeftOut::BeyondBlock)
    ));
    let whole = PC_RESET.1.replace(
        "0000000000100000-000000001fffffff",
        "0000000000000000-ffffffffffffffff",
    );
    assert!(RamMap::from_monitor_text(PC_RESET.0, &whole).is_err());
    let offset = PC_RESET.1.replace("@0000000000100000", "@ffffffffffffffff");
    assert_eq!(
        RamMap::from_monitor_text(PC_RESET.0, &offset).unwrap().left_out()[0].why,
        WhyLeftOut::BeyondBlock
    );
    let overlap = PC_RESET.1.replace("0000000000100000", "00000000000f0000");
    assert!(matches!(
        RamMap::from_monitor_text(PC_RESET.0, &overlap),
        Err(RamMapError::Overlap)
    ));
    let block = PC_RESET.0.replace("0x00007ff87fe00000", "0xffffffffffffffff");
    assert!(matches!(
        RamMap::from_monitor_text(&block, PC_RESET.1),
        Err(RamMapError::Malformed { .. })
    ));
}

#[test]
fn max_blocks_and_max_ranges_refuse_tables_that_never_end() {
    let line = PC_RESET.0.lines().nth(1).unwrap();
    let blocks = format!(
        "{}\n{}",
        PC_RESET.0.lines().next().unwrap(),
        format!("{line}\n").repeat(4097)
    );
    assert!(matches!(
        RamMap::from_monitor_text(&blocks, PC_RESET.1),
        Err(RamMapError::TooMany { .. })
    ));
    let range = "  0000000000000000-00000000000bffff (prio 0, ram): pc.ram\n".repeat(4097);
    let ranges = format!("FlatView #0\n AS \"memory\", root: system\n{range}");
    assert!(matches!(
        RamMap::from_monitor_text(PC_RESET.0, &ranges),
        Err(RamMapError::TooMany { .. })
    ));
}
