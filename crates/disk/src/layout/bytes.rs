//! Numbers in bytes.

macro_rules! number {
    ($name:ident, $type:ty, $from:ident) => {
        /// The number at this offset, if it is within.
        pub(super) fn $name(bytes: &[u8], at: usize) -> Option<$type> {
            let end = at.checked_add(size_of::<$type>())?;
            let found = bytes.get(at..end)?.try_into().ok()?;
            Some(<$type>::$from(found))
        }
    };
}

number!(u16_le, u16, from_le_bytes);
number!(u32_le, u32, from_le_bytes);
number!(u64_le, u64, from_le_bytes);
number!(u16_be, u16, from_be_bytes);
number!(u32_be, u32, from_be_bytes);
number!(u64_be, u64, from_be_bytes);

/// Two halves of a number that are apart.
pub(super) fn joined(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// A length in memory.
pub(super) fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
