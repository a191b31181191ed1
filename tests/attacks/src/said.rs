//! What the planted programs say of what they run: a line for each page, `WORD ADDRESS BYTES`, all of it hexadecimal
//! (`guest/say.h`).

use anyhow::{Context, Result, ensure};

/// A page of the guest is so large.
pub const PAGE_BYTES: usize = 4096;

/// One page that a planted program ran, as it was then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// What the program calls it.
    pub word: String,
    /// Where the address space that ran it has it.
    pub address: u64,
    /// All of its bytes.
    pub bytes: Vec<u8>,
}

impl Said {
    /// Every page in a program's output; lines of another shape are not of pages.
    ///
    /// # Errors
    /// When a line begins like one of a page, and is none.
    pub fn pages(text: &str) -> Result<Vec<Said>> {
        let lines = text.lines().filter_map(|line| line.strip_prefix("page "));
        lines
            .map(|line| parse(line).with_context(|| format!("`page {line}`")))
            .collect()
    }

    /// As it stands in reports.
    pub fn digest(&self) -> String {
        digest(&self.bytes)
    }
}

fn parse(line: &str) -> Result<Said> {
    let mut fields = line.split(' ');
    let word = fields.next().context("no word")?.to_owned();
    let address = u64::from_str_radix(fields.next().context("no address")?, 16)?;
    let bytes = bytes(fields.next().context("no bytes")?)?;
    ensure!(
        bytes.len() == PAGE_BYTES && address.is_multiple_of(PAGE_BYTES as u64),
        "not a page"
    );
    Ok(Said { word, address, bytes })
}

/// Bytes written in hexadecimal.
///
/// # Errors
/// When they are not.
pub fn bytes(text: &str) -> Result<Vec<u8>> {
    let digits: Vec<char> = text.chars().collect();
    let pairs = digits.chunks(2).map(|pair| pair.iter().collect::<String>());
    pairs.map(|pair| Ok(u8::from_str_radix(&pair, 16)?)).collect()
}

/// The digest of a page, as it stands in reports; what is shorter is filled up with zeros, as the kernel fills the last
/// page of a file.
pub fn digest(block: &[u8]) -> String {
    let mut page = [0; PAGE_BYTES];
    if let Some(start) = page.get_mut(..block.len()) {
        start.copy_from_slice(block);
    }
    blake3::hash(&page).to_hex().to_string()
}

/// The digests of a file's pages.
pub fn digests(file: &[u8]) -> Vec<String> {
    file.chunks(PAGE_BYTES).map(digest).collect()
}

/// A byte that is not what it was: its offset in its page, before, after.
pub type Change = (u64, u8, u8);

/// What differs between two pages.
pub fn changes(before: &[u8], after: &[u8]) -> Vec<Change> {
    (0..)
        .zip(before.iter().zip(after))
        .filter(|(_, (before, after))| before != after)
        .map(|(at, (before, after))| (at, *before, *after))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read_and_other_lines_are_not() {
        let text = format!("hello\npage ran 7f0000001000 {}\n", "90".repeat(PAGE_BYTES));
        let pages = Said::pages(&text).unwrap();
        assert_eq!((pages.len(), pages[0].address), (1, 0x7f00_0000_1000));
        assert_eq!(pages[0].digest(), digest(&[0x90; PAGE_BYTES]));
        assert!(Said::pages("page ran 7f0000001001 90").is_err());
    }

    #[test]
    fn a_change_is_told_with_both_bytes() {
        assert_eq!(changes(&[1, 2, 3], &[1, 5, 3]), [(1, 2, 5)]);
    }
}
