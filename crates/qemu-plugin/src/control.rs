//! The control socket: monitors connect, are given the rings, and say where guest RAM lies.

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering;

use nephoscope_wire::{Captured, Frame, Hello, NO_FRAME, Request, WIRE_VERSION, receive, send};

use crate::frames::FrameKey;
use crate::plugin::{Plugin, guarded, now_ns};

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
                Request::Ram { ranges } => {
                    plugin.memory.set(&ranges);
                }
                Request::Counters => guarded(Plugin::send_counters),
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
        self.forget_marks();
        let since = self.blind_since.swap(0, Ordering::Relaxed);
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
        fds.push(self.wake.as_fd());
        send(stream, &hello, &fds)?;
        self.attached.store(true, Ordering::Release);
        if since != 0 {
            guarded(Plugin::replay);
        }
        Ok(())
    }

    fn detach(&self) {
        self.attached.store(false, Ordering::Release);
        self.blind_since.store(now_ns(), Ordering::Relaxed);
    }

    /// Sends every page that was captured before this monitor came: what runs on is known by it.
    fn replay(&'static self) {
        let Some(vcpu) = self.vcpus.first() else { return };
        self.frames.for_each(|key, page| {
            let (frame, root, va) = match key {
                FrameKey::Host(host) => (host, 0, 0),
                FrameKey::Virtual { root, va } => (NO_FRAME, root, va),
            };
            let (start, end) = page.span();
            let captured = Captured {
                frame,
                cr3: root,
                va,
                generation: page.generation,
                start,
                end,
                user: page.mark.is_some(),
                paging: true,
                replay: true,
                bits: 64,
            };
            self.push(
                vcpu,
                &mut vcpu.lock(),
                &Frame::Captured(captured, page.bytes()),
                page.page,
                true,
            );
        });
    }
}
