//! The report's file, and what becomes of it when the disk does not take it.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use nephoscope_inventory::Report;

use crate::exit::{Failure, exit};
use crate::runtime::VmDir;

/// Writes a report where it was asked for; if that cannot be, into the VM's directory.
///
/// # Errors
/// If it is not where it was asked for: the line says where it is, if anywhere.
pub(super) fn write(report: &Report, path: &Path, dir: &VmDir) -> anyhow::Result<()> {
    let Err(error) = whole(report, path) else {
        return Ok(());
    };
    let kept = dir.kept_report();
    let message = match whole(report, &kept) {
        Ok(()) => format!(
            "the report could not be written to {} ({error}): it is kept in {}, where `nephoscope ps --report` reads it",
            path.display(),
            kept.display()
        ),
        Err(second) => format!(
            "the report could not be written to {} ({error}) nor to {} ({second}): make room, then \
             `nephoscope attach --name {}` writes it from the journal",
            path.display(),
            kept.display(),
            dir.name
        ),
    };
    let failure = if kept.exists() {
        Failure::ReportElsewhere
    } else {
        Failure::ReportNotWritten
    };
    Err(exit(failure, message))
}

/// Whole or not at all.
fn whole(report: &Report, path: &Path) -> io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let write = || -> io::Result<()> {
        let mut file = BufWriter::new(File::create(&partial)?);
        serde_json::to_writer(&mut file, report)?;
        file.write_all(b"\n")?;
        file.into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()?;
        std::fs::rename(&partial, path)
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&partial);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    fn failure(error: &anyhow::Error) -> Failure {
        error.downcast_ref::<Exit>().unwrap().failure
    }

    #[test]
    fn a_report_that_the_disk_does_not_take_is_kept_elsewhere_and_the_line_says_where() {
        let folder = tempfile::tempdir().unwrap();
        let dir = VmDir::at("web1", folder.path());
        let report = crate::view::tests::canned();
        write(&report, &folder.path().join("good.json"), &dir).unwrap();
        // A device that is always full: the file beside it cannot be made either.
        let error = write(&report, Path::new("/dev/full/report.json"), &dir).unwrap_err();
        assert_eq!(failure(&error), Failure::ReportElsewhere);
        let text = error.to_string();
        assert!(
            text.contains("/dev/full/report.json") && text.contains("report.json,"),
            "{text}"
        );
        let kept: Report = serde_json::from_slice(&std::fs::read(dir.kept_report()).unwrap()).unwrap();
        assert_eq!(kept, report);
    }

    #[test]
    fn a_report_that_nothing_takes_says_so_and_leaves_no_half_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let dir = VmDir::at("web1", &folder.path().join("gone"));
        let error = write(&crate::view::tests::canned(), Path::new("/dev/full/r.json"), &dir).unwrap_err();
        assert_eq!(failure(&error), Failure::ReportNotWritten);
        assert!(error.to_string().contains("attach --name web1"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
