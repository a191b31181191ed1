//! Writes to code by the VMM itself: by way of the plugin in it, which can have its memory guarded, and the module.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nephoscope_wire::{Guarded, RamRange, Request, SocketError, WIRE_VERSION, receive, send};

use crate::guest_ram::{MemoryKind, RamMap};
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
    writable
        .filter(holds)
        .map(|mapping| range(mapping.start.0, mapping.size()))
        .collect()
}

/// Only the VMM's addresses matter.
const fn range(hva: u64, len: u64) -> RamRange {
    RamRange { gpa: 0, len, hva }
}

/// The plugin in a VMM, which has its memory guarded.
#[derive(Debug)]
pub(super) struct Guard {
    plugin: UnixStream,
    /// What it was asked for, whether it could or not.
    asked: Vec<RamRange>,
}

impl Guard {
    /// Has this memory guarded, and gives the userfaultfd.
    pub(super) fn begin(socket: &Path, ranges: Vec<RamRange>) -> Result<(Self, OwnedFd), GuardError> {
        let mut plugin = UnixStream::connect(socket)?;
        plugin.set_read_timeout(Some(TIMEOUT))?;
        plugin.set_write_timeout(Some(TIMEOUT))?;
        let uffd = ask(&mut plugin, &ranges)?;
        let guard = Guard {
            plugin,
            asked: ranges,
        };
        Ok((guard, uffd))
    }

    /// Has memory guarded that the guest sees since.
    ///
    /// # Errors
    /// If the plugin cannot, which is asked once for each piece of memory.
    pub(super) fn follow(&mut self, map: &RamMap) -> Result<(), GuardError> {
        let news = self.news(map);
        if news.is_empty() {
            return Ok(());
        }
        self.asked.extend(&news);
        ask(&mut self.plugin, &news).map(drop)
    }

    /// What nobody asked for yet. What the guest does not see any more is forgotten: other memory may come to lie there.
    fn news(&mut self, map: &RamMap) -> Vec<RamRange> {
        let seen: Vec<RamRange> = map
            .segments()
            .iter()
            .filter(|segment| segment.kind == MemoryKind::Ram)
            .map(|segment| range(segment.hva.0, segment.size_bytes))
            .collect();
        let end = |range: &RamRange| range.hva.saturating_add(range.len);
        self.asked.retain(|asked| {
            seen.iter()
                .any(|seen| asked.hva < end(seen) && seen.hva < end(asked))
        });
        let asked = |seen: &RamRange| {
            self.asked
                .iter()
                .any(|asked| asked.hva <= seen.hva && end(seen) <= end(asked))
        };
        seen.iter().filter(|seen| !asked(seen)).copied().collect()
    }
}

fn ask(stream: &mut UnixStream, ranges: &[RamRange]) -> Result<OwnedFd, GuardError> {
    let request = Request::Ram {
        ranges: ranges.to_vec(),
    };
    send(stream, &request, &[])?;
    let (answer, fds) = receive::<Guarded>(stream)?;
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
        let uffd = Guard::begin(&socket, whole(&map, &mappings)).map(|(_, uffd)| uffd);
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
    fn memory_that_is_plugged_in_is_asked_for_once_and_again_when_it_was_gone_meanwhile() {
        let mut guard = Guard {
            plugin: UnixStream::pair().unwrap().0,
            asked: vec![RamRange {
                gpa: 0,
                len: 0x4000_0000,
                hva: 0x7f00_0000_0000,
            }],
        };
        let before = [Slot::of(0, 0xa_0000, 0x7f00_0000_0000)];
        let rom = Slot {
            read_only: 1,
            ..Slot::of(0xf_0000, 0x1_0000, 0x7e00_0000_0000)
        };
        let with = [
            before[0],
            rom,
            Slot::of(0x1_0000_0000, 0x800_0000, 0x7d00_0000_0000),
        ];
        assert_eq!(guard.news(&slots::map(&before)), []);
        let news = guard.news(&slots::map(&with));
        let places: Vec<_> = news.iter().map(|range| (range.hva, range.len)).collect();
        assert_eq!(places, [(0x7d00_0000_0000, 0x800_0000)]);
        guard.asked.extend(news);
        assert_eq!(guard.news(&slots::map(&with)), []);
        assert_eq!(guard.news(&slots::map(&before)), []);
        assert_eq!(guard.news(&slots::map(&with)).len(), 1);
    }

    #[test]
    fn without_a_plugin_nobody_answers() {
        let folder = tempfile::tempdir().unwrap();
        let error = Guard::begin(&folder.path().join("none"), Vec::new()).unwrap_err();
        assert!(matches!(error, GuardError::Connect(_)), "{error}");
    }
}
