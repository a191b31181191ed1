//! The firmware that comes with QEMU, if it is installed.

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
