//! One look after the other at the same memory.

use std::sync::Arc;
use std::time::Instant;

use nephoscope_catalog::Catalog;
use nephoscope_drivers::{Pass, Sampler};
use nephoscope_finding::Sink;
use nephoscope_guest::{Attribution, CodeCoverage, Coverage, Gap, GapReason, Gpa, Root, Stamped};
use nephoscope_inventory::{Report, VmReport};
use nephoscope_isa::{Mode, RootFinder, RootsFound};
use nephoscope_pipeline::Session;

use super::progress::Progress;
use super::source::Source;
use crate::exit::{Failure, exit};
use crate::monitor::kernel_there;
use crate::privilege::InForce;

/// A scan of one memory.
#[derive(Debug)]
pub(crate) struct Scan {
    session: Session,
    sampler: Sampler,
    mode: Option<Mode>,
    finder: RootFinder,
    began: Instant,
    /// Until when all that could be looked at was.
    looked_ns: u64,
}

impl Scan {
    /// One that has not looked yet.
    pub(crate) fn new(about: VmReport, catalog: Arc<Catalog>) -> Self {
        let mut session = Session::new(about, catalog);
        let began = Instant::now();
        session.began(began);
        Self {
            session,
            sampler: Sampler::default(),
            mode: None,
            finder: RootFinder::default(),
            began,
            looked_ns: 0,
        }
    }

    /// For the report: what the looking process can do.
    pub(crate) fn confined(&mut self, in_force: &InForce) {
        self.session.confined(in_force.parts().clone());
    }

    /// Looks once.
    ///
    /// # Errors
    /// If no page tables are found.
    pub(crate) fn look(
        &mut self,
        source: &mut Source,
        progress: &Progress,
        sinks: &mut [&mut dyn Sink],
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        source.refresh();
        let (mode, found) = self.roots(source, progress)?;
        let searched = begun.elapsed();
        let source = &*source;
        let at_ns = self.now_ns();
        progress.steps("address spaces", found.roots.len() as u64);
        let (session, sampler) = (&mut self.session, &mut self.sampler);
        let pass = sampler.pass(
            source,
            &mode,
            &found.roots,
            &mut |event| session.take(Stamped { at_ns, event }, &|_| None, sinks),
            &mut |done| progress.at(done as u64),
        );
        self.gone(&found, at_ns, sinks);
        let there = |root: Root, va| kernel_there(&mode, source, root, va);
        self.session.settle(sinks);
        self.session.speak(true, &there, sinks);
        self.vouch(&found, &pass);
        let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.session.count("root_search_ms", ms(searched));
        self.session.count("look_ms", ms(begun.elapsed()));
        progress.end();
        Ok(())
    }

    /// The report as of now.
    pub(crate) fn report(&mut self) -> Report {
        self.session.report()
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Finds the roots, and how the guest's CPUs translate: registers tell, or the first mode in which there are processes.
    fn roots(&mut self, source: &mut Source, progress: &Progress) -> anyhow::Result<(Mode, RootsFound)> {
        loop {
            let ranges = source.ranges();
            let told = source.paging_mode().or(self.mode);
            let modes = told.map_or_else(|| Mode::guesses().to_vec(), |mode| vec![mode]);
            for mode in modes {
                let found = self.search(&mode, source, &ranges, progress);
                if found.processes().next().is_some() {
                    self.mode = Some(mode);
                    return Ok((mode, found));
                }
            }
            if !source.try_next_layout() {
                progress.end();
                let message = "there are no page tables in this memory: is it all of a guest's memory, and of an x86 guest \
                               whose kernel runs?";
                return Err(exit(Failure::NotUnderstood, message));
            }
        }
    }

    /// Address spaces whose roots were not found again.
    fn gone(&mut self, found: &RootsFound, at_ns: u64, sinks: &mut [&mut dyn Sink]) {
        let gone: Vec<_> = self
            .session
            .living()
            .filter(|(_, root)| found.roots.binary_search_by_key(root, |(root, _)| *root).is_err())
            .map(|(space, _)| space)
            .collect();
        for space in gone {
            self.session.ended(space, at_ns, sinks);
        }
    }

    /// Says what the look is worth, and what it could not see.
    fn vouch(&mut self, found: &RootsFound, pass: &Pass) {
        let now = self.now_ns();
        self.session.at(now);
        let sampled = Coverage {
            code: CodeCoverage::Sampled,
            attribution: Attribution::Sampled,
        };
        let unreadable = pass.unreadable
            + found
                .unreadable_bytes
                .div_ceil(nephoscope_guest::PAGE_SIZE as u64);
        let cut = pass.cut_short + pass.left_out + u64::from(found.cut_short);
        let mut gap = |reason, lost| {
            self.session.gap(Gap {
                from_ns: self.looked_ns,
                to_ns: now,
                left: sampled,
                reason,
                lost,
            });
        };
        gap(GapReason::LookedAtTimes, 0);
        if unreadable > 0 {
            gap(GapReason::PageUnreadable, unreadable);
        }
        if cut > 0 {
            gap(GapReason::MonitorOverrun, cut);
        }
        self.looked_ns = now;
        let processes = found.processes().count() as u64;
        for (name, value) in [
            ("roots_found", found.roots.len() as u64),
            ("roots_of_processes", processes),
            ("root_candidates", found.candidates),
            ("root_tables_read", found.tables),
            ("searched_bytes", found.searched_bytes),
            ("pages_mapped", pass.mapped),
            ("frames_read", pass.frames),
            ("captures", pass.captured),
        ] {
            self.session.count(name, value);
        }
    }

    fn search(
        &mut self,
        mode: &Mode,
        source: &Source,
        ranges: &[(Gpa, u64)],
        progress: &Progress,
    ) -> RootsFound {
        let total: u64 = ranges.iter().map(|(_, len)| len).sum();
        progress.bytes(&format!("page tables ({})", mode.name()), total * 2);
        self.finder
            .find(mode, source, ranges, &mut |done| progress.at(done))
    }
}
