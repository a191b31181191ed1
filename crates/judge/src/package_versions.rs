//! Which versions the files of packages have that were read in a VM.
//!
//! A disk's own package manager may say which version of a package is installed. That is the guest's word: a file that is older is spoken
//! of, and one that is not is not excused by it.
//!
//! A file that is known, where its package has it, is of some versions of that package: those that have it with the same contents. The
//! version that most of the package's files may be of is the one that is there; a file that is read and only of older ones was put in the
//! place of the newer, or is from before an upgrade. What was read before most of a package is looked at again as long as the package is new
//! here: later it may be the package that is new, and that file gone.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use debversion::Version;
use nephoscope_inventory::{CandidateReport, FileId, Installed};

/// Paths that are remembered. It stops a guest that puts known files into ever new places; what is beyond is not compared.
const MAX_PATHS: usize = 64 << 10;

/// How long after its first file a package is new.
const LEARN_NS: u64 = 10_000_000_000;

/// The same package on another disk or partition is another system's.
type Key = (u16, u16, String);

/// What is known of packages in a VM.
#[derive(Debug, Default)]
pub(crate) struct PackageVersions {
    packages: HashMap<Key, Package>,
    paths: usize,
}

#[derive(Debug, Default)]
struct Package {
    /// When the first of its files was read.
    began_ns: u64,
    paths: HashMap<String, Placed>,
    /// How many paths have a file that may be of a version.
    counts: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct Placed {
    file: FileId,
    versions: BTreeSet<String>,
}

/// A file that is older than the rest of its package.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Outdated {
    /// The package.
    pub(crate) package: String,
    /// The newest version that has the file so.
    pub(crate) version: String,
    /// Than what.
    pub(crate) than: Than,
}

/// What a file is older than.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Than {
    /// The version that is installed, as the disk's own package manager says.
    Installed(String),
    /// The version that so many other files of the package may be of.
    Others(String, usize),
}

/// A known file, and where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    pub(crate) file: FileId,
    /// When somebody began to read it last.
    pub(crate) at_ns: u64,
    pub(crate) disk: u16,
    pub(crate) partition: u16,
    pub(crate) path: &'a str,
    /// Of all that it may be, the path and the package.
    pub(crate) placements: &'a [(String, CandidateReport)],
}

impl Found<'_> {
    /// The versions of each package that has it at this path.
    fn versions(&self) -> BTreeMap<&str, BTreeSet<String>> {
        let mut all: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for (path, candidate) in self.placements {
            if path == self.path
                && let (Some(package), Some(version)) = (&candidate.package, &candidate.version)
            {
                all.entry(package).or_default().insert(version.clone());
            }
        }
        all
    }
}

impl PackageVersions {
    /// A known file was read. Gives the files of its packages of which it has to be looked again whether they are older than the rest.
    pub(crate) fn seen(&mut self, found: &Found<'_>) -> Vec<FileId> {
        let mut again = Vec::new();
        for (package, versions) in found.versions() {
            let key = (found.disk, found.partition, package.to_owned());
            let package = self.packages.entry(key).or_insert_with(|| Package {
                began_ns: found.at_ns,
                ..Package::default()
            });
            let before = package.most().map(|(version, _)| version.to_owned());
            let has_room = self.paths < MAX_PATHS || package.paths.contains_key(found.path);
            if has_room && package.put(found, versions) {
                self.paths += 1;
            }
            let is_new = found.at_ns < package.began_ns.saturating_add(LEARN_NS);
            if is_new && package.most().map(|(version, _)| version) != before.as_deref() {
                let others = package.paths.values().map(|placed| placed.file);
                again.extend(others.filter(|file| *file != found.file));
            }
        }
        again
    }

    /// Whether a file is older than its package: than what `installed` says of the package, or than the rest of it that was read.
    pub(crate) fn outdated(&self, found: &Found<'_>, installed: &Installed) -> Option<Outdated> {
        older_than_installed(found, installed).or_else(|| self.older_than_others(found))
    }

    fn older_than_others(&self, found: &Found<'_>) -> Option<Outdated> {
        found.versions().into_iter().find_map(|(name, own)| {
            let key = (found.disk, found.partition, name.to_owned());
            let (others, files) = self.packages.get(&key)?.most()?;
            let newest = own.iter().max_by(|a, b| order(a, b))?;
            (!own.contains(others) && order(newest, others).is_lt()).then(|| Outdated {
                package: name.to_owned(),
                version: newest.clone(),
                than: Than::Others(others.to_owned(), files),
            })
        })
    }
}

/// Whether no package that has a file at its path is installed in a version that has it so, and one is in a newer.
fn older_than_installed(found: &Found<'_>, installed: &Installed) -> Option<Outdated> {
    let mut older = None;
    for (package, own) in found.versions() {
        let Some(there) = installed.version(found.disk, found.partition, package) else {
            continue;
        };
        let newest = own.iter().max_by(|a, b| order(a, b))?;
        if own.contains(there) || order(newest, there).is_ge() {
            return None;
        }
        older.get_or_insert_with(|| Outdated {
            package: package.to_owned(),
            version: newest.clone(),
            than: Than::Installed(there.to_owned()),
        });
    }
    older
}

impl Package {
    /// What is at a path. `true` if there was nothing.
    fn put(&mut self, found: &Found<'_>, versions: BTreeSet<String>) -> bool {
        for version in &versions {
            *self.counts.entry(version.clone()).or_default() += 1;
        }
        let placed = Placed {
            file: found.file,
            versions,
        };
        let before = self.paths.insert(found.path.to_owned(), placed);
        for version in before.iter().flat_map(|placed| &placed.versions) {
            if let Some(count) = self.counts.get_mut(version) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(version);
                }
            }
        }
        before.is_none()
    }

    /// The version that most files may be of, the newest of those.
    fn most(&self) -> Option<(&str, usize)> {
        let most = self
            .counts
            .iter()
            .max_by(|(a, many), (b, more)| many.cmp(more).then_with(|| order(a, b)));
        most.map(|(version, count)| (version.as_str(), *count))
    }
}

/// Which of two versions is the newer, as dpkg has it; those that are none of Debian's are not told apart.
fn order(a: &str, b: &str) -> Ordering {
    let parse = |version: &str| version.is_ascii().then(|| version.parse::<Version>().ok())?;
    match (parse(a), parse(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => Ordering::Equal,
    }
}

#[cfg(test)]
mod tests {
    use nephoscope_guest::PackageSaid;

    use super::*;

    fn placements(path: &str, versions: &[&str]) -> Vec<(String, CandidateReport)> {
        let of = |version: &&str| CandidateReport {
            package: Some("app".into()),
            source: None,
            version: Some((*version).into()),
        };
        versions
            .iter()
            .map(|version| (path.to_owned(), of(version)))
            .collect()
    }

    /// File number so and so is at the path of that number, on a disk, and is of these versions.
    fn with<T>(number: u32, disk: u16, versions: &[&str], then: impl FnOnce(&Found<'_>) -> T) -> T {
        let path = format!("/usr/share/app/{number}.php");
        then(&Found {
            file: FileId(number),
            at_ns: u64::from(number) * 1_000_000_000,
            disk,
            partition: 1,
            path: &path,
            placements: &placements(&path, versions),
        })
    }

    fn others(all: &PackageVersions, number: u32, disk: u16, versions: &[&str]) -> Option<String> {
        let outdated = with(number, disk, versions, |found| {
            all.outdated(found, &Installed::default())
        });
        outdated.map(|outdated| match outdated.than {
            Than::Others(others, _) => others,
            Than::Installed(_) => unreachable!("nothing is"),
        })
    }

    fn installed(packages: &[(u16, &str, &str)]) -> Installed {
        let mut installed = Installed::default();
        for (disk, name, version) in packages {
            installed.said(PackageSaid {
                disk: *disk,
                partition: 1,
                name: (*name).to_owned(),
                version: Some((*version).to_owned()),
            });
        }
        installed
    }

    #[test]
    fn the_only_file_of_a_package_is_older_if_a_newer_one_is_installed_and_has_it_not_so() {
        let older = |packages: &[(u16, &str, &str)], versions: &[&str]| {
            let installed = installed(packages);
            let found = with(7, 0, versions, |found| {
                PackageVersions::default().outdated(found, &installed)
            });
            found.map(|outdated| (outdated.version, outdated.than))
        };
        let than = |version: &str| Some(("1.9-1".to_owned(), Than::Installed(version.to_owned())));
        assert_eq!(
            older(&[(0, "app", "1.10-1")], &["1.8-1", "1.9-1"]),
            than("1.10-1")
        );
        assert_eq!(
            older(&[(0, "app", "1.10-1")], &["1.9-1", "1.10-1"]),
            None,
            "both have it so"
        );
        assert_eq!(
            older(&[(0, "app", "1.8-9")], &["1.9-1"]),
            None,
            "an upgrade is under way"
        );
        assert_eq!(
            older(&[(1, "app", "1.10-1")], &["1.9-1"]),
            None,
            "on another disk"
        );
        assert_eq!(older(&[(0, "other", "1.10-1")], &["1.9-1"]), None);
        assert_eq!(
            older(&[(0, "app", "ä")], &["1.9-1"]),
            None,
            "no version of Debian's"
        );
    }

    #[test]
    fn a_file_that_another_installed_package_has_so_is_not_older() {
        let path = "/usr/share/app/7.php";
        let of = |package: &str, version: &str| {
            let candidate = CandidateReport {
                package: Some(package.into()),
                source: None,
                version: Some(version.into()),
            };
            (path.to_owned(), candidate)
        };
        let placements = [of("app", "1.9-1"), of("app-small", "2-1")];
        let found = Found {
            file: FileId(7),
            at_ns: 0,
            disk: 0,
            partition: 1,
            path,
            placements: &placements,
        };
        let older = |packages: &[(u16, &str, &str)]| {
            let older = older_than_installed(&found, &installed(packages));
            older.map(|outdated| outdated.package)
        };
        assert_eq!(older(&[(0, "app", "1.10-1")]), Some("app".into()));
        assert_eq!(older(&[(0, "app", "1.10-1"), (0, "app-small", "2-1")]), None);
        assert_eq!(
            older(&[(0, "app", "1.10-1"), (0, "app-small", "3-1")]),
            Some("app".into())
        );
    }

    #[test]
    fn a_file_that_is_only_of_older_versions_than_most_is_older_than_the_rest() {
        let mut all = PackageVersions::default();
        for number in 0..3 {
            with(number, 0, &["1.9-1", "1.10-1"], |found| all.seen(found));
        }
        // Of both: nothing is older than them, and the newer of both is taken for what is there.
        assert_eq!(others(&all, 0, 0, &["1.9-1", "1.10-1"]), None);
        with(3, 0, &["1.10-1"], |found| all.seen(found));
        with(4, 0, &["1.9-1"], |found| all.seen(found));
        assert_eq!(others(&all, 4, 0, &["1.9-1"]), Some("1.10-1".into()));
        assert_eq!(others(&all, 3, 0, &["1.10-1"]), None);
        assert_eq!(others(&all, 3, 0, &["1:0.1"]), None, "newer than the rest");
        assert_eq!(others(&all, 4, 1, &["1.9-1"]), None, "another disk's");
        assert_eq!(others(&all, 4, 0, &["ä"]), None, "no version of Debian's");
    }

    #[test]
    fn what_was_read_first_is_looked_at_again_once_the_rest_is_known() {
        let mut all = PackageVersions::default();
        assert_eq!(with(0, 0, &["1.9-1"], |found| all.seen(found)), []);
        assert_eq!(others(&all, 0, 0, &["1.9-1"]), None);
        // One against one: the newer is taken for what is there.
        let again = with(1, 0, &["1.10-1"], |found| all.seen(found));
        assert_eq!(again, [FileId(0)]);
        assert_eq!(others(&all, 0, 0, &["1.9-1"]), Some("1.10-1".into()));
        assert_eq!(with(2, 0, &["1.10-1"], |found| all.seen(found)), []);
        // Ten seconds later it may be the package that is new, and the file gone.
        for number in 12..16 {
            assert_eq!(with(number, 0, &["1.11-1"], |found| all.seen(found)), []);
        }
        assert_eq!(others(&all, 0, 0, &["1.9-1"]), Some("1.11-1".into()));
    }

    #[test]
    fn after_an_upgrade_nothing_is_compared_with_what_is_there_no_more() {
        let mut all = PackageVersions::default();
        for version in ["1.9-1", "1.10-1"] {
            for number in 0..4 {
                with(number, 0, &[version], |found| all.seen(found));
            }
        }
        assert_eq!(all.paths, 4);
        let package = all.packages.values().next().unwrap();
        assert_eq!(package.most(), Some(("1.10-1", 4)));
        assert_eq!(package.counts.len(), 1);
    }

    #[test]
    fn a_file_elsewhere_than_its_package_has_it_is_not_compared() {
        let mut all = PackageVersions::default();
        let found = Found {
            file: FileId(1),
            at_ns: 0,
            disk: 0,
            partition: 0,
            path: "/srv/app/1.php",
            placements: &placements("/usr/share/app/1.php", &["1.9-1"]),
        };
        assert_eq!(all.seen(&found), []);
        assert!(all.packages.is_empty());
    }

    #[test]
    fn max_paths_bounds_what_is_remembered() {
        let mut all = PackageVersions {
            paths: MAX_PATHS - 1,
            ..PackageVersions::default()
        };
        for number in 0..5 {
            with(number, 0, &["1.9-1"], |found| all.seen(found));
        }
        assert_eq!(all.paths, MAX_PATHS);
        assert_eq!(all.packages.values().next().unwrap().paths.len(), 1);
    }

    #[test]
    fn whatever_stands_for_a_version_is_compared_without_harm() {
        let odd = [
            "",
            ":",
            "1:",
            "-",
            "1-",
            "~",
            "٣",
            "1.٣",
            "9999999999999999999999:1",
            "1.0-1-2",
            "a\u{301}1",
        ];
        for a in odd {
            for b in odd {
                let _ = order(a, b);
            }
        }
        assert_eq!(order("1.0~rc1-1", "1.0-1"), Ordering::Less);
        assert_eq!(order("2.0", "1:1.0"), Ordering::Less);
    }
}
