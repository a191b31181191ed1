//! Throws away what QEMU translated of memory that somebody else has written to.
//!
//! A disk's server writes to guest RAM past QEMU, which does not notice; plugins cannot tell it either. What can, in every version, is
//! QEMU's own test protocol: its `write` is one of a device (`softmmu/qtest.c`: `address_space_write`), and drops translations of that
//! memory whether the bytes are others or the same.
//!
//! QEMU listens to one connection at a time; what is sent on another one waits, and is done when the first is closed, whenever that is: the
//! bytes would be old by then, and the guest has its memory for something else. So there is one connection for all disks, and it is kept.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// QEMU's main loop answers. It waits for nobody for so long, but for a disk's server whose queue is to be stopped and which waits for this.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to it.
#[derive(Debug)]
pub(super) struct Qtest {
    stream: BufReader<UnixStream>,
    /// What there is of the next answer.
    answer: Vec<u8>,
    /// Answers that nobody waits for any more.
    owed: usize,
}

impl Qtest {
    pub(super) fn connect(path: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        Self::new(stream, PATIENCE)
    }

    fn new(stream: UnixStream, patience: Duration) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self {
            stream: BufReader::new(stream),
            answer: Vec::new(),
            owed: 0,
        })
    }

    /// Whether it is of no use any more: its end is there, or half of something was sent. An answer that is late comes yet.
    pub(super) fn is_over(error: &std::io::Error) -> bool {
        !matches!(
            error.kind(),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Other
        )
    }

    /// The next answer.
    fn answer(&mut self) -> std::io::Result<String> {
        if self.stream.read_until(b'\n', &mut self.answer)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let answer = std::mem::take(&mut self.answer);
        Ok(String::from_utf8_lossy(&answer).trim_end().to_owned())
    }

    /// Writes what is there already.
    pub(super) fn write(&mut self, gpa: u64, bytes: &[u8]) -> std::io::Result<()> {
        let mut command = format!("write {gpa:#x} {:#x} 0x", bytes.len());
        for byte in bytes {
            let _ = write!(command, "{byte:02x}");
        }
        command.push('\n');
        self.stream
            .get_mut()
            .write_all(command.as_bytes())
            .map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        self.owed += 1;
        // They come in the order of what was asked.
        while self.owed > 1 {
            self.answer()?;
            self.owed -= 1;
        }
        let answer = self.answer()?;
        self.owed = 0;
        if answer == "OK" {
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
    fn an_answer_that_is_late_is_not_taken_for_the_next_ones() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut qtest = Qtest::new(ours, Duration::from_millis(30)).unwrap();
        let late = qtest.write(0x1000, &[1]).unwrap_err();
        assert!(!Qtest::is_over(&late), "{late:?}");
        let mut theirs = BufReader::new(theirs);
        theirs.get_mut().write_all(b"FAIL\nO").unwrap();
        let half = qtest.write(0x1000, &[2]).unwrap_err();
        assert!(!Qtest::is_over(&half), "{half:?}");
        theirs.get_mut().write_all(b"K\nOK\n").unwrap();
        qtest.write(0x1000, &[3]).unwrap();
        drop(theirs);
        assert!(Qtest::is_over(&qtest.write(0x1000, &[4]).unwrap_err()));
    }

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
