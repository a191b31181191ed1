//! One page against one part.

use nephoscope_guest::PAGE_SIZE;

use super::field::{Field, compute, in_list, mark, number, plausible, sign_extend, site_end};
use super::{Comparison, Difference, Env, SiteUse, Solver};
use crate::object::{Part, PartKind};
use crate::site::{Fix, Form, PARAVIRT, Site, SiteKind, Target, Unknown, Value};

/// The last byte of a 32-bit distance between two places of a kernel, which is less than 32 MiB long.
const TOP_BYTES: [u64; 4] = [0x00, 0x01, 0xfe, 0xff];

/// Bytes that are compared at once.
const LINE: usize = 64;

/// How a value fits.
enum Fit {
    No,
    /// It fits if an unknown is one that could not be told from here.
    Perhaps,
    Yes(Vec<(u16, u64)>),
}

pub(super) struct Check<'a> {
    part: &'a Part,
    at: i64,
    va: Option<u64>,
    page: &'a [u8; PAGE_SIZE],
    solver: &'a Solver,
    env: &'a dyn Env,
    learnt: Solver,
    result: Comparison,
    /// Bytes of the page that a site explains.
    explained: Vec<bool>,
    /// Bytes of the page that are looked at; `None` for all.
    looked_at: Option<Vec<bool>>,
}

impl<'a> Check<'a> {
    pub(super) fn new(
        part: &'a Part,
        at: i64,
        va: Option<u64>,
        page: &'a [u8; PAGE_SIZE],
        solver: &'a Solver,
        env: &'a dyn Env,
    ) -> Self {
        let (learnt, result) = (Solver::default(), Comparison::default());
        Self {
            part,
            at,
            va,
            page,
            solver,
            env,
            learnt,
            result,
            explained: vec![false; PAGE_SIZE],
            looked_at: None,
        }
    }

    /// The same, with nothing but these bytes of the page to be seen.
    pub(super) fn only(mut self, ranges: &[(u16, u16)]) -> Self {
        let mut looked_at = vec![false; PAGE_SIZE];
        for (start, end) in ranges {
            if let Some(range) = looked_at.get_mut(usize::from(*start)..usize::from(*end)) {
                range.fill(true);
            }
        }
        self.looked_at = Some(looked_at);
        self
    }

    fn is_looked_at(&self, at: usize) -> bool {
        self.looked_at
            .as_ref()
            .is_none_or(|looked_at| looked_at.get(at).copied().unwrap_or(false))
    }

    /// The page's byte at an offset of the part.
    fn shown(&self, offset: i64) -> Option<u8> {
        let at = usize::try_from(offset.checked_sub(self.at)?).ok()?;
        self.page.get(at).copied().filter(|_| self.is_looked_at(at))
    }

    fn own(&self, offset: i64) -> Option<u8> {
        self.part.bytes.get(usize::try_from(offset).ok()?).copied()
    }

    pub(super) fn sites(&mut self) {
        let end = self.at.saturating_add(4096);
        let from = self.part.sites.partition_point(|s| site_end(s) <= self.at);
        let shown: Vec<Site> = self
            .part
            .sites
            .iter()
            .skip(from)
            .take_while(|s| i64::from(s.at) < end)
            .filter(|s| self.looked_at.is_none() || self.shows(s))
            .copied()
            .collect();
        // Whole sites first and those with one value, because they tell the unknowns that others need.
        let (first, then): (Vec<Site>, Vec<Site>) = shown.into_iter().partition(|s| {
            let whole = i64::from(s.at) >= self.at && site_end(s) <= end;
            whole && self.values(s).len() == 1
        });
        let mut later = Vec::new();
        for site in first.into_iter().chain(then) {
            if !self.site(&site, false) {
                later.push(site);
            }
        }
        for site in later {
            self.site(&site, true);
        }
    }

    fn shows(&self, site: &Site) -> bool {
        (i64::from(site.at)..site_end(site)).any(|offset| self.shown(offset).is_some())
    }

    fn values(&self, site: &Site) -> &'a [Value] {
        let set = usize::try_from(site.set).unwrap_or(usize::MAX);
        self.part.values.sets.get(set).map_or(&[], Vec::as_slice)
    }

    /// Decides one site; false if another try later may decide it.
    fn site(&mut self, site: &Site, last: bool) -> bool {
        let mut perhaps = false;
        for value in self.values(site) {
            match self.fits(site, value) {
                Fit::No => {}
                Fit::Perhaps => perhaps = true,
                Fit::Yes(solved) => {
                    for (unknown, value) in solved {
                        self.learnt.set(unknown, value);
                    }
                    self.explain(site, value);
                    return true;
                }
            }
        }
        if perhaps && last {
            let used = self.used(site);
            self.result.undecided.extend(used);
            self.mark(site);
        }
        if !perhaps && !self.differs(site) {
            // As linked where it may not be: a field that should have moved.
            self.unmoved(site);
        }
        !perhaps
    }

    fn unmoved(&mut self, site: &Site) {
        for offset in i64::from(site.at)..site_end(site) {
            let at = offset.checked_sub(self.at).and_then(|o| u16::try_from(o).ok());
            if let (Some(at), Some(byte)) = (at, self.shown(offset)) {
                self.result.differences.push(Difference {
                    offset: at,
                    before: byte,
                    after: byte,
                });
            }
        }
    }

    fn differs(&self, site: &Site) -> bool {
        (i64::from(site.at)..site_end(site)).any(|offset| {
            self.shown(offset)
                .is_some_and(|shown| self.own(offset) != Some(shown))
        })
    }

    /// Does the page show this value, as far as it shows the site?
    fn fits(&self, site: &Site, value: &Value) -> Fit {
        let start = i64::from(site.at);
        let Some(mut content) = self.content(site, value) else {
            return Fit::No;
        };
        let mut free = vec![false; content.len()];
        let mut solved = Vec::new();
        let mut perhaps = false;
        for fix in &value.fixes {
            match self.field(site, &content, fix, &solved) {
                Some(Field::Is(bytes)) => {
                    let at = usize::from(fix.at);
                    if !crate::kernel::bytes::put(
                        &mut content,
                        at,
                        bytes.get(..fix.form.len()).unwrap_or(&[]),
                    ) {
                        return Fit::No;
                    }
                }
                Some(Field::Solved(unknown, number)) => {
                    solved.push((unknown, number));
                    mark(&mut free, fix);
                }
                Some(Field::Accepted) => mark(&mut free, fix),
                Some(Field::Untold) => {
                    perhaps = true;
                    mark(&mut free, fix);
                }
                None => return Fit::No,
            }
        }
        let shown = (start..)
            .zip(&content)
            .zip(&free)
            .all(|((offset, byte), free)| *free || self.shown(offset).is_none_or(|shown| shown == *byte));
        let stopped = value.poked
            && self.shown(start) == Some(0xcc)
            && (start..)
                .zip(&content)
                .zip(&free)
                .skip(1)
                .all(|((offset, byte), free)| *free || self.shown(offset).is_none_or(|shown| shown == *byte));
        match (shown || stopped, perhaps) {
            (false, _) => Fit::No,
            (true, true) => Fit::Perhaps,
            (true, false) => Fit::Yes(solved),
        }
    }

    fn content(&self, site: &Site, value: &Value) -> Option<Vec<u8>> {
        let len = usize::from(site.len);
        if value.bytes.len() == len {
            return Some(value.bytes.clone());
        }
        let at = usize::try_from(site.at).ok()?;
        let own = self.part.bytes.get(at..at.checked_add(len)?)?;
        value.bytes.is_empty().then(|| own.to_vec())
    }

    /// What a field must hold, or what the page says of what it refers to.
    fn field(&self, site: &Site, content: &[u8], fix: &Fix, solved: &[(u16, u64)]) -> Option<Field> {
        let offset = i64::from(site.at).checked_add(i64::from(fix.at))?;
        let base = number(content.get(usize::from(fix.at)..)?, fix.form)?;
        let base = base.wrapping_add_signed(fix.addend);
        let place = self.part.link.wrapping_add_signed(offset);
        let actual = self
            .va
            .map(|va| va.wrapping_add_signed(offset.wrapping_sub(self.at)));
        match fix.to {
            Target::Nothing => Some(Field::Is(compute(fix.form, base, 0, place))),
            Target::Own => match (fix.form, actual) {
                // The part moves as a whole.
                (Form::Pc24 | Form::Pc32 | Form::Pc64, _) => {
                    Some(Field::Is(compute(fix.form, base, 0, place)))
                }
                (_, None) => Some(Field::Untold),
                (_, Some(actual)) => Some(Field::Is(compute(
                    fix.form,
                    base,
                    actual.wrapping_sub(place),
                    place,
                ))),
            },
            Target::OneOf(list) => self.one_of(list, offset, fix, base, place, actual),
            Target::Unknown(unknown) => {
                let relative = matches!(fix.form, Form::Pc24 | Form::Pc32 | Form::Pc64);
                let from = if relative { actual } else { Some(place) };
                let Some(from) = from else {
                    return Some(Field::Untold);
                };
                match self.known(unknown, solved) {
                    Some(known) => Some(Field::Is(compute(fix.form, base, known, from))),
                    None => self.solve(unknown, offset, fix.form, base, from),
                }
            }
        }
    }

    fn known(&self, unknown: u16, solved: &[(u16, u64)]) -> Option<u64> {
        let here = solved
            .iter()
            .find(|(u, _)| *u == unknown)
            .map(|(_, value)| *value);
        here.or_else(|| self.solver.get(unknown))
            .or_else(|| self.learnt.get(unknown))
            .or_else(|| match self.part.values.unknowns.get(usize::from(unknown))? {
                Unknown::Symbol(name) => self.env.symbol(name),
                _ => None,
            })
    }

    /// The bytes of a field as the page shows them; `None` if it does not show all.
    fn field_shown(&self, offset: i64, form: Form) -> Option<u64> {
        let mut bytes = [0; 8];
        for (offset, into) in (offset..).zip(bytes.iter_mut().take(form.len())) {
            *into = self.shown(offset)?;
        }
        number(&bytes, form)
    }

    fn one_of(
        &self,
        list: u16,
        offset: i64,
        fix: &Fix,
        base: u64,
        place: u64,
        actual: Option<u64>,
    ) -> Option<Field> {
        let Some(shown) = self.field_shown(offset, fix.form) else {
            return Some(self.one_of_in_part(list, offset, fix.form, base, place));
        };
        // Of a field that is seen half-written, the last byte can be any that a distance in a kernel begins with.
        let lasts: &[u64] = if fix.form == Form::Pc24 { &TOP_BYTES } else { &[0] };
        let is_one = |last: &u64| {
            // field = base + target - place
            let distance = sign_extend((shown | last << 24).wrapping_sub(base));
            if in_list(&self.part.values, list, distance.wrapping_add(place)) {
                return true;
            }
            actual.is_some_and(|actual| {
                let elsewhere = distance.wrapping_add(actual);
                if list == PARAVIRT {
                    self.env.is_paravirt(elsewhere)
                } else {
                    self.env.is_function(elsewhere)
                }
            })
        };
        lasts.iter().any(is_one).then_some(Field::Accepted)
    }

    /// A field that the page cuts: what it shows must be what one of the targets makes of it.
    fn one_of_in_part(&self, list: u16, offset: i64, form: Form, base: u64, place: u64) -> Field {
        let values = &self.part.values;
        let list = values.lists.get(usize::from(list)).map_or(&[][..], Vec::as_slice);
        let fits = list.iter().any(|target| {
            let target = values.lists_from.wrapping_add(u64::from(*target));
            let field = compute(form, base, target, place);
            let mut bytes = (offset..).zip(field.iter().take(form.len()));
            bytes.all(|(offset, byte)| self.shown(offset).is_none_or(|shown| shown == *byte))
        });
        if fits { Field::Accepted } else { Field::Untold }
    }

    fn solve(&self, unknown: u16, offset: i64, form: Form, base: u64, from: u64) -> Option<Field> {
        let about = self.part.values.unknowns.get(usize::from(unknown))?;
        if let Unknown::Symbol(name) = about
            && !self.env.is_data(name)
        {
            return Some(Field::Untold);
        }
        let Some(shown) = self.field_shown(offset, form) else {
            return Some(Field::Untold);
        };
        let value = match form {
            Form::Abs64 => shown.wrapping_sub(base),
            Form::Abs32 => sign_extend(shown.wrapping_sub(base)),
            Form::Negative32 => sign_extend(base.wrapping_sub(shown)),
            Form::Pc32 => sign_extend(shown.wrapping_sub(base)).wrapping_add(from),
            Form::Pc64 => shown.wrapping_sub(base).wrapping_add(from),
            Form::Abs8 => shown.wrapping_sub(base) & 0xff,
            Form::Segment16 | Form::Pc24 => return Some(Field::Untold),
        };
        plausible(about, value).then_some(Field::Solved(unknown, value))
    }

    fn explain(&mut self, site: &Site, value: &Value) {
        self.mark(site);
        let told = value.fixes.iter().filter(|fix| self.was_told(site, fix)).count();
        self.result.confirmed = self.result.confirmed.saturating_add(told);
        if !self.differs(site) {
            return;
        }
        let used = self.used(site).map(|used| SiteUse {
            kind: self.kind(site, value),
            ..used
        });
        self.result.uses.extend(used);
    }

    /// Whether the page shows this field whole, and another page said where the section is that it refers to.
    fn was_told(&self, site: &Site, fix: &Fix) -> bool {
        let Target::Unknown(unknown) = fix.to else {
            return false;
        };
        let about = self.part.values.unknowns.get(usize::from(unknown));
        let offset = i64::from(site.at).saturating_add(i64::from(fix.at));
        matches!(about, Some(Unknown::Section { .. }))
            && self.solver.get(unknown).is_some()
            && self.field_shown(offset, fix.form).is_some()
    }

    /// What changed a site: the part's own bytes with their fields moved are a relocation, whoever else may rewrite them.
    fn kind(&self, site: &Site, value: &Value) -> SiteKind {
        let moved = value.bytes.is_empty() && value.fixes.iter().all(|f| f.to != Target::Nothing);
        match self.part.kind {
            _ if !moved || value.fixes.is_empty() || site.kind == SiteKind::RuntimeConstant => site.kind,
            PartKind::KernelText | PartKind::KernelInit => SiteKind::Kaslr,
            _ => SiteKind::Relocation,
        }
    }

    fn mark(&mut self, site: &Site) {
        for offset in i64::from(site.at)..site_end(site) {
            let at = usize::try_from(offset.saturating_sub(self.at)).ok();
            if let Some(explained) = at.and_then(|at| self.explained.get_mut(at)) {
                *explained = true;
            }
        }
    }

    fn used(&self, site: &Site) -> Option<SiteUse> {
        let from = i64::from(site.at).max(self.at);
        let to = site_end(site).min(self.at.checked_add(4096)?);
        Some(SiteUse {
            kind: site.kind,
            offset: u16::try_from(from.checked_sub(self.at)?).ok()?,
            len: u16::try_from(to.checked_sub(from)?).ok()?,
        })
    }

    pub(super) fn finish(mut self) -> Comparison {
        // Most lines of most pages are as in the part: only in the others are bytes looked at one by one.
        for (from, line) in (0..).step_by(LINE).zip(self.page.as_chunks::<LINE>().0) {
            let own = usize::try_from(self.at.saturating_add_unsigned(from as u64)).ok();
            let own = own.and_then(|own| self.part.bytes.get(own..own.checked_add(LINE)?));
            if self.looked_at.is_none() && own == Some(line) {
                self.result.equal_bytes = self.result.equal_bytes.saturating_add(LINE);
            } else {
                self.finish_line(from, line);
            }
        }
        self.result.uses.sort_by_key(|u| u.offset);
        self.result.differences.sort_by_key(|d| d.offset);
        self.result.learnt = self.learnt.known;
        self.result
    }

    fn finish_line(&mut self, from: usize, line: &[u8; LINE]) {
        for (at, after) in (from..).zip(line) {
            if !self.is_looked_at(at) {
                continue;
            }
            match self.own(self.at.saturating_add_unsigned(at as u64)) {
                None => self.result.outside = self.result.outside.saturating_add(1),
                Some(before) if before == *after => {
                    self.result.equal_bytes = self.result.equal_bytes.saturating_add(1);
                }
                Some(_) if self.explained.get(at) == Some(&true) => {}
                Some(before) => self.result.differences.push(Difference {
                    offset: u16::try_from(at).unwrap_or(u16::MAX),
                    before,
                    after: *after,
                }),
            }
        }
    }
}
