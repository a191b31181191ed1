//! `/proc/PID/maps` (Linux `Documentation/filesystems/proc.rst`, 1.1): what a process has mapped where.

use crate::guest_ram::Hva;

/// One line of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mapping {
    /// First address.
    pub(crate) start: Hva,
    /// One past the last.
    pub(crate) end: Hva,
    /// Whether writes are seen by others who map the same.
    pub(crate) shared: bool,
    /// Whether it can be written.
    pub(crate) writable: bool,
    /// Where it begins in what it is of.
    pub(crate) offset: u64,
    /// Device and inode of what it is of, as written; `00:00 0` for memory without a file.
    pub(crate) file: String,
    /// The file's name, if it has one.
    pub(crate) name: String,
}

impl Mapping {
    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether it is of a file, be that one without a name in any directory.
    pub(crate) fn has_file(&self) -> bool {
        !self.file.ends_with(" 0")
    }
}

/// All lines that can be read as such; the kernel writes no others.
pub(crate) fn parse(text: &str) -> Vec<Mapping> {
    text.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let offset = fields.next()?;
    let file = format!("{} {}", fields.next()?, fields.next()?);
    let hex = |text| u64::from_str_radix(text, 16).ok();
    Some(Mapping {
        start: Hva(hex(start)?),
        end: Hva(hex(end)?),
        shared: permissions.ends_with('s'),
        writable: permissions.contains('w'),
        offset: hex(offset)?,
        file,
        name: fields.next().unwrap_or_default().trim_start().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_the_kernel_writes_them() {
        let text = "7f5b80000000-7f5bc0000000 rw-s 00001000 00:01 2048                       /memfd:ram (deleted)\n\
            7f5bc0000000-7f5bc0021000 rw-p 00000000 00:00 0 \n\
            junk\n\
            ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";
        let all = parse(text);
        assert_eq!(all.len(), 3);
        let memfd = &all[0];
        assert_eq!(
            (memfd.start, memfd.size(), memfd.offset),
            (Hva(0x7f5b_8000_0000), 1 << 30, 0x1000)
        );
        assert!(memfd.shared && memfd.writable && memfd.has_file());
        assert_eq!(
            (memfd.file.as_str(), memfd.name.as_str()),
            ("00:01 2048", "/memfd:ram (deleted)")
        );
        assert!(!all[1].shared && !all[1].has_file() && all[1].name.is_empty());
        assert_eq!((all[2].name.as_str(), all[2].writable), ("[vsyscall]", false));
    }
}
