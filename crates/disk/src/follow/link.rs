//! The connection to the plugin in QEMU, which connects as soon as the guest can run.

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use nephoscope_wire::{DiskMessage, Region};

/// How long the first request waits for the plugin, and each one for its answer. A guest that waits longer takes its disk for broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection, or none.
#[derive(Debug, Default)]
struct State {
    stream: Option<UnixStream>,
    regions: Vec<Region>,
    /// It was waited for once, in vain.
    gave_up: bool,
}

/// The way to the plugin.
#[derive(Debug, Default)]
pub struct Link {
    state: Mutex<State>,
    came: Condvar,
    unheard: AtomicU64,
}

impl Link {
    /// Takes the plugin's connections, one after the other, for as long as the process lives.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn listen(listener: UnixListener) -> std::io::Result<Arc<Self>> {
        let link = Arc::new(Self::default());
        let taken = link.clone();
        std::thread::Builder::new()
            .name("plugin".to_owned())
            .spawn(move || {
                for stream in listener.incoming().flatten() {
                    taken.connected(stream);
                }
            })?;
        Ok(link)
    }

    fn connected(&self, mut stream: UnixStream) {
        let timeouts = stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let told = timeouts.and_then(|()| DiskMessage::Regions(state.regions.clone()).ask(&mut stream));
        if told.is_ok() {
            state.stream = Some(stream);
            state.gave_up = false;
            self.came.notify_all();
        }
    }

    /// Guest RAM is there now.
    pub(super) fn regions(&self, regions: &[Region]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.regions = regions.to_vec();
        let message = DiskMessage::Regions(state.regions.clone());
        self.say(&mut state, &message);
    }

    /// Tells the plugin, and waits until it has done what has to be.
    pub(super) fn ask(&self, message: &DiskMessage) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.stream.is_none() && !state.gave_up {
            let (waited, _) = self
                .came
                .wait_timeout_while(state, PATIENCE, |state| state.stream.is_none())
                .unwrap_or_else(PoisonError::into_inner);
            state = waited;
            state.gave_up = state.stream.is_none();
        }
        if !self.say(&mut state, message) {
            self.unheard.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn say(&self, state: &mut State, message: &DiskMessage) -> bool {
        let said = state
            .stream
            .as_mut()
            .is_some_and(|stream| message.ask(stream).is_ok());
        if !said {
            state.stream = None;
        }
        said
    }

    /// Transfers that nobody was told of.
    #[must_use]
    pub fn unheard(&self) -> u64 {
        self.unheard.load(Ordering::Relaxed)
    }
}
