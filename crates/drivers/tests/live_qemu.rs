//! Guest memory read out of a real QEMU (`qemu-system-x86_64`, TCG) and compared with what QEMU itself says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers outside of what clippy takes for a test"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Machine, PATIENCE};
use nephoscope_drivers::{MemoryKind, ProcessRam, Qmp, QmpError, RamMap};
use nephoscope_guest::{Gpa, PhysicalMemory};

fn read(ram: &ProcessRam, gpa: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    ram.read(Gpa(gpa), &mut bytes).unwrap();
    bytes
}

fn pattern(folder: &Path) -> (PathBuf, Vec<u8>) {
    let bytes: Vec<u8> = (0u32..16384)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let file = folder.join("pattern");
    fs::write(&file, &bytes).unwrap();
    (file, bytes)
}

#[test]
fn a_pattern_in_guest_memory_is_read_below_and_above_4_gib() {
    let folder = tempfile::tempdir().unwrap();
    let (file, bytes) = pattern(folder.path());
    let loader = |at: &str| format!("loader,file={},addr={at},force-raw=on", file.display());
    let mut machine = Machine::start(&[
        "-machine",
        "q35,memory-backend=mem0",
        "-m",
        "5G",
        "-object",
        "memory-backend-memfd,id=mem0,size=5G,share=on",
        "-device",
        &loader("0x200003"),
        "-device",
        &loader("0x100000000"),
    ]);
    let ram = machine.ram();
    assert!(ram.map().left_out().is_empty());
    assert_eq!(read(&ram, 0x20_0003, bytes.len()), bytes);
    assert_eq!(read(&ram, 0x1_0000_0000, bytes.len()), bytes);
    let hva = ram.hva_of(Gpa(0x1_0000_0123)).unwrap();
    assert_eq!(ram.gpa_of(hva), Some(Gpa(0x1_0000_0123)));
    // Over the end of the memory below 4 GiB, and where there is none.
    let edge = 0x8000_0000 - 8;
    assert_eq!(
        ram.read(Gpa(edge), &mut [0; 16]).unwrap_err().at,
        Gpa(0x8000_0000)
    );
    assert_eq!(
        ram.read(Gpa(u64::MAX), &mut [0; 16]).unwrap_err().at,
        Gpa(u64::MAX)
    );
    assert_eq!(
        ram.read(Gpa(0xfec0_0000), &mut [0; 4]).unwrap_err().at,
        Gpa(0xfec0_0000)
    );
}

#[test]
fn firmware_is_read_the_same_as_qemu_reads_it_before_and_after_it_has_moved_into_ram() {
    let mut machine = Machine::start(&["-machine", "pc", "-m", "64M", "-device", "VGA"]);
    let before = machine.ram();
    assert_eq!(
        read(&before, 0xf_0000, 0x1_0000),
        machine.saved(0xf_0000, 0x1_0000)
    );
    assert_eq!(
        read(&before, 0xfffc_0000, 0x4_0000),
        machine.saved(0xfffc_0000, 0x4_0000)
    );
    assert_eq!(
        before.gpa_of(before.hva_of(Gpa(0xffff_fff0)).unwrap()),
        Some(Gpa(0xf_fff0))
    );

    machine.run_firmware();
    let after = machine.ram();
    for segment in after.map().segments().to_vec() {
        let size = usize::try_from(segment.size_bytes).unwrap();
        assert_eq!(
            read(&after, segment.gpa.0, size),
            machine.saved(segment.gpa.0, size),
            "{segment:?}"
        );
    }
    // Across the seams of the ranges below 1 MiB.
    assert_eq!(
        read(&after, 0xc_0000, 0x14_0000),
        machine.saved(0xc_0000, 0x14_0000)
    );
    assert_ne!(before.hva_of(Gpa(0xf_0000)), after.hva_of(Gpa(0xf_0000)));
    assert_eq!(
        after.map().segment_of(Gpa(0xf_0000)).unwrap().kind,
        MemoryKind::Rom
    );
}

#[test]
fn two_graphics_cards_whose_memory_has_one_name_are_told_apart_by_asking_qemu() {
    let mut machine = Machine::start(&[
        "-machine",
        "pc",
        "-m",
        "64M",
        "-device",
        "VGA",
        "-device",
        "secondary-vga",
    ]);
    machine.run_firmware();
    let ram = machine.ram();
    assert!(ram.map().left_out().is_empty(), "{:?}", ram.map().left_out());
    let mut video: Vec<_> = ram
        .map()
        .segments()
        .iter()
        .filter_map(|segment| ram.map().block_of(segment.hva))
        .map(|(block, _)| block.name.as_str())
        .filter(|name| name.ends_with("vga.vram"))
        .collect();
    video.sort_unstable();
    assert_eq!(video, ["0000:00:02.0/vga.vram", "0000:00:03.0/vga.vram"]);
}

#[test]
fn a_qemu_that_has_ended_is_told_from_a_guest_that_has_no_memory_there() {
    let mut machine = Machine::start(&["-machine", "pc", "-m", "64M"]);
    let ram = machine.ram();
    assert!(!ram.is_gone());
    assert!(ram.read(Gpa(0x7000_0000), &mut [0]).is_err() && !ram.is_gone());
    machine.qmp.execute("quit", None).unwrap();
    machine.process.wait().unwrap();
    assert!(ram.is_gone());
    assert!(ram.read(Gpa(0x1000), &mut [0; 8]).is_err());
    assert!(matches!(
        machine.qmp.execute("query-status", None),
        Err(QmpError::Closed)
    ));
}

#[test]
fn events_refusals_and_a_second_client_are_what_they_are() {
    let mut machine = Machine::start(&["-machine", "none"]);
    assert!(machine.qmp.version().split('.').count() == 3);
    assert!(matches!(
        machine.qmp.execute("no-such-command", None),
        Err(QmpError::Refused { .. })
    ));
    machine.qmp.execute("cont", None).unwrap();
    let mut names: Vec<_> = machine
        .qmp
        .take_events()
        .into_iter()
        .map(|event| event.name)
        .collect();
    if names.is_empty() {
        names.push(machine.qmp.wait_event(PATIENCE).unwrap().name);
    }
    assert_eq!(names, ["RESUME"]);
    let second = Qmp::connect(&machine.folder.path().join("qmp"), Duration::from_millis(200));
    assert!(
        matches!(second, Err(QmpError::TimedOut { what: "greeting", .. })),
        "{second:?}"
    );
}

#[test]
fn a_process_that_is_not_there_cannot_be_opened() {
    let error = ProcessRam::open(u32::MAX, RamMap::default()).unwrap_err();
    assert_eq!(error.pid, u32::MAX);
}
