//! A frame of the ring: what is taken for one is what the encoder would have written, up to bytes that mean nothing.

use nephoscope_wire::{Frame, MAX_FRAME_BYTES};

/// Decodes, encodes, decodes again. A page is put behind the fields of a capture, so that inputs stay short.
pub fn run(bytes: &[u8]) {
    let mut whole = [0; MAX_FRAME_BYTES];
    let bytes = if bytes.len() == 64 {
        whole[..64].copy_from_slice(bytes);
        &whole
    } else {
        bytes
    };
    let Ok((stamp, frame)) = Frame::decode(bytes) else {
        return;
    };
    let mut again = Vec::new();
    frame.encode(stamp, &mut again);
    assert_eq!(again.len(), bytes.len());
    assert_eq!(Frame::decode(&again), Ok((stamp, frame)));
}
