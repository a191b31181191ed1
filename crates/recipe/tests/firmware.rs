//! The firmware that comes with QEMU, if it is installed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "helpers of tests are tests"
)]

use nephoscope_guest::PAGE_SIZE;
use nephoscope_recipe::floating::Supposed;
use nephoscope_recipe::{Object, ObjectKind, Part, Solver, recognise};

/// The recipe of an installed file; says so if it is not.
fn installed(path: &str) -> Option<Object> {
    let Ok(file) = std::fs::read(path) else {
        println!("skipped: {path} is not installed");
        return None;
    };
    Some(recognise(&file, path).unwrap().expect("firmware"))
}

/// The image and its initialisation code.
fn bios(name: &str) -> Option<(Part, Part)> {
    let object = installed(&format!("/usr/share/seabios/{name}"))?;
    assert_eq!(object.kind, ObjectKind::Firmware);
    let mut parts = object.parts.into_iter();
    let mut named = |name: &str| parts.find(|part| part.name == name).expect("the part");
    Some((named("bios"), named("init")))
}

/// The part as `reloc_preinit` leaves it `distance` further on, by the tables in the image and not by the recipe.
fn moved(bios: &Part, init: &Part, distance: u32) -> Vec<u8> {
    let mut tables = bios.bytes.iter().position(|b| *b != 0).unwrap() & !3;
    let mut bytes = init.bytes.clone();
    let mut last = 0;
    let mut falls = 0;
    loop {
        let at = u32::from_le_bytes(bios.bytes[tables..tables + 4].try_into().unwrap());
        falls += u32::from(at < last);
        if falls > 1 || at as usize >= bytes.len() {
            return bytes;
        }
        let field = &mut bytes[at as usize..at as usize + 4];
        let was = u32::from_le_bytes(field.try_into().unwrap());
        let is = if falls == 0 {
            was.wrapping_add(distance)
        } else {
            was.wrapping_sub(distance)
        };
        field.copy_from_slice(&is.to_le_bytes());
        (last, tables) = (at, tables + 4);
    }
}

#[test]
fn seabios_code_that_moved_itself_is_explained_wherever_it_went() {
    for name in ["bios.bin", "bios-256k.bin", "bios-microvm.bin"] {
        let Some((bios, init)) = bios(name) else { return };
        assert!(init.bytes.len() > 30_000 && init.sites.len() > 300, "{name}");
        let distance = 0x7fe_0000;
        let bytes = moved(&bios, &init, distance);
        let solver = Solver::default();
        for at in (0..bytes.len() - PAGE_SIZE).step_by(1000) {
            let page: &[u8; PAGE_SIZE] = bytes[at..at + PAGE_SIZE].try_into().unwrap();
            let supposed = Supposed {
                part: &init,
                at: at as i64,
                va: init.link + at as u64 + u64::from(distance),
                solver: &solver,
            };
            assert!(supposed.explains(page, &[(0, 4096)]).is_some(), "{name} {at:#x}");
            let elsewhere = Supposed {
                va: supposed.va + 16,
                ..supposed
            };
            let fields = init
                .sites
                .iter()
                .any(|s| (at..at + 4090).contains(&(s.at as usize)));
            assert!(
                !fields || elsewhere.explains(page, &[(0, 4096)]).is_none(),
                "{name} {at:#x}"
            );
        }
    }
}

#[test]
fn what_refers_to_seabios_moved_code_must_agree_on_where_it_went() {
    let Some((bios, _)) = bios("bios-256k.bin") else {
        return;
    };
    let at = bios.sites[0].at as usize;
    let mut page: Box<[u8; PAGE_SIZE]> = Box::new([0; PAGE_SIZE]);
    page.copy_from_slice(&bios.bytes[at..at + PAGE_SIZE]);
    let mut solver = Solver::default();
    let linked = u32::from_le_bytes(page[..4].try_into().unwrap());
    page[..4].copy_from_slice(&linked.wrapping_add(0x10_0000).to_le_bytes());
    let explains = |page: &[u8; PAGE_SIZE], solver: &Solver| {
        let supposed = Supposed {
            part: &bios,
            at: at as i64,
            va: bios.link + at as u64,
            solver,
        };
        supposed.explains(page, &[(0, 4)])
    };
    let told = explains(&page, &solver).expect("moved by a distance that nobody contradicts");
    told.learn(&mut solver);
    assert!(explains(&page, &solver).is_some());
    page[..4].copy_from_slice(&linked.wrapping_add(0x20_0000).to_le_bytes());
    assert!(explains(&page, &solver).is_none(), "moved elsewhere");
}

#[test]
fn option_roms_are_recognised() {
    for path in [
        "/usr/share/seabios/vgabios-stdvga.bin",
        "/usr/share/qemu/linuxboot_dma.bin",
        "/usr/share/qemu/kvmvapic.bin",
        "/usr/lib/ipxe/qemu/pxe-virtio.rom",
        "/usr/lib/ipxe/qemu/efi-virtio.rom",
    ] {
        if let Some(object) = installed(path) {
            assert!(object.parts[0].bytes.len() >= 512, "{path}");
        }
    }
}

/// The images of a flash file.
fn flash(name: &str) -> Option<Vec<Part>> {
    let object = installed(&format!("/usr/share/OVMF/{name}"))?;
    assert_eq!(object.kind, ObjectKind::Firmware);
    Some(object.parts)
}

/// The flash file unpacked by nothing but the `xz` program and its own magic numbers: what follows the GUID of the
/// compressed section.
fn unpacked(name: &str) -> Vec<u8> {
    let file = std::fs::read(format!("/usr/share/OVMF/{name}")).unwrap();
    let guid = b"\x98\x58\x4e\xee\x14\x39\x59\x42\x9d\x6e\xdc\x7b\xd7\x94\x03\xcf";
    let at = file.windows(16).position(|window| window == guid).unwrap() + 20;
    let mut command = std::process::Command::new("xz");
    command.args(["--decompress", "--stdout", "--format=lzma"]);
    command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    // It ends before what it is given does, and says so.
    let feeder = std::thread::spawn(move || std::io::Write::write_all(&mut input, &file[at..]).is_ok());
    let output = child.wait_with_output().unwrap();
    let _ = feeder.join();
    [
        std::fs::read(format!("/usr/share/OVMF/{name}")).unwrap(),
        output.stdout,
    ]
    .concat()
}

/// Every header of an image in these bytes.
fn headers(bytes: &[u8]) -> usize {
    let is_header = |at: &usize| {
        let word = |at: usize| {
            bytes
                .get(at..at + 4)
                .map(|w| u32::from_le_bytes(w.try_into().unwrap()))
        };
        let new = word(at + 0x3c).unwrap_or(u32::MAX) as usize;
        bytes[*at..].starts_with(b"MZ") && new < 0x1000 && word(at + new) == Some(0x4550)
    };
    (0..bytes.len()).step_by(4).filter(is_header).count()
}

#[test]
fn every_image_of_ovmf_is_a_part() {
    for name in [
        "OVMF_CODE.fd",
        "OVMF_CODE.secboot.fd",
        "OVMF_CODE_4M.fd",
        "OVMF_CODE_4M.secboot.fd",
    ] {
        let Some(parts) = flash(name) else { return };
        let images = parts.iter().filter(|part| part.bytes.starts_with(b"MZ")).count();
        assert_eq!(images, headers(&unpacked(name)), "{name}");
        assert!(images > 100, "{name}");
        assert_eq!(parts.len(), images + 1, "{name}: and the reset vector");
        for named in ["SecMain", "PeiCore", "DxeCore", "Shell"] {
            assert!(parts.iter().any(|part| part.name == named), "{name} {named}");
        }
    }
    assert_eq!(
        recognise(&std::fs::read("/usr/share/OVMF/OVMF_VARS_4M.fd").unwrap(), "x").unwrap(),
        None
    );
}

/// The image at another base by its own directory, and not by the recipe.
fn relocated(part: &Part, base: u64) -> Vec<u8> {
    let word = |at: usize| u32::from_le_bytes(part.bytes[at..at + 4].try_into().unwrap()) as usize;
    let optional = word(0x3c) + 24;
    let wide = part.bytes[optional + 1] == 2;
    let directory = optional + if wide { 112 } else { 96 } + 5 * 8;
    let (mut at, len) = (word(directory), word(directory + 4));
    let end = at + len;
    let mut bytes = part.bytes.clone();
    while at + 8 <= end {
        let (page, size) = (word(at), word(at + 4));
        for entry in (at + 8..at + size).step_by(2) {
            let entry = u16::from_le_bytes(part.bytes[entry..entry + 2].try_into().unwrap());
            let (at, width) = (
                page + usize::from(entry & 0xfff),
                [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 8][usize::from(entry >> 12)],
            );
            let mut field = [0; 8];
            field[..width].copy_from_slice(&bytes[at..at + width]);
            let moved = u64::from_le_bytes(field).wrapping_add(base.wrapping_sub(part.link));
            bytes[at..at + width].copy_from_slice(&moved.to_le_bytes()[..width]);
        }
        at += size;
    }
    bytes
}

#[test]
fn images_of_ovmf_are_explained_wherever_they_were_loaded() {
    let Some(parts) = flash("OVMF_CODE_4M.fd") else {
        return;
    };
    let solver = Solver::default();
    let mut seed = 1_u64;
    let mut fields = 0;
    for part in parts.iter().filter(|part| part.bytes.starts_with(b"MZ")) {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let base = (seed >> 33) & 0x7fff_f000;
        let bytes = relocated(part, base);
        fields += part.sites.len();
        for at in (0..bytes.len().saturating_sub(PAGE_SIZE)).step_by(PAGE_SIZE) {
            let mut page: [u8; PAGE_SIZE] = bytes[at..at + PAGE_SIZE].try_into().unwrap();
            let supposed = Supposed {
                part,
                at: at as i64,
                va: base + at as u64,
                solver: &solver,
            };
            assert!(
                supposed.explains(&page, &[(0, 4096)]).is_some(),
                "{} {at:#x}",
                part.name
            );
            let flipped = (seed >> 20) as usize % PAGE_SIZE;
            page[flipped] ^= 1 << (seed % 8);
            assert!(
                supposed.explains(&page, &[(0, 4096)]).is_none(),
                "{} {at:#x} {flipped:#x}",
                part.name
            );
        }
    }
    assert!(fields > 5000, "{fields}");
}

#[test]
fn the_uefi_driver_of_an_option_rom_is_a_part() {
    let Some(object) = installed("/usr/lib/ipxe/qemu/efi-virtio.rom") else {
        return;
    };
    let names: Vec<&str> = object.parts.iter().map(|part| part.name.as_str()).collect();
    assert_eq!(names, ["rom", "efi"]);
    assert!(object.parts[1].bytes.starts_with(b"MZ") && object.parts[1].sites.len() > 100);
}

#[test]
fn flash_that_is_cut_or_damaged_is_survived() {
    let Ok(file) = std::fs::read("/usr/share/OVMF/OVMF_CODE_4M.fd") else {
        return;
    };
    let whole = recognise(&file, "x").unwrap().unwrap().parts.len();
    for quarter in 1..4 {
        let cut = recognise(&file[..file.len() * quarter / 4], "x");
        assert!(!cut.is_ok_and(|object| object.is_some_and(|o| o.parts.len() >= whole)));
    }
    let mut seed = 1_u64;
    for _ in 0..8 {
        let mut damaged = file.clone();
        for _ in 0..4 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (seed >> 33) as usize % damaged.len();
            damaged[at] ^= 1 << (seed % 8);
        }
        let _ = recognise(&damaged, "x");
    }
}
