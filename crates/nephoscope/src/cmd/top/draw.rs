//! One frame: header, the page, and a line of keys.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::app::{App, Page};
use crate::text::{Paint, Table, Tone, escape, fit_end, wrap};
use crate::view;

const KEYS: [(&str, &str); 7] = [
    ("up/down, j/k", "select"),
    ("enter", "modules of the selected address space"),
    ("esc, h", "back to the address spaces"),
    ("f", "findings"),
    ("a", "also what has ended"),
    ("?", "this help"),
    ("q", "quit"),
];

/// A narrower screen does without the number of modules.
const NARROW: usize = 90;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, app: &mut App, paint: Paint) {
    let columns = usize::from(frame.area().width);
    let header = header(app, columns, paint);
    let height = u16::try_from(header.len()).unwrap_or(u16::MAX);
    let rows = [
        Constraint::Length(height),
        Constraint::Min(0),
        Constraint::Length(1),
    ];
    let [top, body, bottom] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(Paragraph::new(header), top);
    let items = items(app, columns, paint);
    frame.render_widget(Paragraph::new(visible(items, app.selected, body)), body);
    frame.render_widget(Paragraph::new(footer(app, columns, paint)), bottom);
}

/// Lines of the page: a heading, and what can be selected; each may be several lines.
struct Items<'a> {
    heading: Vec<Line<'a>>,
    items: Vec<Vec<Line<'a>>>,
}

fn header<'a>(app: &App, columns: usize, paint: Paint) -> Vec<Line<'a>> {
    let Some(report) = &app.report else {
        return vec![line(
            Tone::Plain,
            format!("{}: waiting for its watch …", app.name),
            paint,
        )];
    };
    let mut lines = vec![line(
        Tone::Strong,
        fit_end(&view::vm_line(report), columns),
        paint,
    )];
    let (tone, headline) = view::headline(&report.coverage);
    lines.push(line(tone, fit_end(&headline, columns), paint));
    for gap in view::gaps(&report.coverage, 1) {
        lines.push(line(tone, fit_end(&format!("  {gap}"), columns), paint));
    }
    let rates = app
        .rates
        .map_or("rates come with the next report".to_owned(), |rates| {
            format!(
                "{:.0} captures/s, {:.0} root changes/s",
                rates.captures, rates.root_changes
            )
        });
    let (tone, findings) = view::tally(&report.findings);
    lines.push(Line::from(vec![
        span(Tone::Plain, format!("{rates}; "), paint),
        span(tone, findings, paint),
    ]));
    lines.push(Line::default());
    lines
}

fn items<'a>(app: &App, columns: usize, paint: Paint) -> Items<'a> {
    let Some(report) = &app.report else {
        return Items {
            heading: Vec::new(),
            items: Vec::new(),
        };
    };
    match app.page {
        Page::Spaces => table(
            &view::active_table(&app.rows(), view::watched_ns(report), columns < NARROW),
            columns,
            paint,
        ),
        Page::Modules(id) => {
            let found = report.address_spaces.iter().find(|space| space.id.0 == id);
            let mut items = match found {
                Some(space) => table(&view::module_table(space), columns, paint),
                None => table(&Table::new([]), columns, paint),
            };
            let name = fit_end(&format!("Modules of {}", view::space_name(report, id)), columns);
            items.heading.insert(0, line(Tone::Strong, name, paint));
            items
        }
        Page::Findings => {
            let newest = report.findings.iter().rev();
            let item = |finding: &nephoscope_finding::Finding| {
                let space = finding.address_space.map(|id| view::space_name(report, id));
                finding_lines(finding, space.as_deref(), columns, paint)
            };
            Items {
                heading: vec![line(Tone::Strong, "Findings, the newest first".to_owned(), paint)],
                items: newest.map(item).collect(),
            }
        }
        Page::Help => Items {
            heading: KEYS
                .iter()
                .map(|(key, what)| line(Tone::Plain, format!("  {key:<14}{what}"), paint))
                .collect(),
            items: Vec::new(),
        },
    }
}

fn finding_lines<'a>(
    finding: &nephoscope_finding::Finding,
    space: Option<&str>,
    columns: usize,
    paint: Paint,
) -> Vec<Line<'a>> {
    let text = view::plain_line(finding, space, columns);
    text.lines()
        .map(|text| line(view::severity_tone(finding.severity), text.to_owned(), paint))
        .collect()
}

fn table<'a>(table: &Table, columns: usize, paint: Paint) -> Items<'a> {
    let mut rows = table.fitted(columns).into_iter().map(|row| {
        let mut spans = Vec::with_capacity(row.len() * 2);
        for (text, tone) in row {
            if !spans.is_empty() {
                spans.push(Span::raw("  "));
            }
            spans.push(span(tone, text, paint));
        }
        Line::from(spans)
    });
    Items {
        heading: rows.next().into_iter().collect(),
        items: rows.map(|row| vec![row]).collect(),
    }
}

/// The heading, and as many items as fit, the selected one among them.
fn visible(items: Items<'_>, selected: usize, area: Rect) -> Vec<Line<'_>> {
    let Items { heading, items } = items;
    let room = usize::from(area.height).saturating_sub(heading.len());
    let mut first = selected.min(items.len().saturating_sub(1));
    let mut used = items.get(first).map_or(0, Vec::len);
    while let Some(before) = first.checked_sub(1)
        && let Some(item) = items.get(before)
        && used + item.len() <= room
    {
        used += item.len();
        first = before;
    }
    let mut lines = heading;
    for (number, item) in items.into_iter().enumerate().skip(first) {
        let style = if number == selected {
            Style::new().add_modifier(Modifier::REVERSED)
        } else {
            Style::new()
        };
        lines.extend(item.into_iter().map(|line| line.patch_style(style)));
    }
    lines
}

fn footer<'a>(app: &App, columns: usize, paint: Paint) -> Line<'a> {
    if app.has_ended() {
        let said = format!(
            "{} has ended; this is the last that was seen of it; q quits",
            app.name
        );
        return line(Tone::Bad, fit_end(&said, columns), paint)
            .patch_style(Style::new().add_modifier(Modifier::REVERSED));
    }
    if let Some(trouble) = &app.trouble {
        let first = wrap(&escape(trouble), columns).into_iter().next();
        return line(Tone::Bad, first.unwrap_or_default(), paint);
    }
    let all = if app.all { "hide ended" } else { "show ended" };
    let keys = format!("q quit   j/k select   enter modules   f findings   a {all}   ? help");
    line(Tone::Faint, fit_end(&keys, columns), paint)
}

fn line<'a>(tone: Tone, text: String, paint: Paint) -> Line<'a> {
    Line::from(span(tone, text, paint))
}

fn span<'a>(tone: Tone, text: String, paint: Paint) -> Span<'a> {
    let style = match tone {
        Tone::Plain => Style::new(),
        Tone::Strong => Style::new().add_modifier(Modifier::BOLD),
        Tone::Faint => Style::new().add_modifier(Modifier::DIM),
        Tone::Good => Style::new().fg(Color::Green),
        Tone::Warn => Style::new().fg(Color::Yellow),
        Tone::Bad => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
    };
    Span::styled(text, if paint.is_on() { style } else { Style::new() })
}

#[cfg(test)]
mod tests {
    use super::super::poll::News;
    use super::*;
    use crate::view::tests::{any_report, canned};
    use crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};
    use proptest::prelude::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn drawn(app: &mut App, columns: u16, rows: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
        terminal.draw(|frame| draw(frame, app, Paint::ON)).unwrap();
        terminal.backend().to_string()
    }

    fn press(app: &mut App, key: char) {
        let code = if key == '\n' {
            KeyCode::Enter
        } else {
            KeyCode::Char(key)
        };
        app.event(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)));
    }

    #[test]
    fn every_page_says_what_it_is_for() {
        let mut app = App::new("web1".into());
        assert!(drawn(&mut app, 80, 24).contains("web1: waiting for its watch"));
        app.take(News::Report(Box::new(canned())));
        for columns in [80, 100] {
            let spaces = drawn(&mut app, columns, 30);
            for word in [
                "COVERAGE NOT COMPLETE",
                "PROGRAM",
                "sbin/nginx",
                "q quit",
                "4 findings: 1 high",
            ] {
                assert!(spaces.contains(word), "{word} is missing:\n{spaces}");
            }
        }
        for (key, word) in [
            ('f', "Findings, the newest first"),
            ('?', "back to the address spaces"),
        ] {
            press(&mut app, key);
            let page = drawn(&mut app, 80, 24);
            assert!(page.contains(word), "{page}");
            press(&mut app, key);
        }
        press(&mut app, '\n');
        assert!(drawn(&mut app, 80, 24).contains("BUILD ID"));
        app.take(News::Ended);
        assert!(drawn(&mut app, 80, 24).contains("web1 has ended"));
    }

    #[test]
    fn the_selected_row_is_on_the_screen() {
        let mut app = App::new("web1".into());
        app.take(News::Report(Box::new(canned())));
        press(&mut app, 'a');
        press(&mut app, 'G');
        let last = app.rows().last().unwrap().id.to_string();
        let screen = drawn(&mut app, 100, 10);
        let shown = screen
            .lines()
            .any(|line| line.trim_matches(['"', ' ']).starts_with(&last));
        assert!(shown, "{last} is not in\n{screen}");
    }

    proptest! {
        #[test]
        fn any_report_is_drawn_on_any_screen(report in any_report(), columns in 1_u16..160, rows in 1_u16..50, keys in "[jkfa?\nhG]{0,8}") {
            let mut app = App::new("web1".into());
            app.take(News::Report(Box::new(report)));
            for key in keys.chars() {
                press(&mut app, key);
                let screen = drawn(&mut app, columns, rows);
                prop_assert!(screen.lines().all(|line| crate::text::escape(line) == line));
            }
        }
    }
}
