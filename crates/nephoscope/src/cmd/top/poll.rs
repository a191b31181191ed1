//! Asks the watch again and again, beside the screen: an answer that takes long does not hold up a key.

use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use anyhow::Context;
use nephoscope_inventory::Report;

use crate::client::{AskError, Client};
use crate::runtime::VmDir;

/// What there is to tell.
#[derive(Debug)]
pub(super) enum News {
    /// The report as of now.
    Report(Box<Report>),
    /// No answer this time.
    Trouble(String),
    /// The VM or its watch has ended.
    Ended,
}

/// Between two questions.
const PERIOD: Duration = Duration::from_secs(1);

/// Starts to ask; it stops when the receiver is gone.
pub(super) fn start(vm: VmDir, client: Client, quiet: Duration) -> anyhow::Result<Receiver<News>> {
    let (sender, receiver) = sync_channel(2);
    std::thread::Builder::new()
        .name("poll".into())
        .spawn(move || {
            let mut client = Some(client);
            loop {
                let news = match once(&vm, &mut client, quiet) {
                    Ok(report) => News::Report(Box::new(report)),
                    Err(error) if error.is_end() => News::Ended,
                    Err(error) => News::Trouble(error.to_string()),
                };
                let ended = matches!(news, News::Ended);
                if sender.send(news).is_err() || ended {
                    return;
                }
                std::thread::sleep(PERIOD);
            }
        })
        .context("starting a thread")?;
    Ok(receiver)
}

/// After a failure the conversation is a new one: what is left of an answer belongs to another question.
fn once(vm: &VmDir, kept: &mut Option<Client>, quiet: Duration) -> Result<Report, AskError> {
    let mut client = match kept.take() {
        Some(client) => client,
        None => Client::connect(vm, quiet)?,
    };
    let report = client.report()?;
    *kept = Some(client);
    Ok(report)
}
