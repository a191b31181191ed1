//! Code that runs through page tables that no kernel would make (`modules/tables.c`): large leaves, the PAT bit, reserved
//! bits, roots with flags, in odd memory, by the ten thousand, and a table that maps itself and is what runs.
//!
//! Right is that each page that ran is unknown code of the kernel, at the address where it ran and with the bytes that it
//! had, also where an instruction goes from one page into the next; that nothing is claimed where the CPU faulted; and that
//! the monitor does not grow with the roots.

use anyhow::{Result, ensure};
use nephoscope_e2e::living::list;

use super::{Attack, Seen};
use crate::group::{Group, TABLES};
use crate::kernel_code::{hexadecimal, living, load, page_of, va};
use crate::resident;
use crate::said::{self, PAGE_BYTES};
use crate::scene::{PATIENCE, Scene};

/// How much the monitor may grow, in KiB, while the roots go by: what it keeps of a few pages.
const GROWTH_KIB: u64 = 32 << 10;

/// Number 14: one way to reach code.
#[derive(Debug)]
pub(super) struct Tables {
    name: &'static str,
    /// What is written to the module.
    word: &'static str,
    /// What the code returns; it is in its bytes.
    number: u8,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    /// Two pages of code, with an instruction across their border.
    Code,
    /// Nothing: the CPU faults.
    Fault,
    /// The table itself.
    Table,
}

const fn tables(name: &'static str, word: &'static str, number: u8, what: What) -> Tables {
    Tables {
        name,
        word,
        number,
        what,
    }
}

/// All of them.
pub(super) static ALL: [Tables; 9] = [
    tables("leaf-2m", "2m", 1, What::Code),
    tables("leaf-2m-pat", "2m-pat", 2, What::Code),
    tables("leaf-1g", "1g", 3, What::Code),
    tables("leaf-1g-pat", "1g-pat", 4, What::Code),
    tables("reserved-bits", "reserved", 5, What::Fault),
    tables("root-with-flags", "flags", 6, What::Code),
    tables("root-in-device-memory", "vram", 7, What::Code),
    tables("table-maps-itself", "self", 8, What::Table),
    tables("roots-20000", "roots=20000", 9, What::Code),
];

impl Attack for Tables {
    fn number(&self) -> u8 {
        14
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn expected(&self) -> &'static str {
        match self.what {
            What::Code => "both pages unknown code of the kernel, where they ran, byte for byte",
            What::Fault => "nothing",
            What::Table => "the table unknown code of the kernel, with what ran in it",
        }
    }

    fn group(&self) -> Group {
        TABLES
    }

    fn run(&self, scene: &mut Scene) -> Result<Seen> {
        if scene.guest.run("test -d /sys/module/tables")?.status != 0 {
            let module = scene.module("tables")?;
            load(scene, "tables", &module, "")?;
        }
        let before = own_kib(scene)?;
        let said = scene.guest.run_ok(&format!(
            "cd /sys/module/tables/parameters && echo {} > run && cat said",
            self.word
        ))?;
        let address = hexadecimal(&said)?;
        let text = match self.what {
            What::Fault => nothing(scene, address)?,
            What::Code => {
                let [first, second] = code(self.number);
                let place = page_of(address);
                holds(scene, place, |bytes| bytes == first)?;
                holds(scene, place + PAGE_BYTES as u64, |bytes| bytes == second)?;
                format!("both pages, at {place:#x}")
            }
            What::Table => {
                let at = usize::try_from(address - page_of(address))?;
                let entry = [0xb8, self.number, 0, 0, 0, 0xc3, 0, 0];
                holds(scene, page_of(address), |bytes| {
                    bytes.get(at..at + 8) == Some(&entry[..])
                })?;
                format!("the table, at {:#x}", page_of(address))
            }
        };
        let grown = own_kib(scene)?.saturating_sub(before);
        ensure!(
            grown < GROWTH_KIB,
            "the monitor's own memory has grown by {grown} KiB"
        );
        Ok(Seen::right(text, None))
    }
}

/// What the module runs: no-ops, `mov eax, NUMBER` across the border of the pages, `ret`.
fn code(number: u8) -> [Vec<u8>; 2] {
    let mut first = vec![0x90; PAGE_BYTES - 3];
    first.extend([0xb8, number, 0]);
    let mut second = vec![0, 0, 0xc3];
    second.resize(PAGE_BYTES, 0);
    [first, second]
}

/// What the monitor has in memory of its own, in KiB. What it maps of the catalog comes and goes with what is asked.
fn own_kib(scene: &Scene) -> Result<u64> {
    resident::kib(scene.guest.watcher()?, "RssAnon")
}

/// Waits for an unknown page of the kernel at this address whose bytes are right.
fn holds(scene: &mut Scene, address: u64, right: impl Fn(&[u8]) -> bool) -> Result<()> {
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut seen = 0;
    while std::time::Instant::now() < deadline {
        let report = scene.control.report()?;
        let unknown = living(&report, "kernel").flat_map(|space| list(space, "unknown"));
        let here: Vec<u64> = unknown
            .filter(|page| va(page) == Some(address))
            .filter_map(|page| page["page"].as_u64())
            .collect();
        seen = here.len();
        for page in here {
            let told = scene.control.page(page)?;
            if right(&said::bytes(told["bytes"].as_str().unwrap_or_default())?) {
                return Ok(());
            }
        }
        scene.wait(std::time::Duration::from_millis(100));
    }
    anyhow::bail!("{seen} unknown page(s) of the kernel at {address:#x}, none with what ran there")
}

/// That no page is told of at this address, in whatever verdict.
fn nothing(scene: &mut Scene, address: u64) -> Result<String> {
    scene.wait(std::time::Duration::from_secs(1));
    let report = scene.control.report()?;
    let spaces = list(&report, "address_spaces").iter();
    let mut pages = spaces.flat_map(|space| list(space, "unknown").iter().chain(list(space, "modified")));
    ensure!(
        pages.all(|page| va(page) != Some(page_of(address))),
        "a page is told of at {address:#x}, where nothing ran"
    );
    Ok(format!("nothing at {address:#x}"))
}
