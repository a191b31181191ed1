//! Pieces of many pages of another process, gathered by a process that does nothing else.
//!
//! `/proc/PID/mem` copies each page twice and takes a lock for it; `process_vm_readv` does neither, but asks for the right to read
//! each time, when a scan has given it up. So another process keeps that right, for this one process, and sends what is in the
//! wanted places. What it copies it looks at while it is in its caches:
//!
//! ```text
//!  scan ── where, which pieces ──► gatherer ── process_vm_readv, 1 MiB at a time ── pieces ──► scan
//! ```

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use nephoscope_guest::Pieces;

/// What is copied at a time: it fits the cache of one core, and a call costs little beside.
const WINDOW: u64 = 1 << 20;
/// Pieces of a stretch.
const MAX_PIECES: usize = 64;
/// Bytes of a stretch, and of its pieces.
const MAX_STRETCH: u64 = WINDOW;
/// Stretches that are asked for at once.
const MAX_STRETCHES: u32 = 1 << 16;

/// A question as it is sent, in the machine's own order of bytes: both ends are one program.
const QUESTION: usize = 8 + 8 + 4 + 4 + 4 + 8;
/// In a question: that nothing is asked of the rest of a stretch.
const NO_REST: u64 = u64::MAX;

/// The end that asks.
#[derive(Debug)]
pub struct Gatherer {
    stream: UnixStream,
}

impl Gatherer {
    /// By way of this connection to a process that runs [`serve`].
    #[must_use]
    pub const fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// Fills `buf` with pieces of the stretches from `at` on. `None`: not all could be read, which says nothing of why.
    ///
    /// # Errors
    /// When nobody answers any more.
    pub(crate) fn gather(&mut self, at: u64, pieces: &Pieces<'_>, buf: &mut [u8]) -> io::Result<Option<()>> {
        if buf.is_empty() {
            return Ok(Some(()));
        }
        let stretches = buf.len() / pieces.bytes().max(1);
        let question = Question {
            at,
            stride: pieces.stride,
            stretches: u32::try_from(stretches).unwrap_or(u32::MAX),
            len: u32::try_from(pieces.len).unwrap_or(u32::MAX),
            rest_from: pieces.rest_from,
            offsets: pieces.offsets.to_vec(),
        };
        if !question.is_fit() || question.bytes() != buf.len() {
            return Ok(None);
        }
        self.stream.write_all(&question.to_bytes())?;
        let mut done = [0];
        self.stream.read_exact(&mut done)?;
        if done != [1] {
            return Ok(None);
        }
        self.stream.read_exact(buf)?;
        Ok(Some(()))
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Question {
    at: u64,
    stride: u64,
    stretches: u32,
    len: u32,
    rest_from: Option<u64>,
    offsets: Vec<u64>,
}

impl Question {
    /// Whoever asks may have been taken over by what it reads.
    fn is_fit(&self) -> bool {
        let within = |offset: &u64| {
            offset
                .checked_add(u64::from(self.len))
                .is_some_and(|end| end <= self.stride)
        };
        (1..=MAX_STRETCHES).contains(&self.stretches)
            && (1..=MAX_PIECES).contains(&self.offsets.len())
            && (1..=MAX_STRETCH).contains(&self.stride)
            && self.offsets.iter().all(within)
            && self.rest_from.is_none_or(|from| from <= self.stride)
            && u64::from(self.len).saturating_mul(self.offsets.len() as u64) <= MAX_STRETCH
            && self
                .stride
                .checked_mul(u64::from(self.stretches))
                .and_then(|all| self.at.checked_add(all))
                .is_some()
    }

    /// Bytes of the answer.
    fn bytes(&self) -> usize {
        let pieces = Pieces {
            stride: self.stride,
            offsets: &self.offsets,
            len: self.len as usize,
            rest_from: self.rest_from,
        };
        (self.stretches as usize).saturating_mul(pieces.bytes())
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(QUESTION + 8 * self.offsets.len());
        bytes.extend(self.at.to_ne_bytes());
        bytes.extend(self.stride.to_ne_bytes());
        bytes.extend(self.stretches.to_ne_bytes());
        bytes.extend(self.len.to_ne_bytes());
        bytes.extend(
            u32::try_from(self.offsets.len())
                .unwrap_or(u32::MAX)
                .to_ne_bytes(),
        );
        bytes.extend(self.rest_from.unwrap_or(NO_REST).to_ne_bytes());
        bytes.extend(self.offsets.iter().flat_map(|offset| offset.to_ne_bytes()));
        bytes
    }

    /// `None`: nobody asks any more.
    fn read(stream: &mut UnixStream) -> io::Result<Option<Self>> {
        let mut head = [0; QUESTION];
        match stream.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let word = |at: usize| {
            let bytes = head.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_ne_bytes)
        };
        let half = |at: usize| {
            let bytes = head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_ne_bytes)
        };
        let count = half(24) as usize;
        if count > MAX_PIECES {
            return Err(io::Error::other("a question with too many pieces"));
        }
        let mut offsets = vec![0; 8 * count];
        stream.read_exact(&mut offsets)?;
        let offsets = offsets.as_chunks::<8>().0;
        Ok(Some(Self {
            at: word(0),
            stride: word(8),
            stretches: half(16),
            len: half(20),
            rest_from: Some(word(28)).filter(|from| *from != NO_REST),
            offsets: offsets.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect(),
        }))
    }
}

/// Answers until nobody asks any more. `read` fills a buffer from an address of the process that is read, and says whether it
/// could.
///
/// # Errors
/// When a question is not one that [`Gatherer`] asks, or the connection breaks.
pub fn serve(mut stream: UnixStream, mut read: impl FnMut(u64, &mut [u8]) -> bool) -> io::Result<()> {
    let mut window = Vec::new();
    let mut answer = Vec::new();
    while let Some(question) = Question::read(&mut stream)? {
        if !question.is_fit() {
            return Err(io::Error::other("a question that nobody asks"));
        }
        answer.clear();
        answer.push(1);
        if collect(&question, &mut window, &mut answer, &mut read).is_none() {
            answer.clear();
            answer.push(0);
        }
        stream.write_all(&answer)?;
    }
    Ok(())
}

fn collect(
    question: &Question,
    window: &mut Vec<u8>,
    answer: &mut Vec<u8>,
    read: &mut impl FnMut(u64, &mut [u8]) -> bool,
) -> Option<()> {
    let stride = usize::try_from(question.stride).ok()?;
    let at_once = (WINDOW / question.stride).max(1);
    let mut left = u64::from(question.stretches);
    let mut at = question.at;
    while left > 0 {
        let here = left.min(at_once);
        window.resize(usize::try_from(here).ok()? * stride, 0);
        if !read(at, window) {
            return None;
        }
        for stretch in window.chunks_exact(stride) {
            for offset in &question.offsets {
                let from = usize::try_from(*offset).ok()?;
                answer.extend_from_slice(stretch.get(from..from + question.len as usize)?);
            }
            if let Some(from) = question.rest_from {
                let rest = stretch.get(usize::try_from(from).ok()?..)?;
                answer.push(u8::from(is_anything(rest)));
            }
        }
        left -= here;
        at = at.checked_add(here * question.stride)?;
    }
    Some(())
}

/// Whether there is anything but zeros. Looks from the end: what is in use is so there.
fn is_anything(bytes: &[u8]) -> bool {
    let (first, words) = bytes.as_rchunks::<64>();
    let zero = |line: &[u8; 64]| line.iter().fold(0, |all, byte| all | byte) == 0;
    !(words.iter().rev().all(zero) && first.iter().all(|byte| *byte == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory whose byte at an address is made of that, up to an end.
    fn byte(at: u64) -> u8 {
        (at ^ at >> 8 ^ at >> 16).to_le_bytes()[0]
    }

    const END: u64 = 0x40_0000;

    fn memory(at: u64, buf: &mut [u8]) -> bool {
        for (at, byte_there) in (at..).zip(buf.iter_mut()) {
            *byte_there = byte(at);
        }
        at + buf.len() as u64 <= END
    }

    fn with(test: impl FnOnce(&mut Gatherer)) -> io::Result<()> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || serve(theirs, memory));
        test(&mut Gatherer::new(ours));
        thread.join().unwrap()
    }

    #[test]
    fn pieces_of_every_page_are_gathered_in_order() {
        with(|gatherer| {
            let pieces = Pieces {
                stride: 4096,
                offsets: &[64, 4032],
                len: 64,
                rest_from: Some(4096),
            };
            // More than a window, and no multiple of one.
            let mut buf = vec![0; 150 * pieces.bytes()];
            assert_eq!(gatherer.gather(0x1_0000, &pieces, &mut buf).unwrap(), Some(()));
            let mut expected = Vec::new();
            for page in 0..150 {
                for offset in [64, 4032] {
                    expected.extend((0..64).map(|n| byte(0x1_0000 + page * 4096 + offset + n)));
                }
                // Nothing is there after its end.
                expected.push(0);
            }
            assert_eq!(buf, expected);
        })
        .unwrap();
    }

    #[test]
    fn it_is_said_whether_the_rest_of_a_page_is_zeros() {
        for (at, from, is_anything) in [(4095, 2048, 1), (2048, 2048, 1), (2047, 2048, 0), (2047, 2040, 1)] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let read = move |_: u64, buf: &mut [u8]| {
                buf.fill(0);
                buf[at] = 0x10;
                true
            };
            let thread = std::thread::spawn(move || serve(theirs, read));
            let pieces = Pieces {
                stride: 4096,
                offsets: &[8],
                len: 8,
                rest_from: Some(from),
            };
            let mut buf = [0xff; 9];
            let mut gatherer = Gatherer::new(ours);
            assert_eq!(gatherer.gather(0, &pieces, &mut buf).unwrap(), Some(()));
            assert_eq!(buf, [0, 0, 0, 0, 0, 0, 0, 0, is_anything], "{at} {from}");
            drop(gatherer);
            thread.join().unwrap().unwrap();
        }
    }

    #[test]
    fn what_cannot_be_read_is_said_and_the_next_question_is_answered() {
        with(|gatherer| {
            let pieces = Pieces {
                stride: 4096,
                offsets: &[0],
                len: 8,
                rest_from: None,
            };
            let mut buf = [0; 16];
            assert_eq!(gatherer.gather(END - 4096, &pieces, &mut buf).unwrap(), None);
            assert_eq!(gatherer.gather(END - 8192, &pieces, &mut buf).unwrap(), Some(()));
            // Asked for nobody's question: refused here already.
            assert_eq!(gatherer.gather(u64::MAX - 4096, &pieces, &mut buf).unwrap(), None);
            assert_eq!(gatherer.gather(0, &pieces, &mut [0; 9]).unwrap(), None);
        })
        .unwrap();
    }

    fn question() -> Question {
        Question {
            at: 0,
            stride: 4096,
            stretches: 1,
            len: 64,
            rest_from: None,
            offsets: vec![0],
        }
    }

    #[test]
    fn max_pieces_max_stretch_and_max_stretches_bound_what_may_be_asked() {
        let unfit: [fn(&mut Question); 8] = [
            |q| q.rest_from = Some(4097),
            |q| q.offsets = vec![0; MAX_PIECES + 1],
            |q| q.offsets = vec![4095],
            |q| q.offsets = vec![u64::MAX],
            |q| q.stride = MAX_STRETCH + 1,
            |q| q.stretches = MAX_STRETCHES + 1,
            |q| q.at = u64::MAX - 4095,
            |q| (q.stride, q.len, q.offsets) = (MAX_STRETCH, u32::try_from(MAX_STRETCH).unwrap(), vec![0; 2]),
        ];
        assert!(question().is_fit());
        for make in unfit {
            let mut question = question();
            make(&mut question);
            assert!(!question.is_fit(), "{question:?}");
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.write_all(&question.to_bytes()).unwrap();
            let error = serve(theirs, memory).unwrap_err();
            assert!(error.to_string().contains("question"), "{error}");
        }
    }

    #[test]
    fn a_question_that_breaks_off_is_an_error_and_no_question_the_end() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let bytes = question().to_bytes();
        ours.write_all(&bytes[..bytes.len() - 1]).unwrap();
        drop(ours);
        assert!(serve(theirs, memory).is_err());
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        assert!(serve(theirs, memory).is_ok());
    }
}
