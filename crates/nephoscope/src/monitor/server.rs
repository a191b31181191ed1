//! Answers `ps`, `top`, `findings` and `why`: one thread accepts, one per connection reads questions; the watch's own
//! thread answers them between two batches of events.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use anyhow::Context;
use rustix::fs::Uid;
use rustix::net::sockopt::socket_peercred;

use crate::control::{Answer, Ask};

/// A question, and where its answer goes.
pub(crate) type Request = (Ask, SyncSender<Answer>);

/// The longest question: it stops a peer that sends without end.
const MAX_QUESTION: u64 = 64 << 10;
/// Connections at once: it stops a peer that opens them without end.
const MAX_CONNECTIONS: usize = 32;

/// Makes the socket, for this user alone.
pub(super) fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves a socket; questions of root and of `owner` arrive at the receiver. Others are hung up on, and counted.
pub(super) fn serve(
    listener: UnixListener,
    owner: Uid,
    refused: Arc<AtomicU64>,
) -> anyhow::Result<Receiver<Request>> {
    let (sender, receiver) = channel();
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            let open = Arc::new(AtomicUsize::new(0));
            for stream in listener.incoming().flatten() {
                let peer = socket_peercred(&stream).map(|peer| peer.uid);
                if !peer.is_ok_and(|uid| may_ask(uid, owner)) {
                    refused.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
                    open.fetch_sub(1, Ordering::Relaxed);
                    continue;
                }
                let (sender, open) = (sender.clone(), open.clone());
                let spawned = std::thread::Builder::new()
                    .name("control-peer".into())
                    .spawn(move || {
                        let _ = converse(&stream, &sender);
                        open.fetch_sub(1, Ordering::Relaxed);
                    });
                drop(spawned);
            }
        })?;
    Ok(receiver)
}

/// The folder and the socket's mode keep others out already; a folder that somebody opened does not let them in.
fn may_ask(peer: Uid, owner: Uid) -> bool {
    peer == owner || peer.is_root()
}

/// Answers the questions of one connection until it ends.
pub(crate) fn converse(stream: &UnixStream, watch: &Sender<Request>) -> anyhow::Result<()> {
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        if (&mut reader).take(MAX_QUESTION).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_slice::<Ask>(&line) {
            Ok(ask) => {
                let (sender, receiver) = sync_channel(1);
                watch.send((ask, sender))?;
                receiver.recv()?
            }
            Err(error) => Answer::Nothing {
                why: format!("the question is not understood: {error}"),
            },
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        (&*stream).write_all(&text)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{AskError, Client};
    use crate::control::PageEvidence;
    use crate::runtime::VmDir;

    /// A watch that knows page 7 and nothing else.
    fn answer(ask: &Ask) -> Answer {
        match ask {
            Ask::Page { page: 7 } => Answer::Page {
                page: Box::new(PageEvidence {
                    page: 7,
                    bytes: Some("90".repeat(4096)),
                    ..PageEvidence::default()
                }),
            },
            Ask::Findings { after } => Answer::Findings {
                findings: crate::view::tests::canned()
                    .findings
                    .into_iter()
                    .filter(|finding| finding.id > *after)
                    .collect(),
            },
            Ask::Report => Answer::Report {
                report: Box::new(crate::view::tests::canned()),
            },
            Ask::Page { .. } => Answer::Nothing {
                why: "there is no such page".into(),
            },
        }
    }

    fn serve_here(vm: &VmDir) -> Receiver<Request> {
        serve_at(&vm.control())
    }

    fn serve_at(socket: &Path) -> Receiver<Request> {
        serve(listen(socket).unwrap(), rustix::process::getuid(), Arc::default()).unwrap()
    }

    #[test]
    fn root_and_the_owner_may_ask_and_nobody_else() {
        let (owner, somebody) = (Uid::from_raw(1000), Uid::from_raw(1001));
        assert!(may_ask(owner, owner) && may_ask(Uid::ROOT, owner));
        assert!(!may_ask(somebody, owner) && !may_ask(owner, Uid::ROOT));
    }

    #[test]
    fn the_socket_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let vm = VmDir::at("web1", dir.path());
        let _listener = listen(&vm.control()).unwrap();
        let mode = std::fs::metadata(vm.control()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn clients_and_watches_understand_each_other_question_after_question() {
        let dir = tempfile::tempdir().unwrap();
        let vm = VmDir::at("web1", dir.path());
        let requests = serve_here(&vm);
        std::thread::spawn(move || {
            for (ask, reply) in requests {
                let _ = reply.try_send(answer(&ask));
            }
        });
        let mut client = Client::connect(&vm, Duration::from_secs(20)).unwrap();
        assert_eq!(client.report().unwrap(), crate::view::tests::canned());
        assert_eq!(client.findings(3).unwrap().len(), 1);
        assert_eq!(client.page(7).unwrap().bytes.unwrap().len(), 8192);
        assert!(matches!(client.page(8), Err(AskError::Nothing(why)) if why.contains("no such page")));
        assert_eq!(client.findings(0).unwrap().len(), 4, "the conversation goes on");
    }

    #[test]
    fn max_question_stops_a_peer_that_sends_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let requests = serve_at(&dir.path().join("control"));
        let mut peer = UnixStream::connect(dir.path().join("control")).unwrap();
        peer.write_all(&vec![b'x'; usize::try_from(MAX_QUESTION).unwrap()])
            .unwrap();
        let mut answer = String::new();
        BufReader::new(&peer).read_line(&mut answer).unwrap();
        assert!(answer.contains("not understood"), "{answer}");
        assert!(requests.try_recv().is_err(), "no question reaches the watch");
    }

    #[test]
    fn max_connections_turns_away_those_that_come_after() {
        let dir = tempfile::tempdir().unwrap();
        let _requests = serve_at(&dir.path().join("control"));
        let connect = || {
            let peer = UnixStream::connect(dir.path().join("control")).unwrap();
            peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            peer
        };
        let mut peers: Vec<_> = (0..MAX_CONNECTIONS).map(|_| connect()).collect();
        for peer in &mut peers {
            peer.write_all(b"x\n").unwrap();
            assert!(peer.read(&mut [0; 8]).unwrap() > 0);
        }
        assert_eq!(connect().read(&mut [0; 8]).unwrap(), 0, "closed");
    }

    #[test]
    fn a_watch_that_ended_is_an_end_to_its_clients() {
        let dir = tempfile::tempdir().unwrap();
        let vm = VmDir::at("web1", dir.path());
        let requests = serve_here(&vm);
        let mut client = Client::connect(&vm, Duration::from_secs(20)).unwrap();
        drop(requests);
        assert!(client.report().unwrap_err().is_end());
    }
}
