//! A small guest memory that the input describes: frames of zeros with words in them.

use arbitrary::Unstructured;
use nephoscope_guest::{Gpa, MemoryFault, PhysicalMemory};

/// Frames 1 to 8 can be read, and frame 0x40_0000 of a 36-bit machine's upper part cannot.
pub const FRAMES: std::ops::Range<u64> = 1..9;

/// The memory.
#[derive(Debug, Default)]
pub struct Sparse {
    /// Address (a multiple of 8) and word.
    words: Vec<(u64, u64)>,
}

impl Sparse {
    /// At most 48 words, each written as 10 bytes: where, and what.
    ///
    /// # Errors
    /// If the input is at its end.
    pub fn read_from(input: &mut Unstructured<'_>) -> arbitrary::Result<Self> {
        let count = input.int_in_range(0..=48_u8)?;
        let mut words = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            if input.is_empty() {
                break;
            }
            let place: u16 = input.arbitrary()?;
            let frame = FRAMES.start + u64::from(place >> 9) % (FRAMES.end - FRAMES.start);
            let slot = u64::from(place & 511);
            words.push((frame << 12 | slot << 3, input.arbitrary()?));
        }
        Ok(Self { words })
    }

    /// The slots that are filled, for addresses that reach them.
    pub fn slots(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().map(|(at, _)| at >> 3 & 511)
    }
}

impl PhysicalMemory for Sparse {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        let end = at.0.checked_add(buf.len() as u64).ok_or(MemoryFault { at })?;
        if at.0 < FRAMES.start << 12 || end > FRAMES.end << 12 {
            return Err(MemoryFault { at });
        }
        buf.fill(0);
        for (place, word) in &self.words {
            for (place, byte) in (*place..).zip(word.to_le_bytes()) {
                if let Some(offset) = place.checked_sub(at.0)
                    && let Some(into) = buf.get_mut(offset as usize)
                {
                    *into = byte;
                }
            }
        }
        Ok(())
    }
}
