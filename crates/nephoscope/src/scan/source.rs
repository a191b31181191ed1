//! What is looked at.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::str::FromStr;

use nephoscope_drivers::{CpuRegisters, Dump, DumpFormat, Gatherer, LiveMemory, Machine};
use nephoscope_guest::{Gpa, MemoryFault, PhysicalMemory, Pieces};
use nephoscope_inventory::VmReport;
use nephoscope_isa::{Mode, X86Controls};

use crate::exit::{Failure, exit};

/// What somebody asks to look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum What {
    /// A running QEMU, by the socket of its monitor.
    Qmp(PathBuf),
    /// A running VMM, by its process.
    Pid(u32),
    /// A dump.
    File(PathBuf),
}

impl FromStr for What {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(socket) = text.strip_prefix("qmp:") {
            return Ok(Self::Qmp(socket.into()));
        }
        if let Some(pid) = text.strip_prefix("pid:") {
            let number = pid.parse().map_err(|_| format!("{pid:?} is no process number"))?;
            return Ok(Self::Pid(number));
        }
        Ok(Self::File(text.into()))
    }
}

/// Memory, and whoever may tell how CPUs translate.
#[derive(Debug)]
pub(crate) enum Source {
    /// A running VM.
    Live(Box<LiveMemory>),
    /// A dump.
    Dump(Box<Dump>),
}

impl Source {
    /// Opens it.
    pub(crate) fn open(what: &What) -> anyhow::Result<Self> {
        let live = |memory: Result<LiveMemory, _>| memory.map(|memory| Self::Live(Box::new(memory)));
        match what {
            What::Qmp(socket) => live(LiveMemory::over_qmp(socket)).map_err(|error| {
                let what = format!("the memory of the VM at {} cannot be read", socket.display());
                refused(&anyhow::Error::new(error).context(what))
            }),
            What::Pid(pid) => live(LiveMemory::of_process(*pid)).map_err(|error| {
                let what = format!("the memory of process {pid} cannot be read");
                refused(&anyhow::Error::new(error).context(what))
            }),
            What::File(path) if !path.exists() => {
                let message = format!(
                    "there is no file {}: a dump's path, qmp:SOCKET or pid:NUMBER is wanted",
                    path.display()
                );
                Err(exit(Failure::Usage, message))
            }
            What::File(path) => {
                let dump = Dump::open(path).map_err(|error| refused(&error.into()))?;
                Ok(Self::Dump(Box::new(dump)))
            }
        }
    }

    /// The VM, for a report.
    pub(crate) fn about(&self, what: &What) -> VmReport {
        let name = match what {
            What::Qmp(socket) => socket.display().to_string(),
            What::Pid(pid) => format!("process {pid}"),
            What::File(path) => path
                .file_name()
                .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        };
        let vmm = match self {
            Self::Live(live) => live
                .vmm()
                .map_or_else(|| "a process".to_owned(), |version| format!("QEMU {version}")),
            Self::Dump(dump) => match dump.format() {
                DumpFormat::Elf(_) => "ELF core".to_owned(),
                DumpFormat::Lime => "LiME image".to_owned(),
                DumpFormat::Raw => "raw image".to_owned(),
            },
        };
        let vcpus = match self {
            Self::Dump(dump) => u32::try_from(dump.cpus().len()).unwrap_or(0),
            Self::Live(_) => 0,
        };
        VmReport {
            name,
            vmm,
            accelerator: "memory".to_owned(),
            isa: String::new(),
            vcpus,
        }
    }

    /// The guest's RAM.
    pub(crate) fn ranges(&self) -> Vec<(Gpa, u64)> {
        match self {
            Self::Live(live) => live.ranges(),
            Self::Dump(dump) => dump.ranges().collect(),
        }
    }

    /// The process whose memory is not mapped here, if that is where it is.
    pub(crate) fn private_process(&self) -> Option<u32> {
        match self {
            Self::Live(live) => (!live.is_mapped()).then(|| live.pid()),
            Self::Dump(_) => None,
        }
    }

    /// Goes through such memory by way of this one.
    pub(crate) fn gather_by(&mut self, gatherer: Gatherer) {
        if let Self::Live(live) = self {
            live.gather_by(gatherer);
        }
    }

    /// To be told before each look.
    pub(crate) fn refresh(&mut self) {
        if let Self::Live(live) = self {
            live.refresh();
        }
    }

    /// How the guest's CPUs translate, if registers tell.
    pub(crate) fn paging_mode(&mut self) -> Option<Mode> {
        match self {
            Self::Live(live) => live.paging_mode(),
            Self::Dump(dump) => {
                let long = dump.format() == DumpFormat::Elf(Machine::X86_64);
                dump.cpus().iter().find_map(|cpu| mode(cpu, long))
            }
        }
    }

    /// Goes on with another layout that memory may have.
    pub(crate) fn try_next_layout(&mut self) -> bool {
        match self {
            Self::Live(live) => live.try_next_layout(),
            Self::Dump(_) => false,
        }
    }

    /// Whether there is nothing more to look at.
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            Self::Live(live) => live.is_gone(),
            Self::Dump(_) => false,
        }
    }
}

/// The error with the code that says whose fault it is: nobody is there, it is not allowed, or it is no memory of a guest.
fn refused(error: &anyhow::Error) -> anyhow::Error {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    let failure = match io.map(io::Error::kind) {
        Some(ErrorKind::PermissionDenied) => Failure::Permission,
        Some(ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Failure::NoVm,
        Some(_) => Failure::Other,
        None => Failure::NotUnderstood,
    };
    exit(failure, format!("{error:#}"))
}

/// A core has CR0 and CR4; which of the modes with EFER.LMA it is, the machine of the core says. EFER.NXE is not in it.
fn mode(cpu: &CpuRegisters, long: bool) -> Option<Mode> {
    const LMA: u64 = 1 << 10;
    const NXE: u64 = 1 << 11;
    Mode::x86(&X86Controls {
        cr0: cpu.cr0,
        cr4: cpu.cr4,
        efer: NXE | if long { LMA } else { 0 },
        physical_bits: 52,
        gib_pages: true,
    })
}

impl PhysicalMemory for Source {
    fn next_data(&self, from: Gpa, end: Gpa) -> Option<(Gpa, Gpa)> {
        match self {
            Self::Live(live) => live.next_data(from, end),
            Self::Dump(dump) => dump.next_data(from, end),
        }
    }

    fn read_each(&self, at: Gpa, pieces: &Pieces<'_>, buf: &mut [u8]) -> Result<(), MemoryFault> {
        match self {
            Self::Live(live) => live.read_each(at, pieces, buf),
            Self::Dump(dump) => dump.read_each(at, pieces, buf),
        }
    }

    fn reads_pieces(&self) -> bool {
        match self {
            Self::Live(live) => live.reads_pieces(),
            Self::Dump(dump) => dump.reads_pieces(),
        }
    }

    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        match self {
            Self::Live(live) => live.read(at, buf),
            Self::Dump(dump) => dump.read(at, buf),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_look_at_is_a_socket_a_process_or_a_file() {
        let parsed = |text: &str| text.parse::<What>();
        assert_eq!(parsed("qmp:/run/q"), Ok(What::Qmp("/run/q".into())));
        assert_eq!(parsed("pid:17"), Ok(What::Pid(17)));
        assert_eq!(parsed("./pid.core"), Ok(What::File("./pid.core".into())));
        assert!(parsed("pid:x").unwrap_err().contains("no process number"));
    }
}
