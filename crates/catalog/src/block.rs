//! The smallest unit that is read and checked: 256 bytes, of which the last four are a CRC-32.
//!
//! CRC-32 and not a hash: it finds *every* damage of up to 32 neighbouring bits, so a flipped byte is found for
//! certain and not only most probably. The block's place takes part in the sum, so a block that a disk or a
//! copy put in the wrong place is damage too. Nobody is kept from forging here; a catalog is as trusted as the
//! program that reads it.

/// Bytes of one block.
pub(crate) const BLOCK: usize = 256;
/// Bytes of one block that hold data.
pub(crate) const PAYLOAD: usize = BLOCK - 4;

/// A copy of one block that was found undamaged.
pub(crate) type Payload = [u8; PAYLOAD];

/// The check of some bytes that stand at `place`.
pub(crate) fn check(bytes: &[u8], place: u64) -> u32 {
    let [a, b, c, d, e, f, g, h] = place.to_le_bytes();
    let start = u32::from_le_bytes([a, b, c, d]) ^ u32::from_be_bytes([e, f, g, h]);
    let mut crc = crc32fast::Hasher::new_with_initial(start);
    crc.update(bytes);
    crc.finalize()
}

/// Whether this is the check of the bytes.
#[cfg(not(fuzzing))]
pub(crate) fn holds(bytes: &[u8], place: u64, sum: [u8; 4]) -> bool {
    check(bytes, place) == u32::from_le_bytes(sum)
}

#[cfg(fuzzing)]
pub(crate) use crate::fuzzing::holds;

/// The payload of the block at `place`, or `None` if it is damaged. Works on a copy: what was checked is what
/// is read, whatever becomes of the file.
pub(crate) fn open(block: &[u8], place: u64) -> Option<Payload> {
    let (payload, sum) = block.split_first_chunk::<PAYLOAD>()?;
    let sum = <[u8; 4]>::try_from(sum).ok()?;
    let payload = *payload;
    holds(&payload, place, sum).then_some(payload)
}

/// The block for a payload of at most [`PAYLOAD`] bytes, zero-filled. Longer payloads are cut; callers never
/// pass any.
pub(crate) fn seal(payload: &[u8], place: u64) -> [u8; BLOCK] {
    let mut block = [0u8; BLOCK];
    for (to, from) in block.iter_mut().take(PAYLOAD).zip(payload) {
        *to = *from;
    }
    let (body, sum) = block.split_at_mut(PAYLOAD);
    sum.copy_from_slice(&check(body, place).to_le_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_block_is_found() {
        let good = seal(b"nephoscope", 7);
        assert_eq!(&open(&good, 7).unwrap()[..10], b"nephoscope");
        for bit in 0..BLOCK * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&bad, 7).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn a_block_in_the_wrong_place_is_damage() {
        assert!(open(&seal(b"x", 7), 8).is_none());
    }
}
