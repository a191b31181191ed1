//! The machine's own way to Debian's packages: its mirrors, its proxies, and private suites beside it.
//!
//! Nothing here names a mirror. A machine that can install packages at all knows where they come from, and asking it
//! keeps mirrors, proxies and snapshots working.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{output_of, run_logged, write_file};
use crate::progress::Step;

/// Signs every Debian suite; part of every Debian installation.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite of Debian as the machine's apt is configured for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suite {
    /// As in `sources.list`: `bookworm`, `bookworm-security`.
    pub name: String,
    /// The mirror.
    pub uri: String,
    /// The `InRelease` file (or `Release`) that apt last fetched for it, when it has fetched one.
    pub release_file: Option<PathBuf>,
}

impl Suite {
    /// The suite as a line of `sources.list`.
    pub fn line(&self) -> String {
        format!("deb [signed-by={KEYRING}] {} {} main", self.uri, self.name)
    }
}

/// The machine's Debian suites with a `main` component.
///
/// # Errors
/// When apt cannot be asked.
pub fn suites() -> Result<Vec<Suite>> {
    let format = "$(CREATED_BY)|$(COMPONENT)|$(RELEASE)|$(REPO_URI)|$(FILENAME)";
    let targets = output_of(Command::new("apt-get").args(["indextargets", "--format", format]))?;
    Ok(parse_targets(&targets))
}

fn parse_targets(targets: &str) -> Vec<Suite> {
    let mut suites: Vec<Suite> = Vec::new();
    for target in targets.lines() {
        let fields: Vec<&str> = target.split('|').collect();
        let ["Packages", "main", name, uri, packages] = fields.as_slice() else {
            continue;
        };
        if !name.starts_with("bookworm") || suites.iter().any(|suite| suite.name == *name) {
            continue;
        }
        let prefix = packages.split("_main_binary-").next().unwrap_or(packages);
        let release_file = ["InRelease", "Release"]
            .map(|kind| PathBuf::from(format!("{prefix}_{kind}")))
            .into_iter()
            .find(|p| p.is_file());
        suites.push(Suite {
            name: (*name).to_owned(),
            uri: (*uri).to_owned(),
            release_file,
        });
    }
    suites
}

/// The machine's mirror of Debian's main archive.
///
/// # Errors
/// When the machine has no suite `bookworm`: it is not a Debian 12.
pub fn mirror() -> Result<String> {
    let suites = suites()?;
    let suite = suites.iter().find(|suite| suite.name == "bookworm").context(
        "apt on this machine has no suite `bookworm`: guests are built on Debian 12 only; on another system, run \
         this in a Debian 12 container",
    )?;
    Ok(suite.uri.clone())
}

/// The machine's proxies for apt, as options for another apt that does not read the machine's configuration.
///
/// # Errors
/// When apt cannot be asked.
pub fn proxy_options() -> Result<Vec<String>> {
    let dump = output_of(Command::new("apt-config").args(["dump", "Acquire"]))?;
    Ok(dump
        .lines()
        .filter(|line| line.contains("Proxy") && !line.contains("\"\""))
        .map(str::to_owned)
        .collect())
}

/// An apt of our own for one suite that the machine does not have: own lists, own archive, no installed packages.
/// The machine's suites stay as they are.
#[derive(Debug)]
pub struct PrivateApt {
    folder: PathBuf,
}

impl PrivateApt {
    /// Sets it up in `folder` for `suite` and fetches its list of packages.
    ///
    /// # Errors
    /// When the mirror has no such suite, or cannot be reached.
    pub fn open(step: &mut Step, folder: &Path, suite: &str, log: &Path) -> Result<Self> {
        let source = Suite {
            name: suite.to_owned(),
            uri: mirror()?,
            release_file: None,
        };
        Self::open_suites(step, folder, &[source], log)
    }

    /// [`PrivateApt::open`] for packages of another architecture than the machine's.
    ///
    /// # Errors
    /// As [`PrivateApt::open`].
    pub fn open_architecture(
        step: &mut Step,
        folder: &Path,
        suite: &str,
        architecture: &str,
        log: &Path,
    ) -> Result<Self> {
        let source = Suite {
            name: suite.to_owned(),
            uri: mirror()?,
            release_file: None,
        };
        Self::open_with(
            step,
            folder,
            &[source],
            &[("APT::Architecture", architecture.to_owned())],
            log,
        )
    }

    /// [`PrivateApt::open`] for several suites, each with its own mirror; for example those of the machine.
    ///
    /// # Errors
    /// When a list cannot be fetched.
    pub fn open_suites(step: &mut Step, folder: &Path, suites: &[Suite], log: &Path) -> Result<Self> {
        Self::open_with(step, folder, suites, &[], log)
    }

    fn open_with(
        step: &mut Step,
        folder: &Path,
        suites: &[Suite],
        more: &[(&str, String)],
        log: &Path,
    ) -> Result<Self> {
        let apt = PrivateApt {
            folder: folder.to_owned(),
        };
        for part in ["lists/partial", "archives/partial", "state", "cache", "empty"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let at = |part: &str| folder.join(part).display().to_string();
        // An empty status file means that nothing is installed: what apt then downloads is complete, down to libc.
        write_file(&folder.join("status"), "")?;
        let sources: String = suites.iter().map(|suite| suite.line() + "\n").collect();
        write_file(&folder.join("sources.list"), sources)?;
        let configuration = [
            ("Dir::State", at("state")),
            ("Dir::State::Lists", at("lists")),
            ("Dir::State::status", at("status")),
            ("Dir::Cache", at("cache")),
            ("Dir::Cache::Archives", at("archives")),
            ("Dir::Etc::sourcelist", at("sources.list")),
            ("Dir::Etc::sourceparts", at("empty")),
            ("Dir::Etc::preferencesparts", at("empty")),
            ("Acquire::Languages", "none".to_owned()),
            (
                "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled",
                "false".to_owned(),
            ),
            ("APT::Install-Recommends", "false".to_owned()),
            // Otherwise root's apt downloads as `_apt`, which may not enter a home folder.
            ("APT::Sandbox::User", "root".to_owned()),
        ];
        let text: String = configuration
            .iter()
            .chain(more)
            .map(|(name, value)| format!("{name} \"{value}\";\n"))
            .collect();
        write_file(&folder.join("apt.conf"), text)?;
        run_logged(step, apt.command("apt-get").arg("update"), log).with_context(|| {
            let names: Vec<&str> = suites.iter().map(|suite| suite.name.as_str()).collect();
            format!("cannot fetch the package list of {}", names.join(", "))
        })?;
        Ok(apt)
    }

    /// The version of `package` that would be installed, when there is one.
    ///
    /// # Errors
    /// When apt cannot be asked.
    pub fn candidate(&self, package: &str) -> Result<Option<String>> {
        let policy = output_of(self.command("apt-cache").args(["policy", package]))?;
        let candidate = policy
            .lines()
            .find_map(|line| line.trim().strip_prefix("Candidate: "));
        Ok(candidate
            .filter(|version| *version != "(none)")
            .map(str::to_owned))
    }

    /// The packages that `package` depends on directly.
    ///
    /// # Errors
    /// When apt cannot be asked.
    pub fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let text = output_of(
            self.command("apt-cache")
                .args(["depends", "--important", package]),
        )?;
        Ok(text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .collect())
    }

    /// Downloads `package` with everything it needs, and returns the `.deb` files.
    ///
    /// # Errors
    /// When something cannot be fetched.
    pub fn download_closure(&self, step: &mut Step, package: &str, log: &Path) -> Result<Vec<PathBuf>> {
        run_logged(
            step,
            self.command("apt-get")
                .args(["install", "--yes", "--download-only", package]),
            log,
        )?;
        debs_in(&self.folder.join("archives"))
    }

    /// Downloads `package` alone into `folder` and returns the `.deb` file.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub fn download(&self, step: &mut Step, package: &str, folder: &Path, log: &Path) -> Result<PathBuf> {
        fs::create_dir_all(folder)?;
        run_logged(
            step,
            self.command("apt-get")
                .args(["download", package])
                .current_dir(folder),
            log,
        )?;
        let found = debs_in(folder)?;
        ensure!(
            found.len() == 1,
            "apt-get download {package} left {} packages",
            found.len()
        );
        found.into_iter().next().context("nothing was downloaded")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", self.folder.join("apt.conf"))
            .env("LC_ALL", "C");
        command
    }
}

fn debs_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::parse_targets;

    #[test]
    fn only_debians_own_main_suites_are_taken_and_each_once() {
        let targets = "Packages|main|bookworm|http://mirror.test/debian/|/nowhere/a_main_binary-amd64_Packages\n\
                       Packages|main|bookworm|http://mirror.test/debian/|/nowhere/a_main_binary-all_Packages\n\
                       Translations|main|bookworm|http://mirror.test/debian/|/nowhere/t\n\
                       Packages|contrib|bookworm|http://mirror.test/debian/|/nowhere/c\n\
                       Packages|main|nodistro|http://elsewhere.test/|/nowhere/n\n\
                       Packages|main|bookworm-security|http://mirror.test/security/|/nowhere/s\n";
        let names: Vec<_> = parse_targets(targets)
            .into_iter()
            .map(|suite| (suite.name, suite.uri))
            .collect();
        let expected = [
            ("bookworm".to_owned(), "http://mirror.test/debian/".to_owned()),
            (
                "bookworm-security".to_owned(),
                "http://mirror.test/security/".to_owned(),
            ),
        ];
        assert_eq!(names, expected);
    }
}
