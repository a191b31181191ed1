//! The database that dpkg keeps in a root: who owns which path, in which version (dpkg's `doc/` and deb-* manual
//! pages describe it only in part; the files are `status`, `info/*.list`, `info/*.md5sums`, `diversions`).

use std::collections::HashMap;
use std::io;

use crate::limits::MAX_DATABASE_FILE_BYTES;
use crate::model::Package;

use super::control;
use super::path::{canonical, normalise};
use super::root::{Kind, Root};

const ADMIN: &str = "var/lib/dpkg";

/// Who owns what in a root.
#[derive(Debug, Default)]
pub(crate) struct Database {
    pub(crate) packages: Vec<Package>,
    /// By canonical path.
    owners: HashMap<String, Owner>,
    /// Files of the database that could not be read: (name, why).
    pub(crate) refused: Vec<(String, String)>,
}

/// A path's owner.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Owner {
    /// Index in [`Database::packages`].
    pub(crate) package: usize,
    /// The path as the package spells it; not where the file stands, if it is diverted.
    pub(crate) path: String,
    /// What the package says its contents are.
    pub(crate) md5: Option<[u8; 16]>,
}

/// Whether a root has a dpkg database.
pub(crate) fn is_there(root: &Root) -> bool {
    root.file(format!("{ADMIN}/status").as_bytes()).is_ok()
}

impl Database {
    /// Reads the database of a root.
    ///
    /// # Errors
    /// `status` or the directory of lists cannot be read.
    pub(crate) fn read(root: &Root) -> io::Result<Self> {
        let mut database = Self::default();
        let status = root.read(format!("{ADMIN}/status").as_bytes(), MAX_DATABASE_FILE_BYTES)?;
        let mut by_name = HashMap::new();
        for paragraph in control::paragraphs(&String::from_utf8_lossy(&status)) {
            // "want flag status"; a package that is unpacked or half configured has its files in place too.
            let state = paragraph.status.clone().unwrap_or_default();
            let state = state.split_whitespace().nth(2).unwrap_or_default();
            if matches!(state, "" | "not-installed" | "config-files") {
                continue;
            }
            let same = paragraph.multi_arch.as_deref() == Some("same");
            let Some(package) = paragraph.package() else {
                continue;
            };
            let number = database.packages.len();
            by_name.insert(format!("{}:{}", package.name, package.architecture), number);
            if !same {
                by_name.insert(package.name.clone(), number);
            } else {
                by_name.entry(package.name.clone()).or_insert(number);
            }
            database.packages.push(package);
        }
        let diverted = Diversions::read(root);
        for name in root.list(format!("{ADMIN}/info").as_bytes())? {
            let name_text = String::from_utf8_lossy(&name.bytes).into_owned();
            let Some(stem) = name_text
                .strip_suffix(".list")
                .filter(|_| name.kind == Kind::File)
            else {
                continue;
            };
            let Some(&package) = by_name.get(stem) else {
                continue;
            };
            if let Err(error) = database.read_package(root, stem, package, &diverted) {
                database
                    .refused
                    .push((format!("/{ADMIN}/info/{name_text}"), error.to_string()));
            }
        }
        Ok(database)
    }

    fn read_package(
        &mut self,
        root: &Root,
        stem: &str,
        package: usize,
        diverted: &Diversions,
    ) -> io::Result<()> {
        let info = |suffix| format!("{ADMIN}/info/{stem}.{suffix}");
        let list = root.read(info("list").as_bytes(), MAX_DATABASE_FILE_BYTES)?;
        // A package without checksums is unusual and allowed.
        let sums = root
            .read(info("md5sums").as_bytes(), MAX_DATABASE_FILE_BYTES)
            .unwrap_or_default();
        let sums: HashMap<String, [u8; 16]> = sums.split(|b| *b == b'\n').filter_map(md5_line).collect();
        let name = self
            .packages
            .get(package)
            .map(|p| p.name.clone())
            .unwrap_or_default();
        for line in list.split(|b| *b == b'\n') {
            let Ok(path) = normalise(line) else { continue };
            let key = canonical(&path).into_owned();
            let md5 = sums.get(&key).copied();
            let stands = diverted.stands(&key, &name).unwrap_or(key);
            self.owners.insert(stands, Owner { package, path, md5 });
        }
        Ok(())
    }

    /// Who owns the file that stands at a path.
    pub(crate) fn owner(&self, path: &str) -> Option<&Owner> {
        self.owners.get(canonical(path).as_ref())
    }
}

/// `<32 hex digits>  <path>`.
fn md5_line(line: &[u8]) -> Option<(String, [u8; 16])> {
    let (hex, rest) = line.split_at_checked(32)?;
    let mut md5 = [0; 16];
    for (to, digits) in md5.iter_mut().zip(hex.as_chunks::<2>().0) {
        *to = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    let path = normalise(rest.strip_prefix(b"  ")?).ok()?;
    Some((canonical(&path).into_owned(), md5))
}

/// dpkg-divert(1): a file of any package but one stands elsewhere.
#[derive(Debug, Default)]
struct Diversions(HashMap<String, (String, String)>);

impl Diversions {
    /// Three lines each: the path, where it goes, and the package whose own file may stand there (`:` for none).
    fn read(root: &Root) -> Self {
        let bytes = root
            .read(format!("{ADMIN}/diversions").as_bytes(), MAX_DATABASE_FILE_BYTES)
            .unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.lines();
        let mut all = HashMap::new();
        while let (Some(from), Some(to), Some(by)) = (lines.next(), lines.next(), lines.next()) {
            if let (Ok(from), Ok(to)) = (normalise(from.as_bytes()), normalise(to.as_bytes())) {
                all.insert(
                    canonical(&from).into_owned(),
                    (canonical(&to).into_owned(), by.to_owned()),
                );
            }
        }
        Self(all)
    }

    /// Where the package's file stands, if it is diverted.
    fn stands(&self, path: &str, package: &str) -> Option<String> {
        self.0
            .get(path)
            .filter(|(_, by)| by != package)
            .map(|(to, _)| to.clone())
    }
}
