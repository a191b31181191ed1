//! Frames: what one event of the plugin looks like in a ring.
//!
//! All numbers are little-endian. A frame is a multiple of 8 bytes, so that its header is always whole:
//!
//! ```text
//!  0        4      6      8            16           24
//!  ┌────────┬──────┬──────┬────────────┬────────────┬─────────────┐
//!  │ length │ kind │ vcpu │ time (ns)  │ page       │ body …      │
//!  └────────┴──────┴──────┴────────────┴────────────┴─────────────┘
//! ```

use nephoscope_guest::{Attribution, CodeCoverage, Coverage, GapReason, PAGE_SIZE};

use crate::files::{FileFrame, FileHeld, FrameAccessed, PackageFrame};

/// Bytes of the header.
const HEADER: usize = 24;
/// Bytes of a [`Captured`] before the page.
const CAPTURED_FIXED: usize = 40;
/// The longest frame there is: a capture.
pub const MAX_FRAME_BYTES: usize = HEADER + CAPTURED_FIXED + PAGE_SIZE;
/// The frame name of code that has no host memory behind it.
pub const NO_FRAME: u64 = 0;

/// The counters the plugin keeps, in the order in which a counter frame carries them.
pub const COUNTER_NAMES: [&str; 19] = [
    "translations",
    "captures",
    "recaptures",
    "captures_without_frame",
    "crossing_instructions",
    "executed_sent",
    "root_changes",
    "collections",
    "ring_waits",
    "ring_lost",
    "marks_exhausted",
    "frames_forgotten",
    "root_changes_unseen",
    "callback_faults",
    "code_invalidated",
    "frames_armed",
    "file_accesses",
    "file_frames_lost",
    "file_accesses_blind",
];

/// Why files of a disk are not seen, in the order in which a frame says how many.
pub const UNSEEN_NAMES: [&str; 6] = [
    "volumes_not_understood",
    "inodes_not_understood",
    "files_without_room",
    "pieces_apart",
    "transactions_missed",
    "transfers_unheard",
];

/// When, where and about which page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stamp {
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub at_ns: u64,
    /// Virtual CPU; `u16::MAX` where the plugin cannot tell (several vCPUs on one thread).
    pub vcpu: u16,
    /// The page, or 0.
    pub page: u64,
}

/// The fixed part of a capture.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Captured {
    /// Host-virtual address of the frame in the VMM, or [`NO_FRAME`].
    pub frame: u64,
    /// The root that CR3 names in the CPU's mode.
    pub root: u64,
    /// Virtual address of the page.
    pub va: u64,
    /// How often this frame was captured before.
    pub generation: u32,
    /// First byte of the block, from the start of the page.
    pub start: u16,
    /// One past its last byte, at most 4096.
    pub end: u16,
    /// Privilege: CPL 3.
    pub user: bool,
    /// CR0.PG.
    pub paging: bool,
    /// The page was captured before this monitor came; the time is that of the attachment.
    pub replay: bool,
    /// Code segment width in bits: 16, 32 or 64.
    pub bits: u8,
    /// What the CPU's tables mean, where the sender knows it and they are used.
    pub controls: Option<Controls>,
}

/// The registers that say how a CPU which uses paging reads its tables, as far as they do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Controls {
    /// The low half of CR4: PSE, PAE, LA57, SMEP.
    pub cr4: u32,
    /// The low bits of EFER: LMA, NXE.
    pub efer: u16,
}

/// One frame. `B` is how the page of a capture is held: borrowed when sent, owned when received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame<'a> {
    /// A page is about to run for the first time in this generation.
    Captured(Captured, &'a [u8; PAGE_SIZE]),
    /// A root ran blocks of a page since it was last collected.
    Executed {
        /// CR3 without PCID and flags.
        root: u64,
        /// Which address space in this root, counted by the plugin.
        incarnation: u32,
    },
    /// A root sees a page at this address.
    Located {
        /// CR3 without PCID and flags.
        root: u64,
        /// Virtual address of the page.
        va: u64,
    },
    /// Further bytes of a page are about to run.
    Extended {
        /// First byte.
        start: u16,
        /// One past the last byte.
        end: u16,
    },
    /// An interval in which the plugin did not see everything.
    Gap {
        /// Start, `CLOCK_MONOTONIC` in nanoseconds.
        from_ns: u64,
        /// End.
        to_ns: u64,
        /// What is missing, if counted.
        lost: u64,
        /// What is left.
        left: Coverage,
        /// Why.
        reason: GapReason,
    },
    /// The counters, absolute, in the order of [`COUNTER_NAMES`].
    Counters([u64; COUNTER_NAMES.len()]),
    /// QEMU is about to exit.
    Stopped,
    /// A file of a disk that is followed, before anything else is said of it; again when that changes.
    File(FileFrame, &'a [u8]),
    /// What of a disk is not seen since its server was started.
    FilesUnseen {
        /// The disk.
        disk: u16,
        /// How many, in the order of [`UNSEEN_NAMES`].
        counts: [u64; UNSEEN_NAMES.len()],
    },
    /// What a disk's own package manager says of a package: its name, and the version that is installed.
    Package(PackageFrame, &'a [u8], &'a [u8]),
    /// A piece of a file is in the guest's memory.
    FileHeld(FileHeld),
    /// Memory with a piece of a file was accessed, and what it held: nothing if it was about to be written.
    FrameAccessed(FrameAccessed, Option<&'a [u8; PAGE_SIZE]>),
}

/// A frame that cannot be right. The ring it came from is given up: nothing after it can be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// The length is not that of its kind, or not a multiple of 8.
    #[error("frame of kind {kind} has a length of {len} bytes")]
    Length {
        /// The kind as found.
        kind: u16,
        /// The length as found.
        len: usize,
    },
    /// No such kind.
    #[error("frame of unknown kind {0}")]
    Kind(u16),
    /// A field is outside its range.
    #[error("frame field {0} is out of range")]
    Field(&'static str),
}

const CAPTURED: u16 = 1;
const EXECUTED: u16 = 2;
const LOCATED: u16 = 3;
const EXTENDED: u16 = 4;
const GAP: u16 = 5;
const COUNTERS: u16 = 6;
const STOPPED: u16 = 7;
const FILE: u16 = 8;
const FILE_HELD: u16 = 9;
const FRAME_ACCESSED: u16 = 10;
const FILES_UNSEEN: u16 = 11;
const PACKAGE: u16 = 12;

const FLAG_USER: u8 = 1;
const FLAG_PAGING: u8 = 2;
const FLAG_REPLAY: u8 = 4;
/// The registers are told. What 8 says is the sender's alone: other bytes of the page that run will not be told.
const FLAG_CONTROLS: u8 = 16;
impl Frame<'_> {
    /// Appends the frame to `out`, which is cleared first.
    pub fn encode(&self, stamp: Stamp, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&0_u32.to_le_bytes());
        out.extend_from_slice(&self.kind().to_le_bytes());
        out.extend_from_slice(&stamp.vcpu.to_le_bytes());
        out.extend_from_slice(&stamp.at_ns.to_le_bytes());
        out.extend_from_slice(&stamp.page.to_le_bytes());
        self.encode_body(out);
        while !out.len().is_multiple_of(8) {
            out.push(0);
        }
        let len = u32::try_from(out.len()).unwrap_or(u32::MAX);
        if let Some(field) = out.first_chunk_mut::<4>() {
            *field = len.to_le_bytes();
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Frame::Captured(..) => CAPTURED,
            Frame::Executed { .. } => EXECUTED,
            Frame::Located { .. } => LOCATED,
            Frame::Extended { .. } => EXTENDED,
            Frame::Gap { .. } => GAP,
            Frame::Counters(_) => COUNTERS,
            Frame::Stopped => STOPPED,
            Frame::File(..) => FILE,
            Frame::FileHeld(_) => FILE_HELD,
            Frame::FilesUnseen { .. } => FILES_UNSEEN,
            Frame::Package(..) => PACKAGE,
            Frame::FrameAccessed(..) => FRAME_ACCESSED,
        }
    }

    fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Frame::Captured(c, page) => {
                for number in [c.frame, c.root, c.va] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
                out.extend_from_slice(&c.generation.to_le_bytes());
                out.extend_from_slice(&c.start.to_le_bytes());
                out.extend_from_slice(&c.end.to_le_bytes());
                let flag = |set: bool, bit: u8| if set { bit } else { 0 };
                let flags = flag(c.user, FLAG_USER)
                    | flag(c.paging, FLAG_PAGING)
                    | flag(c.replay, FLAG_REPLAY)
                    | flag(c.controls.is_some(), FLAG_CONTROLS);
                let Controls { cr4, efer } = c.controls.unwrap_or_default();
                out.extend_from_slice(&[flags, c.bits]);
                out.extend_from_slice(&efer.to_le_bytes());
                out.extend_from_slice(&cr4.to_le_bytes());
                out.extend_from_slice(*page);
            }
            Frame::Executed { root, incarnation } => {
                out.extend_from_slice(&root.to_le_bytes());
                out.extend_from_slice(&u64::from(*incarnation).to_le_bytes());
            }
            Frame::Located { root, va } => {
                out.extend_from_slice(&root.to_le_bytes());
                out.extend_from_slice(&va.to_le_bytes());
            }
            Frame::Extended { start, end } => {
                out.extend_from_slice(&start.to_le_bytes());
                out.extend_from_slice(&end.to_le_bytes());
                out.extend_from_slice(&[0; 4]);
            }
            Frame::Gap {
                from_ns,
                to_ns,
                lost,
                left,
                reason,
            } => {
                for number in [*from_ns, *to_ns, *lost] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
                out.extend_from_slice(&[code_to(left.code), attribution_to(left.attribution)]);
                out.extend_from_slice(&[reason_to(*reason), 0, 0, 0, 0, 0]);
            }
            Frame::Counters(values) => {
                for value in values {
                    out.extend_from_slice(&value.to_le_bytes());
                }
            }
            Frame::Stopped => {}
            Frame::File(file, path) => file.encode(path, out),
            Frame::FilesUnseen { disk, counts } => {
                out.extend_from_slice(&u64::from(*disk).to_le_bytes());
                for count in counts {
                    out.extend_from_slice(&count.to_le_bytes());
                }
            }
            Frame::Package(package, name, version) => package.encode(name, version, out),
            Frame::FileHeld(held) => held.encode(out),
            Frame::FrameAccessed(accessed, page) => accessed.encode(*page, out),
        }
    }

    /// Reads one whole frame.
    ///
    /// # Errors
    /// [`FrameError`] if any field is not as [`Frame::encode`] would have written it.
    pub fn decode(bytes: &[u8]) -> Result<(Stamp, Frame<'_>), FrameError> {
        let mut fields = Fields { rest: bytes };
        let length = FrameError::Length {
            kind: 0,
            len: bytes.len(),
        };
        let len = fields.u32().ok_or(length)?;
        let kind = fields.u16().ok_or(length)?;
        let length = FrameError::Length {
            kind,
            len: bytes.len(),
        };
        if usize::try_from(len) != Ok(bytes.len()) || !bytes.len().is_multiple_of(8) {
            return Err(length);
        }
        let stamp = Stamp {
            vcpu: fields.u16().ok_or(length)?,
            at_ns: fields.u64().ok_or(length)?,
            page: fields.u64().ok_or(length)?,
        };
        let frame = decode_body(kind, &mut fields, length)?;
        if !fields.rest.is_empty() {
            return Err(length);
        }
        Ok((stamp, frame))
    }
}

fn decode_body<'a>(kind: u16, f: &mut Fields<'a>, length: FrameError) -> Result<Frame<'a>, FrameError> {
    Ok(match kind {
        CAPTURED => decode_captured(f, length)?,
        EXECUTED => {
            let root = f.u64().ok_or(length)?;
            let incarnation = f.u64().ok_or(length)?;
            let incarnation = u32::try_from(incarnation).map_err(|_| FrameError::Field("incarnation"))?;
            Frame::Executed { root, incarnation }
        }
        LOCATED => Frame::Located {
            root: f.u64().ok_or(length)?,
            va: f.u64().ok_or(length)?,
        },
        EXTENDED => {
            let (start, end) = (f.u16().ok_or(length)?, f.u16().ok_or(length)?);
            f.u32().ok_or(length)?;
            check_range(start, end)?;
            Frame::Extended { start, end }
        }
        GAP => {
            let (from_ns, to_ns) = (f.u64().ok_or(length)?, f.u64().ok_or(length)?);
            let lost = f.u64().ok_or(length)?;
            let [code, attribution, reason, ..] = f.u64().ok_or(length)?.to_le_bytes();
            let left = Coverage {
                code: code_from(code)?,
                attribution: attribution_from(attribution)?,
            };
            if from_ns > to_ns {
                return Err(FrameError::Field("interval"));
            }
            Frame::Gap {
                from_ns,
                to_ns,
                lost,
                left,
                reason: reason_from(reason)?,
            }
        }
        COUNTERS => {
            let mut values = [0; COUNTER_NAMES.len()];
            for value in &mut values {
                *value = f.u64().ok_or(length)?;
            }
            Frame::Counters(values)
        }
        STOPPED => Frame::Stopped,
        FILE => {
            let (file, path) = FileFrame::decode(f, length)?;
            Frame::File(file, path)
        }
        PACKAGE => {
            let (package, name, version) = PackageFrame::decode(f, length)?;
            Frame::Package(package, name, version)
        }
        FILE_HELD => Frame::FileHeld(FileHeld::decode(f, length)?),
        FILES_UNSEEN => {
            let disk = f.u64().ok_or(length)?;
            let disk = u16::try_from(disk).map_err(|_| FrameError::Field("disk"))?;
            let mut counts = [0; UNSEEN_NAMES.len()];
            for count in &mut counts {
                *count = f.u64().ok_or(length)?;
            }
            Frame::FilesUnseen { disk, counts }
        }
        FRAME_ACCESSED => {
            let (accessed, page) = FrameAccessed::decode(f, length)?;
            Frame::FrameAccessed(accessed, page)
        }
        other => return Err(FrameError::Kind(other)),
    })
}

fn decode_captured<'a>(f: &mut Fields<'a>, length: FrameError) -> Result<Frame<'a>, FrameError> {
    let (frame, root, va) = (
        f.u64().ok_or(length)?,
        f.u64().ok_or(length)?,
        f.u64().ok_or(length)?,
    );
    let generation = f.u32().ok_or(length)?;
    let (start, end) = (f.u16().ok_or(length)?, f.u16().ok_or(length)?);
    let [flags, bits] = f.take().ok_or(length)?;
    let (efer, cr4) = (f.u16().ok_or(length)?, f.u32().ok_or(length)?);
    let page = f.page().ok_or(length)?;
    check_range(start, end)?;
    if !va.is_multiple_of(PAGE_SIZE as u64) {
        return Err(FrameError::Field("va"));
    }
    if !matches!(bits, 16 | 32 | 64) {
        return Err(FrameError::Field("bits"));
    }
    let captured = Captured {
        frame,
        root,
        va,
        generation,
        start,
        end,
        user: flags & FLAG_USER != 0,
        paging: flags & FLAG_PAGING != 0,
        replay: flags & FLAG_REPLAY != 0,
        bits,
        controls: (flags & FLAG_CONTROLS != 0).then_some(Controls { cr4, efer }),
    };
    Ok(Frame::Captured(captured, page))
}

fn check_range(start: u16, end: u16) -> Result<(), FrameError> {
    if start >= end || usize::from(end) > PAGE_SIZE {
        return Err(FrameError::Field("range"));
    }
    Ok(())
}

pub(crate) struct Fields<'a> {
    pub(crate) rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn page(&mut self) -> Option<&'a [u8; PAGE_SIZE]> {
        let (page, rest) = self.rest.split_first_chunk::<PAGE_SIZE>()?;
        self.rest = rest;
        Some(page)
    }

    pub(crate) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

fn code_to(code: CodeCoverage) -> u8 {
    match code {
        CodeCoverage::Complete => 0,
        CodeCoverage::Sampled => 1,
        CodeCoverage::Blind => 2,
    }
}

fn code_from(byte: u8) -> Result<CodeCoverage, FrameError> {
    [CodeCoverage::Complete, CodeCoverage::Sampled, CodeCoverage::Blind]
        .get(usize::from(byte))
        .copied()
        .ok_or(FrameError::Field("code coverage"))
}

fn attribution_to(attribution: Attribution) -> u8 {
    match attribution {
        Attribution::Complete => 0,
        Attribution::Sampled => 1,
        Attribution::Blind => 2,
    }
}

fn attribution_from(byte: u8) -> Result<Attribution, FrameError> {
    [Attribution::Complete, Attribution::Sampled, Attribution::Blind]
        .get(usize::from(byte))
        .copied()
        .ok_or(FrameError::Field("attribution"))
}

/// The reasons the plugin itself can give, by their number on the wire.
const REASONS: [GapReason; 11] = [
    GapReason::Detached,
    GapReason::RingFull,
    GapReason::MarksExhausted,
    GapReason::RootChangedUnseen,
    GapReason::PageUnreadable,
    GapReason::FrameUnknown,
    GapReason::DriverFault,
    GapReason::MemoryUnreadable,
    GapReason::AttributionSampled,
    GapReason::DeviceWritesUnseen,
    GapReason::NestedGuestUnseen,
];

fn reason_to(reason: GapReason) -> u8 {
    // A reason that is not the plugin's own is a fault of the plugin.
    let at = REASONS.iter().position(|r| *r == reason).unwrap_or(6);
    u8::try_from(at).unwrap_or(6)
}

fn reason_from(byte: u8) -> Result<GapReason, FrameError> {
    REASONS
        .get(usize::from(byte))
        .copied()
        .ok_or(FrameError::Field("reason"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn every_kind(page: &[u8; PAGE_SIZE]) -> Vec<Frame<'_>> {
        let captured = Captured {
            frame: 0x7f00_0000_1000,
            root: 0x1234_5020,
            va: 0xffff_ffff_8100_0000,
            generation: 3,
            start: 4000,
            end: 4096,
            user: true,
            paging: true,
            replay: false,
            bits: 64,
            controls: Some(Controls {
                cr4: 0x0030_10b0,
                efer: 0xd01,
            }),
        };
        let left = Coverage {
            code: CodeCoverage::Complete,
            attribution: Attribution::Sampled,
        };
        vec![
            Frame::Captured(captured, page),
            Frame::Executed {
                root: 0x5000,
                incarnation: 7,
            },
            Frame::Located {
                root: 0x5000,
                va: 0x7f12_0000_0000,
            },
            Frame::Extended { start: 0, end: 1 },
            Frame::Gap {
                from_ns: 1,
                to_ns: 2,
                lost: 3,
                left,
                reason: GapReason::RootChangedUnseen,
            },
            Frame::Counters(std::array::from_fn(|i| i as u64)),
            Frame::Stopped,
            Frame::File(
                FileFrame {
                    file: 9,
                    disk: 1,
                    partition: 2,
                    inode: 1 << 40,
                    generation: 77,
                    bytes: 1 << 33,
                },
                b"/usr/share/php/a.php",
            ),
            Frame::FilesUnseen {
                disk: 3,
                counts: std::array::from_fn(|i| i as u64 + 5),
            },
            Frame::Package(
                PackageFrame {
                    disk: 1,
                    partition: 2,
                    installed: true,
                },
                b"php8.2-fpm",
                b"8.2.29-1~deb12u1",
            ),
            Frame::FileHeld(FileHeld {
                file: 9,
                at: 3 << 12,
                gpa: 0x1234_5000,
                len: 4096,
                written: true,
                digest: [7; 32],
            }),
            Frame::FrameAccessed(
                FrameAccessed {
                    gpa: 0x1234_5000,
                    by: Some((0x5000, 3)),
                },
                Some(page),
            ),
            Frame::FrameAccessed(
                FrameAccessed {
                    gpa: 0x1234_5000,
                    by: None,
                },
                None,
            ),
        ]
    }

    #[test]
    fn every_kind_of_frame_comes_back_as_it_was_sent() {
        let page = std::array::from_fn(|i| u8::try_from(i % 251).unwrap());
        let stamp = Stamp {
            at_ns: 99,
            vcpu: 3,
            page: 17,
        };
        let mut bytes = Vec::new();
        for frame in every_kind(&page) {
            frame.encode(stamp, &mut bytes);
            assert!(bytes.len() <= MAX_FRAME_BYTES);
            assert_eq!(Frame::decode(&bytes), Ok((stamp, frame)));
        }
    }

    #[test]
    fn max_frame_bytes_is_the_longest_frame_there_is() {
        let page = [0x90; PAGE_SIZE];
        let mut bytes = Vec::new();
        let lens = every_kind(&page).into_iter().map(|frame| {
            frame.encode(Stamp::default(), &mut bytes);
            bytes.len()
        });
        assert_eq!(lens.max(), Some(MAX_FRAME_BYTES));
    }

    #[test]
    fn a_frame_cut_short_anywhere_is_refused() {
        let page = [0x90; PAGE_SIZE];
        let mut bytes = Vec::new();
        for frame in every_kind(&page) {
            frame.encode(Stamp::default(), &mut bytes);
            for len in 0..bytes.len() {
                assert!(
                    Frame::decode(&bytes[..len]).is_err(),
                    "{len} of {} bytes",
                    bytes.len()
                );
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_frame_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Frame::decode(&bytes);
        }
    }
}
