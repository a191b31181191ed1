//! Which packages are installed on a VM's disks, as their own package managers say.

use std::collections::HashMap;

use nephoscope_guest::PackageSaid;

/// Packages of all disks that are remembered. It stops a guest whose database has more than there are.
const MAX_PACKAGES: usize = 256 << 10;

/// By disk, partition and package: the version.
#[derive(Debug, Default)]
pub struct Installed {
    versions: HashMap<(u16, u16, String), String>,
}

impl Installed {
    /// Something is said of a package.
    pub fn said(&mut self, said: PackageSaid) {
        let key = (said.disk, said.partition, said.name);
        match said.version {
            Some(version) if self.versions.len() < MAX_PACKAGES || self.versions.contains_key(&key) => {
                self.versions.insert(key, version);
            }
            Some(_) => {}
            None => {
                self.versions.remove(&key);
            }
        }
    }

    /// The version of a package that is installed on a disk's partition, as far as that is said.
    #[must_use]
    pub fn version(&self, disk: u16, partition: u16, package: &str) -> Option<&str> {
        self.versions
            .get(&(disk, partition, package.to_owned()))
            .map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(disk: u16, name: &str, version: Option<&str>) -> PackageSaid {
        PackageSaid {
            disk,
            partition: 1,
            name: name.to_owned(),
            version: version.map(str::to_owned),
        }
    }

    #[test]
    fn what_was_said_last_counts_and_each_disk_has_its_own() {
        let mut all = Installed::default();
        for (disk, version) in [(0, Some("1")), (1, Some("2")), (0, Some("3"))] {
            all.said(said(disk, "php", version));
        }
        let of = |all: &Installed, disk| all.version(disk, 1, "php").map(str::to_owned);
        assert_eq!([of(&all, 0), of(&all, 1)], [Some("3".into()), Some("2".into())]);
        all.said(said(0, "php", None));
        assert_eq!([of(&all, 0), of(&all, 1)], [None, Some("2".into())]);
    }

    #[test]
    fn max_packages_bounds_what_is_remembered() {
        let mut all = Installed::default();
        for number in 0..=MAX_PACKAGES {
            all.said(said(0, &number.to_string(), Some("1")));
        }
        assert_eq!(all.versions.len(), MAX_PACKAGES);
        all.said(said(0, "7", Some("2")));
        assert_eq!(all.version(0, 1, "7"), Some("2"));
    }
}
