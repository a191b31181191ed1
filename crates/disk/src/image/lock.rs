//! Locks on an image, those that QEMU takes (`block/file-posix.c`): a byte of the file for each thing that is done, shared, and
//! another for each that others may not do. So neither a QEMU nor `qemu-img` writes to an image that is served.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_RDLCK, F_WRLCK, SEEK_SET, flock};

/// The first byte of what is done.
const DOES: i64 = 100;
/// The first byte of what others may not do.
const FORBIDS: i64 = 200;
/// To read what is the same each time.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Takes them: false if somebody does what may not be done meanwhile, or forbids what is to be done.
pub(super) fn take(file: &File, write: bool) -> io::Result<bool> {
    let does: &[i64] = if write {
        &[CONSISTENT_READ, WRITE]
    } else {
        &[CONSISTENT_READ]
    };
    let forbids = [WRITE, RESIZE];
    for byte in does
        .iter()
        .map(|what| DOES + what)
        .chain(forbids.map(|what| FORBIDS + what))
    {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&at(byte, F_RDLCK))) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    let clash = does
        .iter()
        .map(|what| FORBIDS + what)
        .chain(forbids.map(|what| DOES + what));
    for byte in clash {
        let mut asked = at(byte, F_WRLCK);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut asked))?;
        if i32::from(asked.l_type) != nix::libc::F_UNLCK {
            return Ok(false);
        }
    }
    Ok(true)
}

fn at(byte: i64, kind: i32) -> flock {
    flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(SEEK_SET).unwrap_or_default(),
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_may_write_and_nobody_else_may_even_read_what_changes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (one, other) = (open(), open());
        assert!(take(&one, true).unwrap());
        assert!(!take(&other, true).unwrap());
        drop((one, other));
        let (one, other) = (open(), open());
        assert!(
            take(&one, false).unwrap() && take(&other, false).unwrap(),
            "many may read"
        );
        assert!(!take(&open(), true).unwrap());
    }
}
