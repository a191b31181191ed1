//! Writes to code by the VMM itself: by way of the plugin in it, which can have its memory guarded, and the module.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nephoscope_wire::{Guarded, RamRange, Request, SocketError, WIRE_VERSION, receive, send};

use crate::guest_ram::RamMap;

/// How long the VMM may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Writes by devices cannot be seen.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// Nobody listens.
    #[error("the plugin in the VMM does not answer")]
    Connect(#[from] std::io::Error),
    /// It said something else.
    #[error("the plugin in the VMM does not answer")]
    Socket(#[from] SocketError),
    /// Another build.
    #[error(
        "the plugin speaks version {0} of the wire, and not {WIRE_VERSION}: it and this program are of different builds"
    )]
    Wire(u32),
    /// It cannot.
    #[error("the VMM's memory cannot be guarded: {0}")]
    Refused(String),
    /// The kernel module cannot.
    #[error("the kernel module cannot guard memory on this kernel")]
    Module(#[source] rustix::io::Errno),
}

/// Has all RAM of a VMM guarded by the plugin in it, and gives the userfaultfd.
pub(super) fn ask(socket: &Path, map: &RamMap) -> Result<OwnedFd, GuardError> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // Whole blocks, and not what of them the guest sees now: the rest may come into sight later.
    let ranges = map.blocks().iter().map(|block| RamRange {
        gpa: 0,
        len: block.used_bytes,
        hva: block.hva.0,
    });
    let request = Request::Ram {
        ranges: ranges.collect(),
    };
    send(&mut stream, &request, &[])?;
    let (answer, fds) = receive::<Guarded>(&mut stream)?;
    if answer.wire != WIRE_VERSION {
        return Err(GuardError::Wire(answer.wire));
    }
    match (answer.why_not, fds.into_iter().next()) {
        (None, Some(uffd)) => Ok(uffd),
        (why_not, _) => Err(GuardError::Refused(
            why_not.unwrap_or_else(|| "no reason given".into()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn answered(answer: &Guarded, with_fd: bool) -> Result<OwnedFd, GuardError> {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let answer = answer.clone();
        let vmm = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (request, _) = receive::<Request>(&mut stream).unwrap();
            let own = stream.try_clone().unwrap();
            let fds = [own.as_fd()];
            send(&mut stream, &answer, if with_fd { &fds } else { &[] }).unwrap();
            request
        });
        let ramblock = "              Block Name    PSize              Offset               Used              Total                HVA  RO\n\
                        pc.ram    4 KiB  0x0000000000000000 0x0000000020000000 0x0000000020000000 0x00007ff87fe00000  rw\n";
        let mtree = "FlatView #0\n AS \"memory\", root: system\n  0000000000000000-000000000009ffff (prio 0, ram): pc.ram\n\n";
        let map = RamMap::from_monitor_text(ramblock, mtree).unwrap();
        let uffd = ask(&socket, &map);
        let Request::Ram { ranges } = vmm.join().unwrap() else {
            panic!("another request");
        };
        let asked: Vec<_> = ranges.iter().map(|range| (range.hva, range.len)).collect();
        assert_eq!(asked, [(0x7ff8_7fe0_0000, 0x2000_0000)], "the whole block");
        uffd
    }

    #[test]
    fn all_memory_is_guarded_or_it_is_said_why_not() {
        let good = Guarded {
            wire: WIRE_VERSION,
            bytes: 1 << 29,
            why_not: None,
        };
        assert!(answered(&good, true).is_ok());
        assert!(matches!(answered(&good, false), Err(GuardError::Refused(_))));
        let partly = Guarded {
            why_not: Some("no userfaultfd".into()),
            ..good.clone()
        };
        let error = answered(&partly, true).unwrap_err();
        assert!(error.to_string().contains("no userfaultfd"), "{error}");
        let other = Guarded {
            wire: WIRE_VERSION + 1,
            ..good
        };
        assert!(matches!(answered(&other, true), Err(GuardError::Wire(_))));
    }

    #[test]
    fn without_a_plugin_nobody_answers() {
        let folder = tempfile::tempdir().unwrap();
        let error = ask(&folder.path().join("none"), &RamMap::default()).unwrap_err();
        assert!(matches!(error, GuardError::Connect(_)), "{error}");
    }
}
