//! The QEMU plugin's other side: attaches to its socket and turns frames into events.
//!
//! *What it sees*: every page of code at its first execution in each generation, which address spaces run it, from the
//! moment of attachment. *What it cannot see*: what ran before; code reached without QEMU translating it (KVM). *Config*:
//! the socket. *State*: the rings. *Tests*: below,
//! against a peer that writes rings by hand, and in `tests/e2e` against the plugin itself.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nephoscope_guest::{
    CodeCaptured, Event, Executed, FileHeld, FileSeen, Gap, Gpa, Gva, Lifecycle, PAGE_SIZE, PackageSaid,
    PageAccessed, PageBytes, PageId, Privilege, Root, Stamped, VcpuId,
};
use nephoscope_isa::{Mode, X86Controls};
use nephoscope_wire::{
    COUNTER_NAMES, Captured, Consumer, Controls, Frame, Hello, NO_FRAME, RamRange, Request, RingMemory,
    SocketError, Stamp, UNSEEN_NAMES, WIRE_VERSION, receive, send,
};

use crate::cpu_state::PHYSICAL_BITS;
use crate::rings::{Bell, Rings, RingsError};

/// The plugin could not be attached to, or what it sent cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum QemuPluginError {
    /// Nobody listens there.
    #[error("cannot connect to the plugin's socket {path}: is this VM running with the Nephoscope plugin?")]
    Connect {
        /// The socket.
        path: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The handshake.
    #[error("the plugin's handshake failed")]
    Socket(#[from] SocketError),
    /// Another version.
    #[error(
        "the plugin speaks version {theirs} of the protocol, this program version {ours}: use those of one release"
    )]
    Version {
        /// The plugin's.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// The plugin sent too few descriptors.
    #[error("the plugin sent {got} descriptors instead of at least {wanted}")]
    Descriptors {
        /// What came.
        got: usize,
        /// What is needed.
        wanted: usize,
    },
    /// Its rings.
    #[error(transparent)]
    Rings(#[from] RingsError),
}

/// A plugin that this monitor is attached to.
#[derive(Debug)]
pub struct QemuPlugin {
    hello: Hello,
    stream: UnixStream,
    wake: OwnedFd,
    rings: Rings,
    /// The paging mode of the latest capture that told it, and its time.
    mode: Option<(u64, Mode)>,
}

impl QemuPlugin {
    /// Connects and takes the rings over. From here on, the guest waits when they are full.
    ///
    /// # Errors
    /// If nobody listens, or the other side is not a plugin of this version.
    pub fn attach(socket: &Path) -> Result<Self, QemuPluginError> {
        let mut stream = UnixStream::connect(socket).map_err(|source| QemuPluginError::Connect {
            path: socket.display().to_string(),
            source,
        })?;
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .map_err(SocketError::Io)?;
        let (hello, mut fds) = receive::<Hello>(&mut stream)?;
        if hello.wire != WIRE_VERSION {
            return Err(QemuPluginError::Version {
                theirs: hello.wire,
                ours: WIRE_VERSION,
            });
        }
        let got = fds.len();
        let wake = fds.pop().filter(|_| got >= 2);
        let wake = wake.ok_or(QemuPluginError::Descriptors { got, wanted: 2 })?;
        let mut rings = Vec::new();
        for (ring, fd) in fds.into_iter().enumerate() {
            let open = RingMemory::open(fd).and_then(Consumer::new);
            rings.push(open.map_err(|source| RingsError::Ring { ring, source })?);
        }
        Ok(Self {
            rings: Rings::new(rings, hello.installed_ns),
            hello,
            stream,
            wake,
            mode: None,
        })
    }

    /// What the plugin said of itself.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Tells the plugin where guest RAM lies, so that it can tell address spaces apart.
    ///
    /// # Errors
    /// If the plugin is gone.
    pub fn set_ram(&mut self, ranges: Vec<RamRange>) -> Result<(), QemuPluginError> {
        Ok(send(&mut self.stream, &Request::Ram { ranges }, &[])?)
    }

    /// Tells the plugin that the machine was reset: whoever has a root from now on is another address space.
    ///
    /// # Errors
    /// If the plugin is gone.
    pub fn reset(&mut self) -> Result<(), QemuPluginError> {
        Ok(send(&mut self.stream, &Request::Reset, &[])?)
    }

    /// How the guest's CPUs translated when a page was captured last with paging on; `None` if none was since this monitor is
    /// attached.
    #[must_use]
    pub fn mode(&self) -> Option<Mode> {
        self.mode.map(|(_, mode)| mode)
    }

    /// [`Rings::seen_until_ns`].
    #[must_use]
    pub fn seen_until_ns(&self) -> u64 {
        self.rings.seen_until_ns()
    }

    /// Whether the plugin is gone: QEMU ended, and every frame was read.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.rings.are_over()
    }

    /// Waits up to `timeout` for events and appends them to `out` in the order of their time. Times count from the
    /// plugin's installation.
    ///
    /// # Errors
    /// If a ring holds what no plugin writes: nothing after it can be believed.
    pub fn next(&mut self, timeout: Duration, out: &mut Vec<Stamped>) -> Result<(), QemuPluginError> {
        // The plugin never speaks after the handshake: a stream that is readable is closed.
        let bell = Bell {
            wake: self.wake.as_fd(),
            end: Some(self.stream.as_fd()),
        };
        let origin = self.hello.installed_ns;
        let latest = &mut self.mode;
        let take = |stamp: Stamp, frame: &Frame<'_>, events: &mut Vec<Event>| {
            if let Frame::Captured(captured, _) = frame
                && latest.is_none_or(|(at_ns, _)| at_ns <= stamp.at_ns)
                && let Some(mode) = captured.controls.and_then(mode)
            {
                *latest = Some((stamp.at_ns, mode));
            }
            events.push(event(stamp, frame, origin));
        };
        Ok(self.rings.next(&bell, timeout, take, out)?)
    }
}

fn mode(controls: Controls) -> Option<Mode> {
    Mode::x86(&X86Controls {
        // Registers are told where paging is on.
        cr0: 1 << 31,
        cr4: controls.cr4.into(),
        efer: controls.efer.into(),
        physical_bits: PHYSICAL_BITS,
        gib_pages: true,
    })
}

/// The event that a frame tells of.
pub(crate) fn event(stamp: Stamp, frame: &Frame<'_>, origin: u64) -> Event {
    let page = PageId(stamp.page);
    let vcpu = VcpuId::from(stamp.vcpu);
    match frame {
        Frame::Captured(captured, bytes) => {
            Event::CodeCaptured(Box::new(capture(page, vcpu, captured, bytes)))
        }
        Frame::Executed { root, incarnation } => Event::Executed(Executed {
            page,
            root: Root(*root),
            vcpu,
            incarnation: *incarnation,
        }),
        Frame::Located { root, va } => Event::Located {
            page,
            root: Root(*root),
            va: Gva(*va),
        },
        Frame::Extended { start, end } => Event::Extended {
            page,
            start: *start,
            end: *end,
        },
        Frame::Gap {
            from_ns,
            to_ns,
            lost,
            left,
            reason,
        } => Event::Gap(Gap {
            from_ns: from_ns.saturating_sub(origin),
            to_ns: to_ns.saturating_sub(origin),
            left: *left,
            reason: *reason,
            lost: *lost,
        }),
        Frame::Counters(values) => Event::Counters(
            COUNTER_NAMES
                .iter()
                .copied()
                .zip(values.iter().copied())
                .collect(),
        ),
        Frame::Stopped => Event::Lifecycle(Lifecycle::Stopped),
        Frame::File(file, path) => Event::FileSeen(
            file.file,
            Box::new(FileSeen {
                disk: file.disk,
                partition: file.partition,
                inode: file.inode,
                generation: file.generation,
                bytes: file.bytes,
                path: path.to_vec(),
            }),
        ),
        Frame::FilesUnseen { disk, counts } => Event::FilesUnseen(
            *disk,
            UNSEEN_NAMES.into_iter().zip(counts.iter().copied()).collect(),
        ),
        Frame::Package(package, name, version) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Event::PackageSaid(Box::new(PackageSaid {
                disk: package.disk,
                partition: package.partition,
                name: text(name),
                version: package.installed.then(|| text(version)),
            }))
        }
        Frame::FileHeld(held) => Event::FileHeld(Box::new(FileHeld {
            file: held.file,
            at: held.at,
            gpa: Gpa(held.gpa),
            len: held.len,
            written: held.written,
            digest: held.digest,
        })),
        Frame::FrameAccessed(accessed, held) => Event::PageAccessed(Box::new(PageAccessed {
            gpa: Gpa(accessed.gpa),
            by: accessed.by.map(|(root, incarnation)| (Root(root), incarnation)),
            held: held.map(|bytes| {
                let mut copy = PageBytes::zeroed();
                copy.copy_from_slice(bytes);
                copy
            }),
        })),
    }
}

fn capture(page: PageId, vcpu: VcpuId, captured: &Captured, bytes: &[u8; PAGE_SIZE]) -> CodeCaptured {
    let mut copy = PageBytes::zeroed();
    copy.copy_from_slice(bytes);
    CodeCaptured {
        page,
        gpa: (!captured.paging).then_some(Gpa(captured.va)),
        frame: if captured.frame == NO_FRAME {
            0
        } else {
            captured.frame
        },
        generation: captured.generation,
        vcpu,
        root: Root(captured.root),
        va: Gva(captured.va),
        privilege: if captured.user {
            Privilege::User
        } else {
            Privilege::Supervisor
        },
        paging: captured.paging,
        bits: captured.bits,
        start: captured.start,
        end: captured.end,
        replay: captured.replay,
        bytes: copy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rings::MAX_BATCH;
    use nephoscope_wire::Producer;
    use std::os::unix::net::UnixListener;

    /// A plugin played by hand: one ring, and what it says of itself.
    fn attached(dir: &Path) -> (QemuPlugin, RingMemory, UnixStream) {
        let socket = dir.join("plugin");
        let listener = UnixListener::bind(&socket).unwrap();
        let ring = RingMemory::create("test", 2 << 20).unwrap();
        let attaching = std::thread::spawn(move || QemuPlugin::attach(&socket));
        let (mut stream, _) = listener.accept().unwrap();
        let hello = Hello {
            wire: WIRE_VERSION,
            version: "test".into(),
            api: 4,
            target: "x86_64".into(),
            vcpus: 1,
            pid: std::process::id(),
            installed_ns: 0,
            attached_ns: 0,
            blind_since_ns: None,
        };
        let wake = rustix::fs::memfd_create("wake", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        send(&mut stream, &hello, &[ring.fd(), wake.as_fd()]).unwrap();
        (attaching.join().unwrap().unwrap(), ring, stream)
    }

    #[test]
    fn the_latest_capture_that_tells_the_mode_tells_how_cpus_translate() {
        let dir = tempfile::tempdir().unwrap();
        let (mut plugin, ring, _stream) = attached(dir.path());
        let mut look = |at_ns, controls| {
            let captured = Captured {
                end: 1,
                bits: 64,
                controls,
                ..Captured::default()
            };
            let mut bytes = Vec::new();
            let stamp = Stamp {
                at_ns,
                ..Stamp::default()
            };
            Frame::Captured(captured, &[0; PAGE_SIZE]).encode(stamp, &mut bytes);
            Producer::new(&ring).push(&bytes).unwrap();
            plugin.next(Duration::from_secs(1), &mut Vec::new()).unwrap();
            plugin.mode().map(|mode| format!("{mode:?}"))
        };
        let controls = |cr4, efer| Some(Controls { cr4, efer });
        assert_eq!(look(1, None), None);
        // CR4.PAE alone; with EFER.LMA and NXE; and with CR4.LA57.
        let pae = look(2, controls(0x20, 0)).unwrap();
        let long = look(3, controls(0x20, 0xc00)).unwrap();
        let five = look(4, controls(0x1020, 0xc00)).unwrap();
        assert!(pae != long && long != five, "{pae}, {long}, {five}");
        assert_eq!(
            look(3, controls(0x20, 0)).unwrap(),
            five,
            "another CPU's, from before"
        );
        assert_eq!(
            look(5, None).unwrap(),
            five,
            "real mode, as of a CPU that is started"
        );
    }

    #[test]
    fn max_batch_bounds_what_one_look_takes_from_a_ring_that_is_always_full() {
        let dir = tempfile::tempdir().unwrap();
        let (mut plugin, ring, _stream) = attached(dir.path());
        let mut frame = Vec::new();
        let executed = Frame::Executed {
            root: 0x1000,
            incarnation: 0,
        };
        executed.encode(Stamp::default(), &mut frame);
        for _ in 0..MAX_BATCH + 7 {
            Producer::new(&ring).push(&frame).unwrap();
        }
        let mut events = Vec::new();
        plugin.next(Duration::from_secs(1), &mut events).unwrap();
        assert_eq!(events.len(), MAX_BATCH);
        plugin.next(Duration::from_secs(1), &mut events).unwrap();
        assert_eq!(events.len(), MAX_BATCH + 7);
    }
}
