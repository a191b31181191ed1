//! `nephoscope top`: what runs in a VM, live.

mod app;
mod draw;
mod poll;
mod screen;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::mpsc::TryRecvError;
use std::time::Duration;

use clap::Args;
use crossterm::event;

use crate::exit::{Failure, exit};
use crate::source::Asking;
use crate::text::{Paint, print};

use app::{App, Step};

/// See what runs in a VM, live.
///
/// Coverage, rates, and the address spaces by recent activity.
///
/// Keys: arrows or j and k select, enter shows an address space's modules, f the findings, a also what has ended, ? help, q
/// quits.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    nephoscope top             # the only VM\n  \
    nephoscope top web1")]
pub(crate) struct TopArgs {
    /// The VM. Not needed if only one is being watched.
    #[arg(value_name = "VM")]
    vm: Option<String>,
    #[command(flatten)]
    asking: Asking,
}

/// How long a key may wait to be seen.
const TICK: Duration = Duration::from_millis(50);

/// Runs it.
pub(crate) fn run(args: &TopArgs) -> anyhow::Result<ExitCode> {
    if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
        let message = "top needs a terminal: use `nephoscope ps`, with --json in scripts";
        return Err(exit(Failure::Usage, message));
    }
    let (vm, client) = args.asking.connect(args.vm.as_deref())?;
    let mut app = App::new(vm.name.clone());
    let news = poll::start(vm, client, args.asking.quiet())?;
    let signal = screen::signals()?;
    screen::end_with_the_terminal()?;
    let mut screen = screen::Screen::open()?;
    let paint = Paint::stdout();
    // Only what changed is drawn: a frame of a large VM has thousands of rows to sort.
    let mut changed = true;
    let code = loop {
        let no_news = loop {
            match news.try_recv() {
                Ok(news) => app.take(news),
                Err(none) => break none,
            }
            changed = true;
        };
        if no_news == TryRecvError::Disconnected {
            changed |= app.unasked();
        }
        if changed {
            screen.draw(|frame| draw::draw(frame, &mut app, paint))?;
            changed = false;
        }
        if let Some(signal) = screen::caught(&signal) {
            break 128 + signal;
        }
        if event::poll(TICK)? {
            if app.event(&event::read()?) == Step::Quit {
                break 0;
            }
            changed = true;
        }
    };
    drop(screen);
    if app.has_ended() {
        print(&format!("nephoscope: {} has ended\n", app.name))?;
    }
    Ok(ExitCode::from(code))
}
