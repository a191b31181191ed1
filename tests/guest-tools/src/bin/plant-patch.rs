//! `plant-patch PID SYMBOL`: stops a process through ptrace and rewrites one instruction at the beginning of an exported
//! function of its program, in an encoding of the same length and the same meaning. The program goes on as before;
//! its text is no longer its file's.
//!
//! Writes one line: `PATH OFFSET ADDRESS BEFORE AFTER`, all numbers hexadecimal, the offset one in the file.

use std::fs;

use anyhow::{Context, Result, bail};
use nephoscope_guest_tools::{equivalent, mapped};
use nix::sys::ptrace;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use object::{Object, ObjectSegment, ObjectSymbol};

/// How far into the function we look for something to patch.
const LOOK_BYTES: u64 = 128;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pid, symbol] = arguments.as_slice() else {
        bail!("usage: plant-patch PID SYMBOL")
    };
    let path = fs::read_link(format!("/proc/{pid}/exe")).with_context(|| format!("no process {pid}"))?;
    let path = path.to_string_lossy().into_owned();
    let file = fs::read(&path)?;
    let function = file_offset(&file, symbol)?;
    let start = usize::try_from(function)?;
    let end = usize::try_from(function.saturating_add(LOOK_BYTES))?.min(file.len());
    let code = file.get(start..end).context("the function is outside its file")?;
    let patch =
        equivalent::first_move(code).with_context(|| format!("{symbol} begins with no plain move"))?;
    let offset = function
        .checked_add(u64::try_from(patch.offset)?)
        .context("no such offset")?;
    let address = mapped::executable(pid, &path)?
        .iter()
        .find_map(|mapping| mapping.address_of(offset))
        .with_context(|| format!("{path} is not mapped executable in {pid}"))?;
    write(Pid::from_raw(pid.parse()?), address, &patch.before, &patch.after)?;
    println!(
        "{path} {offset:x} {address:x} {} {}",
        hex(&patch.before),
        hex(&patch.after)
    );
    Ok(())
}

/// Where an exported function begins in its file.
fn file_offset(file: &[u8], symbol: &str) -> Result<u64> {
    let object = object::File::parse(file)?;
    let address = object
        .dynamic_symbols()
        .find(|candidate| candidate.name() == Ok(symbol) && candidate.is_definition())
        .with_context(|| format!("no exported function {symbol}"))?
        .address();
    for segment in object.segments() {
        let inside = address
            .checked_sub(segment.address())
            .filter(|inside| *inside < segment.size());
        if let Some(inside) = inside {
            return segment
                .file_range()
                .0
                .checked_add(inside)
                .context("no such offset");
        }
    }
    bail!("{symbol} is in no segment")
}

/// Replaces bytes in a stopped process: word by word, as ptrace does it, and only where the old bytes are as expected.
fn write(pid: Pid, address: u64, before: &[u8], after: &[u8]) -> Result<()> {
    ptrace::attach(pid).context("cannot attach")?;
    waitpid(pid, None)?;
    let mut word = ptrace::read(pid, address as ptrace::AddressType)?.to_le_bytes();
    let result = match word.get_mut(..before.len()) {
        Some(bytes) if bytes == before => {
            bytes.copy_from_slice(after);
            ptrace::write(pid, address as ptrace::AddressType, i64::from_le_bytes(word))
                .context("cannot write")
        }
        _ => Err(anyhow::anyhow!("the code in memory is not the code in the file")),
    };
    ptrace::detach(pid, None)?;
    result
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
