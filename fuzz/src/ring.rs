//! The ring's reader with a writer that writes what it wants, where it wants, when it wants.

use std::cell::RefCell;
use std::os::unix::fs::FileExt;

use arbitrary::Unstructured;
use nephoscope_wire::{Consumer, Frame, RingMemory};

/// Bytes of the ring's memory: its header page, and the least there is for frames.
const LEN: u64 = 4096 + (32 << 10);

struct Shared {
    file: std::fs::File,
    consumer: Consumer,
}

thread_local! {
    static SHARED: RefCell<Option<Shared>> = const { RefCell::new(None) };
}

fn shared() -> Shared {
    let ring = RingMemory::create("fuzz", 0).expect("memory");
    let fd = || ring.fd().try_clone_to_owned().expect("a descriptor");
    let (file, consumer) = (
        std::fs::File::from(fd()),
        RingMemory::open(fd()).and_then(Consumer::new),
    );
    assert_eq!(file.metadata().expect("its length").len(), LEN);
    Shared {
        file,
        consumer: consumer.expect("a ring of ours"),
    }
}

/// Writes, reads, writes again. What is read is at most a ring's worth, and never longer than a frame.
pub fn run(bytes: &[u8]) {
    SHARED.with_borrow_mut(|shared_ring| {
        let ring = shared_ring.get_or_insert_with(shared);
        let _ = check(ring, &mut Unstructured::new(bytes));
    });
}

fn check(ring: &mut Shared, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let mut out = Vec::new();
    while !input.is_empty() {
        match input.arbitrary::<u8>()? % 4 {
            // Head, tail and the word of the sleeper, relative to where the reader is or anywhere.
            0 => {
                let at = [64, 128, 192, 8][usize::from(input.arbitrary::<u8>()? % 4)];
                let value = if input.arbitrary()? {
                    tail(ring).wrapping_add(u64::from(input.arbitrary::<u16>()?))
                } else {
                    input.arbitrary()?
                };
                write(ring, at, &value.to_le_bytes());
            }
            1 => {
                let at = 4096 + u64::from(input.arbitrary::<u16>()?) % (LEN - 4096);
                let len = input.int_in_range(0..=64)?;
                let bytes = input.bytes(len.min(input.len()))?;
                write(ring, at, bytes);
            }
            // At the reader's place: a length, or a whole frame's beginning.
            2 => {
                let at = 4096 + (tail(ring) & ((32 << 10) - 1));
                let len = [u32::MAX, 24, 40, 48, 4160, 8][usize::from(input.arbitrary::<u8>()? % 6)];
                write(ring, at, &len.to_le_bytes());
            }
            _ => {
                let mut taken = 0;
                while let Ok(true) = ring.consumer.pop(&mut out) {
                    assert!((8..=nephoscope_wire::MAX_FRAME_BYTES).contains(&out.len()));
                    let _ = Frame::decode(&out);
                    taken += out.len();
                    assert!(taken <= 32 << 10, "no more than a ring's worth for one head");
                }
                assert!(ring.consumer.backlog() <= 32 << 10);
                let _ = ring.consumer.sleep();
            }
        }
    }
    Ok(())
}

/// Where the reader is, as it says itself.
fn tail(ring: &Shared) -> u64 {
    let mut word = [0; 8];
    let _ = ring.file.read_exact_at(&mut word, 128);
    u64::from_le_bytes(word)
}

fn write(ring: &Shared, at: u64, bytes: &[u8]) {
    let room = usize::try_from(LEN - at).unwrap_or(0).min(bytes.len());
    let _ = ring.file.write_all_at(&bytes[..room], at);
}
