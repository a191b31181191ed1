//! Throws away what QEMU translated of memory that somebody else has written to.
//!
//! A disk's server writes to guest RAM past QEMU, which does not notice; plugins cannot tell it either. What can, in every version, is
//! QEMU's own test protocol: its `write` is one of a device (`softmmu/qtest.c`: `address_space_write`), and drops translations of that
//! memory whether the bytes are others or the same.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// QEMU's main loop answers; it waits for nobody for so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection to it.
#[derive(Debug)]
pub(super) struct Qtest(BufReader<UnixStream>);

impl Qtest {
    pub(super) fn connect(path: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Writes what is there already.
    pub(super) fn write(&mut self, gpa: u64, bytes: &[u8]) -> std::io::Result<()> {
        let mut command = format!("write {gpa:#x} {:#x} 0x", bytes.len());
        for byte in bytes {
            let _ = write!(command, "{byte:02x}");
        }
        command.push('\n');
        self.0.get_mut().write_all(command.as_bytes())?;
        let mut answer = String::new();
        self.0.read_line(&mut answer)?;
        if answer.trim_end() == "OK" {
            Ok(())
        } else {
            Err(std::io::Error::other(format!("QEMU answers {answer:?}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_one_line_that_is_answered() {
        let folder = std::env::temp_dir().join(format!("nephoscope-qtest-{}", std::process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&folder).unwrap();
        let asked = std::thread::spawn({
            let folder = folder.clone();
            move || {
                let mut qtest = Qtest::connect(&folder)?;
                qtest.write(0x1000, &[1, 0xab])?;
                qtest.write(0x2000, &[2])
            }
        });
        let (stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream);
        for (line, answer) in [
            ("write 0x1000 0x2 0x01ab\n", "OK\n"),
            ("write 0x2000 0x1 0x02\n", "FAIL\n"),
        ] {
            let mut got = String::new();
            lines.read_line(&mut got).unwrap();
            assert_eq!(got, line);
            lines.get_mut().write_all(answer.as_bytes()).unwrap();
        }
        assert!(asked.join().unwrap().unwrap_err().to_string().contains("FAIL"));
        std::fs::remove_file(&folder).unwrap();
    }
}
