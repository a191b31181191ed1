//! What the catalog says of files, kept: reports and judges ask again and again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use nephoscope_catalog::{Catalog, ObjectId};
use nephoscope_inventory::{CandidateReport, Names, ObjectFacts};
use nephoscope_recipe::{Load, ObjectKind};

/// One file's names.
#[derive(Debug)]
struct Known {
    kind: Option<ObjectKind>,
    code: Option<Range<u64>>,
    entry: Option<u64>,
    read_only: Range<u64>,
    build_id: Option<Vec<u8>>,
    placements: Vec<(String, CandidateReport)>,
}

/// The catalog's names.
#[derive(Debug)]
pub struct CatalogNames {
    catalog: Arc<Catalog>,
    known: RefCell<HashMap<ObjectId, Arc<Known>>>,
    unreadable: RefCell<u64>,
}

impl CatalogNames {
    /// Asks this catalog.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>) -> Self {
        Self {
            catalog,
            known: RefCell::default(),
            unreadable: RefCell::default(),
        }
    }

    /// Records of the catalog that could not be read.
    #[must_use]
    pub fn unreadable(&self) -> u64 {
        *self.unreadable.borrow()
    }

    fn get(&self, object: ObjectId) -> Arc<Known> {
        if let Some(known) = self.known.borrow().get(&object) {
            return known.clone();
        }
        let info = self.catalog.object(object);
        let placements = self.catalog.placements(object);
        if info.is_err() || placements.is_err() {
            *self.unreadable.borrow_mut() += 1;
        }
        let placements: Vec<(String, CandidateReport)> = placements
            .unwrap_or_default()
            .into_iter()
            .map(|placement| {
                let package = placement.package;
                let candidate = CandidateReport {
                    package: package.as_ref().map(|p| p.name.clone()),
                    source: package.as_ref().map(|p| p.source.clone()),
                    version: package.map(|p| p.version),
                };
                (placement.path, candidate)
            })
            .collect();
        let info = info.ok();
        let known = Arc::new(Known {
            kind: info.as_ref().map(|info| {
                let paths = placements.iter().map(|(path, _)| path.as_str());
                kind(info.kind, info.facts.interpreter.is_some(), paths)
            }),
            code: info.as_ref().and_then(|info| code(&info.loads)),
            entry: info
                .as_ref()
                .map(|info| info.facts.entry)
                .filter(|entry| *entry != 0),
            read_only: info.as_ref().map_or(0..0, |info| read_only(&info.loads)),
            build_id: info.and_then(|info| info.facts.build_id.clone()),
            placements,
        });
        self.known.borrow_mut().insert(object, known.clone());
        known
    }
}

impl ObjectFacts for CatalogNames {
    fn kind(&self, object: ObjectId) -> Option<ObjectKind> {
        self.get(object).kind
    }

    fn code(&self, object: ObjectId) -> Option<Range<u64>> {
        self.get(object).code.clone()
    }

    fn entry(&self, object: ObjectId) -> Option<u64> {
        self.get(object).entry
    }

    fn read_only(&self, object: ObjectId) -> Range<u64> {
        self.get(object).read_only.clone()
    }
}

/// What kind of thing a file is, also by what it is called. klibc's library is linked as a program, without an interpreter: the kernel
/// starts it as the one of others, and it calls them. Nobody starts it by itself.
fn kind<'a>(kind: ObjectKind, has_interpreter: bool, paths: impl Iterator<Item = &'a str>) -> ObjectKind {
    let mut names = paths
        .map(|path| path.rsplit('/').next().unwrap_or(path))
        .peekable();
    let is_library = |name: &str| name.ends_with(".so") || name.contains(".so.");
    let called_so = names.peek().is_some() && names.all(is_library);
    match kind {
        ObjectKind::Executable if !has_interpreter && called_so => ObjectKind::Interpreter,
        kind => kind,
    }
}

fn code(loads: &[Load]) -> Option<Range<u64>> {
    let code = || loads.iter().filter(|load| load.execute);
    let start = code().map(|load| load.va & !0xfff).min()?;
    let end = code().map(|load| load.va.saturating_add(load.mem_len)).max()?;
    Some(start..end)
}

fn read_only(loads: &[Load]) -> Range<u64> {
    let kept = || loads.iter().filter(|load| !load.write);
    let start = kept().map(|load| load.va & !0xfff).min().unwrap_or(0);
    let end = kept().map(|load| load.va.saturating_add(load.file_len)).max();
    start..end.unwrap_or(start)
}

impl Names for CatalogNames {
    fn placements(&self, object: ObjectId) -> Vec<(String, CandidateReport)> {
        self.get(object).placements.clone()
    }

    fn build_id(&self, object: ObjectId) -> Option<Vec<u8>> {
        self.get(object).build_id.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_called_a_library_and_linked_as_a_program_interprets_others() {
        let of = |has_interpreter, paths: &[&'static str]| {
            kind(ObjectKind::Executable, has_interpreter, paths.iter().copied())
        };
        assert_eq!(of(false, &["usr/lib/klibc-XX.so"]), ObjectKind::Interpreter);
        assert_eq!(of(true, &["usr/lib/libsomething.so.6"]), ObjectKind::Executable);
        assert_eq!(of(false, &["bin/busybox"]), ObjectKind::Executable);
        assert_eq!(of(false, &["lib/x.so", "bin/x"]), ObjectKind::Executable);
        assert_eq!(of(false, &[]), ObjectKind::Executable);
        let library = kind(ObjectKind::SharedObject, false, ["lib/x.so"].into_iter());
        assert_eq!(library, ObjectKind::SharedObject);
    }
}
