//! A module linked at made-up addresses, so that its tables can be read like a kernel's.

use std::cell::RefCell;
use std::collections::HashMap;

use super::elf::{ModuleElf, Relocation};
use super::layout::{self, CORE, ELSEWHERE, Home, INIT, Layout};
use crate::kernel::bytes;
use crate::kernel::image::{Image, Moving, Section};
use crate::kernel::pokes::TRAMPOLINE_MARK;
use crate::kernel::tables::Link;
use crate::site::{FUNCTIONS, Form, PARAVIRT, Target, Unknown};

/// Length of the call-depth thunk: one `sarq $5, %gs:counter(%rip)`.
const CALL_THUNK_LEN: usize = 9;

/// What a symbol refers to.
#[derive(Clone, Copy)]
struct Place {
    /// Where it is linked, made up or not.
    va: u64,
    home: Home,
    /// The section it is in.
    section: usize,
    /// Offset in it.
    offset: u64,
}

/// Names and unknowns of one module.
pub(crate) struct ModuleNames<'a> {
    elf: &'a ModuleElf<'a>,
    layout: &'a Layout,
    by_name: HashMap<&'a [u8], u64>,
    unknowns: RefCell<Vec<Unknown>>,
    known: RefCell<HashMap<String, u16>>,
}

impl<'a> ModuleNames<'a> {
    pub(crate) fn new(elf: &'a ModuleElf<'a>, layout: &'a Layout) -> Self {
        let (unknowns, known) = (RefCell::default(), RefCell::default());
        let mut names = Self {
            elf,
            layout,
            by_name: HashMap::new(),
            unknowns,
            known,
        };
        for (number, symbol) in elf.symbols.iter().enumerate() {
            if let Some(place) = names.place(number).filter(|_| !symbol.name.is_empty()) {
                names.by_name.insert(symbol.name, place.va);
            }
        }
        names
    }

    /// The unknowns in the order of their numbers.
    pub(crate) fn unknowns(&self) -> Vec<Unknown> {
        self.unknowns.borrow().clone()
    }

    /// Functions of the module, as offsets from link address 0.
    pub(crate) fn functions(&self) -> Vec<u32> {
        let functions = self.elf.symbols.iter().enumerate().filter(|(_, s)| s.function);
        let places = functions.filter_map(|(number, _)| self.place(number));
        let mut found: Vec<u32> = places
            .filter(|p| p.home == Home::Core)
            .filter_map(|p| u32::try_from(p.va).ok())
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    fn place(&self, symbol: usize) -> Option<Place> {
        let found = self.elf.symbols.get(symbol)?;
        match found.section {
            0 => {
                let va = ELSEWHERE.checked_add(bytes::wide(symbol).checked_mul(64)?)?;
                Some(Place {
                    va,
                    home: Home::Nowhere,
                    section: 0,
                    offset: 0,
                })
            }
            // SHN_LORESERVE and above: absolute and the like.
            0xff00.. => None,
            number => {
                let section = usize::from(number);
                let (home, at) = *self.layout.places.get(section)?;
                let va = at.wrapping_add(found.value);
                (home != Home::Nowhere).then_some(Place {
                    va,
                    home,
                    section,
                    offset: found.value,
                })
            }
        }
    }

    fn unknown(&self, key: &str, unknown: impl FnOnce() -> Unknown) -> Option<Target> {
        if let Some(number) = self.known.borrow().get(key) {
            return Some(Target::Unknown(*number));
        }
        let number = u16::try_from(self.unknowns.borrow().len()).ok()?;
        self.unknowns.borrow_mut().push(unknown());
        self.known.borrow_mut().insert(key.to_owned(), number);
        Some(Target::Unknown(number))
    }

    fn elsewhere(&self, name: &str) -> Option<Target> {
        self.unknown(&format!("symbol {name}"), || Unknown::Symbol(name.to_owned()))
    }

    /// What a field in a text at `home` is relative to when it refers to a symbol, and the addend.
    fn refer(&self, symbol: usize, from: Home) -> Option<(Target, i64)> {
        let place = self.place(symbol)?;
        if place.home == from {
            return Some((Target::Own, place.va.cast_signed()));
        }
        let text = |name: &str, base: u64, len: u64| {
            let unknown = || Unknown::Section {
                name: name.to_owned(),
                align: 4096,
                per_cpu: false,
                link: base,
                len,
            };
            Some((
                self.unknown(name, unknown)?,
                place.va.wrapping_sub(base).cast_signed(),
            ))
        };
        match place.home {
            Home::Nowhere => {
                let name = String::from_utf8_lossy(self.elf.symbols.get(symbol)?.name);
                Some((self.elsewhere(&name)?, 0))
            }
            Home::Core => text("core text", CORE, self.layout.core_len),
            Home::Init => text("init text", INIT, self.layout.init_len),
            Home::Data => {
                let section = self.elf.sections.get(place.section)?;
                let link = self.layout.places.get(place.section)?.1;
                let unknown = || Unknown::Section {
                    name: section.name.clone(),
                    align: section.align.max(1),
                    per_cpu: section.name == ".data..percpu",
                    link,
                    len: section.size,
                };
                let key = format!("section {} {}", place.section, section.name);
                Some((self.unknown(&key, unknown)?, place.offset.cast_signed()))
            }
        }
    }

    /// Links everything: sections with both their raw and their linked bytes, and the fields that move.
    pub(crate) fn image(&self) -> Image {
        let mut sections = self.sections();
        let mut moving = Vec::new();
        for relocation in &self.elf.relocations {
            let Some(Some(section)) = sections.get_mut(relocation.section) else {
                continue;
            };
            let home = self
                .layout
                .places
                .get(relocation.section)
                .map_or(Home::Nowhere, |p| p.0);
            self.apply(relocation, home, section, &mut moving);
        }
        Image::new(sections.into_iter().flatten().collect(), moving)
    }

    fn sections(&self) -> Vec<Option<Section>> {
        let places = self.elf.sections.iter().zip(&self.layout.places);
        places
            .map(|(header, (home, va))| {
                let loaded = *home != Home::Nowhere && !header.data.is_empty();
                loaded.then(|| Section {
                    name: header.name.clone(),
                    va: *va,
                    execute: header.executes(),
                    raw: header.data.to_vec(),
                    linked: Some(header.data.to_vec()),
                })
            })
            .collect()
    }

    /// `apply_relocate_add` in `arch/x86/kernel/module.c`.
    fn apply(
        &self,
        relocation: &Relocation,
        home: Home,
        section: &mut Section,
        moving: &mut Vec<Moving>,
    ) -> Option<()> {
        let form = match relocation.kind {
            1 => Form::Abs64,
            2 | 4 => Form::Pc32,
            10 | 11 => Form::Abs32,
            24 => Form::Pc64,
            _ => return None,
        };
        let relative = matches!(form, Form::Pc32 | Form::Pc64);
        let place = self.place(relocation.symbol)?;
        let va = section.va.wrapping_add(relocation.offset);
        let at = bytes::index(relocation.offset);
        let mut value = place.va.wrapping_add_signed(relocation.addend);
        if relative {
            value = value.wrapping_sub(va);
        }
        let linked = value.to_le_bytes();
        let linked = linked.get(..form.len())?;
        bytes::put(section.linked.as_mut()?, at, linked);
        if !section.execute {
            return Some(());
        }
        let (to, base) = self.refer(relocation.symbol, home)?;
        if to == Target::Own && relative {
            // The same wherever the part is.
            bytes::put(&mut section.raw, at, linked);
            return Some(());
        }
        let zeros = [0; 8];
        bytes::put(&mut section.raw, at, zeros.get(..form.len())?);
        moving.push(Moving {
            va,
            form,
            to,
            addend: base.checked_add(relocation.addend)?,
        });
        Some(())
    }
}

impl Link for ModuleNames<'_> {
    fn address(&self, name: &str) -> Option<u64> {
        self.by_name.get(name.as_bytes()).copied()
    }

    fn target(&self, name: &str) -> Option<(Target, i64)> {
        Some((self.elsewhere(name)?, 0))
    }

    fn functions(&self) -> Target {
        Target::OneOf(FUNCTIONS)
    }

    fn paravirt(&self) -> Target {
        Target::OneOf(PARAVIRT)
    }

    fn trampolines(&self, image: &Image) -> Vec<u64> {
        let Some(section) = image.section(".static_call.text") else {
            return Vec::new();
        };
        let starts = (0..section.raw.len()).step_by(4);
        let marked = starts.filter(|at| {
            let mark = at
                .checked_add(5)
                .and_then(|from| section.raw.get(from..from.checked_add(3)?));
            mark == Some(&TRAMPOLINE_MARK)
        });
        marked
            .map(|at| section.va.wrapping_add(bytes::wide(at)))
            .collect()
    }

    fn call_thunk_len(&self, image: &Image) -> usize {
        if image.section(".call_sites").is_some() {
            CALL_THUNK_LEN
        } else {
            0
        }
    }
}

/// The text of one home: its sections' raw bytes at their places.
pub(crate) fn text(image: &Image, base: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; bytes::index(len)];
    let end = base.saturating_add(len);
    for section in image
        .sections
        .iter()
        .filter(|s| s.execute && s.va >= base && s.va < end)
    {
        bytes::put(&mut bytes, layout::offset(section.va, base), &section.raw);
    }
    bytes
}
