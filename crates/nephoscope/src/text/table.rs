//! Tables that never are wider than they may be.

use super::style::{Paint, Tone};
use super::width::{alternatives, fit_end, fit_start, width};

/// What a cell says; it decides what is left out when there is no room.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Content {
    /// Loses its end.
    Text(String),
    /// Loses its beginning.
    Path(String),
    /// Loses alternatives, and says how many.
    Alternatives(Vec<String>),
}

/// One cell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cell {
    content: Content,
    tone: Tone,
}

impl Cell {
    /// A text.
    #[must_use]
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self {
            content: Content::Text(text.into()),
            tone: Tone::Plain,
        }
    }

    /// A path.
    #[must_use]
    pub(crate) fn path(path: impl Into<String>) -> Self {
        Self {
            content: Content::Path(path.into()),
            tone: Tone::Plain,
        }
    }

    /// Alternatives.
    #[must_use]
    pub(crate) fn alternatives(all: Vec<String>) -> Self {
        Self {
            content: Content::Alternatives(all),
            tone: Tone::Plain,
        }
    }

    /// In this tone.
    #[must_use]
    pub(crate) fn toned(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }

    /// Its tone.
    #[must_use]
    pub(crate) fn tone(&self) -> Tone {
        self.tone
    }

    /// What fits.
    #[must_use]
    pub(crate) fn fitted(&self, most: usize) -> String {
        match &self.content {
            Content::Text(text) => fit_end(text, most),
            Content::Path(path) => fit_start(path, most),
            Content::Alternatives(all) => alternatives(all, most),
        }
    }

    fn width(&self) -> usize {
        match &self.content {
            Content::Text(text) | Content::Path(text) => width(text),
            Content::Alternatives(all) => width(&all.join(" | ")),
        }
    }
}

/// One column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Column {
    title: &'static str,
    right: bool,
    /// Its share of what the others leave; 0 for a column that gets what it wants.
    share: usize,
}

impl Column {
    /// Words, from the left.
    #[must_use]
    pub(crate) const fn left(title: &'static str) -> Self {
        Self {
            title,
            right: false,
            share: 0,
        }
    }

    /// Numbers, from the right.
    #[must_use]
    pub(crate) const fn right(title: &'static str) -> Self {
        Self {
            title,
            right: true,
            share: 0,
        }
    }

    /// Words that may be long: they get this share of what is left.
    #[must_use]
    pub(crate) const fn flexible(title: &'static str, share: usize) -> Self {
        Self {
            title,
            right: false,
            share,
        }
    }
}

/// A table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

/// Between columns.
const GAP: usize = 2;
/// The most that a column that is not flexible takes.
const MOST_FIXED: usize = 24;

impl Table {
    /// A table of these columns.
    #[must_use]
    pub(crate) fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self {
            columns: columns.into(),
            rows: Vec::new(),
        }
    }

    /// One more row.
    pub(crate) fn push(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// The title line and the rows, as cells that fit their columns exactly, with their tones.
    #[must_use]
    pub(crate) fn fitted(&self, most: usize) -> Vec<Vec<(String, Tone)>> {
        let widths = self.widths(most);
        let titles: Vec<Cell> = self
            .columns
            .iter()
            .map(|column| Cell::text(column.title).toned(Tone::Faint))
            .collect();
        let row = |row: &Vec<Cell>| {
            row.iter()
                .zip(self.columns.iter().zip(&widths))
                .map(|(cell, (column, most))| (padded(&cell.fitted(*most), *most, column.right), cell.tone()))
                .collect()
        };
        std::iter::once(&titles).chain(&self.rows).map(row).collect()
    }

    /// The table as lines.
    #[must_use]
    pub(crate) fn render(&self, most: usize, paint: Paint) -> String {
        let mut out = String::new();
        for row in self.fitted(most) {
            let last = row.len().saturating_sub(1);
            for (i, (text, tone)) in row.iter().enumerate() {
                let text = if i == last { text.trim_end() } else { text };
                out.push_str(&paint.paint(*tone, text));
                if i < last {
                    out.push_str(&" ".repeat(GAP));
                }
            }
            out.push('\n');
        }
        out
    }

    /// Columns' widths: the fixed ones as wide as they want, the flexible ones share the rest.
    fn widths(&self, most: usize) -> Vec<usize> {
        let wants: Vec<usize> = (0..self.columns.len()).map(|i| self.wants(i)).collect();
        let mut left = most.saturating_sub(GAP * self.columns.len().saturating_sub(1));
        let mut widths = vec![0; self.columns.len()];
        let share = |i: &usize| self.columns.get(*i).map_or(0, |column| column.share);
        let by_need = |flexible: bool| {
            let all = (0..self.columns.len()).filter(|i| (share(i) > 0) == flexible);
            let mut order: Vec<usize> = all.collect();
            order.sort_by_key(|i| wants.get(*i).copied().unwrap_or(0) / share(i).max(1));
            order
        };
        // The least demanding first: what it does not need is for the others.
        for flexible in [false, true] {
            let order = by_need(flexible);
            let mut shares: usize = order.iter().map(share).sum();
            for column in &order {
                let most = if flexible {
                    left * share(column) / shares.max(1)
                } else {
                    left.min(MOST_FIXED)
                };
                shares = shares.saturating_sub(share(column));
                let given = wants.get(*column).copied().unwrap_or(0).min(most);
                if let Some(width) = widths.get_mut(*column) {
                    *width = given;
                }
                left = left.saturating_sub(given);
            }
        }
        widths
    }

    fn wants(&self, column: usize) -> usize {
        let title = self.columns.get(column).map_or(0, |c| width(c.title));
        let cells = self
            .rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(Cell::width);
        cells.max().unwrap_or(0).max(title)
    }
}

fn padded(text: &str, most: usize, right: bool) -> String {
    let space = " ".repeat(most.saturating_sub(width(text)));
    if right {
        format!("{space}{text}")
    } else {
        format!("{text}{space}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const COLUMNS: [Column; 4] = [
        Column::right("ID"),
        Column::flexible("PROGRAM", 1),
        Column::flexible("PACKAGE", 1),
        Column::left("VERDICT"),
    ];

    fn table(rows: &[[&str; 4]]) -> Table {
        let mut table = Table::new(COLUMNS);
        for [id, program, package, verdict] in rows {
            table.push(vec![
                Cell::text(*id),
                Cell::path(*program),
                Cell::alternatives(package.split('|').map(str::to_owned).collect()),
                Cell::text(*verdict).toned(Tone::Bad),
            ]);
        }
        table
    }

    #[test]
    fn columns_are_aligned_and_the_widest_loses_most() {
        let table = table(&[
            ["4", "/usr/sbin/nginx", "nginx 1.22.1-9", "identified"],
            [
                "1234",
                "/opt/a/very/long/path/to/some/program",
                "p 1|2",
                "1 modified",
            ],
        ]);
        let expected = [
            "  ID  PROGRAM                PACKAGE         VERDICT",
            "   4  /usr/sbin/nginx        nginx 1.22.1-9  identified",
            "1234  …path/to/some/program  p 1 | 2         1 modified",
        ];
        let text = table.render(55, Paint::OFF);
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn paint_takes_no_columns() {
        let table = table(&[["4", "/bin/sh", "dash 0.5", "1 modified"]]);
        let painted = table.render(60, Paint::ON);
        assert!(painted.contains("\x1b[1;31m1 modified\x1b[0m"), "{painted:?}");
        let mut plain = painted;
        for code in ["\x1b[1;31m", "\x1b[2m", "\x1b[0m"] {
            plain = plain.replace(code, "");
        }
        // Titles keep their padding inside the paint; lines have none at their end either way.
        assert_eq!(plain, table.render(60, Paint::OFF));
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_the_table(
            rows in proptest::collection::vec(any::<[String; 4]>(), 0..6),
            most in 20_usize..=100,
        ) {
            let mut table = Table::new(COLUMNS);
            for [id, program, package, verdict] in &rows {
                let clean = |text: &String| crate::text::escape(text).into_owned();
                table.push(vec![
                    Cell::text(clean(id)),
                    Cell::path(clean(program)),
                    Cell::alternatives(vec![clean(package), clean(program), clean(id)]),
                    Cell::text(clean(verdict)),
                ]);
            }
            let text = table.render(most, Paint::OFF);
            prop_assert_eq!(text.lines().count(), rows.len() + 1);
            for line in text.lines() {
                prop_assert!(width(line) <= most, "{line:?}");
            }
        }
    }
}
