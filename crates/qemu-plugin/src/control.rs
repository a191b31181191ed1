//! The control socket: monitors connect, are given the rings, and say where guest RAM lies.

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering;
use std::time::Duration;

use nephoscope_guest::{Attribution, CodeCoverage, Coverage, GapReason};
use nephoscope_wire::{
    Captured, Frame, Hello, NO_FRAME, Producer, RamRange, Request, WIRE_VERSION, receive, send,
};

use crate::frames::FrameKey;
use crate::plugin::{Plugin, guarded, now_ns};

/// Between two tries to send what has to wait for room.
const PATIENCE: Duration = Duration::from_micros(200);

/// Makes the socket, for the owner of the process alone.
pub(crate) fn listen(path: &std::path::Path) -> std::io::Result<UnixListener> {
    // A socket that a QEMU of the same name left behind when it was killed.
    if UnixStream::connect(path).is_err() {
        let _ = std::fs::remove_file(path);
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves one monitor after the other.
pub(crate) fn run(plugin: &'static Plugin, listener: &UnixListener) {
    for stream in listener.incoming() {
        if plugin.exiting.load(Ordering::Relaxed) {
            return;
        }
        let Ok(mut stream) = stream else { continue };
        if plugin.attach(&mut stream).is_err() {
            plugin.detach();
            continue;
        }
        while let Ok((request, _)) = receive::<Request>(&mut stream) {
            match request {
                Request::Ram { ranges } => guarded(|plugin| plugin.take_ram(&ranges, &stream)),
                Request::Counters => guarded(Plugin::send_counters),
                Request::Reset => guarded(Plugin::forget_roots),
            }
        }
        plugin.detach();
    }
}

impl Plugin {
    fn attach(&'static self, stream: &mut UnixStream) -> Result<(), nephoscope_wire::SocketError> {
        for vcpu in &self.vcpus {
            vcpu.ring.clear();
        }
        if let Some(follow) = &self.follow {
            follow.ring.clear();
        }
        if let Some(lost_since) = self.forget_marks() {
            self.blind_since.fetch_min(lost_since, Ordering::Relaxed);
        }
        let since = self.blind_since.load(Ordering::Relaxed);
        let hello = Hello {
            wire: WIRE_VERSION,
            version: env!("CARGO_PKG_VERSION").into(),
            api: self.api_version,
            target: self.target.clone(),
            vcpus: self.start_vcpus,
            pid: std::process::id(),
            installed_ns: self.installed_ns,
            attached_ns: now_ns(),
            blind_since_ns: (since != 0).then_some(since),
        };
        let mut fds: Vec<_> = self.vcpus.iter().map(|vcpu| vcpu.ring.fd()).collect();
        fds.extend(self.follow.iter().map(|follow| follow.ring.fd()));
        fds.push(self.wake.as_fd());
        send(stream, &hello, &fds)?;
        self.blind_since.store(0, Ordering::Relaxed);
        self.attached.store(true, Ordering::Release);
        if since != 0 {
            self.say_blind(since, stream);
            guarded(|plugin| plugin.replay(stream));
        }
        Ok(())
    }

    /// The exact end of the time without a monitor is when frames go to the ring again, which is after the handshake.
    fn say_blind(&self, since: u64, monitor: &UnixStream) {
        let gap = Frame::Gap {
            from_ns: since,
            to_ns: now_ns(),
            lost: 0,
            left: Coverage::BLIND,
            reason: GapReason::Detached,
        };
        self.push_patiently(&gap, 0, monitor);
    }

    /// A handshake that failed does not end the time without a monitor.
    fn detach(&self) {
        self.attached.store(false, Ordering::Release);
        let now = now_ns();
        let _ = self
            .blind_since
            .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Takes the monitor's word on where RAM lies. Ranges that are no mappings of this process are not read: without them,
    /// roots in them are not told apart.
    fn take_ram(&self, ranges: &[RamRange], monitor: &UnixStream) {
        let dropped = self.memory.set(ranges);
        if dropped > 0 {
            let now = now_ns();
            let gap = Frame::Gap {
                from_ns: now,
                to_ns: u64::MAX,
                lost: dropped as u64,
                left: Coverage {
                    code: CodeCoverage::Complete,
                    attribution: Attribution::Sampled,
                },
                reason: GapReason::MemoryUnreadable,
            };
            self.push_patiently(&gap, 0, monitor);
        }
    }

    /// Sends every page that was captured before this monitor came: what runs on is known by it.
    fn replay(&self, monitor: &UnixStream) {
        self.frames.for_each(|key, page| {
            // Not described yet: its vCPU is about to send it.
            let Some(first) = page.first else { return };
            let frame = match key {
                FrameKey::Host(host) => host,
                FrameKey::Virtual { .. } => NO_FRAME,
            };
            let mut runs = page.runs().into_iter();
            let (start, end) = runs.next().unwrap_or((0, 4096));
            let captured = Captured {
                frame,
                root: first.root,
                va: first.va,
                generation: page.generation,
                start,
                end,
                user: first.user,
                paging: first.paging,
                replay: true,
                bits: first.bits,
                // As they were when it was captured, which may be long ago.
                controls: None,
            };
            self.push_patiently(&Frame::Captured(captured, page.bytes()), page.page, monitor);
            for (start, end) in runs {
                self.push_patiently(&Frame::Extended { start, end }, page.page, monitor);
            }
        });
    }

    /// Sends a frame for as long as the monitor is there to take it. The first vCPU's ring is used, half of which is left to the
    /// vCPU; its lock is free while there is no room.
    fn push_patiently(&self, frame: &Frame<'_>, page: u64, monitor: &UnixStream) {
        let Some(vcpu) = self.vcpus.first() else { return };
        let room = || !Producer::new(&vcpu.ring).is_half_full();
        while !(room() && self.push(vcpu, &mut vcpu.lock(), frame, page, false)) {
            if self.exiting.load(Ordering::Relaxed) || is_gone(monitor) {
                return;
            }
            self.signal();
            std::thread::sleep(PATIENCE);
        }
    }
}

/// Whether the monitor closed the connection, as it does when it is killed.
fn is_gone(monitor: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(monitor, PollFlags::HUP)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    !matches!(poll(&mut fds, Some(&now)), Ok(0) | Err(rustix::io::Errno::INTR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_that_was_killed_is_seen_to_be_gone() {
        let (plugin, monitor) = UnixStream::pair().unwrap();
        assert!(!is_gone(&plugin));
        drop(monitor);
        assert!(is_gone(&plugin));
    }
}
