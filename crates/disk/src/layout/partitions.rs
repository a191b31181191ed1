//! The parts of a disk: a GUID partition table (UEFI 2.10, 5.3), or one of the PC's (5.2.1).

use bytemuck::Zeroable as _;
use gpt_disk_types::{GptHeader, GptPartitionEntry};

use super::bytes::{u16_le, u32_le};
use super::{Blocks, LayoutError};

/// Bytes of a sector of a PC's table, and the least of a disk.
const SECTOR: u64 = 512;
/// Sizes of a disk's own sectors, in which a GUID table counts.
const SECTORS: [u64; 2] = [512, 4096];

/// Bytes of a GUID table. It stops a header that says there are as many entries as fit into a number.
const MAX_TABLE_BYTES: u64 = 1 << 20;
/// Links of a chain of logical partitions.
const MAX_LOGICAL: usize = 128;

/// Kinds that are chains of others (`0x05` and `0x0f`, and Linux's own).
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// The kind that protects a GUID table from who does not know it.
const PROTECTIVE: u8 = 0xee;

/// A part of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Partition {
    /// As Linux counts them, from 1.
    pub number: u32,
    /// Its first byte.
    pub at: u64,
    /// How many it has.
    pub bytes: u64,
}

/// The parts of a disk, in the order of their numbers; none if it has no table, or nothing in it.
///
/// # Errors
/// If the disk cannot be read.
pub fn partitions(disk: &impl Blocks) -> Result<Vec<Partition>, LayoutError> {
    for sector in SECTORS {
        let last = (disk.len() / sector).saturating_sub(1);
        // What lies at its end is for when the first was written over.
        for lba in [1, last] {
            if let Some(found) = guid_table(disk, sector, lba)? {
                return Ok(found);
            }
        }
    }
    pc_table(disk)
}

fn read(disk: &impl Blocks, at: u64, into: &mut [u8]) -> Result<bool, LayoutError> {
    let end = at.checked_add(into.len() as u64);
    if end.is_none_or(|end| end > disk.len()) {
        return Ok(false);
    }
    disk.read(at, into)
        .map_err(|source| LayoutError::Read { at, source })?;
    Ok(true)
}

/// A part within the disk.
fn part(number: u32, at: u64, bytes: u64, disk: &impl Blocks) -> Option<Partition> {
    let end = at.checked_add(bytes)?;
    (bytes > 0 && end <= disk.len()).then_some(Partition { number, at, bytes })
}

/// The table whose header is in this sector, if it is one.
fn guid_table(disk: &impl Blocks, sector: u64, lba: u64) -> Result<Option<Vec<Partition>>, LayoutError> {
    let mut header = GptHeader::zeroed();
    if !read(
        disk,
        lba.saturating_mul(sector),
        bytemuck::bytes_of_mut(&mut header),
    )? {
        return Ok(None);
    }
    let own = header.header_size.to_u32() == u32::try_from(size_of::<GptHeader>()).unwrap_or(0)
        && header.calculate_header_crc32() == header.header_crc32;
    if !header.is_signature_valid() || !own || header.my_lba.to_u64() != lba {
        return Ok(None);
    }
    let (count, each) = (
        u64::from(header.number_of_partition_entries.to_u32()),
        u64::from(header.size_of_partition_entry.to_u32()),
    );
    let bytes = count.saturating_mul(each);
    let least = size_of::<GptPartitionEntry>();
    if each < least as u64 || bytes > MAX_TABLE_BYTES {
        return Ok(None);
    }
    let mut table = vec![0; usize::try_from(bytes).unwrap_or(0)];
    let at = header.partition_entry_lba.to_u64().saturating_mul(sector);
    if !read(disk, at, &mut table)?
        || crc32fast::hash(&table) != header.partition_entry_array_crc32.0.to_u32()
    {
        return Ok(None);
    }
    let entries = table.chunks_exact(usize::try_from(each).unwrap_or(least));
    let found = (1_u32..).zip(entries).filter_map(|(number, bytes)| {
        let entry: GptPartitionEntry = bytemuck::pod_read_unaligned(bytes.get(..least)?);
        if !entry.is_used() {
            return None;
        }
        let (first, last) = (entry.starting_lba.to_u64(), entry.ending_lba.to_u64());
        let sectors = last.checked_sub(first)?.checked_add(1)?;
        part(
            number,
            first.checked_mul(sector)?,
            sectors.checked_mul(sector)?,
            disk,
        )
    });
    Ok(Some(found.collect()))
}

/// An entry of a PC's table: its kind, its first sector and how many.
type Entry = (u8, u32, u32);

/// The four entries of the table in this sector, if there is one.
fn entries(disk: &impl Blocks, sector: u64) -> Result<Option<[Entry; 4]>, LayoutError> {
    let mut bytes = [0; 512];
    if !read(disk, sector.saturating_mul(SECTOR), &mut bytes)? || u16_le(&bytes, 510) != Some(0xaa55) {
        return Ok(None);
    }
    Ok(Some(std::array::from_fn(|number| {
        let at = 446 + 16 * number;
        let word = |at| u32_le(&bytes, at).unwrap_or(0);
        (bytes[at + 4], word(at + 8), word(at + 12))
    })))
}

fn pc_table(disk: &impl Blocks) -> Result<Vec<Partition>, LayoutError> {
    let Some(primary) = entries(disk, 0)? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for (number, (kind, first, sectors)) in (1_u32..).zip(primary) {
        let (first, sectors) = (u64::from(first), u64::from(sectors));
        if EXTENDED.contains(&kind) {
            logical(disk, first, &mut found)?;
        } else if kind != 0 && kind != PROTECTIVE {
            found.extend(part(number, first * SECTOR, sectors * SECTOR, disk));
        }
    }
    found.sort_unstable_by_key(|part| part.number);
    Ok(found)
}

/// The chain of logical partitions: in each link one, and where the next link is, counted from the first.
fn logical(disk: &impl Blocks, begins: u64, found: &mut Vec<Partition>) -> Result<(), LayoutError> {
    let mut link = begins;
    for number in (5_u32..).take(MAX_LOGICAL) {
        let Some([(kind, first, sectors), (next_kind, next, _), ..]) = entries(disk, link)? else {
            return Ok(());
        };
        if kind != 0 {
            let at = link.saturating_add(first.into()).saturating_mul(SECTOR);
            found.extend(part(number, at, u64::from(sectors) * SECTOR, disk));
        }
        let next = begins.saturating_add(next.into());
        if !EXTENDED.contains(&next_kind) || next <= link {
            return Ok(());
        }
        link = next;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    struct Disk(Vec<u8>);

    impl Blocks for Disk {
        fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
            let at = usize::try_from(at).unwrap();
            into.copy_from_slice(&self.0[at..at + into.len()]);
            Ok(())
        }

        fn len(&self) -> u64 {
            self.0.len() as u64
        }
    }

    /// A disk of 64 MiB with what `sfdisk` makes of this; `None` where there is none.
    fn made(script: &str) -> Option<Disk> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        let child = Command::new("/usr/sbin/sfdisk")
            .arg("--quiet")
            .arg(file.path())
            .stdin(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            println!("skipped: sfdisk is not installed");
            return None;
        };
        io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        Some(Disk(std::fs::read(file.path()).unwrap()))
    }

    const MIB: u64 = 1 << 20;

    fn expect(disk: &Disk, expected: &[(u32, u64, u64)]) {
        let found = partitions(disk).unwrap();
        let found: Vec<_> = found.iter().map(|p| (p.number, p.at, p.bytes)).collect();
        assert_eq!(found, expected);
    }

    const TWO: &str = "label: gpt\n1: start=1MiB size=10MiB\n3: start=20MiB size=5MiB\n";
    const THEY: [(u32, u64, u64); 2] = [(1, MIB, 10 * MIB), (3, 20 * MIB, 5 * MIB)];

    #[test]
    fn a_guid_table_is_read_from_either_end() {
        let Some(mut disk) = made(TWO) else { return };
        expect(&disk, &THEY);
        disk.0[..1 << 20].fill(0);
        expect(&disk, &THEY);
        let len = disk.0.len();
        disk.0[len - 4096..].fill(0);
        expect(&disk, &[]);
    }

    fn header(disk: &Disk) -> GptHeader {
        bytemuck::pod_read_unaligned(&disk.0[512..512 + size_of::<GptHeader>()])
    }

    /// A header of this table.
    fn sealed(mut header: GptHeader, table: &[u8]) -> GptHeader {
        let crc = gpt_disk_types::U32Le::from_u32(crc32fast::hash(table));
        header.partition_entry_array_crc32 = gpt_disk_types::Crc32(crc);
        header.update_header_crc32();
        header
    }

    #[test]
    fn a_guid_table_may_count_in_sectors_of_4096_bytes() {
        let Some(disk) = made(TWO) else { return };
        // The same table for a disk with other sectors.
        let mut table = disk.0[1024..1024 + 128 * 128].to_vec();
        for entry in table.chunks_exact_mut(128) {
            let at = |at: usize, entry: &[u8]| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
            let (first, end) = (at(32, entry) / 8, (at(40, entry) + 1) / 8);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&end.saturating_sub(1).to_le_bytes());
        }
        let header = sealed(header(&disk), &table);
        let mut other = Disk(vec![0; 64 << 20]);
        other.0[4096..4096 + size_of::<GptHeader>()].copy_from_slice(bytemuck::bytes_of(&header));
        other.0[8192..8192 + table.len()].copy_from_slice(&table);
        expect(&other, &THEY);
    }

    #[test]
    fn a_pcs_table_has_logical_partitions_from_five_on() {
        let script = "label: dos\n1: start=1MiB size=10MiB type=83\n2: start=11MiB size=40MiB type=f\n\
                      5: start=12MiB size=4MiB type=83\n6: start=20MiB size=3MiB type=83\n";
        let Some(disk) = made(script) else { return };
        let expected = [(1, MIB, 10 * MIB), (5, 12 * MIB, 4 * MIB), (6, 20 * MIB, 3 * MIB)];
        expect(&disk, &expected);
    }

    #[test]
    fn max_logical_bounds_a_chain_and_one_that_leads_back_ends() {
        let mut disk = Disk(vec![0; 64 << 20]);
        let mut link = |at: usize, entries: &[Entry]| {
            let sector = &mut disk.0[at * 512..(at + 1) * 512];
            sector[510..].copy_from_slice(&[0x55, 0xaa]);
            for (number, (kind, first, count)) in entries.iter().enumerate() {
                let entry = &mut sector[446 + 16 * number..462 + 16 * number];
                entry[4] = *kind;
                entry[8..12].copy_from_slice(&first.to_le_bytes());
                entry[12..].copy_from_slice(&count.to_le_bytes());
            }
        };
        link(0, &[(5, 100, 100_000)]);
        for number in 0..1000_u32 {
            link(
                100 + 10 * number as usize,
                &[(0x83, 1, 2), (5, 10 * (number + 1), 10)],
            );
        }
        assert_eq!(partitions(&disk).unwrap().len(), MAX_LOGICAL);
        let mut back = Disk(disk.0.clone());
        back.0[(100 + 50) * 512 + 462 + 8] = 0;
        assert_eq!(partitions(&back).unwrap().len(), 6);
    }

    #[test]
    fn max_table_bytes_stops_a_header_with_entries_without_end() {
        let Some(mut disk) = made(TWO) else { return };
        let mut with = |count: u64| {
            let mut header = header(&disk);
            let count = u32::try_from(count).unwrap();
            header.number_of_partition_entries = gpt_disk_types::U32Le::from_u32(count);
            let header = sealed(header, &disk.0[1024..1024 + 128 * count as usize]);
            disk.0[512..512 + size_of::<GptHeader>()].copy_from_slice(bytemuck::bytes_of(&header));
            guid_table(&disk, 512, 1).unwrap().is_some()
        };
        assert!(with(MAX_TABLE_BYTES / 128) && !with(MAX_TABLE_BYTES / 128 + 1));
    }

    proptest! {
        #[test]
        fn whatever_a_disk_begins_with_its_parts_lie_within(mut bytes in prop::collection::vec(any::<u8>(), 2048)) {
            bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
            bytes.resize(1 << 20, 0x55);
            let disk = Disk(bytes);
            for part in partitions(&disk).unwrap() {
                prop_assert!(part.bytes > 0 && part.at + part.bytes <= disk.len());
            }
        }
    }
}
