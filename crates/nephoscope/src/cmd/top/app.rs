//! What `top` shows, and what keys do to it. Nothing here touches the terminal.

use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use nephoscope_inventory::Report;

use super::poll::News;
use crate::view;

/// What is on the screen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Page {
    /// The address spaces.
    Spaces,
    /// The modules of one.
    Modules(u32),
    /// The findings.
    Findings,
    /// The keys.
    Help,
}

/// Whether to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Go on.
    Stay,
    /// The user is done.
    Quit,
}

/// Per second, since the report before.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Rates {
    pub(super) captures: f64,
    pub(super) root_changes: f64,
}

/// The state.
#[derive(Debug)]
pub(super) struct App {
    pub(super) name: String,
    pub(super) report: Option<Report>,
    pub(super) rates: Option<Rates>,
    pub(super) trouble: Option<String>,
    pub(super) page: Page,
    pub(super) all: bool,
    /// The selected row of the page that is shown.
    pub(super) selected: usize,
    /// The selected address space: rows move when others become active.
    space: Option<u32>,
    ended: bool,
}

impl App {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            report: None,
            rates: None,
            trouble: None,
            page: Page::Spaces,
            all: false,
            selected: 0,
            space: None,
            ended: false,
        }
    }

    /// Takes what the watch said.
    pub(super) fn take(&mut self, news: News) {
        match news {
            News::Report(report) => {
                self.rates = self.report.as_ref().and_then(|before| rates(before, &report));
                self.report = Some(*report);
                self.trouble = None;
                self.find_selected();
            }
            News::Trouble(what) => self.trouble = Some(what),
            News::Ended => {
                self.ended = true;
                self.trouble = None;
                self.rates = None;
            }
        }
    }

    /// Nobody asks the watch any more. Whether that is news.
    pub(super) fn unasked(&mut self) -> bool {
        let news = !self.ended && self.trouble.is_none();
        if news {
            self.trouble = Some("the watch is not asked any more: start top again".to_owned());
        }
        news
    }

    /// Whether the VM, or its watch, has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// The address spaces in the order in which they are shown: the one with the latest news first.
    pub(super) fn rows(&self) -> Vec<view::Row> {
        let Some(report) = &self.report else {
            return Vec::new();
        };
        let mut rows = view::rows(report, self.all);
        rows.sort_by_key(|row| (std::cmp::Reverse(row.last_ns), row.id));
        rows
    }

    /// Rows of the page that is shown.
    fn count(&self) -> usize {
        let report = self.report.as_ref();
        match self.page {
            Page::Spaces => self.rows().len(),
            Page::Modules(id) => report
                .and_then(|report| report.address_spaces.iter().find(|space| space.id.0 == id))
                .map_or(0, |space| space.modules.len()),
            Page::Findings => report.map_or(0, |report| report.findings.len()),
            Page::Help => 0,
        }
    }

    /// Does what a key says.
    pub(super) fn event(&mut self, event: &Event) -> Step {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.key(*key),
            _ => Step::Stay,
        }
    }

    fn key(&mut self, key: KeyEvent) -> Step {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c' | 'd') if control => return Step::Quit,
            _ if control => {}
            KeyCode::Char('q') => return Step::Quit,
            KeyCode::Esc | KeyCode::Backspace | KeyCode::Left | KeyCode::Char('h') => self.show(Page::Spaces),
            KeyCode::Char('?') => self.toggle(Page::Help),
            KeyCode::Char('f') => self.toggle(Page::Findings),
            KeyCode::Char('a') => {
                self.all = !self.all;
                self.find_selected();
            }
            KeyCode::Enter | KeyCode::Right | KeyCode::Char('l') if self.page == Page::Spaces => {
                if let Some(row) = self.rows().get(self.selected) {
                    self.show(Page::Modules(row.id));
                }
            }
            KeyCode::Up | KeyCode::Char('k') => self.select(self.selected.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.select(self.selected + 1),
            KeyCode::PageUp => self.select(self.selected.saturating_sub(10)),
            KeyCode::PageDown => self.select(self.selected + 10),
            KeyCode::Home | KeyCode::Char('g') => self.select(0),
            KeyCode::End | KeyCode::Char('G') => self.select(usize::MAX),
            _ => {}
        }
        Step::Stay
    }

    fn toggle(&mut self, page: Page) {
        self.show(if self.page == page { Page::Spaces } else { page });
    }

    fn show(&mut self, page: Page) {
        self.page = page;
        self.selected = 0;
        self.find_selected();
    }

    fn select(&mut self, row: usize) {
        self.selected = row.min(self.count().saturating_sub(1));
        if self.page == Page::Spaces {
            self.space = self.rows().get(self.selected).map(|row| row.id);
        }
    }

    /// The selected address space keeps its selection when it moves. The first row keeps it when nothing was selected.
    fn find_selected(&mut self) {
        if self.page == Page::Spaces
            && let Some(id) = self.space
            && let Some(row) = self.rows().iter().position(|row| row.id == id)
        {
            self.selected = row;
        }
        self.selected = self.selected.min(self.count().saturating_sub(1));
    }
}

/// Counters' growth over the watch's own time.
fn rates(before: &Report, after: &Report) -> Option<Rates> {
    let ns = view::watched_ns(after).checked_sub(view::watched_ns(before))?;
    let rate = |name: &str| {
        let (a, b) = (before.counters.get(name)?, after.counters.get(name)?);
        (ns > 0).then(|| b.saturating_sub(*a) as f64 * 1e9 / ns as f64)
    };
    Some(Rates {
        captures: rate("captures")? + rate("recaptures").unwrap_or(0.0),
        root_changes: rate("root_changes")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::canned;

    fn press(app: &mut App, keys: &str) -> Step {
        let mut step = Step::Stay;
        for key in keys.chars() {
            let code = if key == '\n' {
                KeyCode::Enter
            } else {
                KeyCode::Char(key)
            };
            step = app.event(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)));
        }
        step
    }

    fn app() -> App {
        let mut app = App::new("web1".into());
        app.take(News::Report(Box::new(canned())));
        app
    }

    #[test]
    fn keys_move_between_pages_and_back() {
        let mut app = app();
        press(&mut app, "j\n");
        assert!(matches!(app.page, Page::Modules(_)));
        press(&mut app, "h");
        assert_eq!((app.page, app.selected), (Page::Spaces, 1));
        press(&mut app, "f");
        assert_eq!(app.page, Page::Findings);
        press(&mut app, "f?");
        assert_eq!(app.page, Page::Help);
        assert_eq!(press(&mut app, "q"), Step::Quit);
    }

    #[test]
    fn the_selection_stays_inside_and_follows_its_address_space() {
        let mut app = app();
        press(&mut app, "kkk");
        assert_eq!(app.selected, 0);
        press(&mut app, "Gj");
        let (last, id) = (app.selected, app.rows().last().unwrap().id);
        assert_eq!(last, app.rows().len() - 1);
        // It becomes the most active one.
        let mut report = canned();
        let now = view::watched_ns(&report);
        for space in report.address_spaces.iter_mut().filter(|space| space.id.0 == id) {
            space.last_ns = now + 1;
        }
        app.take(News::Report(Box::new(report)));
        assert_eq!((app.selected, app.rows()[0].id), (0, id));
    }

    #[test]
    fn rates_are_growth_over_the_watchs_own_time() {
        let (mut before, mut after) = (canned(), canned());
        let now = view::watched_ns(&before);
        for (report, at, captures) in [(&mut before, now, 100), (&mut after, now + 2_000_000_000, 130)] {
            report.coverage.intervals.last_mut().unwrap().to_ns = at;
            report.counters.insert("captures".into(), captures);
            report.counters.insert("recaptures".into(), 0);
        }
        let rates = rates(&before, &after).unwrap();
        assert!((rates.captures - 15.0).abs() < 1e-9, "{rates:?}");
        assert_eq!(rates.root_changes, 0.0);
    }

    #[test]
    fn without_a_report_every_key_is_harmless() {
        let mut app = App::new("web1".into());
        press(&mut app, "jk\nfa?hG\nl");
        assert_eq!(app.selected, 0);
        app.take(News::Ended);
        assert!(app.has_ended());
    }
}
