//! The evidence for one page, as text.

use nephoscope_inventory::Report;

use super::disassembly::{Line, sweep};
use super::hunks::{Side, hunks};
use super::places;
use crate::control::PageEvidence;
use crate::text::{Paint, Tone, bytes, count, escape, fit_end, plural, seconds, wrap};
use crate::view;

/// A page and how to show it.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) page: &'a PageEvidence,
    pub(super) report: &'a Report,
    pub(super) all: bool,
    pub(super) bits: Option<u32>,
    pub(super) columns: usize,
    pub(super) paint: Paint,
}

/// Columns of the words on the left.
const MARGIN: usize = 13;
/// Instructions shown of an unknown page.
const FIRST: usize = 16;
/// Address spaces and ranges shown when not all are asked for.
const FEW: usize = 6;

impl View<'_> {
    /// All of it.
    pub(super) fn text(&self) -> String {
        let page = self.page;
        let mut out = self.verdict();
        out.push('\n');
        let mut places = places::lines(&page.places, self.all, self.columns - MARGIN);
        if page.left_out > 0 {
            let files = plural(page.left_out, "more file");
            places.push(format!("and at least {files}, which are not listed"));
        }
        let title = if page.verdict == "modified" {
            "nearest"
        } else {
            "stands in"
        };
        self.field(&mut out, title, &places);
        if page.verdict == "unknown" {
            self.field(&mut out, "origin", &[escape(&page.origin).into_owned()]);
        }
        let gpa = page.gpa.map_or("not known".to_owned(), |gpa| format!("{gpa:#x}"));
        let at = format!(
            "{:#x}, guest-physical {gpa}, generation {}",
            page.va, page.generation
        );
        self.field(&mut out, "address", &[at]);
        let ran = format!(
            "{} after the watch began, as {}",
            seconds(page.at_ns),
            escape(&page.privilege)
        );
        self.field(&mut out, "first ran", &[ran]);
        self.field(&mut out, "ran in", &self.spaces());
        self.field(&mut out, "executed", &[self.executed()]);
        self.field(&mut out, "rewritten", &self.sites());
        self.field(&mut out, "BLAKE3", &[escape(&page.digest).into_owned()]);
        match page.verdict.as_str() {
            "modified" => self.changes(&mut out),
            "unknown" => self.first_instructions(&mut out),
            _ => {}
        }
        out
    }

    fn verdict(&self) -> String {
        let page = self.page;
        let (tone, why) = match page.verdict.as_str() {
            "identified" => (
                Tone::Good,
                format!(
                    "every {} is the file's{}",
                    if page.executed_only {
                        "executed byte"
                    } else {
                        "byte"
                    },
                    if page.sites.is_empty() {
                        ""
                    } else {
                        ", or one that may stand where it is rewritten"
                    }
                ),
            ),
            "modified" => {
                let bytes: usize = page.differences.iter().map(|(_, _, after)| after.len() / 2).sum();
                let places = u64::try_from(page.differences.len()).unwrap_or(u64::MAX);
                let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
                let why = format!(
                    "{} in {} differ from the nearest file where nothing may rewrite it",
                    plural(bytes, "byte"),
                    plural(places, "place")
                );
                (Tone::Bad, why)
            }
            _ => (
                Tone::Warn,
                "no catalogued file has it, or has one near it".to_owned(),
            ),
        };
        let said = format!("p{} is {}: {why}.", page.page, escape(&page.verdict));
        let lines = wrap(&said, self.columns);
        lines
            .iter()
            .map(|line| format!("{}\n", self.paint.paint(tone, line)))
            .collect()
    }

    /// A word on the left, lines on the right; nothing if there are none.
    fn field(&self, out: &mut String, title: &str, lines: &[String]) {
        let mut title = format!("  {title:<width$}", width = MARGIN - 2);
        for line in lines {
            let indent = line.len() - line.trim_start_matches(' ').len();
            let room = self.columns.saturating_sub(MARGIN + indent);
            for part in wrap(line.trim_start_matches(' '), room) {
                out.push_str(&self.paint.paint(Tone::Faint, &title));
                out.push_str(&format!("{}{part}\n", " ".repeat(indent)));
                title = " ".repeat(MARGIN);
            }
        }
    }

    fn spaces(&self) -> Vec<String> {
        let spaces = self.page.spaces.iter().map(|(id, va)| {
            let at = va.map_or(String::new(), |va| format!(" at {va:#x}"));
            format!("{}{at}", view::space_name(self.report, *id))
        });
        self.few(spaces.collect())
    }

    fn few(&self, mut lines: Vec<String>) -> Vec<String> {
        let hidden = lines.len().saturating_sub(FEW);
        if hidden > 0 && !self.all {
            lines.truncate(FEW);
            lines.push(format!("and {hidden} more: --all shows them"));
        }
        lines
    }

    fn executed(&self) -> String {
        let ranges = &self.page.executed;
        let total: u64 = ranges.iter().map(|(a, b)| u64::from(b.saturating_sub(*a))).sum();
        let shown = if self.all { ranges.len() } else { FEW };
        let mut words: Vec<String> = ranges
            .iter()
            .take(shown)
            .map(|(a, b)| format!("+{a:#x}..+{b:#x}"))
            .collect();
        if ranges.len() > shown {
            words.push(format!("and {} more", ranges.len() - shown));
        }
        format!("{} of 4,096: {}", plural(total, "byte"), words.join(", "))
    }

    fn sites(&self) -> Vec<String> {
        let line = |(kind, sites, bytes): &(String, u32, u32)| {
            let kind = escape(kind).replace('_', " ");
            let sites = plural(u64::from(*sites), "site");
            format!("{kind}: {sites}, {}", plural(u64::from(*bytes), "byte"))
        };
        self.page.sites.iter().map(line).collect()
    }

    fn width_of_code(&self) -> u32 {
        self.bits.or(self.page.bits.map(u32::from)).unwrap_or(64)
    }

    fn changes(&self, out: &mut String) {
        let page = self.page;
        out.push_str(&format!("\n{}\n", self.paint.paint(Tone::Strong, "Bytes")));
        for (offset, before, after) in &page.differences {
            let room = self.columns.saturating_sub(18);
            for (tone, sign, bytes) in [(Tone::Bad, '-', before), (Tone::Good, '+', after)] {
                let title = format!("  +{offset:#05x}  {sign} ");
                for (i, line) in wrap(&spaced(bytes), room).iter().enumerate() {
                    let title = if i == 0 {
                        title.clone()
                    } else {
                        " ".repeat(title.len())
                    };
                    out.push_str(&format!(
                        "{}\n",
                        self.paint.paint(tone, &format!("{title}{line}"))
                    ));
                }
            }
        }
        let kept = |hex: &Option<String>| hex.as_deref().and_then(bytes);
        let (Some(before), Some(after)) = (kept(&page.nearest_bytes), kept(&page.bytes)) else {
            out.push_str("\nThe page's bytes are not kept any more: there is nothing to disassemble.\n");
            return;
        };
        let bits = self.width_of_code();
        let title = format!("Instructions, as {bits}-bit code");
        out.push_str(&format!("\n{}\n", self.paint.paint(Tone::Strong, &title)));
        for (i, hunk) in hunks(page, &before, &after, bits).iter().enumerate() {
            out.push_str(if i > 0 { "  ⋮\n" } else { "" });
            if hunk.guessed {
                out.push_str("  (where instructions begin is a guess: nothing near is known to have run)\n");
            }
            for (side, line) in &hunk.lines {
                self.instruction(out, *side, line);
            }
        }
    }

    fn first_instructions(&self, out: &mut String) {
        let page = self.page;
        let Some(bytes) = page.bytes.as_deref().and_then(bytes) else {
            out.push_str("\nThe page's bytes are not kept: there is nothing to disassemble.\n");
            return;
        };
        let lowest = page.executed.first().map(|(start, _)| *start);
        let from = usize::from(page.first.or(lowest).unwrap_or(0));
        // What ran is code; what stands behind it may be anything.
        let ranges = page
            .executed
            .iter()
            .map(|(a, b)| (usize::from(*a), usize::from(*b)));
        let end = ranges
            .filter(|(a, b)| *a <= from && from < *b)
            .map(|(_, b)| b)
            .max();
        let bits = self.width_of_code();
        let title = format!("The instructions that ran first, as {bits}-bit code");
        out.push_str(&format!("\n{}\n", self.paint.paint(Tone::Strong, &title)));
        let lines = sweep(&bytes, page.va, bits, from, end.unwrap_or(from + 64));
        for line in lines.iter().take(FIRST) {
            self.instruction(out, Side::Both, line);
        }
        if lines.len() > FIRST {
            let more = u64::try_from(lines.len() - FIRST).unwrap_or(u64::MAX);
            out.push_str(&format!("    and {} more\n", count(more)));
        }
    }

    fn instruction(&self, out: &mut String, side: Side, line: &Line) {
        let (tone, sign) = match side {
            Side::Both => (Tone::Plain, ' '),
            Side::Before => (Tone::Bad, '-'),
            Side::After => (Tone::Good, '+'),
        };
        let at = self.page.va.wrapping_add(u64::try_from(line.at).unwrap_or(0));
        let hex: String = line.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!("  {sign} {at:#x}  {hex:<20}  {}", line.text);
        let text = fit_end(text.trim_end(), self.columns);
        out.push_str(&format!("{}\n", self.paint.paint(tone, &text)));
    }
}

/// Hexadecimal with bytes apart.
fn spaced(hex: &str) -> String {
    let hex = escape(hex);
    let mut out = String::with_capacity(hex.len() * 3 / 2);
    for (i, c) in hex.chars().enumerate() {
        out.extend((i > 0 && i % 2 == 0).then_some(' '));
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::PlaceEvidence;
    use crate::text::width;
    use crate::view::tests::canned;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    /// A page as a hostile guest, package or peer might describe it.
    fn any_page() -> impl Strategy<Value = PageEvidence> {
        let verdict = prop_oneof![
            Just("identified".to_owned()),
            Just("modified".to_owned()),
            Just("unknown".to_owned()),
            any::<String>()
        ];
        let place = (any::<String>(), option::of(any::<String>()), any::<u64>());
        let place = place.prop_map(|(path, version, link)| PlaceEvidence {
            source: version.clone(),
            package: Some(path.clone()),
            path,
            version,
            link,
        });
        let code = option::of("([0-9a-f]{2}){0,600}");
        let texts = (any::<String>(), any::<String>(), any::<String>());
        let change = (any::<u16>(), "[0-9a-f]{0,200}", any::<String>());
        let ran = (
            vec(any::<(u16, u16)>(), 0..20),
            vec(any::<(u32, Option<u64>)>(), 0..20),
            option::of(any::<u16>()),
        );
        let parts = (
            verdict,
            vec(place, 0..6),
            texts,
            vec(change, 0..5),
            ran,
            (code.clone(), code),
            any::<u64>(),
        );
        parts.prop_map(
            |(verdict, places, texts, differences, ran, code, va)| PageEvidence {
                verdict,
                places,
                va,
                sites: vec![(texts.0.clone(), u32::MAX, 1)],
                origin: texts.0,
                digest: texts.1,
                privilege: texts.2,
                differences,
                executed: ran.0,
                spaces: ran.1,
                first: ran.2,
                left_out: va % 3,
                bytes: code.0,
                nearest_bytes: code.1,
                ..PageEvidence::default()
            },
        )
    }

    proptest! {
        #[test]
        fn whatever_is_claimed_fits_and_is_escaped(page in any_page(), all: bool, columns in 80_usize..=100) {
            let (report, paint) = (canned(), Paint::OFF);
            let view = View { page: &page, report: &report, all, bits: None, columns, paint };
            for line in view.text().lines() {
                prop_assert!(width(line) <= columns, "{line:?}");
                prop_assert_eq!(escape(line), line);
            }
        }
    }
}
