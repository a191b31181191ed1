//! Dumps of a guest's memory: whoever hands one in may have made it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use nephoscope_drivers::{Dump, OpenDumpError};
use nephoscope_guest::{Gpa, PhysicalMemory};

/// A file that lives in memory, and its path.
fn file() -> &'static (File, PathBuf) {
    static FILE: OnceLock<(File, PathBuf)> = OnceLock::new();
    FILE.get_or_init(|| {
        let fd = rustix::fs::memfd_create("dump", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory");
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd()).into();
        (File::from(fd), path)
    })
}

/// A file of the bytes behind the first, which says how many pages of nothing follow. What it has is told once, in order, and
/// every byte of it can be read; what it has not cannot.
pub fn run(bytes: &[u8]) {
    let Some((pages, bytes)) = bytes.split_first() else {
        return;
    };
    let (file, path) = file();
    let len = bytes.len() as u64 + u64::from(pages >> 6) * 4096;
    file.set_len(0).expect("a file in memory");
    file.set_len(len).expect("a file in memory");
    file.write_all_at(bytes, 0).expect("a file in memory");
    let dump = match Dump::open(path) {
        Ok(dump) => dump,
        Err(OpenDumpError::Dump { source, .. }) => {
            assert!(!source.to_string().is_empty());
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let mut before = None;
    let mut in_file = 0;
    for (first, len) in dump.ranges() {
        assert!(before.is_none_or(|end| end <= first.0), "{first}");
        let end = first.0.checked_add(len).expect("an end");
        for at in [first.0, first.0 + len / 2, end - 1] {
            dump.read(Gpa(at), &mut [0]).expect("memory that it has");
        }
        let mut at = first;
        while let Some((start, stop)) = dump.next_data(at, Gpa(end)) {
            assert!(at <= start && start < stop && stop.0 <= end);
            in_file += stop.0 - start.0;
            at = stop;
        }
        before = Some(end);
    }
    assert!(in_file <= len, "{in_file} of {len}");
    let end = before.expect("there is some");
    assert!(dump.read(Gpa(end), &mut [0]).is_err());
    assert!(dump.read(Gpa(end - 1), &mut [0; 2]).is_err());
    assert!(dump.cpus().len() <= 8192);
}
