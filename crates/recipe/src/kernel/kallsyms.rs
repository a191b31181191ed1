//! The kernel's own symbol table, found by its shape.
//!
//! ```text
//!  num_syms │ names: (len, token…)* │ markers: u32 per 256 names │ … │ token_table: 256 strings │ token_index: 256 u16
//!  offsets: i32 per name │ relative_base: u64            before num_syms (up to 6.3) or after token_index (6.4 on)
//! ```
//!
//! `scripts/kallsyms.c` writes it; the tables lie in `.rodata` aligned to 8. Nothing names them once the image is
//! stripped, so the token table is found by the tokens that stand for the digits, and everything else by having to
//! agree with it. The names are needed for what other tables do not say: where the tables without a section of their
//! own begin, which addresses are functions, and where the thunks are that sites can be pointed at.

use std::collections::HashMap;

use super::bytes;

/// Symbols of one kernel.
#[derive(Debug, Default)]
pub(crate) struct Kallsyms {
    /// Sorted by address: (link address, `nm` type letter, name).
    symbols: Vec<(u64, u8, String)>,
    by_name: HashMap<String, u64>,
}

/// More symbols than any kernel has: bounds the work on a hostile image.
const MAX_SYMBOLS: usize = 4_000_000;
/// Names that are stepped over until the tables are found, wrong beginnings included: a hundred times a real kernel's. It
/// stops an image in which every number could be their count.
const MAX_STEPS: usize = 1 << 24;
/// `KSYM_NAME_LEN` is 512; bounds what a hostile token table expands to.
const MAX_NAME_BYTES: usize = 1024;

impl Kallsyms {
    /// Looks for the tables in these bytes.
    pub(crate) fn find(data: &[u8]) -> Option<Self> {
        let digits: Vec<u8> = (b'0'..=b'9').flat_map(|d| [d, 0]).collect();
        let mut from = 0;
        let mut steps = MAX_STEPS;
        while let Some(found) = memchr::memmem::find(data.get(from..)?, &digits) {
            let at = from.checked_add(found)?;
            if let Some(tables) = Tables::around(data, at, &mut steps).and_then(|t| t.read(data)) {
                return Some(tables);
            }
            from = at.checked_add(1)?;
        }
        None
    }

    fn new(mut symbols: Vec<(u64, u8, String)>) -> Self {
        symbols.sort();
        let mut by_name = HashMap::with_capacity(symbols.len());
        for (va, _, name) in &symbols {
            by_name.entry(name.clone()).or_insert(*va);
        }
        Self { symbols, by_name }
    }

    /// A symbol's link address.
    pub(crate) fn address(&self, name: &str) -> Option<u64> {
        self.by_name.get(name).copied()
    }

    /// The first address above this one that has a name.
    pub(crate) fn next_after(&self, va: u64) -> Option<u64> {
        let after = self.symbols.partition_point(|(at, ..)| *at <= va);
        self.symbols.get(after).map(|(at, ..)| *at)
    }

    /// The range between two symbols.
    pub(crate) fn range(&self, start: &str, stop: &str) -> Option<(u64, u64)> {
        Some((self.address(start)?, self.address(stop)?))
    }

    /// Functions by address: (address, name). Not the paddings before them (`__pfx_`), nor pieces that the compiler
    /// split off.
    pub(crate) fn functions(&self) -> impl Iterator<Item = (u64, &str)> {
        self.symbols
            .iter()
            .filter(|(_, kind, _)| matches!(kind, b't' | b'T' | b'w' | b'W'))
            .map(|(va, _, name)| (*va, name.as_str()))
            .filter(|(_, name)| !name.starts_with("__pfx_") && !name.contains(".cold"))
    }
}

/// Where the tables are, as offsets.
struct Tables {
    tokens: Vec<Vec<u8>>,
    names: usize,
    count: usize,
    num_syms: usize,
    after_index: usize,
}

impl Tables {
    fn around(data: &[u8], digits: usize, steps: &mut usize) -> Option<Self> {
        // The digit '0' is token 0x30: 0x30 strings before it.
        let mut table = digits;
        for _ in 0..0x30 {
            let before = data.get(..table.checked_sub(1)?)?;
            table = memchr::memrchr(0, before)?.checked_add(1)?;
        }
        let mut tokens = Vec::with_capacity(256);
        let mut index = Vec::with_capacity(256);
        let mut at = table;
        for _ in 0..256 {
            let rest = data.get(at..)?;
            let len = memchr::memchr(0, rest.get(..64.min(rest.len()))?)?;
            tokens.push(rest.get(..len)?.to_vec());
            index.push(u16::try_from(at.checked_sub(table)?).ok()?);
            at = at.checked_add(len)?.checked_add(1)?;
        }
        let index_at = at.next_multiple_of(8);
        for (i, expected) in index.iter().enumerate() {
            if bytes::u16_at(data, index_at.checked_add(i.checked_mul(2)?)?)? != *expected {
                return None;
            }
        }
        let (num_syms, names, count) = names_before(data, table, steps)?;
        Some(Self {
            tokens,
            names,
            count,
            num_syms,
            after_index: index_at.checked_add(512)?,
        })
    }

    fn read(&self, data: &[u8]) -> Option<Kallsyms> {
        let offsets_len = self.count.checked_mul(4)?;
        // Up to 6.3: offsets, relative_base, num_syms. From 6.4: offsets and relative_base at the end.
        let base_before = self.num_syms.checked_sub(8)?;
        let before = base_before
            .checked_sub(offsets_len)
            .map(|o| (o & !7, base_before));
        let after = self.after_index.next_multiple_of(8);
        let after = Some((after, after.checked_add(offsets_len)?.next_multiple_of(8)));
        let (offsets, base) = [before, after]
            .into_iter()
            .flatten()
            .find_map(|(offsets, base)| {
                let base = bytes::u64_at(data, base)?;
                (base >> 31 == 0x1_ffff_ffff && base & 0xfff == 0).then_some((offsets, base))
            })?;
        let mut symbols = Vec::with_capacity(self.count);
        let mut at = self.names;
        for i in 0..self.count {
            let (len, skip) = name_len(data, at)?;
            at = at.checked_add(skip)?;
            let name = self.expand(data.get(at..at.checked_add(len)?)?)?;
            at = at.checked_add(len)?;
            let offset = bytes::i32_at(data, offsets.checked_add(i.checked_mul(4)?)?)?;
            // CONFIG_KALLSYMS_ABSOLUTE_PERCPU: not negative is absolute.
            let va = if offset < 0 {
                base.wrapping_sub(1)
                    .wrapping_add_signed(i64::from(offset).checked_neg()?)
            } else {
                u64::from(offset.cast_unsigned())
            };
            let (kind, name) = name.split_first()?;
            symbols.push((va, *kind, String::from_utf8_lossy(name).into_owned()));
        }
        Some(Kallsyms::new(symbols))
    }

    fn expand(&self, tokens: &[u8]) -> Option<Vec<u8>> {
        let mut name = Vec::new();
        for token in tokens {
            name.extend_from_slice(self.tokens.get(usize::from(*token))?);
            if name.len() > MAX_NAME_BYTES {
                return None;
            }
        }
        Some(name)
    }
}

/// The length of a compressed name and of the length itself.
fn name_len(data: &[u8], at: usize) -> Option<(usize, usize)> {
    let first = usize::from(*data.get(at)?);
    if first & 0x80 == 0 {
        return Some((first, 1));
    }
    let second = usize::from(*data.get(at.checked_add(1)?)?);
    Some(((first & 0x7f) | (second << 7), 2))
}

/// How far before the token table the count of names can be: Debian's names take 2 MiB.
const MAX_NAMES_BYTES: usize = 32 << 20;

/// Looks backwards for a count that names and markers follow: (offset of the count, offset of the names, count).
/// From 6.2 on (and in 6.1's stable series) three bytes per name lie between markers and tokens.
fn names_before(data: &[u8], table: usize, steps: &mut usize) -> Option<(usize, usize, usize)> {
    let mut num_syms = table & !7;
    let earliest = num_syms.saturating_sub(MAX_NAMES_BYTES);
    loop {
        num_syms = num_syms.checked_sub(8).filter(|at| *at >= earliest)?;
        let count = usize::try_from(bytes::u64_at(data, num_syms)?).unwrap_or(usize::MAX);
        let names = num_syms.checked_add(8)?;
        if (1..=MAX_SYMBOLS).contains(&count) && names_fit(data, names, count, table, steps).is_some() {
            return Some((num_syms, names, count));
        }
    }
}

/// Steps over the names; the markers after them must say the same.
fn names_fit(data: &[u8], names: usize, count: usize, table: usize, steps: &mut usize) -> Option<()> {
    let mut at = names;
    let mut markers = Vec::with_capacity(count.div_ceil(256).min(4096));
    for number in 0..count {
        *steps = steps.checked_sub(1)?;
        if number % 256 == 0 {
            markers.push(u32::try_from(at.checked_sub(names)?).ok()?);
        }
        let (len, skip) = name_len(data, at)?;
        at = at.checked_add(skip)?.checked_add(len)?;
        if at > table || len == 0 {
            return None;
        }
    }
    let mut at = at.next_multiple_of(8);
    for marker in markers {
        if bytes::u32_at(data, at)? != marker {
            return None;
        }
        at = at.checked_add(4)?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A symbol table of two names, laid out as 6.4 and later do.
    fn tables() -> Vec<u8> {
        let mut data = vec![0xff; 64];
        data.extend(2u64.to_le_bytes());
        // Each name: its type letter and itself, a token per byte but for "ab", which token 1 stands for.
        data.extend([3, b'T', 1, b'c', 2, b't', b'd']);
        pad(&mut data);
        data.extend(0u32.to_le_bytes());
        pad(&mut data);
        let table = data.len();
        let mut index = Vec::new();
        for token in 0..=255u8 {
            index.extend(u16::try_from(data.len() - table).unwrap().to_le_bytes());
            match token {
                1 => data.extend(b"ab"),
                0x20..0x7f => data.push(token),
                _ => {}
            }
            data.push(0);
        }
        pad(&mut data);
        data.extend(index);
        pad(&mut data);
        data.extend((-1i32).to_le_bytes());
        data.extend((-0x11i32).to_le_bytes());
        data.extend(0xffff_ffff_8100_0000_u64.to_le_bytes());
        data
    }

    fn pad(data: &mut Vec<u8>) {
        data.resize(data.len().next_multiple_of(8), 0);
    }

    #[test]
    fn names_are_expanded_and_addresses_are_relative_to_the_base() {
        let found = Kallsyms::find(&tables()).unwrap();
        assert_eq!(found.address("abc"), Some(0xffff_ffff_8100_0000));
        assert_eq!(found.address("d"), Some(0xffff_ffff_8100_0010));
    }

    /// The tables with something else behind the count, for names and all.
    fn with_names(names: &[u8]) -> Vec<u8> {
        let mut data = vec![0xff; 64];
        data.extend(1u64.to_le_bytes());
        data.extend(names);
        pad(&mut data);
        data.extend(0u32.to_le_bytes());
        pad(&mut data);
        let whole = tables();
        data.extend(&whole[64 + 8 + 8 + 8..]);
        data
    }

    #[test]
    fn max_name_bytes_stops_tokens_that_expand_without_end() {
        let name = |len: usize| {
            let (low, high) = (
                u8::try_from(len & 0x7f).unwrap() | 0x80,
                u8::try_from(len >> 7).unwrap(),
            );
            [&[low, high][..], &vec![b'x'; len]].concat()
        };
        assert!(Kallsyms::find(&with_names(&name(MAX_NAME_BYTES))).is_some());
        assert!(Kallsyms::find(&with_names(&name(MAX_NAME_BYTES + 1))).is_none());
    }

    #[test]
    fn max_steps_stops_an_image_in_which_every_number_could_be_a_count() {
        // Each is a count of millions, and a name of seven bytes that the next one follows.
        let mut data = 0x3d_0007_u64.to_le_bytes().repeat(1 << 17);
        data.extend(tables());
        let begun = std::time::Instant::now();
        // The tables behind all that are found all the same: they are looked for from their end.
        assert!(Kallsyms::find(&data).is_some());
        let count = data.len() - tables().len() + 64;
        data[count..count + 8].fill(0);
        assert!(Kallsyms::find(&data).is_none());
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(60),
            "some 2^33 steps otherwise"
        );
    }

    #[test]
    fn max_symbols_and_max_names_bytes_bound_where_a_count_is_looked_for() {
        let counted = |count: u64| {
            let mut data = tables();
            data[64..72].copy_from_slice(&count.to_le_bytes());
            Kallsyms::find(&data).is_some()
        };
        assert!(counted(2) && !counted(0) && !counted(u64::try_from(MAX_SYMBOLS).unwrap() + 1));
        let apart = |len: usize| {
            let whole = tables();
            // What is between names and tokens may be padding.
            let (names, rest) = whole.split_at(64 + 8 + 8 + 8);
            let data = [names, &vec![0; len], rest].concat();
            Kallsyms::find(&data).is_some()
        };
        assert!(apart(4096) && !apart(MAX_NAMES_BYTES));
    }

    #[test]
    fn any_cut_or_flipped_table_is_survived() {
        let data = tables();
        for at in 0..data.len() {
            let _ = Kallsyms::find(&data[..at]);
            let mut flipped = data.clone();
            flipped[at] ^= 0xff;
            let _ = Kallsyms::find(&flipped);
        }
    }
}
