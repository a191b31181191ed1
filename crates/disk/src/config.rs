//! The configuration space of a virtio block device (virtio 1.2, 5.2.4), and what the device offers.

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::device::MAX_ZEROED;
use crate::image::{Image, SECTOR};

/// Descriptors with data in one request: those of QEMU's queue of 128, but for header and status.
const SEGMENTS: u32 = 126;
/// Bytes of the space as far as it is used.
const LEN: usize = 60;

/// Features by which the guest may use the disk. A server that takes over from another offers the same, or QEMU does not
/// go on with it. Without `VIRTIO_BLK_F_CONFIG_WCE`, which QEMU does not say again to the next server, a flush is always needed.
pub(crate) fn features(image: &Image) -> u64 {
    let mut bits = vec![
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_MQ,
    ];
    if image.is_read_only() {
        bits.push(VIRTIO_BLK_F_RO);
    } else {
        bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
    }
    bits.into_iter().fold(0, |all, bit| all | 1_u64 << bit)
}

/// The space from an offset on: as many bytes as are asked for, zeros behind its end.
pub(crate) fn space(image: &Image, queues: u16, offset: u32, size: u32) -> Vec<u8> {
    let mut space = [0; LEN];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(to) = space.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    };
    put(0, &image.sectors().to_le_bytes());
    put(12, &SEGMENTS.to_le_bytes());
    put(20, &u32::try_from(SECTOR).unwrap_or(512).to_le_bytes());
    put(34, &queues.to_le_bytes());
    put(36, &MAX_ZEROED.to_le_bytes());
    put(40, &1_u32.to_le_bytes());
    put(44, &1_u32.to_le_bytes());
    put(48, &MAX_ZEROED.to_le_bytes());
    put(52, &1_u32.to_le_bytes());
    put(56, &[1]);
    let from = usize::try_from(offset).unwrap_or(LEN).min(LEN);
    let size = usize::try_from(size).unwrap_or(LEN).min(LEN * 8);
    let mut asked: Vec<u8> = space[from..].iter().copied().take(size).collect();
    asked.resize(size, 0);
    asked
}
