//! Frames of the ring, one of each kind.

use super::Seed;
use nephoscope_guest::{Coverage, GapReason, PAGE_SIZE};
use nephoscope_wire::{Captured, Frame, Stamp};

pub(crate) fn seeds() -> Vec<Seed> {
    let page = [0x90; PAGE_SIZE];
    let captured = Captured {
        frame: 0x7f00_0000_1000,
        root: 0x1234_5000,
        va: 0x40_1000,
        end: 64,
        user: true,
        paging: true,
        bits: 64,
        ..Captured::default()
    };
    let gap = Frame::Gap {
        from_ns: 1,
        to_ns: 2,
        lost: 3,
        left: Coverage::BLIND,
        reason: GapReason::RingFull,
    };
    let frames = [
        ("captured", Frame::Captured(captured, &page)),
        (
            "executed",
            Frame::Executed {
                root: 0x1000,
                incarnation: 1,
            },
        ),
        (
            "located",
            Frame::Located {
                root: 0x1000,
                va: 0x2000,
            },
        ),
        ("extended", Frame::Extended { start: 1, end: 2 }),
        ("gap", gap),
        (
            "counters",
            Frame::Counters([7; nephoscope_wire::COUNTER_NAMES.len()]),
        ),
        ("stopped", Frame::Stopped),
    ];
    let stamp = Stamp {
        at_ns: 5,
        vcpu: 0,
        page: 9,
    };
    let encoded = frames.map(|(name, frame)| {
        let mut bytes = Vec::new();
        frame.encode(stamp, &mut bytes);
        // The target puts the page behind a capture's fields.
        bytes.truncate(if name == "captured" { 64 } else { bytes.len() });
        ("frame", name.to_owned(), bytes)
    });
    encoded.to_vec()
}
