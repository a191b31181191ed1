//! Messages over a unix stream socket: a length, a JSON object, and descriptors that travel with it.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};

/// The longest message that is read: it stops a peer that announces gigabytes.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Descriptors that one message may carry: the kernel's own bound (`SCM_MAX_FD`).
const MAX_FDS: usize = 253;

/// A message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The other side is gone.
    #[error("the other side closed the connection")]
    Closed,
    /// The system refused.
    #[error("control socket failed")]
    Io(#[from] std::io::Error),
    /// Longer than [`MAX_MESSAGE_BYTES`].
    #[error("message of {0} bytes is too long")]
    TooLong(usize),
    /// Not the JSON that was expected.
    #[error("message is not understood")]
    Json(#[from] serde_json::Error),
}

/// Sends a message with descriptors.
///
/// # Errors
/// If the peer is gone or the message is too long.
pub fn send<T: Serialize>(
    stream: &mut UnixStream,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), SocketError> {
    let body = serde_json::to_vec(message)?;
    let len = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= MAX_MESSAGE_BYTES);
    let len = len.ok_or(SocketError::TooLong(body.len()))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(SocketError::TooLong(fds.len()));
    }
    // The descriptors ride on the length, whose four bytes a stream socket sends whole or not at all.
    let sent = sendmsg(
        &*stream,
        &[IoSlice::new(&len.to_le_bytes())],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .map_err(std::io::Error::from)?;
    if sent != 4 {
        return Err(SocketError::Closed);
    }
    stream.write_all(&body)?;
    Ok(())
}

/// Receives a message and the descriptors that came with it.
///
/// # Errors
/// If the peer is gone, or sent something else.
pub fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> Result<(T, Vec<OwnedFd>), SocketError> {
    let mut prefix = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        &*stream,
        &mut [IoSliceMut::new(&mut prefix)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(std::io::Error::from)?
    .bytes;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got == 0 {
        return Err(SocketError::Closed);
    }
    stream.read_exact(prefix.get_mut(got..).unwrap_or(&mut []))?;
    let len = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if len > MAX_MESSAGE_BYTES {
        return Err(SocketError::TooLong(len));
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    Ok((serde_json::from_slice(&body)?, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Request;
    use std::os::fd::AsFd;

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let file = tempfile();
        let second = a.try_clone().unwrap();
        send(&mut a, &Request::Counters, &[file.as_fd(), second.as_fd()]).unwrap();
        let (request, fds) = receive::<Request>(&mut b).unwrap();
        assert_eq!((request, fds.len()), (Request::Counters, 2));
    }

    #[test]
    fn a_closed_peer_and_a_message_too_long_are_told_apart() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        a.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(matches!(receive::<Request>(&mut b), Err(SocketError::TooLong(_))));
        drop(a);
        assert!(matches!(receive::<Request>(&mut b), Err(SocketError::Closed)));
    }

    #[test]
    fn max_message_bytes_stops_both_a_sender_and_a_peer_that_sends_more() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let most = "x".repeat(MAX_MESSAGE_BYTES - 2);
        let reader = std::thread::spawn(move || receive::<String>(&mut b).map(|(text, _)| text.len()));
        send(&mut a, &most, &[]).unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), MAX_MESSAGE_BYTES - 2);
        assert!(matches!(
            send(&mut a, &format!("{most}x"), &[]),
            Err(SocketError::TooLong(_))
        ));
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let len = u32::try_from(MAX_MESSAGE_BYTES + 1).unwrap();
        a.write_all(&len.to_le_bytes()).unwrap();
        assert!(matches!(receive::<Request>(&mut b), Err(SocketError::TooLong(_))));
    }

    #[test]
    fn max_fds_is_what_one_message_carries() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let file = tempfile();
        send(&mut a, &Request::Counters, &[file.as_fd(); MAX_FDS]).unwrap();
        assert_eq!(receive::<Request>(&mut b).unwrap().1.len(), MAX_FDS);
        let more = [file.as_fd(); MAX_FDS + 1];
        assert!(send(&mut a, &Request::Counters, &more).is_err());
    }

    fn tempfile() -> OwnedFd {
        rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
    }
}
