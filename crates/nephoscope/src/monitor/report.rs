//! The report's file, and what becomes of it when the disk does not take it.

use std::io::{self, Write};

use nephoscope_inventory::Report;

use crate::exit::{Failure, exit};
use crate::privilege::ReportFile;
use crate::runtime::{KEPT_REPORT, Kept};

/// Writes a report where it was asked for; if that cannot be, into the VM's directory.
///
/// # Errors
/// If it is not where it was asked for: the line says where it is, if anywhere.
pub(super) fn write(report: &Report, file: &mut ReportFile, kept: &Kept) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec(report)?;
    text.push(b'\n');
    let Err(error) = file.write(&text) else {
        return Ok(());
    };
    let (path, instead) = (file.path().display(), kept.path(KEPT_REPORT));
    let (failure, message) = match keep(&text, kept) {
        Ok(()) => (
            Failure::ReportElsewhere,
            format!(
                "the report could not be written to {path} ({error}): it is kept in {}, where `nephoscope ps --report` reads \
                 it",
                instead.display()
            ),
        ),
        Err(second) => (
            Failure::ReportNotWritten,
            format!(
                "the report could not be written to {path} ({error}) nor to {} ({second}): make room, then `nephoscope \
                 attach --name {}` writes it from the journal",
                instead.display(),
                kept.name
            ),
        ),
    };
    Err(exit(failure, message))
}

/// Whole or not at all.
fn keep(text: &[u8], kept: &Kept) -> io::Result<()> {
    const PARTIAL: &str = "report.json.partial";
    let write = || -> io::Result<()> {
        let mut file = kept.create(PARTIAL, true)?;
        file.write_all(text)?;
        file.sync_all()?;
        kept.rename(PARTIAL, KEPT_REPORT)
    };
    write().inspect_err(|_| kept.remove(PARTIAL))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::exit::Exit;
    use crate::runtime::VmDir;

    fn failure(error: &anyhow::Error) -> Failure {
        error.downcast_ref::<Exit>().unwrap().failure
    }

    #[test]
    fn a_report_that_the_disk_does_not_take_is_kept_elsewhere_and_the_line_says_where() {
        let folder = tempfile::tempdir().unwrap();
        let dir = VmDir::at("web1", folder.path());
        let report = crate::view::tests::canned();
        let kept = dir.hold().unwrap();
        write(
            &report,
            &mut ReportFile::of(&folder.path().join("good.json")),
            &kept,
        )
        .unwrap();
        // A device that is always full: the file beside it cannot be made either.
        let error = write(
            &report,
            &mut ReportFile::of(Path::new("/dev/full/report.json")),
            &kept,
        )
        .unwrap_err();
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
        let kept = VmDir::at("web1", folder.path()).hold().unwrap();
        // Nothing can be made in a folder that was removed.
        std::fs::remove_dir(kept.path("")).unwrap();
        let mut file = ReportFile::of(Path::new("/dev/full/r.json"));
        let error = write(&crate::view::tests::canned(), &mut file, &kept).unwrap_err();
        assert_eq!(failure(&error), Failure::ReportNotWritten);
        assert!(error.to_string().contains("attach --name web1"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
