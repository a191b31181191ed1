//! A guest's virtqueue, and the requests in it: whatever they say, the disk is what the transfers say it is.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use arbitrary::Unstructured;
use nephoscope_disk::fuzzing::answer;
use nephoscope_disk::fuzzing::virtio_queue::{Queue, QueueOwnedT, QueueT};
use nephoscope_disk::fuzzing::vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use nephoscope_disk::{Device, Format, Image, Serial, Transfer, Transfers};

/// Bytes of guest memory, and of the disk.
const MEMORY: usize = 64 << 10;
const DISK: usize = 32 << 10;
/// Where the queue's parts are, and how long it is.
const TABLE: u64 = 0;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const ENTRIES: u16 = 16;

/// A disk as it has to be, by what was told.
#[derive(Clone)]
struct Twin(Arc<Mutex<Vec<u8>>>);

impl Transfers for Twin {
    fn moved(&self, transfer: Transfer<'_>) {
        let mut twin = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told: u64 = transfer.frames.iter().map(|(_, len)| u64::from(*len)).sum();
        assert_eq!(told, transfer.bytes.len() as u64, "all bytes have their place");
        let at = usize::try_from(transfer.sector * 512).expect("on the disk");
        let there = &mut twin[at..][..transfer.bytes.len()];
        if transfer.is_write {
            there.copy_from_slice(transfer.bytes);
        } else {
            assert!(there == transfer.bytes, "what is read is what was written");
        }
    }

    fn zeroed(&self, sector: u64, sectors: u64) {
        let mut twin = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let len = usize::try_from(sectors * 512).expect("on the disk");
        twin[usize::try_from(sector * 512).expect("on the disk")..][..len].fill(0);
    }
}

struct Machine {
    memory: GuestMemoryMmap,
    disk: File,
    device: Device,
    twin: Twin,
}

fn machine() -> Machine {
    let fd = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory");
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let disk = File::from(fd);
    disk.set_len(DISK as u64).expect("a file in memory");
    let image = Image::open(path.as_ref(), Format::Raw, false).expect("an image");
    let twin = Twin(Arc::new(Mutex::new(vec![0; DISK])));
    Machine {
        memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory"),
        disk,
        device: Device::new(Arc::new(image), Serial::new("fuzz"), Box::new(twin.clone())),
        twin,
    }
}

thread_local! {
    static MACHINE: RefCell<Option<Machine>> = const { RefCell::new(None) };
}

/// Writes descriptors, headers and anything else, and has the queue looked at in between.
pub fn run(bytes: &[u8]) {
    MACHINE.with_borrow_mut(|kept| {
        let machine = kept.get_or_insert_with(machine);
        machine
            .memory
            .write_slice(&[0; MEMORY], GuestAddress(0))
            .expect("memory");
        let _ = check(machine, &mut Unstructured::new(bytes));
        let mut disk = vec![0; DISK];
        assert_eq!(machine.disk.metadata().expect("its length").len(), DISK as u64);
        machine
            .disk
            .read_exact_at(&mut disk, 0)
            .expect("a file in memory");
        let mut twin = machine.twin.0.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(disk == *twin, "the disk is what was told");
        twin.fill(0);
        machine.disk.write_all_at(&twin, 0).expect("a file in memory");
    });
}

fn check(machine: &Machine, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let mut queue = Queue::new(ENTRIES).expect("a queue");
    queue.set_size(ENTRIES);
    queue
        .try_set_desc_table_address(GuestAddress(TABLE))
        .expect("an address");
    queue
        .try_set_avail_ring_address(GuestAddress(AVAILABLE))
        .expect("an address");
    queue
        .try_set_used_ring_address(GuestAddress(USED))
        .expect("an address");
    queue.set_event_idx(true);
    queue.set_ready(true);
    let memory = &machine.memory;
    let put = |at: u64, bytes: &[u8]| {
        let _ = memory.write_slice(bytes, GuestAddress(at));
    };
    while !input.is_empty() {
        match input.arbitrary::<u8>()? % 5 {
            0 => {
                let at = u64::from(input.arbitrary::<u16>()?);
                let len = input.int_in_range(0..=32)?.min(input.len());
                put(at, input.bytes(len)?);
            }
            // A descriptor, of the table or of an indirect one behind it.
            1 => {
                let number = u64::from(input.arbitrary::<u8>()? % 64);
                let at = if input.arbitrary()? {
                    0x1000 + u64::from(input.arbitrary::<u8>()?) * 64
                } else {
                    input.arbitrary()?
                };
                let len = if input.arbitrary()? {
                    [1, 16, 20, 512, 1024, 4096, 15, 513][usize::from(input.arbitrary::<u8>()? % 8)]
                } else {
                    input.arbitrary::<u32>()?
                };
                let flags = u16::from(input.arbitrary::<u8>()? & 7);
                let next = u16::from(input.arbitrary::<u8>()? % 20);
                let words = [
                    &at.to_le_bytes()[..],
                    &len.to_le_bytes(),
                    &flags.to_le_bytes(),
                    &next.to_le_bytes(),
                ];
                put(TABLE + 16 * number, &words.concat());
            }
            2 => {
                let at = 0x1000 + u64::from(input.arbitrary::<u8>()?) * 64;
                let kind = [0, 1, 4, 8, 11, 13, 5, u32::MAX][usize::from(input.arbitrary::<u8>()? % 8)];
                let sector = if input.arbitrary()? {
                    u64::from(input.arbitrary::<u8>()? % 66)
                } else {
                    input.arbitrary()?
                };
                put(
                    at,
                    &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat(),
                );
            }
            // What a discard or zeros are of.
            3 => {
                let at = 0x1000 + u64::from(input.arbitrary::<u8>()?) * 64;
                let words = [
                    input.arbitrary::<u8>()?.into(),
                    0,
                    u32::from(input.arbitrary::<u8>()?),
                    input.arbitrary::<u8>()?.into(),
                ];
                put(at, &words.map(u32::to_le_bytes).concat());
            }
            _ => {
                let heads = input.arbitrary::<u8>()? % (ENTRIES as u8 + 2);
                let from = queue.next_avail();
                for number in 0..u16::from(heads) {
                    let at = AVAILABLE + 4 + 2 * u64::from(from.wrapping_add(number) % ENTRIES);
                    put(at, &u16::from(input.arbitrary::<u8>()? % 20).to_le_bytes());
                }
                put(AVAILABLE + 2, &from.wrapping_add(heads.into()).to_le_bytes());
                look(machine, &mut queue);
            }
        }
    }
    Ok(())
}

/// Answers what there is.
fn look(machine: &Machine, queue: &mut Queue) {
    for _ in 0..=ENTRIES {
        let Ok(mut requests) = queue.iter(&machine.memory) else {
            return;
        };
        let Some(chain) = requests.next() else { return };
        let head = chain.head_index();
        let len = answer(&machine.device, chain);
        assert!(len as usize <= DISK + 1, "{len} bytes of a disk that has less");
        if queue.add_used(&machine.memory, head, len).is_err() {
            return;
        }
        let _ = queue.needs_notification(&machine.memory);
    }
}
