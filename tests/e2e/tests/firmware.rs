//! What runs before the kernel, under watch: SeaBIOS and OVMF, each with both kernels, from the reset vector on.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nephoscope_e2e::{Image, Kernel, cache, initramfs, qemu};
use rustix::process::Signal;
use serde_json::Value;

/// Where Debian's packages `seabios`, `qemu-system-data`, `ipxe-qemu` and `ovmf` have firmware.
const FIRMWARE: [&str; 4] = [
    "/usr/share/seabios",
    "/usr/share/qemu",
    "/usr/lib/ipxe/qemu",
    "/usr/share/OVMF",
];
/// Ten times what a boot takes on two idle cores.
const BOOT: Duration = Duration::from_secs(100);

/// The firmware of one boot: the file that the report must name, and QEMU's options for it.
struct Machine {
    file: &'static str,
    options: fn(&Path) -> Vec<String>,
}

const MACHINES: [Machine; 3] = [
    Machine {
        file: "/usr/share/seabios/bios-256k.bin",
        options: |_| Vec::new(),
    },
    Machine {
        file: "/usr/share/OVMF/OVMF_CODE_4M.fd",
        options: ovmf,
    },
    // A network card with an option ROM that brings a UEFI driver, a display, and a second processor to wake.
    Machine {
        file: "/usr/share/OVMF/OVMF_CODE_4M.fd",
        options: |folder| {
            let more = ["-smp", "2", "-device", "VGA", "-device", "virtio-net-pci"];
            ovmf(folder).into_iter().chain(more.map(str::to_owned)).collect()
        },
    },
];

fn ovmf(folder: &Path) -> Vec<String> {
    let variables = folder.join("variables.fd");
    std::fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &variables).unwrap();
    let flash = "if=pflash,format=raw";
    vec![
        "-machine".to_owned(),
        "q35".to_owned(),
        "-drive".to_owned(),
        format!("{flash},readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"),
        "-drive".to_owned(),
        format!("{flash},file={}", variables.display()),
    ]
}

/// `cargo xtask test` says where the program is that it built.
fn program() -> PathBuf {
    let program = std::env::var_os("NEPHOSCOPE").expect("NEPHOSCOPE is not set: run `cargo xtask test`");
    PathBuf::from(program)
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
    command.args(["--name", &format!("firmware-{}", std::process::id())]);
    command.arg("--report").arg(at("report.json"));
    command.arg("--").arg(qemu::system().unwrap());
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-accel", "tcg,thread=multi", "-cpu", "qemu64", "-m", "1G"]);
    command.arg("-kernel").arg(image.kernel(kernel));
    command.arg("-initrd").arg(at("initramfs"));
    command.args(["-append", "console=ttyS0 quiet panic=-1"]);
    command
        .arg("-serial")
        .arg(format!("file:{}", at("serial.log").display()));
    command.args((machine.options)(folder));
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
    let _turn = cache::lock("one-guest").unwrap();
    for machine in &MACHINES {
        for kernel in Kernel::ALL {
            let report = boot(&image, kernel, machine, folder.path());
            is_named(&report, machine.file, kernel);
        }
    }
}

/// At least 95 % are identified, nothing is called modified, and what is left has an origin.
fn is_named(report: &Value, file: &str, kernel: Kernel) {
    let pages = &report["pages"]["firmware"];
    let count = |what: &str| pages[what].as_u64().unwrap();
    let version = kernel.version();
    println!("{file}, {version}: {pages}");
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
    assert!(paths.contains(&file), "{paths:?}");
    assert!(paths.iter().any(|path| path.ends_with(&kernel)), "{paths:?}");
}
