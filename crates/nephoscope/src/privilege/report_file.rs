//! The report's file, which a monitor that is no longer root may not be able to make at the end.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::process::geteuid;

/// Where a report will be written.
#[derive(Debug)]
pub(crate) struct ReportFile {
    path: PathBuf,
    opened: Option<File>,
}

impl ReportFile {
    /// Before privileges are dropped: opens the file if root does, since nobody else may do it later. It is not changed.
    ///
    /// # Errors
    /// If it can be seen already that there will be no report.
    pub(crate) fn prepare(path: &Path) -> anyhow::Result<Self> {
        let opened = if geteuid().is_root() {
            let options = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(path);
            Some(options.with_context(|| format!("the report cannot be written to {}", path.display()))?)
        } else {
            None
        };
        Ok(Self {
            path: path.to_owned(),
            opened,
        })
    }

    /// The same for a watch, which goes on whatever can be seen already.
    pub(crate) fn of(path: &Path) -> Self {
        Self::prepare(path).unwrap_or_else(|_| Self {
            path: path.to_owned(),
            opened: None,
        })
    }

    /// Where it is to be.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder in which files are made for it.
    pub(crate) fn folder(&self) -> PathBuf {
        let above = self.path.parent().filter(|above| !above.as_os_str().is_empty());
        above.unwrap_or(Path::new(".")).to_path_buf()
    }

    /// Writes the report whole or not at all: beside the file and then in its place; where that is not allowed any more,
    /// into the file that was opened, which is emptied again if it fails.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn write(&mut self, text: &[u8]) -> std::io::Result<()> {
        let mut partial = self.path.as_os_str().to_owned();
        partial.push(".partial");
        let beside = || -> std::io::Result<()> {
            let mut file = File::create(&partial)?;
            file.write_all(text)?;
            file.sync_all()?;
            std::fs::rename(&partial, &self.path)
        };
        let written = beside().inspect_err(|_| {
            let _ = std::fs::remove_file(&partial);
        });
        match (&mut self.opened, written) {
            (Some(file), Err(_)) => in_place(file, text),
            (_, written) => written,
        }
    }
}

fn in_place(file: &mut File, text: &[u8]) -> std::io::Result<()> {
    file.set_len(0)?;
    file.write_all(text)
        .and_then(|()| file.sync_all())
        .inspect_err(|_| {
            let _ = file.set_len(0);
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_whose_folder_is_closed_meanwhile_goes_into_the_file_that_was_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        let mut report = ReportFile {
            path: path.join("not-a-folder"),
            opened: Some(File::create(&path).unwrap()),
        };
        report.write(b"{}").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{}");
        let mut report = ReportFile::prepare(&path).unwrap();
        report.write(b"{\"a\":1}").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"a\":1}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
