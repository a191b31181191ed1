//! Address spaces as rows.

use nephoscope_inventory::{ModuleReport, PageCounts, ProgramReport, Report, SpaceKind, SpaceReport};

use super::candidates::alternatives;
use super::coverage::watched_ns;
use crate::text::{Cell, Column, Table, Tone, age, count, escape, plural};

/// One address space, as tables show it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Row {
    /// Its number.
    pub(crate) id: u32,
    /// Kernel, firmware or a process.
    pub(crate) kind: SpaceKind,
    /// When something was last new in it.
    pub(crate) last_ns: u64,
    /// Whether it was seen to have ended.
    pub(crate) ended: bool,
    cells: Vec<Cell>,
}

/// The VM in one line.
#[must_use]
pub(crate) fn vm_line(report: &Report) -> String {
    let vm = &report.vm;
    let line = format!(
        "{}: {} ({}, {}, {}), watched for {}",
        vm.name,
        vm.vmm,
        vm.accelerator,
        vm.isa,
        plural(u64::from(vm.vcpus), "vCPU"),
        age(watched_ns(report))
    );
    escape(&line).into_owned()
}

/// Firmware and kernel first, then processes; living ones, or all.
#[must_use]
pub(crate) fn rows(report: &Report, all: bool) -> Vec<Row> {
    let now = watched_ns(report);
    let mut spaces: Vec<&SpaceReport> = report
        .address_spaces
        .iter()
        .filter(|space| all || space.ended.is_none())
        .collect();
    spaces.sort_by_key(|space| (std::cmp::Reverse(space.kind), space.id));
    let mark = spaces.iter().any(|space| space.ended.is_some());
    spaces.into_iter().map(|space| row(space, now, mark)).collect()
}

/// Columns of the rows' cells.
const COLUMNS: [Column; 7] = [
    Column::right("ID"),
    Column::flexible("PROGRAM", 2),
    Column::flexible("PACKAGE", 3),
    Column::right("MODS"),
    Column::right("PAGES"),
    Column::left("VERDICT"),
    Column::right("AGE"),
];
/// The one that a narrow screen does without.
const MODULES: usize = 3;

/// The rows as a table.
#[must_use]
pub(crate) fn space_table(rows: &[Row]) -> Table {
    let mut table = Table::new(COLUMNS);
    for row in rows {
        table.push(row.cells.clone());
    }
    table
}

/// The same for who is active: for how long nothing was new in each.
#[must_use]
pub(crate) fn active_table(rows: &[Row], now: u64, narrow: bool) -> Table {
    let mut columns = COLUMNS.to_vec();
    columns.push(Column::right("IDLE"));
    if narrow {
        columns.remove(MODULES);
    }
    let mut table = Table::new(columns);
    for row in rows {
        let mut cells = row.cells.clone();
        cells.push(Cell::text(age(now.saturating_sub(row.last_ns))));
        if narrow {
            cells.remove(MODULES);
        }
        table.push(cells);
    }
    table
}

/// One of them. `mark`: some have ended, and those have a star behind their age.
fn row(space: &SpaceReport, now: u64, mark: bool) -> Row {
    let ended = space.ended.is_some();
    let lived = age(space.ended.unwrap_or(now).saturating_sub(space.first_ns));
    let named = named(space);
    let package = named.map_or(Vec::new(), |(_, candidates)| alternatives(candidates));
    let (tone, verdict) = verdict(space);
    let modules = u64::try_from(space.modules.len()).unwrap_or(u64::MAX);
    let mut cells = vec![
        Cell::text(space.id.0.to_string()),
        Cell::path(label(space)),
        Cell::alternatives(package),
        Cell::text(count(modules)),
        Cell::text(count(pages(space))),
        Cell::text(verdict).toned(tone),
        Cell::text(match (mark, ended) {
            (false, _) => lived,
            (true, false) => format!("{lived} "),
            (true, true) => format!("{lived}*"),
        }),
    ];
    if ended {
        cells = cells
            .into_iter()
            .map(|cell| match cell.tone() {
                Tone::Plain | Tone::Good => cell.toned(Tone::Faint),
                _ => cell,
            })
            .collect();
    }
    Row {
        id: space.id.0,
        kind: space.kind,
        last_ns: space.last_ns,
        ended,
        cells,
    }
}

/// What an address space is called.
#[must_use]
fn label(space: &SpaceReport) -> String {
    program_label(space.kind, space.program.as_ref())
}

/// What an address space of this kind with this program is called.
#[must_use]
pub(super) fn program_label(kind: SpaceKind, program: Option<&ProgramReport>) -> String {
    match (kind, program) {
        (SpaceKind::Kernel, _) => "kernel".to_owned(),
        (SpaceKind::Firmware, _) => "firmware".to_owned(),
        (SpaceKind::User, Some(program)) if !program.path.is_empty() => escape(&program.path).into_owned(),
        (SpaceKind::User, _) => "(unidentified)".to_owned(),
    }
}

/// The same with its number, for an address space of a report.
#[must_use]
pub(crate) fn space_name(report: &Report, id: u32) -> String {
    let found = report.address_spaces.iter().find(|space| space.id.0 == id);
    found.map_or_else(|| id.to_string(), |space| format!("{id} {}", label(space)))
}

/// What gives an address space its package: its program, or the kernel's or firmware's largest part.
fn named(space: &SpaceReport) -> Option<(&str, &[nephoscope_inventory::CandidateReport])> {
    if space.kind == SpaceKind::User {
        let program = space.program.as_ref()?;
        return Some((&program.path, &program.candidates));
    }
    let largest: &ModuleReport = space
        .modules
        .iter()
        .max_by_key(|module| module.pages_executed.saturating_add(module.pages_mapped))?;
    Some((&largest.path, &largest.candidates))
}

/// Pages that an address space executed, or has mapped executable, as far as the report has them.
fn pages(space: &SpaceReport) -> u64 {
    let length = |pages: usize| u64::try_from(pages).unwrap_or(u64::MAX);
    let in_modules = space.modules.iter().fold(0_u64, |sum, module| {
        sum.saturating_add(module.pages_executed)
            .saturating_add(module.pages_mapped)
    });
    // A module counts its modified pages. Where nothing else of it ran, there is no module.
    let outside = if space.modules.iter().any(|module| module.verdict == "modified") {
        0
    } else {
        length(space.modified.len())
    };
    in_modules
        .saturating_add(outside)
        .saturating_add(length(space.unknown.len()))
        .saturating_add(space.unlisted.map_or(0, |pages| pages.captured))
}

fn verdict(space: &SpaceReport) -> (Tone, String) {
    let length = |pages: usize| u64::try_from(pages).unwrap_or(u64::MAX);
    let unlisted = space.unlisted.unwrap_or_default();
    let modified = length(space.modified.len()).saturating_add(unlisted.modified);
    let unknown = length(space.unknown.len()).saturating_add(unlisted.unknown);
    match (modified, unknown) {
        (0, 0) => (Tone::Plain, "identified".to_owned()),
        (0, unknown) => (Tone::Warn, format!("{unknown} unknown")),
        (modified, 0) => (Tone::Bad, format!("{modified} modified")),
        (modified, unknown) => (Tone::Bad, format!("{modified} modified, {unknown} unknown")),
    }
}

/// The modules of one address space as a table.
#[must_use]
pub(crate) fn module_table(space: &SpaceReport) -> Table {
    let mut table = Table::new([
        Column::flexible("MODULE", 2),
        Column::flexible("PACKAGE", 3),
        Column::right("PAGES"),
        Column::left("VERDICT"),
        Column::left("BUILD ID"),
    ]);
    for module in &space.modules {
        let tone = if module.verdict == "identified" {
            Tone::Plain
        } else {
            Tone::Bad
        };
        let id = module.build_id.as_deref().unwrap_or("–");
        table.push(vec![
            Cell::path(escape(&module.path)),
            Cell::alternatives(alternatives(&module.candidates)),
            Cell::text(count(module.pages_executed.saturating_add(module.pages_mapped))),
            Cell::text(escape(&module.verdict)).toned(tone),
            Cell::text(escape(&id.chars().take(12).collect::<String>())),
        ]);
    }
    table
}

/// Pages by class and verdict as a table.
#[must_use]
pub(crate) fn page_table(report: &Report) -> Table {
    let mut table = Table::new([
        Column::left("PAGES"),
        Column::right("CAPTURED"),
        Column::right("IDENTIFIED"),
        Column::right("MODIFIED"),
        Column::right("UNKNOWN"),
    ]);
    let mut line = |name: &str, counts: PageCounts| {
        let toned = |number: u64, tone: Tone| {
            Cell::text(count(number)).toned(if number > 0 { tone } else { Tone::Plain })
        };
        table.push(vec![
            Cell::text(name),
            Cell::text(count(counts.captured)),
            Cell::text(count(counts.identified)),
            toned(counts.modified, Tone::Bad),
            toned(counts.unknown, Tone::Warn),
        ]);
    };
    line("user", report.pages.user);
    line("kernel", report.pages.kernel);
    line("firmware", report.pages.firmware);
    table
}
