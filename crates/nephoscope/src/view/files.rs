//! Files that were read, as a table.

use nephoscope_inventory::{FileCoverage, FileReport};

use super::candidates::alternatives;
use crate::text::{Cell, Column, Paint, Table, Tone, escape, wrap};

/// One line for each file: its verdict, what it is of, who read it.
#[must_use]
pub(crate) fn file_table(files: &[FileReport]) -> Table {
    let mut table = Table::new([
        Column::flexible("FILE", 3),
        Column::left("VERDICT"),
        Column::flexible("PACKAGE", 2),
        Column::flexible("READ BY", 2),
    ]);
    for file in files {
        let tone = match file.verdict.as_str() {
            "known" => Tone::Plain,
            "modified" => Tone::Bad,
            _ => Tone::Warn,
        };
        let path = match file.path.as_str() {
            "" => format!("(inode {} of disk {})", file.inode, file.disk),
            path => escape(path).into_owned(),
        };
        let path = match file.former_paths.first() {
            Some(was) => format!("{path} (was {})", escape(was)),
            None => path,
        };
        table.push(vec![
            Cell::path(path),
            Cell::text(escape(&file.verdict)).toned(tone),
            Cell::alternatives(of(file)),
            Cell::alternatives(readers(file)),
        ]);
    }
    table
}

/// What of files was not seen, in a sentence.
#[must_use]
pub(crate) fn files_missing(coverage: &FileCoverage, columns: usize, paint: Paint) -> String {
    let missing: Vec<String> = coverage
        .missing
        .iter()
        .map(|(why, count)| format!("{count} {}", escape(&why.replace('_', " "))))
        .collect();
    let lines = wrap(&format!("not all was seen: {}", missing.join(", ")), columns);
    lines
        .into_iter()
        .map(|line| format!("{}\n", paint.paint(Tone::Warn, &line)))
        .collect()
}

/// What it is of, or like.
fn of(file: &FileReport) -> Vec<String> {
    let mut of = alternatives(&file.candidates);
    let difference = file
        .nearest
        .as_ref()
        .and_then(|nearest| nearest.difference.as_ref());
    if let (Some(difference), Some(first)) = (difference, of.first_mut()) {
        first.push_str(&format!(
            " +{} -{}",
            difference.lines_added, difference.lines_removed
        ));
    }
    of
}

/// The programs that read it, each once.
fn readers(file: &FileReport) -> Vec<String> {
    let mut programs: Vec<String> = file
        .readers
        .iter()
        .map(|reader| reader.program.as_deref().unwrap_or("an unidentified program"))
        .map(|program| escape(program.rsplit('/').next().unwrap_or(program)).into_owned())
        .collect();
    programs.sort();
    programs.dedup();
    if programs.is_empty() {
        programs.push("not known".to_owned());
    }
    programs
}

#[cfg(test)]
mod tests {
    use nephoscope_inventory::{CandidateReport, ReaderReport, SpaceId};

    use super::*;
    use crate::text::Paint;

    fn file(path: &str, verdict: &str, programs: &[Option<&str>]) -> FileReport {
        FileReport {
            former_paths: Vec::new(),
            path: path.to_owned(),
            disk: 0,
            partition: 1,
            inode: 12,
            generation: 0,
            bytes: 100,
            verdict: verdict.to_owned(),
            candidates: vec![CandidateReport {
                package: Some("php-x".to_owned()),
                source: None,
                version: Some("1.0".to_owned()),
            }],
            pieces_read: 1,
            pieces_known: 1,
            readers: programs
                .iter()
                .map(|program| ReaderReport {
                    address_space: SpaceId(3),
                    program: program.map(str::to_owned),
                    first_ns: 0,
                    bytes: 100,
                    how: "copied".to_owned(),
                })
                .collect(),
            nearest: None,
            unattributed: 0,
        }
    }

    #[test]
    fn what_was_not_seen_is_said_in_lines_that_fit() {
        let missing = [
            "volumes_not_understood",
            "transfers_unheard",
            "disks_left_alone",
            "x\u{1b}[2J",
        ];
        let coverage = FileCoverage {
            complete: false,
            missing: missing.map(|why| (why.to_owned(), 12)).into(),
        };
        let text = files_missing(&coverage, 60, Paint::OFF);
        assert!(
            text.starts_with("not all was seen: 12 disks left alone, "),
            "{text}"
        );
        assert!(
            text.contains("12 volumes not") && !text.contains('\u{1b}'),
            "{text}"
        );
        assert!(text.lines().all(|line| crate::text::width(line) <= 60), "{text}");
    }

    #[test]
    fn a_file_is_one_line_that_fits_and_says_nothing_to_the_terminal() {
        let files = [
            file(
                "/usr/share/php/a.php",
                "known",
                &[Some("/usr/sbin/php-fpm8.2"), Some("/usr/sbin/php-fpm8.2")],
            ),
            file(&"/x\u{1b}[2J".repeat(60), "unknown", &[None, Some("/bin/md5sum")]),
            file("", "modified", &[]),
        ];
        for columns in [80, 100] {
            let text = file_table(&files).render(columns, Paint::OFF);
            assert_eq!(text.lines().count(), 4, "{text}");
            assert!(
                text.lines()
                    .all(|line| crate::text::width(line) <= columns && crate::text::escape(line) == line)
            );
            for word in [
                "php-fpm8.2",
                "php-x 1.0",
                "(inode 12 of disk 0)",
                "not known",
                "modified",
            ] {
                assert!(text.contains(word), "{word}: {text}");
            }
        }
    }
}
