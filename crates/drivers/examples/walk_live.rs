//! Walks the page tables of a QEMU guest (x86) from outside, compares the result with QEMU's own `info tlb`, and
//! prints what walking and reading cost.
//!
//! ```text
//! qemu-system-x86_64 … -qmp unix:/run/vm.qmp,server=on,wait=off
//! cargo run --release -p nephoscope-drivers --example walk_live -- /run/vm.qmp
//! ```
//!
//! The guest is paused while it is looked at.

use std::collections::BTreeMap;
use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use nephoscope_drivers::{ProcessRam, Qmp, RamMap};
use nephoscope_guest::{Gpa, Gva, MemoryFault, PAGE_SIZE, PhysicalMemory, Root};
use nephoscope_isa::{Bounds, Leaf, Mode, Walker, Want, X86Controls};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let socket = std::env::args().nth(1).ok_or("give the path of a QMP socket")?;
    let mut qmp = Qmp::connect(Path::new(&socket), Duration::from_secs(30))?;
    qmp.execute("stop", None)?;
    let outcome = look(&mut qmp);
    qmp.execute("cont", None)?;
    outcome
}

fn look(qmp: &mut Qmp) -> Outcome<()> {
    let pid = qmp.peer_pid().ok_or("no process behind the socket")?;
    let start = Instant::now();
    let map = RamMap::read(qmp)?;
    println!(
        "map: {} ranges, {} left out, {:?}",
        map.segments().len(),
        map.left_out().len(),
        start.elapsed()
    );
    let ram = ProcessRam::open(pid, map)?;
    let registers = qmp.monitor("info registers")?;
    let controls = X86Controls {
        cr0: register(&registers, "CR0=")?,
        cr4: register(&registers, "CR4=")?,
        efer: register(&registers, "EFER=")?,
        physical_bits: 40,
        gib_pages: true,
    };
    let mode = Mode::x86(&controls).ok_or("paging is off")?;
    let root = mode.root(register(&registers, "CR3=")?);
    println!("mode: {}, root {root}", mode.name());

    let walker = Walker::new(mode, &ram);
    let leaves = walk(&walker, root, Want::Everything);
    walk(&walker, root, Want::Executable);
    compare(&leaves, &qmp.monitor("info tlb")?);
    if let Some(user_half) = mode.spaces().next() {
        println!("isolation: {:?}", walker.isolation_pair(root, &user_half)?);
    }

    let snapshot = Snapshot::of(&ram)?;
    let addresses: Vec<Gva> = leaves.iter().map(|leaf| leaf.va).collect();
    time_translate("in QEMU's memory", &walker, root, &addresses);
    time_translate("in a local copy", &Walker::new(mode, &snapshot), root, &addresses);
    walk(&Walker::new(mode, &snapshot), root, Want::Everything);
    for size in [8, PAGE_SIZE] {
        time_read(&ram, size, &leaves);
    }
    Ok(())
}

/// The hexadecimal number behind `name` in the output of `info registers`.
fn register(text: &str, name: &str) -> Outcome<u64> {
    let (_, rest) = text.split_once(name).ok_or("a register is missing")?;
    let digits: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
    Ok(u64::from_str_radix(&digits, 16)?)
}

fn walk<M: PhysicalMemory>(walker: &Walker<M>, root: Root, want: Want) -> Vec<Leaf> {
    let mut leaves = Vec::new();
    let start = Instant::now();
    let all = Gva(0)..=Gva(u64::MAX);
    let census = walker.leaves(root, &all, want, Bounds::default(), |leaf| leaves.push(leaf));
    let taken = start.elapsed();
    let user = leaves.iter().filter(|leaf| leaf.permissions.execute_user).count();
    println!("{want:?}: {taken:?}, {census:?}, {user} executable by users");
    leaves
}

/// `info tlb` prints a line for each leaf: its address, the memory it maps, and the leaf's own bits.
fn compare(leaves: &[Leaf], tlb: &str) {
    let hex = |word: &str| u64::from_str_radix(word, 16).ok();
    let theirs: BTreeMap<u64, (u64, bool, bool, bool)> = tlb
        .lines()
        .filter_map(|line| {
            let (va, rest) = line.split_once(": ")?;
            let (gpa, flags) = rest.split_once(' ')?;
            let has = |letter| flags.contains(letter);
            Some((hex(va)?, (hex(gpa)?, has('A'), has('D'), has('G'))))
        })
        .collect();
    let ours: BTreeMap<_, _> = leaves
        .iter()
        .map(|leaf| (leaf.va.0, (leaf.gpa.0, leaf.accessed, leaf.dirty, leaf.global)))
        .collect();
    let different = ours
        .iter()
        .filter(|(va, entry)| theirs.get(va) != Some(entry))
        .count();
    let missing = theirs.keys().filter(|va| !ours.contains_key(va)).count();
    println!(
        "info tlb: {} leaves, ours {}, {different} different, {missing} missing",
        theirs.len(),
        ours.len()
    );
    for (va, entry) in ours
        .iter()
        .filter(|(va, entry)| theirs.get(va) != Some(entry))
        .take(5)
    {
        println!("  {va:#x}: ours {entry:x?}, QEMU's {:x?}", theirs.get(va));
    }
}

/// All memory of a guest, copied, so that the walk can be timed without the reads.
struct Snapshot(Vec<(u64, Vec<u8>)>);

impl Snapshot {
    fn of(ram: &ProcessRam) -> Outcome<Self> {
        let mut parts = Vec::new();
        for segment in ram.map().segments() {
            let mut bytes = vec![0; usize::try_from(segment.size_bytes)?];
            ram.read(segment.gpa, &mut bytes)
                .map_err(|fault| format!("cannot read {}", fault.at))?;
            parts.push((segment.gpa.0, bytes));
        }
        Ok(Self(parts))
    }
}

impl PhysicalMemory for Snapshot {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        let (start, bytes) = self
            .0
            .iter()
            .rev()
            .find(|(start, _)| *start <= at.0)
            .ok_or(MemoryFault { at })?;
        let offset = usize::try_from(at.0 - start).map_err(|_| MemoryFault { at })?;
        let part = bytes
            .get(offset..)
            .and_then(|rest| rest.get(..buf.len()))
            .ok_or(MemoryFault { at })?;
        buf.copy_from_slice(part);
        Ok(())
    }
}

fn time_translate<M: PhysicalMemory>(what: &str, walker: &Walker<M>, root: Root, addresses: &[Gva]) {
    let start = Instant::now();
    let good = addresses
        .iter()
        .filter(|&&va| black_box(walker.translate(root, va)).is_ok())
        .count();
    let each = start.elapsed().as_nanos() / addresses.len().max(1) as u128;
    println!(
        "translate {what}: {each} ns each, {good} of {} good",
        addresses.len()
    );
}

fn time_read(ram: &ProcessRam, size: usize, leaves: &[Leaf]) {
    let places: Vec<Gpa> = leaves
        .iter()
        .map(|leaf| leaf.gpa)
        .filter(|&gpa| ram.hva_of(gpa).is_some())
        .collect();
    let mut buffer = vec![0; size];
    let start = Instant::now();
    let good = places
        .iter()
        .filter(|&&gpa| black_box(ram.read(gpa, &mut buffer)).is_ok())
        .count();
    let each = start.elapsed().as_nanos() / places.len().max(1) as u128;
    println!(
        "read {size} bytes: {each} ns each, {good} of {} good",
        places.len()
    );
}
