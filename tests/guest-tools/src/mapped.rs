//! Where a process has a file's code mapped.

use std::fs;

use anyhow::{Context, Result};

/// A mapping, as a line of `/proc/PID/maps` gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// First virtual address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// Offset in the file, in bytes.
    pub offset: u64,
}

impl Mapping {
    /// The virtual address of an offset in the file, when it is in this mapping.
    pub fn address_of(&self, offset: u64) -> Option<u64> {
        let address = offset.checked_sub(self.offset)?.checked_add(self.start)?;
        (address < self.end).then_some(address)
    }
}

/// The executable mappings of `path` in process `pid`.
///
/// # Errors
/// When there is no such process.
pub fn executable(pid: &str, path: &str) -> Result<Vec<Mapping>> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/maps")).with_context(|| format!("no process {pid}"))?;
    Ok(text.lines().filter_map(|line| parse(line, path)).collect())
}

fn parse(line: &str, path: &str) -> Option<Mapping> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let executable = fields.next()?.as_bytes().get(2) == Some(&b'x');
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    (executable && fields.nth(2) == Some(path)).then_some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        offset,
    })
}

#[cfg(test)]
mod tests {
    use super::{Mapping, parse};

    #[test]
    fn an_offset_outside_the_mapping_has_no_address() {
        let line = "7f00-7f10 r-xp 00002000 fe:00 77    /bin/x";
        let mapping = parse(line, "/bin/x").unwrap();
        assert_eq!(
            mapping,
            Mapping {
                start: 0x7f00,
                end: 0x7f10,
                offset: 0x2000
            }
        );
        assert_eq!(mapping.address_of(0x2004), Some(0x7f04));
        assert_eq!(mapping.address_of(0x1fff), None);
        assert_eq!(mapping.address_of(0x2010), None);
        assert_eq!(parse(line, "/bin/y"), None);
    }
}
