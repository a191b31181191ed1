//! What the guest itself says about its processes (`guest-files/truth`), to compare with what was seen from outside.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// One mapping of a process: a line of `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// First guest-virtual address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// As in `r-xp`.
    pub permissions: String,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// The file, `[vdso]` and the like, or nothing.
    pub path: String,
}

impl Mapping {
    /// Whether code in it can be executed.
    pub fn executable(&self) -> bool {
        self.permissions.as_bytes().get(2) == Some(&b'x')
    }
}

/// One process with an address space of its own; kernel threads have none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Process {
    /// The program that it executes, as its `exe` link says.
    pub exe: String,
    /// In ascending order.
    pub mappings: Vec<Mapping>,
}

/// The package that a file belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The binary package, without architecture.
    pub package: String,
    /// The source package.
    pub source: String,
    /// The binary package's version.
    pub version: String,
}

/// What the guest said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Truth {
    /// By process id. The processes that wrote this down are among them.
    pub processes: BTreeMap<u32, Process>,
    /// By path, as the kernel gives it in `maps`; only files mapped executable, only those from packages.
    pub owners: BTreeMap<String, Owner>,
}

impl Truth {
    /// Reads what `/opt/nephoscope/truth` wrote.
    ///
    /// # Errors
    /// When a line is not what it has to be, or the end is missing.
    pub fn parse(text: &str) -> Result<Self> {
        let mut truth = Truth::default();
        let mut packages = BTreeMap::new();
        let mut files = Vec::new();
        let mut section = "";
        for line in text.lines() {
            if line.starts_with('@') {
                section = line;
                continue;
            }
            let understood = match section {
                "@exe" => truth.add_exe(line),
                "@maps" => truth.add_mapping(line),
                "@owners" => add_files(&mut files, line),
                "@packages" => add_package(&mut packages, line),
                _ => None,
            };
            understood.with_context(|| format!("line `{line}` of section `{section}`"))?;
        }
        ensure!(
            section == "@end",
            "what the guest wrote ends in section `{section}`"
        );
        for (path, package) in files {
            let Some(owner) = packages.get(&package) else {
                bail!("{path} belongs to {package}, which is not installed")
            };
            // dpkg may know the file by the name that it had before /usr was merged.
            for spelling in [path.clone(), format!("/usr{path}")] {
                truth.owners.insert(spelling, Owner::clone(owner));
            }
        }
        Ok(truth)
    }

    fn add_exe(&mut self, line: &str) -> Option<()> {
        let (pid, exe) = line.strip_prefix("/proc/")?.split_once(' ')?;
        // A kernel thread's link leads nowhere.
        if !exe.is_empty() {
            self.processes.entry(pid.parse().ok()?).or_default().exe = exe.to_owned();
        }
        Some(())
    }

    fn add_mapping(&mut self, line: &str) -> Option<()> {
        let (pid, line) = line.strip_prefix("/proc/")?.split_once("/maps:")?;
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let mapping = Mapping {
            start: u64::from_str_radix(start, 16).ok()?,
            end: u64::from_str_radix(end, 16).ok()?,
            permissions: fields.next()?.to_owned(),
            offset: u64::from_str_radix(fields.next()?, 16).ok()?,
            path: fields.nth(2).unwrap_or_default().trim().to_owned(),
        };
        self.processes
            .entry(pid.parse().ok()?)
            .or_default()
            .mappings
            .push(mapping);
        Some(())
    }

    /// Who owns a mapped file.
    pub fn owner(&self, path: &str) -> Option<&Owner> {
        self.owners.get(path)
    }
}

/// A line of `dpkg -S`: `libc6:amd64: /lib/…`, or `a, b: /path`.
fn add_files(files: &mut Vec<(String, String)>, line: &str) -> Option<()> {
    if line.starts_with("diversion by ") {
        return Some(());
    }
    let (packages, path) = line.split_once(": ")?;
    for package in packages.split(", ") {
        files.push((path.to_owned(), plain(package)));
    }
    Some(())
}

fn add_package(packages: &mut BTreeMap<String, Owner>, line: &str) -> Option<()> {
    let mut fields = line.split(' ');
    let package = plain(fields.next()?);
    let owner = Owner {
        package: package.clone(),
        source: fields.next()?.to_owned(),
        version: fields.next()?.to_owned(),
    };
    packages.insert(package, owner);
    Some(())
}

/// A package's name without its architecture.
fn plain(package: &str) -> String {
    package.split(':').next().unwrap_or(package).to_owned()
}

#[cfg(test)]
mod tests {
    use super::Truth;

    const TEXT: &str = "@exe\n/proc/1 /usr/lib/systemd/systemd\n/proc/2 \n@maps\n\
        /proc/1/maps:7f00-7f10 r-xp 00002000 fe:00 77                         /usr/lib/x86_64-linux-gnu/libc.so.6\n\
        /proc/1/maps:8f00-8f10 rw-p 00000000 00:00 0 \n\
        @owners\nlibc6:amd64: /lib/x86_64-linux-gnu/libc.so.6\n@packages\nlibc6:amd64 glibc 2.36-9\n@end\n";

    #[test]
    fn a_file_is_found_under_the_name_it_has_since_usr_was_merged() {
        let truth = Truth::parse(TEXT).unwrap();
        let systemd = &truth.processes[&1];
        assert_eq!(systemd.exe, "/usr/lib/systemd/systemd");
        assert!(systemd.mappings[0].executable() && !systemd.mappings[1].executable());
        assert_eq!(systemd.mappings[0].offset, 0x2000);
        let owner = truth.owner(&systemd.mappings[0].path).unwrap();
        assert_eq!(
            (owner.package.as_str(), owner.version.as_str()),
            ("libc6", "2.36-9")
        );
        assert_eq!(truth.processes.len(), 1, "a kernel thread has no address space");
    }

    #[test]
    fn a_truth_without_its_end_is_refused() {
        assert!(Truth::parse("@exe\n/proc/1 /sbin/init\n").is_err());
    }
}
