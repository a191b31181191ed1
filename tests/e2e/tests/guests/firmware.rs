//! What runs before the kernel, under watch, from the reset vector on: SeaBIOS, OVMF and a boot loader, with both kernels.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nephoscope_e2e::{Image, Kernel, guest, initramfs, qemu, vm_name};
use rustix::process::Signal;
use serde_json::Value;

/// Where Debian's packages `seabios`, `qemu-system-data`, `ipxe-qemu`, `ovmf` and `systemd-boot-efi` have their files.
const FIRMWARE: [&str; 5] = [
    "/usr/share/seabios",
    "/usr/share/qemu",
    "/usr/lib/ipxe/qemu",
    "/usr/share/OVMF",
    "/usr/lib/systemd/boot/efi",
];
const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";
const OVMF: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const BOOT_LOADER: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1";
/// Ten times what a boot takes on two idle cores.
const BOOT: Duration = Duration::from_secs(100);

/// One way to boot: the files that the report must name, and QEMU's options for it.
struct Machine {
    kernels: &'static [Kernel],
    files: &'static [&'static str],
    options: fn(folder: &Path, kernel: &Path) -> Vec<String>,
}

const MACHINES: [Machine; 4] = [
    Machine {
        kernels: &Kernel::ALL,
        files: &[SEABIOS],
        options: direct,
    },
    Machine {
        kernels: &Kernel::ALL,
        files: &[OVMF],
        options: |folder, kernel| [ovmf(folder), direct(folder, kernel)].concat(),
    },
    // A network card with an option ROM that brings a UEFI driver, a display, and a second processor to wake.
    Machine {
        kernels: &[Kernel::K6_1],
        files: &[OVMF, "/usr/lib/ipxe/qemu/efi-virtio.rom"],
        options: |folder, kernel| {
            let more = ["-smp", "2", "-device", "VGA", "-device", "virtio-net-pci"].map(str::to_owned);
            [ovmf(folder), direct(folder, kernel), more.to_vec()].concat()
        },
    },
    Machine {
        kernels: &[Kernel::K6_12],
        files: &[OVMF, BOOT_LOADER],
        options: |folder, kernel| [ovmf(folder), disk(folder, kernel)].concat(),
    },
];

/// The kernel from QEMU.
fn direct(folder: &Path, kernel: &Path) -> Vec<String> {
    let at = |path: &Path| path.display().to_string();
    let options = [
        "-kernel",
        &at(kernel),
        "-initrd",
        &at(&folder.join("initramfs")),
        "-append",
        COMMAND_LINE,
    ];
    options.map(str::to_owned).to_vec()
}

/// The kernel from a disk, by a boot loader.
fn disk(folder: &Path, kernel: &Path) -> Vec<String> {
    let disk = folder.join("disk");
    for path in ["EFI/BOOT", "loader/entries"] {
        std::fs::create_dir_all(disk.join(path)).unwrap();
    }
    let entry = format!("title Linux\nlinux /vmlinuz\ninitrd /initrd\noptions {COMMAND_LINE}\n");
    std::fs::write(disk.join("loader/entries/linux.conf"), entry).unwrap();
    std::fs::write(disk.join("loader/loader.conf"), "timeout 0\n").unwrap();
    std::fs::copy(BOOT_LOADER, disk.join("EFI/BOOT/BOOTX64.EFI")).unwrap();
    std::fs::copy(kernel, disk.join("vmlinuz")).unwrap();
    std::fs::copy(folder.join("initramfs"), disk.join("initrd")).unwrap();
    let drive = format!("if=none,id=disk,format=raw,file=fat:rw:{}", disk.display());
    let options = ["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"];
    options.map(str::to_owned).to_vec()
}

fn ovmf(folder: &Path) -> Vec<String> {
    let variables = folder.join("variables.fd");
    std::fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &variables).unwrap();
    let code = format!("if=pflash,format=raw,readonly=on,file={OVMF}");
    let variables = format!("if=pflash,format=raw,file={}", variables.display());
    let options = ["-machine", "q35", "-drive", &code, "-drive", &variables];
    options.map(str::to_owned).to_vec()
}

fn program() -> PathBuf {
    nephoscope_e2e::program().unwrap()
}

fn catalog(image: &Image, at: &Path) {
    let kernels = Kernel::ALL.map(|kernel| image.kernel(kernel));
    let status = Command::new(program())
        .args(["catalog", "add", "--catalog"])
        .arg(at)
        .args(FIRMWARE)
        .args(kernels)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "catalog add ended with {status}");
}

/// Boots to the first program and off again; the report.
fn boot(image: &Image, kernel: Kernel, machine: &Machine, folder: &Path) -> Value {
    let at = |name: &str| folder.join(name);
    let mut command = Command::new(program());
    command.args(["run", "--catalog"]).arg(at("catalog"));
    command.args(["--name", &vm_name("firmware")]);
    command.arg("--report").arg(at("report.json"));
    command.arg("--").arg(qemu::system().unwrap());
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-accel", "tcg,thread=multi", "-cpu", "qemu64", "-m", "1G"]);
    command
        .arg("-serial")
        .arg(format!("file:{}", at("serial.log").display()));
    command.args((machine.options)(folder, &image.kernel(kernel)));
    command.stdin(Stdio::null());
    let log = std::fs::File::create(at("emulator.log")).unwrap();
    command.stdout(log.try_clone().unwrap()).stderr(log);
    let begun = Instant::now();
    let mut child = command.spawn().unwrap();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > BOOT {
            // The emulator gets it, too.
            rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
            child.wait().unwrap();
            panic!("the guest did not come up: {}", read(&at("serial.log")));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(status.success(), "{status}: {}", read(&at("emulator.log")));
    assert!(
        read(&at("serial.log")).contains(initramfs::UP),
        "{}",
        read(&at("serial.log"))
    );
    serde_json::from_slice(&std::fs::read(at("report.json")).unwrap()).unwrap()
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn firmware_and_decompressor_are_named_from_the_first_instruction_on() {
    let image = Image::ensure().unwrap();
    let folder = tempfile::tempdir().unwrap();
    catalog(&image, &folder.path().join("catalog"));
    initramfs::busybox(&folder.path().join("initramfs")).unwrap();
    let _turn = guest::turn().unwrap();
    for machine in &MACHINES {
        for kernel in machine.kernels {
            let report = boot(&image, *kernel, machine, folder.path());
            is_named(&report, machine.files, *kernel);
        }
    }
}

/// At least 95 % are identified, nothing is called modified, and what is left has an origin.
fn is_named(report: &Value, files: &[&str], kernel: Kernel) {
    let pages = &report["pages"]["firmware"];
    let count = |what: &str| pages[what].as_u64().unwrap();
    let version = kernel.version();
    println!("{files:?}, {version}: {pages}");
    assert_eq!(report["coverage"]["code"], "complete");
    let spaces = list(report, "address_spaces").iter();
    let firmware = spaces.clone().find(|space| space["kind"] == "firmware").unwrap();
    for rest in list(firmware, "modified").iter().chain(list(firmware, "unknown")) {
        println!("  {rest}");
    }
    assert!(count("captured") > 80, "a hole");
    assert!(count("identified") * 100 >= count("captured") * 95);
    assert_eq!(count("modified"), 0);
    for unknown in list(firmware, "unknown") {
        let origin = unknown["origin"].as_str().unwrap();
        assert!(origin.starts_with("firmware phase"), "{origin}");
    }
    let paths: Vec<&str> = list(firmware, "modules")
        .iter()
        .map(|m| m["path"].as_str().unwrap())
        .collect();
    let kernel = format!("/vmlinuz-{version}");
    assert!(files.iter().all(|file| paths.contains(file)), "{paths:?}");
    assert!(paths.iter().any(|path| path.ends_with(&kernel)), "{paths:?}");
}
