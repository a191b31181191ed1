//! The server: one VMM at a time, one thread for each queue.
//!
//! Everything of a connection is made anew for the next. A queue goes on behind the last request that was answered, by what the
//! guest's memory says; since requests are answered in their order, those are all that were not. The guest is signalled once
//! then: a server that ended between an answer and its signal has not sent it.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost::vhost_user::{Listener, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringMutex, VringT};
use virtio_queue::{DescriptorChain, Error as QueueError, QueueOwnedT, QueueT};
use vm_memory::{
    Bytes, GuestAddressSpace, GuestMemory, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use nephoscope_wire::Region;

use crate::config;
use crate::device::Device;
use crate::request::Request;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Vring = VringMutex<Memory>;

/// Entries of a queue at most: QEMU's limit.
const MAX_QUEUE_SIZE: usize = 1024;
/// Queues at most: a thread for each.
pub(crate) const MAX_QUEUES: u16 = 64;

/// The disk is not served any more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Waiting.
    #[error("cannot wait for the VMM")]
    Wait(#[source] io::Error),
    /// A connection: what its library says, which is no error type.
    #[error("the VMM's connection cannot be served: {0}")]
    Connection(String),
}

/// Ends a server.
#[derive(Debug)]
pub struct Stop(OwnedFd);

impl Stop {
    /// A descriptor that is readable when it is time.
    #[must_use]
    pub const fn new(when_readable: OwnedFd) -> Self {
        Self(when_readable)
    }
}

/// Serves one disk.
#[derive(Debug)]
pub struct Server {
    device: Arc<Device>,
    queues: u16,
}

impl Server {
    /// A server of this disk with so many queues.
    #[must_use]
    pub fn new(device: Device, queues: u16) -> Self {
        Self {
            device: Arc::new(device),
            queues: queues.clamp(1, MAX_QUEUES),
        }
    }

    /// Serves whoever connects, one after the other, until it is stopped.
    ///
    /// # Errors
    /// If there is nothing more to wait for.
    pub fn run(&self, listener: UnixListener, stop: &Stop) -> Result<(), ServeError> {
        let listening = listener.as_fd().try_clone_to_owned().map_err(ServeError::Wait)?;
        let mut listener = Listener::from(listener);
        while wait(listening.as_fd(), stop)? {
            self.one(&mut listener, stop)?;
        }
        Ok(())
    }

    fn one(&self, listener: &mut Listener, stop: &Stop) -> Result<(), ServeError> {
        let backend = Arc::new(Backend::new(self.device.clone(), self.queues));
        let memory = Memory::new(GuestMemoryMmap::new());
        let wrong = |error: vhost_user_backend::Error| ServeError::Connection(error.to_string());
        let mut daemon =
            VhostUserDaemon::new("nephoscope-disk".to_owned(), backend, memory).map_err(wrong)?;
        daemon.start(listener).map_err(wrong)?;
        let Some(handle) = daemon.shutdown_handle() else {
            return Ok(());
        };
        let (over, ended) = std::os::unix::net::UnixStream::pair().map_err(ServeError::Wait)?;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // Hung up when the connection is over.
                if wait(ended.as_fd(), stop).is_ok_and(|by_itself| !by_itself) {
                    handle.shutdown();
                }
            });
            // However it ended, the next one is as good.
            let _ = daemon.wait();
            drop(over);
        });
        Ok(())
    }
}

/// True if there is something, false if it is time to stop.
fn wait(on: std::os::fd::BorrowedFd<'_>, stop: &Stop) -> Result<bool, ServeError> {
    loop {
        let mut fds = [
            PollFd::new(stop.0.as_fd(), PollFlags::POLLIN),
            PollFd::new(on, PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(ServeError::Wait(error.into())),
        }
        let told = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        let [stop, on] = &fds;
        if told(stop) {
            return Ok(false);
        }
        if told(on) {
            return Ok(true);
        }
    }
}

/// One queue of one connection.
#[derive(Debug, Default)]
struct Line {
    /// Held while a request is worked on.
    working: Mutex<()>,
    /// It was not looked at since it was started.
    begun: AtomicBool,
    /// What the guest says of it cannot be: nobody looks at it until it is started anew.
    broken: AtomicBool,
}

struct Backend {
    device: Arc<Device>,
    memory: RwLock<Option<Memory>>,
    lines: Vec<Line>,
}

impl Backend {
    fn new(device: Arc<Device>, queues: u16) -> Self {
        Self {
            device,
            memory: RwLock::new(None),
            lines: (0..queues).map(|_| Line::default()).collect(),
        }
    }

    fn memory(&self) -> Option<Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes requests and answers them, until there are none.
    fn work(&self, line: &Line, vring: &Vring, memory: &Memory) -> Result<(), QueueError> {
        if !line.begun.swap(true, Ordering::AcqRel) {
            let used = vring.queue_used_idx()?;
            vring.set_queue_next_avail(used);
            vring.set_queue_next_used(used);
            let _ = vring.signal_used_queue();
        }
        loop {
            vring.disable_notification()?;
            while vring.get_ref().get_queue().ready() {
                let taken = {
                    let mut state = vring.get_mut();
                    let mut requests = state.get_queue_mut().iter(memory.memory())?;
                    requests.next()
                };
                let Some(chain) = taken else { break };
                let head = chain.head_index();
                let len = answer(&self.device, chain);
                vring.add_used(head, len)?;
                if vring.needs_notification()? {
                    let _ = vring.signal_used_queue();
                }
            }
            if !vring.get_ref().get_queue().ready() || !vring.enable_notification()? {
                return Ok(());
            }
        }
    }
}

/// Does what a request says and tells its status: how many bytes of the guest's memory were written.
pub(crate) fn answer<M>(device: &Device, chain: DescriptorChain<M>) -> u32
where
    M: Deref + Clone,
    M::Target: GuestMemory,
{
    let guest = chain.clone();
    match Request::of(chain) {
        Ok(request) => {
            let (status, len) = device.execute(guest.memory(), &request);
            let told = guest.memory().write_obj(status, request.status).is_ok();
            len.saturating_add(u32::from(told))
        }
        // It goes back as it came, so that the order holds.
        Err(_) => 0,
    }
}

/// Where guest RAM is, and which files the VMM has mapped for it.
fn regions(memory: &GuestMemoryMmap) -> Vec<Region> {
    let file = |region: &GuestRegionMmap| {
        let file = region.file_offset()?;
        Some((file.file().metadata().ok()?.ino(), file.start()))
    };
    let regions = memory.iter().filter_map(|region| {
        let (inode, offset) = file(region)?;
        Some(Region {
            gpa: region.start_addr().0,
            len: region.len(),
            inode,
            offset,
        })
    });
    regions.collect()
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.lines.len()
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        config::features(self.device.image()) | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    /// The library tells its queues by itself.
    fn set_event_idx(&self, _: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let queues = u16::try_from(self.lines.len()).unwrap_or(MAX_QUEUES);
        config::space(self.device.image(), queues, offset, size)
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        self.device.memory(&regions(&memory.memory()));
        *self.memory.write().unwrap_or_else(PoisonError::into_inner) = Some(memory);
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.lines.len()).map(|queue| 1 << queue).collect()
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        let line = usize::try_from(queue)
            .ok()
            .and_then(|queue| self.lines.get(queue));
        if let Some(line) = line {
            drop(line.working.lock());
            line.begun.store(false, Ordering::Release);
            line.broken.store(false, Ordering::Release);
        }
        Ok(())
    }

    fn handle_event(&self, _: u16, _: EventSet, vrings: &[Vring], thread: usize) -> io::Result<()> {
        let (Some(line), Some(vring), Some(memory)) = (self.lines.get(thread), vrings.first(), self.memory())
        else {
            return Ok(());
        };
        let _working = line.working.lock().unwrap_or_else(PoisonError::into_inner);
        if !line.broken.load(Ordering::Acquire) && self.work(line, vring, &memory).is_err() {
            // An error would end this thread, and the queue with it, for ever.
            line.broken.store(true, Ordering::Release);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Serial, Transfer, Transfers};
    use crate::image::{Format, Image};

    struct Silent;

    impl Transfers for Silent {
        fn moved(&self, _: Transfer<'_>) {}
        fn zeroed(&self, _: u64, _: u64) {}
    }

    fn backend(queues: u16) -> Backend {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let image = Image::open(file.path(), Format::Raw, false).unwrap();
        let device = Device::new(Arc::new(image), Serial::default(), Box::new(Silent));
        let server = Server::new(device, queues);
        Backend::new(server.device, server.queues)
    }

    #[test]
    fn max_queues_bounds_the_threads_of_a_disk() {
        assert_eq!(backend(0).num_queues(), 1);
        assert_eq!(backend(u16::MAX).num_queues(), usize::from(MAX_QUEUES));
        let mut masks = backend(u16::MAX).queues_per_thread();
        masks.dedup();
        assert!(masks.len() == 64 && masks.iter().all(|mask| mask.count_ones() == 1));
    }

    #[test]
    fn max_queue_size_is_the_longest_queue_that_qemu_makes() {
        assert_eq!(backend(1).max_queue_size(), MAX_QUEUE_SIZE);
        assert!(MAX_QUEUE_SIZE.is_power_of_two());
    }

    #[test]
    fn the_space_of_a_disk_has_as_many_bytes_as_are_asked_for() {
        let backend = backend(4);
        let space = backend.get_config(0, 60);
        assert_eq!(
            u64::from_le_bytes(space[..8].try_into().unwrap()),
            2048,
            "sectors"
        );
        assert_eq!(space[34..36], [4, 0], "queues");
        assert_eq!(backend.get_config(34, 2), [4, 0]);
        assert_eq!(backend.get_config(58, 9), [0; 9]);
        assert_eq!(backend.get_config(u32::MAX, 3), [0; 3]);
    }
}
