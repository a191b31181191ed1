//! A module of the guest's own kernel package with one relocation changed: a call leads to another function, or beside the
//! one that it should lead to. Everything else is as it was, so the page looks like the known one.
//!
//! Right is that the page is modified, at the field of that relocation and nowhere else. The kernel has relocated it like
//! all others: it is told by what the field must refer to, not by its looks.

use std::io::Read;

use anyhow::{Context, Result, ensure};
use liblzma::read::XzDecoder;
use nephoscope_e2e::command::privileged;
use object::elf::{self, FileHeader64, Rela64};
use object::read::elf::{FileHeader, SectionHeader, Sym};
use object::{Endianness, LittleEndian, U64};

use super::{Attack, Seen};
use crate::group::{Group, KERNEL};
use crate::kernel_code::{load, modified_at, page_of, section, told, unknown_between, words};
use crate::scene::{PATIENCE, Scene};

/// The module, and the path of it in the kernel's package.
const MODULE: &str = "dummy";
const PATH: &str = "kernel/drivers/net/dummy.ko";

/// What the kernel appends to a signed module.
const SIGNATURE: &[u8] = b"~Module signature appended~\n";

/// What is done to one relocation of `.text`.
#[derive(Debug, Clone, Copy)]
enum Change {
    /// The first call of one function calls the other.
    Calls(&'static str, &'static str),
    /// The first call of a function leads so many bytes beside it.
    Beside(&'static str, i64),
}

/// Number 20: another function is called. It does run.
#[derive(Debug)]
pub(super) struct OtherSymbol;

/// Number 20: the call leads beside its function. It never runs, but is on a page that does.
#[derive(Debug)]
pub(super) struct OtherAddend;

impl Attack for OtherSymbol {
    fn number(&self) -> u8 {
        20
    }

    fn name(&self) -> &'static str {
        "relocation-symbol"
    }

    fn expected(&self) -> &'static str {
        "the module's page is modified at the field of that relocation, and nowhere else"
    }

    fn group(&self) -> Group {
        KERNEL
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        attack(scene, Change::Calls("netif_carrier_on", "netif_carrier_off"))
    }
}

impl Attack for OtherAddend {
    fn number(&self) -> u8 {
        20
    }

    fn name(&self) -> &'static str {
        "relocation-addend"
    }

    fn expected(&self) -> &'static str {
        "the module's page is modified at the field of that relocation, and nowhere else"
    }

    fn group(&self) -> Group {
        KERNEL
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        attack(scene, Change::Beside("skb_tstamp_tx", 16))
    }
}

fn attack(scene: &mut Scene, change: Change) -> Result<Seen> {
    let mut module = packaged(scene)?;
    let field = alter(&mut module, change)?;
    load(scene, MODULE, &module, "numdummies=1")?;
    let text = section(scene, MODULE, ".text")?;
    // What is changed by the first kind runs here; what is changed by the second does not, on the same page.
    let worked = scene.guest.run_ok(
        "ip link set dummy0 up && ip link set dummy0 carrier off && ip link set dummy0 carrier on && ip -s link show dummy0",
    );
    let seen = worked.and_then(|_| judge(scene, text + field));
    scene.guest.run_ok("rmmod dummy")?;
    seen
}

fn judge(scene: &mut Scene, field: u64) -> Result<Seen> {
    let found = scene.soon(PATIENCE, |report| {
        modified_at(report, field).or_else(|| {
            let unknown = unknown_between(report, field, field + 1);
            (!unknown.is_empty()).then(|| ("nothing".to_owned(), Vec::new()))
        })
    })?;
    let (path, changes) = found.context("the page is not in the report: it was taken for what it is not")?;
    ensure!(path.contains("/dummy.ko"), "taken for {path}");
    let offset = field - page_of(field);
    let of_field = changes.iter().all(|(at, ..)| (offset..offset + 4).contains(at));
    ensure!(
        of_field && !changes.is_empty(),
        "expected the field at +{offset:#x}, seen {}",
        words(&changes)
    );
    let finding = scene.finding(PATIENCE, |_, finding| {
        let wanted = finding["rule"] == "modified-code" && told(&finding["evidence"])? == changes;
        Ok(wanted.then_some(()))
    })?;
    let (arrival, ()) = finding.context("there is no finding about it")?;
    let time = scene.to_finding(&arrival)?;
    Ok(Seen::right(format!("{path} {}", words(&changes)), Some(time)))
}

/// The module as the package has it, without its signature: one that does not fit is refused, none is not.
fn packaged(scene: &Scene) -> Result<Vec<u8>> {
    let release = scene.image.release(scene.kernel)?;
    let path = scene.image.root().join("lib/modules").join(release).join(PATH);
    let compressed = path.with_extension("ko.xz");
    let (path, packed) = if path.is_file() {
        (path, false)
    } else {
        (compressed, true)
    };
    let output = privileged("cat").arg(&path).output()?;
    ensure!(output.status.success(), "cannot read {}", path.display());
    let mut module = output.stdout;
    if packed {
        let mut unpacked = Vec::new();
        XzDecoder::new(module.as_slice()).read_to_end(&mut unpacked)?;
        module = unpacked;
    }
    if let Some(signed) = module.strip_suffix(SIGNATURE) {
        // Before the mark: twelve bytes about the signature, of which the last four are its length, big-endian.
        let length = signed.last_chunk::<4>().map(|length| u32::from_be_bytes(*length));
        let length = usize::try_from(length.context("a signature without a length")?)?;
        let end = signed
            .len()
            .checked_sub(length + 12)
            .context("a signature longer than its module")?;
        module.truncate(end);
    }
    Ok(module)
}

/// Changes one relocation of `.text`, and says where its field is in `.text`.
fn alter(module: &mut [u8], change: Change) -> Result<u64> {
    let (at, entry, field) = {
        let data: &[u8] = module;
        let header = FileHeader64::<Endianness>::parse(data)?;
        let endian = header.endian()?;
        let sections = header.sections(endian, data)?;
        let symbols = sections.symbols(endian, data, elf::SHT_SYMTAB)?;
        let number = |wanted: &str| {
            let found = symbols.iter().enumerate().find(|(_, symbol)| {
                symbol
                    .name(endian, symbols.strings())
                    .is_ok_and(|name| name == wanted.as_bytes())
            });
            found
                .map(|(number, _)| number)
                .with_context(|| format!("{MODULE} does not know {wanted}"))
        };
        let (name, section) = (".rela.text", sections.section_by_name(endian, b".rela.text"));
        let (_, section) = section.with_context(|| format!("{MODULE} has no {name}"))?;
        let entries: &[Rela64<LittleEndian>] = section
            .data_as_array(endian, data)
            .ok()
            .with_context(|| format!("{name} is cut"))?;
        let (from, to, addend) = match change {
            Change::Calls(from, to) => (number(from)?, number(to)?, 0),
            Change::Beside(from, addend) => (number(from)?, number(from)?, addend),
        };
        let calls = |entry: &&Rela64<LittleEndian>| {
            let info = entry.r_info.get(LittleEndian);
            usize::try_from(info >> 32).ok() == Some(from)
        };
        let (index, entry) = entries
            .iter()
            .enumerate()
            .find(|(_, entry)| calls(entry))
            .with_context(|| format!("{MODULE} does not do what is to be changed: {change:?}"))?;
        let kind = entry.r_info.get(LittleEndian) & 0xffff_ffff;
        let field = entry.r_offset.get(LittleEndian);
        let changed = Rela64 {
            r_offset: entry.r_offset,
            r_info: U64::new(LittleEndian, u64::try_from(to)? << 32 | kind),
            r_addend: object::I64::new(LittleEndian, entry.r_addend.get(LittleEndian) + addend),
        };
        let at = usize::try_from(section.sh_offset(endian))? + index * size_of::<Rela64<LittleEndian>>();
        (at, changed, field)
    };
    let bytes = object::pod::bytes_of(&entry);
    module
        .get_mut(at..at + bytes.len())
        .context("the relocation is outside its file")?
        .copy_from_slice(bytes);
    Ok(field)
}
