//! The terminal: taken whole, and given back as it was, however the program ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use ratatui::{DefaultTerminal, Frame};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The terminal while it is ours. Dropping gives it back; so does a panic, by the hook that `ratatui` sets.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// Takes it: raw, and on the alternate screen.
    pub(super) fn open() -> anyhow::Result<Self> {
        let terminal = ratatui::try_init()
            .inspect_err(|_| {
                let _ = ratatui::try_restore();
            })
            .context("taking the terminal")?;
        Ok(Self { terminal })
    }

    /// Draws a frame.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> anyhow::Result<()> {
        self.terminal.draw(draw).context("drawing")?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.terminal.show_cursor();
        let _ = ratatui::try_restore();
    }
}

/// Signals that end the program, caught so that the terminal is given back first.
pub(super) fn signals() -> anyhow::Result<Arc<AtomicUsize>> {
    let caught = Arc::new(AtomicUsize::new(0));
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        let number = usize::try_from(signal).context("a signal's number")?;
        signal_hook::flag::register_usize(signal, caught.clone(), number).context("taking signals")?;
    }
    Ok(caught)
}

/// Ends the program when the terminal is gone. `crossterm` reads a terminal that was hung up again and again without
/// coming back, so no loop around it can notice; there is nothing to give back any more either.
pub(super) fn end_with_the_terminal() -> anyhow::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    std::thread::Builder::new().name("hangup".into()).spawn(|| {
        let stdin = std::io::stdin();
        loop {
            // Hang-up and error are told unasked.
            let mut fds = [PollFd::new(&stdin, PollFlags::empty())];
            let gone = poll(&mut fds, None).is_ok() && !fds[0].revents().is_empty();
            if gone {
                std::process::exit(128 + SIGHUP);
            }
        }
    })?;
    Ok(())
}

/// The signal that came, if one did.
pub(super) fn caught(signal: &AtomicUsize) -> Option<u8> {
    match signal.load(Ordering::Relaxed) {
        0 => None,
        signal => u8::try_from(signal).ok(),
    }
}
