//! What a VM's command line says of its disks, and how it starts with disks that are served here.
//!
//! ```text
//!  -drive file=F,if=virtio,format=raw            ► -chardev socket,… -device vhost-user-blk-pci,chardev=…
//!  -drive file=F,if=none,id=D,… -device virtio-blk-pci,drive=D,… ► the same, with what else the device has
//! ```
//!
//! Disks on other buses stay as they are; what is read from them is not seen, and that is said. An option that cannot be kept is
//! refused: a guest whose disk is quietly another one is worse than a watch that does not begin.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nephoscope_disk::Format;
use serde::{Deserialize, Serialize};

use super::memory;
use super::options::{Options, escaped};

/// Queues of a disk that says nothing of them.
const QUEUES: u16 = 1;

/// A disk that is served.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Disk {
    /// Its number among those that are served.
    pub(crate) number: u16,
    /// The image.
    pub(crate) image: PathBuf,
    /// How that is laid out.
    pub(crate) format: ImageFormat,
    /// Nobody writes to it.
    pub(crate) read_only: bool,
    /// Queues.
    pub(crate) queues: u16,
    /// What it says of itself.
    pub(crate) serial: String,
}

/// As it stands in `format=`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ImageFormat {
    /// Raw.
    Raw,
    /// qcow2.
    Qcow2,
}

impl From<ImageFormat> for Format {
    fn from(format: ImageFormat) -> Self {
        match format {
            ImageFormat::Raw => Self::Raw,
            ImageFormat::Qcow2 => Self::Qcow2,
        }
    }
}

/// A command line with its disks served.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Rewritten {
    /// QEMU's arguments.
    pub(crate) arguments: Vec<OsString>,
    /// What has to be served before QEMU starts.
    pub(crate) disks: Vec<Disk>,
    /// Disks that stay as they are, and why.
    pub(crate) left: Vec<String>,
}

/// Options with a value that say something of disks or memory (QEMU, `qemu-options.hx`).
const KNOWN: [&str; 18] = [
    "drive",
    "device",
    "blockdev",
    "m",
    "machine",
    "M",
    "object",
    "numa",
    "mem-path",
    "hda",
    "hdb",
    "hdc",
    "hdd",
    "cdrom",
    "fda",
    "fdb",
    "sd",
    "readconfig",
];
/// Of a drive, what only says how QEMU would read it.
const DRIVE_IGNORED: [&str; 12] = [
    "file",
    "format",
    "if",
    "id",
    "index",
    "media",
    "readonly",
    "read-only",
    "cache",
    "aio",
    "discard",
    "serial",
];
/// Of a virtio block device, what a served one has as well (`hw/virtio/vhost-user-blk-pci.c`, `hw/virtio/virtio-pci.c`).
const DEVICE_KEPT: [&str; 15] = [
    "id",
    "bus",
    "addr",
    "bootindex",
    "disable-legacy",
    "disable-modern",
    "multifunction",
    "queue-size",
    "romfile",
    "rombar",
    "acpi-index",
    "page-per-vq",
    "event_idx",
    "indirect_desc",
    "x-pcie-lnkctl-init",
];
/// What is the server's business, or without effect there.
const DEVICE_IGNORED: [&str; 9] = [
    "driver",
    "drive",
    "serial",
    "num-queues",
    "iothread",
    "config-wce",
    "discard",
    "write-zeroes",
    "share-rw",
];

/// What stands on a command line.
enum Word {
    /// As it is.
    Other(OsString),
    /// An option that is looked at, with its value.
    Known(String, String),
}

/// Takes a command line apart and puts it together anew. Sockets of served disks are those of `socket`.
///
/// # Errors
/// One sentence about what cannot be kept, and what to do.
pub(crate) fn rewrite(arguments: &[OsString], socket: impl Fn(u16) -> PathBuf) -> Result<Rewritten, String> {
    let words = words(arguments)?;
    let known: Vec<(String, String)> = words
        .iter()
        .filter_map(|word| match word {
            Word::Known(name, value) => Some((name.clone(), value.clone())),
            Word::Other(_) => None,
        })
        .collect();
    let mut of = Rewriting {
        drives: Vec::new(),
        out: Rewritten::default(),
        socket: &socket,
    };
    for (_, value) in known.iter().filter(|(name, _)| name == "drive") {
        let drive = Options::parse(value, "");
        if let (Some("none"), Some(id)) = (drive.get("if"), drive.get("id")) {
            of.drives.push((id.to_owned(), drive));
        }
    }
    let wanted = wanted(&known);
    for word in words {
        match word {
            Word::Other(argument) => of.out.arguments.push(argument),
            Word::Known(name, value) => of.one(&name, &value, &wanted)?,
        }
    }
    if of.out.disks.is_empty() {
        return Err(
            "--watch-files: no disk is on virtio-blk, and no other can be served: use -drive file=IMAGE,format=raw,if=virtio".to_owned(),
        );
    }
    let added = memory::shared(&known)?;
    of.out.arguments.extend(added.into_iter().map(OsString::from));
    Ok(of.out)
}

fn words(arguments: &[OsString]) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let name = argument
            .to_str()
            .and_then(|text| text.strip_prefix('-'))
            .unwrap_or_default();
        let name = name.strip_prefix('-').unwrap_or(name);
        if name == "snapshot" {
            return Err(
                "--watch-files: -snapshot is not supported: give the guest an overlay of its own".to_owned(),
            );
        }
        let value = KNOWN.contains(&name).then(|| rest.next()).flatten();
        words.push(match value {
            Some(value) => {
                let text = value.to_str();
                let text =
                    text.ok_or_else(|| format!("-{name} {}: this is not UTF-8", value.to_string_lossy()))?;
                Word::Known(name.to_owned(), text.to_owned())
            }
            None => Word::Other(argument.clone()),
        });
    }
    Ok(words)
}

/// Drives that virtio block devices have.
fn wanted(known: &[(String, String)]) -> Vec<String> {
    let devices = known.iter().filter(|(name, _)| name == "device");
    let devices = devices.map(|(_, value)| Options::parse(value, "driver"));
    devices
        .filter(|device| served(device).is_some())
        .filter_map(|device| device.get("drive").map(str::to_owned))
        .collect()
}

/// The served counterpart of a device.
fn served(device: &Options) -> Option<&'static str> {
    match device.get("driver")? {
        "virtio-blk-pci" | "virtio-blk" => Some("vhost-user-blk-pci"),
        "virtio-blk-pci-transitional" => Some("vhost-user-blk-pci-transitional"),
        "virtio-blk-pci-non-transitional" => Some("vhost-user-blk-pci-non-transitional"),
        _ => None,
    }
}

struct Rewriting<'a, S> {
    /// Those with `if=none`, by their name.
    drives: Vec<(String, Options)>,
    out: Rewritten,
    socket: &'a S,
}

impl<S: Fn(u16) -> PathBuf> Rewriting<'_, S> {
    fn one(&mut self, name: &str, value: &str, wanted: &[String]) -> Result<(), String> {
        match name {
            "drive" => {
                let drive = Options::parse(value, "");
                if drive.get("if") == Some("virtio") {
                    let disk = self.disk(value, &drive, &Options::default())?;
                    return self.add(disk, "vhost-user-blk-pci", "");
                }
                if drive
                    .get("id")
                    .is_some_and(|id| wanted.iter().any(|wanted| wanted == id))
                {
                    // It comes with its device.
                    return Ok(());
                }
                self.left_alone(name, value);
            }
            "device" => {
                let device = Options::parse(value, "driver");
                if let Some(driver) = served(&device) {
                    return self.device(value, &device, driver);
                }
            }
            "hda" | "hdb" | "hdc" | "hdd" | "cdrom" | "sd" | "readconfig" => self.left_alone(name, value),
            _ => {}
        }
        self.keep(name, value);
        Ok(())
    }

    fn keep(&mut self, name: &str, value: &str) {
        self.out
            .arguments
            .extend([format!("-{name}"), value.to_owned()].map(OsString::from));
    }

    fn left_alone(&mut self, name: &str, value: &str) {
        // Firmware is code, and seen as such.
        if Options::parse(value, "").get("if") != Some("pflash") {
            self.out.left.push(format!("-{name} {value}: not on virtio-blk"));
        }
    }

    fn device(&mut self, value: &str, device: &Options, driver: &'static str) -> Result<(), String> {
        let id = device
            .get("drive")
            .ok_or_else(|| format!("-device {value}: it has no drive"))?;
        let drive = self.drives.iter().find(|(name, _)| name == id);
        let (_, drive) = drive.cloned().ok_or_else(|| {
            format!("-device {value}: {id} is no -drive with if=none: files are watched on disks given as -drive file=…,format=…,if=none,id=…")
        })?;
        let unknown = device.names().find(|name| {
            !DEVICE_KEPT.contains(name) && !DEVICE_IGNORED.contains(name) && !is_default(device, name)
        });
        if let Some(unknown) = unknown {
            return Err(format!(
                "-device {value}: {unknown} cannot be kept where files are watched: leave it out"
            ));
        }
        let mut without: Vec<&str> = device
            .names()
            .filter(|name| !DEVICE_KEPT.contains(name))
            .collect();
        without.extend(DEVICE_IGNORED);
        let kept = device.rest(&without);
        let disk = self.disk(&format!("drive={id}"), &drive, device)?;
        self.add(disk, driver, &kept)
    }

    fn disk(&self, shown: &str, drive: &Options, device: &Options) -> Result<Disk, String> {
        let wrong = |what: String| Err(format!("-drive {shown}: {what}"));
        let Some(file) = drive.get("file") else {
            return wrong("it has no file".to_owned());
        };
        let format = match drive.get("format") {
            Some("raw") => ImageFormat::Raw,
            Some("qcow2") => ImageFormat::Qcow2,
            Some(other) => {
                return wrong(format!(
                    "the format {other} is not served: convert it to raw or qcow2"
                ));
            }
            // Guessing lets a guest make a raw image into a qcow2 one that reads the host's files.
            None => return wrong("say how it is laid out: add format=raw or format=qcow2".to_owned()),
        };
        if drive.get("media").is_some_and(|media| media != "disk") {
            return wrong("only disks are served: give a CD with if=ide".to_owned());
        }
        if let Some(unknown) = drive.names().find(|name| !DRIVE_IGNORED.contains(name)) {
            return wrong(format!(
                "{unknown} cannot be kept where files are watched: leave it out"
            ));
        }
        let read_only = ["readonly", "read-only"].map(|name| drive.is_on(name));
        let queues = match device.get("num-queues").map(str::parse) {
            None => QUEUES,
            Some(Ok(queues)) if queues > 0 => queues,
            Some(_) => return wrong("num-queues is no number of queues".to_owned()),
        };
        let number = u16::try_from(self.out.disks.len()).unwrap_or(u16::MAX);
        let serial = device
            .get("serial")
            .or_else(|| drive.get("serial"))
            .unwrap_or_default();
        Ok(Disk {
            number,
            image: std::path::absolute(Path::new(file))
                .map_err(|error| format!("-drive {shown}: {error}"))?,
            format,
            read_only: read_only.contains(&Some(true)),
            queues,
            serial: serial.to_owned(),
        })
    }

    fn add(&mut self, disk: Disk, driver: &str, kept: &str) -> Result<(), String> {
        let (number, queues) = (disk.number, disk.queues);
        let path = (self.socket)(number);
        let path = path.to_str().ok_or("the VM's folder is not UTF-8")?;
        self.keep(
            "chardev",
            &format!(
                "socket,id=nephoscope-disk{number},path={},reconnect-ms=100",
                escaped(path)
            ),
        );
        self.keep(
            "device",
            &format!("{driver},chardev=nephoscope-disk{number},num-queues={queues}{kept}"),
        );
        self.out.disks.push(disk);
        Ok(())
    }
}

/// Whether a device says what it would be anyway.
fn is_default(device: &Options, name: &str) -> bool {
    matches!(
        (name, device.get(name)),
        ("logical_block_size" | "physical_block_size", Some("512"))
            | ("write-cache", Some("on" | "auto"))
            | ("scsi" | "iommu_platform" | "packed" | "ats", Some("off"))
            | ("werror" | "rerror", Some("auto" | "report"))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<Rewritten, String> {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        rewrite(&arguments, |number| PathBuf::from(format!("/run/d{number}")))
    }

    fn line(line: &str) -> String {
        let arguments = of(line).unwrap().arguments;
        let words: Vec<_> = arguments.iter().map(|word| word.to_str().unwrap()).collect();
        words.join(" ")
    }

    const RAM: &str = "-object memory-backend-memfd,id=nephoscope-ram,size=1073741824,share=on -machine memory-backend=nephoscope-ram";

    #[test]
    fn a_virtio_drive_is_served_where_it_stood() {
        let before = "-m 1G -drive file=/d.img,format=raw,if=virtio,cache=none -nographic";
        let chardev = "socket,id=nephoscope-disk0,path=/run/d0,reconnect-ms=100";
        let after = format!(
            "-m 1G -chardev {chardev} -device vhost-user-blk-pci,chardev=nephoscope-disk0,num-queues=1 -nographic {RAM}"
        );
        assert_eq!(line(before), after);
        let disk = Disk {
            number: 0,
            image: "/d.img".into(),
            format: ImageFormat::Raw,
            read_only: false,
            queues: 1,
            serial: String::new(),
        };
        assert_eq!(of(before).unwrap().disks, [disk]);
    }

    #[test]
    fn a_device_keeps_what_it_had() {
        let before = "-m 1G -drive file=/d.qcow2,format=qcow2,if=none,id=root,readonly=on \
                      -device virtio-blk-pci,drive=root,serial=s1,bootindex=1,addr=0x5,num-queues=4,iothread=io0";
        let rewritten = of(before).unwrap();
        let device = rewritten
            .arguments
            .iter()
            .find(|word| word.to_string_lossy().starts_with("vhost"));
        assert_eq!(
            device.unwrap(),
            "vhost-user-blk-pci,chardev=nephoscope-disk0,num-queues=4,bootindex=1,addr=0x5"
        );
        let [disk] = rewritten.disks.as_slice() else {
            panic!()
        };
        assert_eq!(
            (disk.format, disk.read_only, disk.queues, disk.serial.as_str()),
            (ImageFormat::Qcow2, true, 4, "s1")
        );
        assert!(!line(before).contains("-drive"));
    }

    #[test]
    fn disks_elsewhere_stay_and_are_said() {
        let rewritten = of(
            "-m 1G -drive file=/a,format=raw,if=virtio -drive file=/b,format=raw,if=ide -cdrom /c.iso \
             -drive if=pflash,file=/ovmf,format=raw -drive file=/e,if=none,id=usb -device usb-storage,drive=usb",
        )
        .unwrap();
        assert_eq!(rewritten.disks.len(), 1);
        let left: Vec<_> = rewritten
            .left
            .iter()
            .map(|left| left.split(',').next().unwrap())
            .collect();
        assert_eq!(
            left,
            [
                "-drive file=/b",
                "-cdrom /c.iso: not on virtio-blk",
                "-drive file=/e"
            ]
        );
        let kept = rewritten
            .arguments
            .iter()
            .filter(|word| *word == "-drive")
            .count();
        assert_eq!(kept, 3);
    }

    #[test]
    fn what_cannot_be_kept_is_refused_with_what_to_do() {
        let virtio = "-drive file=/a,format=raw,if=virtio";
        let none = "-drive file=/a,format=raw,if=none,id=d -device virtio-blk-pci,drive=d";
        for (line, says) in [
            ("-drive file=/a,if=virtio".to_owned(), "format=raw"),
            ("-drive file=/a,format=vmdk,if=virtio".to_owned(), "convert"),
            (
                format!("{virtio},throttling.iops-total=5"),
                "throttling.iops-total",
            ),
            (format!("{virtio},snapshot=on"), "snapshot"),
            (format!("{virtio} -snapshot"), "overlay"),
            (format!("{none},logical_block_size=4096"), "logical_block_size"),
            (format!("{none},num-queues=many"), "num-queues"),
            ("-device virtio-blk-pci,drive=nothing".to_owned(), "if=none"),
            ("-m 1G -hda /a".to_owned(), "virtio-blk"),
            (format!("{virtio} -mem-path /x"), "share=on"),
        ] {
            let error = of(&line).unwrap_err();
            assert!(error.contains(says), "{line}: {error}");
        }
    }

    #[test]
    fn what_is_as_it_would_be_anyway_is_no_matter() {
        let device = "-m 1G -drive file=/a,format=raw,if=none,id=d \
                      -device virtio-blk-pci,drive=d,logical_block_size=512,write-cache=on,scsi=off";
        assert!(line(device).contains("num-queues=1 "));
    }
}
