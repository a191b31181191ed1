//! Frames and the shared-memory ring between the QEMU plugin and the monitor.
//!
//! ```text
//!  QEMU process                         monitor
//!  vCPU 0 ─ Producer ═ ring 0 (memfd) ═ Consumer ┐
//!  vCPU 1 ─ Producer ═ ring 1 (memfd) ═ Consumer ┼─► frames in order of their time
//!  control thread ──── unix socket ──── control  ┘
//! ```
//!
//! A ring has one producer at a time and one consumer. The monitor treats all that it reads as hostile: QEMU
//! emulates a hostile guest's devices and may have been taken over.

mod control;
mod disk;
mod files;
mod frame;
mod ring;
mod shm;
mod socket;

pub use control::{Guarded, Hello, RamRange, Request, WIRE_VERSION};
pub use disk::{DiskMessage, LandedPart, MAX_DISK_MESSAGE, Region};
pub use files::{FileFrame, FileHeld, FrameAccessed, MAX_PATH_BYTES, MAX_WORD_BYTES, PackageFrame};
pub use frame::{
    COUNTER_NAMES, Captured, Controls, Frame, FrameError, MAX_FRAME_BYTES, NO_FRAME, Stamp, UNSEEN_NAMES,
};
pub use ring::{Consumer, Producer, PushError, RING_HEAD_BYTES, RingError, RingMemory};
pub use shm::{DeviceWords, ShmError};
pub use socket::{MAX_MESSAGE_BYTES, SocketError, receive, send};
