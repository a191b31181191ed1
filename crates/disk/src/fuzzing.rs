//! Insides that `fuzz` looks into.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::GuestMemory;

use crate::device::Device;

pub use virtio_queue;
pub use vm_memory;

/// What a server does with one request: how many bytes of the guest's memory it says it has written.
pub fn answer<M>(device: &Device, chain: DescriptorChain<M>) -> u32
where
    M: Deref + Clone,
    M::Target: GuestMemory,
{
    crate::serve::answer(device, chain)
}
