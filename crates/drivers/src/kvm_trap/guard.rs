//! Writes to code by the VMM itself: by way of the plugin in it, which can have its memory guarded, and the module.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nephoscope_wire::{Guarded, RamRange, Request, SocketError, WIRE_VERSION, receive, send};

use crate::guest_ram::RamMap;
use crate::live_memory::maps::Mapping;

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

/// The mappings of the VMM's process that hold what the guest sees: whole ones, for the rest of them may come into sight later.
pub(super) fn whole(map: &RamMap, mappings: &[Mapping]) -> Vec<RamRange> {
    let holds = |mapping: &&Mapping| {
        let mut seen = map.segments().iter();
        seen.any(|segment| (mapping.start.0..mapping.start.0 + mapping.size()).contains(&segment.hva.0))
    };
    let writable = mappings.iter().filter(|mapping| mapping.writable);
    let range = |mapping: &Mapping| RamRange {
        gpa: 0,
        len: mapping.size(),
        hva: mapping.start.0,
    };
    writable.filter(holds).map(range).collect()
}

/// Has memory of a VMM guarded by the plugin in it, and gives the userfaultfd.
pub(super) fn ask(socket: &Path, ranges: &[RamRange]) -> Result<OwnedFd, GuardError> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = Request::Ram {
        ranges: ranges.to_vec(),
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
    use crate::kvm_trap::device::Slot;
    use crate::kvm_trap::slots;
    use crate::live_memory::maps;

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
        let map = slots::map(&[Slot::of(0, 0xa_0000, 0x7f00_0000_0000)]);
        let mappings = maps::parse(
            "7f0000000000-7f0040000000 rw-p 00000000 00:00 0 \n7f0040000000-7f0050000000 rw-p 00000000 00:00 0 \n",
        );
        let uffd = ask(&socket, &whole(&map, &mappings));
        let Request::Ram { ranges } = vmm.join().unwrap() else {
            panic!("another request");
        };
        let asked: Vec<_> = ranges.iter().map(|range| (range.hva, range.len)).collect();
        assert_eq!(asked, [(0x7f00_0000_0000, 0x4000_0000)], "the whole mapping");
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
        let error = ask(&folder.path().join("none"), &[]).unwrap_err();
        assert!(matches!(error, GuardError::Connect(_)), "{error}");
    }
}
