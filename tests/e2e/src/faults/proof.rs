//! Holding reports to what really ran, and their blind intervals to when the watch was really away.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::ticks::{Tick, now_ns};
use crate::living::list;

/// When the watch's clock began, by the host's (`CLOCK_MONOTONIC`, ns).
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin(pub(super) u64);

impl Origin {
    /// As the watch has written it down in the first line of its journal.
    pub(super) fn of(vm: &str) -> Result<Self> {
        let folder = crate::control::folder(vm).join("watch");
        for entry in std::fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))? {
            let path = entry?.path();
            if path.to_string_lossy().contains("/journal.") {
                let mut line = String::new();
                BufReader::new(File::open(&path)?).read_line(&mut line)?;
                let first: Value = serde_json::from_str(&line)?;
                return Ok(Origin(first["installed_ns"].as_u64().context("no installed_ns")?));
            }
        }
        bail!("no journal in {}", folder.display())
    }
}

pub(super) fn intervals(report: &Value) -> &[Value] {
    list(&report["coverage"], "intervals")
}

/// An interval that a report calls blind, by the host's clock.
#[derive(Debug, Clone)]
pub(super) struct Blind {
    pub(super) from_ns: u64,
    pub(super) to_ns: u64,
    pub(super) reason: String,
}

pub(super) fn blind(report: &Value, origin: Origin) -> Vec<Blind> {
    let number = |interval: &Value, name: &str| interval[name].as_u64().unwrap_or(0);
    let blind = intervals(report)
        .iter()
        .filter(|interval| interval["code"] == "blind");
    blind
        .map(|interval| Blind {
            from_ns: origin.0 + number(interval, "from_ns"),
            to_ns: origin.0 + number(interval, "to_ns"),
            reason: interval["reason"].as_str().unwrap_or_default().to_owned(),
        })
        .collect()
}

/// What became of the pages that ran.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Account {
    pub(super) ran: usize,
    pub(super) reported: usize,
    pub(super) blind: usize,
}

impl Account {
    pub(super) fn words(self) -> String {
        format!(
            "{} pages ran: {} reported, {} in blind intervals, 0 silent",
            self.ran, self.reported, self.blind
        )
    }
}

/// Every page that ran is in one of the reports, or ran in an interval that is blind in all of them.
pub(super) fn account(ticks: &[Tick], reports: &[(&Value, Origin)]) -> Result<Account> {
    let mut account = Account {
        ran: ticks.len(),
        ..Account::default()
    };
    ensure!(!ticks.is_empty(), "nothing ran");
    let known: HashSet<&str> = reports.iter().flat_map(|(report, _)| digests(report)).collect();
    let blinds: Vec<Vec<Blind>> = reports
        .iter()
        .map(|(report, origin)| blind(report, *origin))
        .collect();
    for tick in ticks {
        if known.contains(tick.digest().as_str()) {
            account.reported += 1;
            continue;
        }
        let within = |blind: &Blind| blind.from_ns <= tick.to_ns && blind.to_ns >= tick.from_ns;
        ensure!(
            blinds.iter().all(|blinds| blinds.iter().any(within)),
            "SILENT: page {} ran, and is neither reported nor in a blind interval",
            tick.number
        );
        account.blind += 1;
    }
    Ok(account)
}

fn digests(report: &Value) -> impl Iterator<Item = &str> {
    list(report, "address_spaces")
        .iter()
        .flat_map(|space| list(space, "unknown"))
        .filter_map(|page| page["digest"].as_str())
}

/// A watch that was killed, by the host's clock: some time between these two.
#[derive(Debug, Clone, Copy)]
pub(super) struct Killed {
    /// Not before that.
    pub(super) from_ns: u64,
    /// It was gone by then.
    pub(super) gone_ns: u64,
}

impl Killed {
    /// Kills.
    pub(super) fn by<T>(kill: impl FnOnce() -> Result<T>) -> Result<Self> {
        let from_ns = now_ns();
        kill()?;
        let gone_ns = now_ns();
        Ok(Self { from_ns, gone_ns })
    }
}

/// When nobody watched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Away {
    pub(super) killed: Killed,
    pub(super) back_ns: u64,
}

/// Every blind interval with this reason is within a time in which nobody watched, and the slack around it; and in each such
/// time it was blind. Gives the longest that it was blind beyond being away.
pub(super) fn only_while_away(
    blind: &[Blind],
    reason: &str,
    away: &[Away],
    slack: Duration,
) -> Result<Duration> {
    let slack = u64::try_from(slack.as_nanos())?;
    let mut longest = 0;
    for interval in blind.iter().filter(|interval| interval.reason.contains(reason)) {
        // Neighbours whose slack meets may have become one interval.
        let mut meets = away
            .iter()
            .map(|away| (away.killed.from_ns, away.back_ns))
            .filter(|(from, to)| *from <= interval.to_ns && *to + slack >= interval.from_ns);
        let Some(first) = meets.next() else {
            bail!(
                "blind for {} ms while it was watched",
                (interval.to_ns - interval.from_ns) / 1_000_000
            );
        };
        let (from, to) = meets.fold(first, |(from, to), next| (from.min(next.0), to.max(next.1)));
        let (before, after) = (
            from.saturating_sub(interval.from_ns),
            interval.to_ns.saturating_sub(to),
        );
        let over = before.max(after);
        ensure!(
            over <= slack,
            "blind for longer than nobody watched: {} ms before, {} ms after",
            before / 1_000_000,
            after / 1_000_000
        );
        longest = longest.max(over);
    }
    for Away { killed, .. } in away {
        ensure!(
            blind
                .iter()
                .any(|interval| interval.from_ns <= killed.gone_ns && interval.to_ns >= killed.gone_ns),
            "killed, and not blind at that moment"
        );
    }
    Ok(Duration::from_nanos(longest))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ORIGIN: Origin = Origin(1_000);

    fn report(digest: &str) -> Value {
        json!({
            "coverage": {"intervals": [
                {"from_ns": 0, "to_ns": 100, "code": "complete", "reason": ""},
                {"from_ns": 100, "to_ns": 200, "code": "blind", "reason": "detached"},
                {"from_ns": 200, "to_ns": 300, "code": "complete", "reason": ""},
            ]},
            "address_spaces": [{"unknown": [{"digest": digest}]}],
        })
    }

    fn tick(number: u32, from_ns: u64) -> Tick {
        Tick {
            number,
            from_ns,
            to_ns: from_ns + 10,
        }
    }

    #[test]
    fn a_page_that_is_neither_reported_nor_blind_is_silent() {
        let report = report(&tick(1, 0).digest());
        let of = |ticks: &[Tick]| account(ticks, &[(&report, ORIGIN)]);
        let account = of(&[tick(1, 1_050), tick(2, 1_150)]).unwrap();
        assert_eq!((account.reported, account.blind), (1, 1));
        assert!(of(&[tick(2, 1_250)]).unwrap_err().to_string().contains("SILENT"));
        assert!(of(&[]).is_err());
    }

    #[test]
    fn blind_while_it_was_watched_is_wrong_and_so_is_seeing_while_it_was_not() {
        let report = report("");
        let blind = blind(&report, ORIGIN);
        let held = |away: &[(u64, u64)]| {
            let killed = |at| Killed {
                from_ns: at,
                gone_ns: at,
            };
            let away = away.iter().map(|(from, back)| Away {
                killed: killed(*from),
                back_ns: *back,
            });
            let away: Vec<Away> = away.collect();
            only_while_away(&blind, "detached", &away, Duration::from_nanos(20))
        };
        assert_eq!(held(&[(1_110, 1_190)]).unwrap(), Duration::from_nanos(10));
        assert!(held(&[(1_130, 1_190)]).is_err(), "thirty too early");
        assert!(held(&[]).is_err());
        assert!(held(&[(1_110, 1_190), (1_250, 1_260)]).is_err());
    }
}
