//! QEMU, asked in a thread of its own.
//!
//! ```text
//!  the watch's loop ─► questions ─► thread: QMP, one at a time ─► answers and events ─► the watch's loop, when it looks
//! ```
//!
//! QEMU answers in its main loop, which stands still while a disk of its does: seconds, on a busy host, or when the guest wants
//! it. A watch that waited for the answer would let the rings fill up meanwhile, and be blind.

use std::mem::discriminant;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use nephoscope_drivers::{Qmp, QmpEvent, RamMap, paging_mode};
use nephoscope_isa::Mode;

/// How long events wait in the socket, at most, while nothing is asked.
const LISTEN: Duration = Duration::from_millis(50);

/// What was said and not heard: a QEMU that says more is not listened to meanwhile, and of what it says in the end the oldest is
/// dropped ([`Qmp`]).
const MAX_UNHEARD: usize = 64;

/// What QEMU is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Question {
    /// Where the memory is.
    Map,
    /// How its CPUs translate.
    Mode,
    /// Why the guest stands still since then.
    Status(u64),
}

/// What it said.
#[derive(Debug)]
pub(super) enum Said {
    /// Where the memory is.
    Map(RamMap),
    /// How its CPUs translate, if paging is on.
    Mode(Option<Mode>),
    /// Why the guest stands still since then.
    Status(u64, String),
    /// Something that it was not asked.
    Event(QmpEvent),
    /// Nothing that answers the question: in time, or that is understood.
    Nothing,
}

/// The watch's side.
#[derive(Debug)]
pub(super) struct Asker {
    questions: Sender<Question>,
    said: Receiver<(Option<Question>, Said)>,
    /// Asked, and not answered.
    waiting: Vec<Question>,
}

impl Asker {
    /// Starts the thread. Not before privileges are dropped.
    pub(super) fn start(qmp: Qmp) -> std::io::Result<Self> {
        let (questions, asked) = channel();
        let (tell, said) = sync_channel(MAX_UNHEARD);
        std::thread::Builder::new()
            .name("nephoscope-qmp".into())
            .spawn(move || run(qmp, &asked, &tell))?;
        Ok(Self {
            questions,
            said,
            waiting: Vec::new(),
        })
    }

    /// Asks, unless it is waited for such an answer already: a QEMU that does not answer is not asked more and more.
    pub(super) fn ask(&mut self, question: Question) {
        let is_waiting = |asked: &Question| discriminant(asked) == discriminant(&question);
        // A thread that has ended has said all that QEMU will ever say.
        if !self.waiting.iter().any(is_waiting) && self.questions.send(question).is_ok() {
            self.waiting.push(question);
        }
    }

    /// What was said since the last time.
    pub(super) fn hear(&mut self) -> Vec<Said> {
        let mut all = Vec::new();
        while all.len() < MAX_UNHEARD
            && let Ok((answers, said)) = self.said.try_recv()
        {
            if let Some(question) = answers {
                self.waiting.retain(|waiting| *waiting != question);
            }
            all.push(said);
        }
        all
    }
}

#[cfg(test)]
impl Asker {
    /// One that hears what a test says.
    pub(super) fn played() -> (Self, impl Fn(Said) + Send + 'static) {
        let (tell, said) = sync_channel(MAX_UNHEARD);
        let asker = Self {
            questions: channel().0,
            said,
            waiting: Vec::new(),
        };
        (asker, move |said| tell.send((None, said)).unwrap())
    }
}

fn run(mut qmp: Qmp, asked: &Receiver<Question>, tell: &SyncSender<(Option<Question>, Said)>) {
    loop {
        match asked.recv_timeout(LISTEN) {
            Ok(question) => {
                let said = answer(&mut qmp, question);
                if tell.send((Some(question), said)).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // That QEMU is gone is seen elsewhere; what it said before still counts.
        let (events, is_over) = match qmp.events_so_far() {
            Ok(events) => (events, false),
            Err(_) => (qmp.take_events(), true),
        };
        let told = events
            .into_iter()
            .all(|event| tell.send((None, Said::Event(event))).is_ok());
        if is_over || !told {
            return;
        }
    }
}

fn answer(qmp: &mut Qmp, question: Question) -> Said {
    let said = match question {
        Question::Map => RamMap::read(qmp).ok().map(Said::Map),
        Question::Mode => paging_mode(qmp).ok().map(Said::Mode),
        Question::Status(since) => status(qmp).map(|status| Said::Status(since, status)),
    };
    said.unwrap_or(Said::Nothing)
}

/// What the machine does: `running`, `paused`, `postmigrate`, …
fn status(qmp: &mut Qmp) -> Option<String> {
    let status = qmp.execute("query-status", None).ok()?;
    Some(status.get("status")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    /// A QEMU that says of itself what it is told to, when it is told to.
    struct Peer {
        lines: BufReader<UnixStream>,
        stream: UnixStream,
    }

    impl Peer {
        fn new() -> (Self, Qmp) {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut peer = Self {
                lines: BufReader::new(theirs.try_clone().unwrap()),
                stream: theirs,
            };
            let greeted = std::thread::spawn(move || {
                peer.says(r#"{"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 0}}}}"#);
                peer.answers("{}");
                peer
            });
            let qmp = Qmp::from_stream(ours, Duration::from_secs(20)).unwrap();
            (greeted.join().unwrap(), qmp)
        }

        fn says(&mut self, line: &str) {
            writeln!(self.stream, "{line}").unwrap();
        }

        fn is_asked(&mut self) -> u64 {
            let mut line = String::new();
            self.lines.read_line(&mut line).unwrap();
            let asked: serde_json::Value = serde_json::from_str(&line).unwrap();
            asked["id"].as_u64().unwrap()
        }

        fn answers(&mut self, with: &str) {
            let id = self.is_asked();
            self.says(&format!(r#"{{"return": {with}, "id": {id}}}"#));
        }
    }

    /// The next so many things that are said.
    fn heard<const N: usize>(asker: &mut Asker) -> [Said; N] {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut all = Vec::new();
        while all.len() < N {
            assert!(Instant::now() < deadline);
            all.extend(asker.hear());
            std::thread::sleep(Duration::from_millis(1));
        }
        all.try_into().unwrap()
    }

    #[test]
    fn nobody_waits_for_a_qemu_that_does_not_answer_and_it_is_asked_once() {
        let (mut peer, qmp) = Peer::new();
        let mut asker = Asker::start(qmp).unwrap();
        asker.ask(Question::Status(5));
        let id = peer.is_asked();
        // It has the question and says nothing.
        asker.ask(Question::Status(6));
        assert!(asker.hear().is_empty());
        peer.says(r#"{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}"#);
        peer.says(&format!(
            r#"{{"return": {{"status": "postmigrate"}}, "id": {id}}}"#
        ));
        let [status, stop] = heard(&mut asker);
        assert!(matches!(status, Said::Status(5, status) if status == "postmigrate"));
        assert!(matches!(stop, Said::Event(event) if event.name == "STOP"));
        // Once it has answered it can be asked again; the question in between was not sent.
        asker.ask(Question::Status(7));
        peer.answers(r#"{"status": "running"}"#);
        assert!(matches!(heard(&mut asker), [Said::Status(7, _)]));
    }

    #[test]
    fn max_unheard_bounds_what_a_qemu_says_that_never_stops() {
        let (mut peer, qmp) = Peer::new();
        let mut asker = Asker::start(qmp).unwrap();
        for _ in 0..3 * MAX_UNHEARD {
            peer.says(r#"{"event": "RTC_CHANGE", "timestamp": {"seconds": 1, "microseconds": 2}}"#);
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut heard = Vec::new();
        while heard.len() < 3 * MAX_UNHEARD {
            assert!(Instant::now() < deadline);
            let said = asker.hear().len();
            assert!(said <= MAX_UNHEARD);
            heard.extend(std::iter::repeat_n((), said));
        }
    }

    #[test]
    fn what_a_qemu_says_before_it_ends_is_heard_and_nothing_is_waited_for_afterwards() {
        let (mut peer, qmp) = Peer::new();
        let mut asker = Asker::start(qmp).unwrap();
        peer.says(r#"{"event": "RESET", "timestamp": {"seconds": 1, "microseconds": 2}}"#);
        drop(peer);
        assert!(matches!(heard(&mut asker), [Said::Event(event)] if event.name == "RESET"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while asker.questions.send(Question::Mode).is_ok() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
        asker.ask(Question::Map);
        assert!(asker.waiting.is_empty());
    }
}
