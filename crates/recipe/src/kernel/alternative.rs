//! `.altinstructions`: `apply_alternatives` in `arch/x86/kernel/alternative.c`.
//!
//! Two dialects are known. In Linux up to 6.2 (bookworm's 6.1 among them) an entry has 12 bytes, only the first
//! instruction of a replacement is moved and no-ops are optimised one-byte runs at a time; from 6.7 on (trixie's
//! 6.12) it has 14, every instruction is moved, and an entry can stand for a direct paravirt call.

use super::bytes;
use super::content::Content;
use super::image::Image;
use super::insn::{self, Insn};
use crate::site::{Fix, Form};

/// Which kernels' rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dialect {
    /// 12-byte entries: up to 6.2.
    Old,
    /// 14-byte entries, with the rules of 6.7 and later.
    New,
}

/// One entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Alternative {
    pub(crate) va: u64,
    pub(crate) len: usize,
    pub(crate) replacement: u64,
    pub(crate) replacement_len: usize,
    /// `ALT_FLAG_DIRECT_CALL`.
    pub(crate) direct_call: bool,
    pub(crate) dialect: Dialect,
}

/// What an entry makes of a content.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// Contents that stand for the moment of the patching.
    pub(crate) on_the_way: Vec<Content>,
    /// Contents after it, feature present or not.
    pub(crate) done: Vec<Content>,
}

/// Longest patch: `MAX_PATCH_LEN`.
const MAX_LEN: usize = 254;

/// Reads the table. The dialect is the one in which every entry makes sense; `None` if neither is.
pub(crate) fn read(image: &Image, range: Option<(u64, u64)>) -> Option<Vec<Alternative>> {
    let Some((va, table)) = image.table(".altinstructions", range) else {
        return Some(Vec::new());
    };
    if table.is_empty() {
        return Some(Vec::new());
    }
    [Dialect::New, Dialect::Old].into_iter().find_map(|dialect| {
        let size = if dialect == Dialect::Old { 12 } else { 14 };
        if table.len() % size != 0 {
            return None;
        }
        let mut entry = va;
        let mut found = Vec::with_capacity(table.len() / size);
        for fields in table.chunks_exact(size) {
            found.push(one(image, entry, fields, dialect)?);
            entry = entry.wrapping_add(bytes::wide(size));
        }
        if dialect == Dialect::New {
            level(&mut found);
        }
        Some(found)
    })
}

fn one(image: &Image, entry: u64, fields: &[u8], dialect: Dialect) -> Option<Alternative> {
    let va = entry.wrapping_add_signed(bytes::i32_at(fields, 0)?.into());
    let replacement = entry
        .wrapping_add(4)
        .wrapping_add_signed(bytes::i32_at(fields, 4)?.into());
    let (flags, lens) = match dialect {
        Dialect::Old => (0, 10),
        Dialect::New => (bytes::u16_at(fields, 10)?, 12),
    };
    let len = usize::from(*fields.get(lens)?);
    let replacement_len = usize::from(*fields.get(lens.checked_add(1)?)?);
    let sound = len <= MAX_LEN
        && replacement_len <= len
        && image.executes(va)
        && (replacement_len == 0 || image.linked(replacement, replacement_len).is_some());
    sound.then_some(Alternative {
        va,
        len,
        replacement,
        replacement_len,
        direct_call: flags & 2 != 0,
        dialect,
    })
}

/// Nested alternatives are consecutive entries for one place; all take the longest length.
fn level(entries: &mut [Alternative]) {
    for group in entries.chunk_by_mut(|a, b| a.va == b.va) {
        let longest = group.iter().map(|a| a.len).max().unwrap_or(0);
        group.iter_mut().for_each(|a| a.len = longest);
    }
}

impl Alternative {
    /// Applies the entry to a content that holds its place at `at`. `replacements`: what the replacement's own
    /// place can hold by then.
    pub(crate) fn apply(&self, content: &Content, at: usize, replacements: &[Content]) -> Applied {
        let mut applied = Applied::default();
        let Some(here) = content.part(at, self.len) else {
            return applied;
        };
        let optimised = self.optimise(&here);
        applied.done.extend(content.with(at, &optimised));
        for replacement in replacements {
            let Some(mut new) = self.moved(replacement) else {
                continue;
            };
            new.bytes.resize(self.len, insn::NOP);
            applied.on_the_way.extend(content.with(at, &new));
            applied.done.extend(content.with(at, &self.optimise(&new)));
        }
        applied
    }

    fn optimise(&self, content: &Content) -> Content {
        let mut new = content.clone();
        match self.dialect {
            Dialect::Old => insn::optimise_short_nops(&mut new.bytes),
            Dialect::New => insn::optimise_any_nops(&mut new.bytes),
        }
        new
    }

    /// The replacement as it reads at the place that it replaces.
    fn moved(&self, replacement: &Content) -> Option<Content> {
        let distance = self.replacement.wrapping_sub(self.va).cast_signed();
        match self.dialect {
            Dialect::Old => self.moved_old(replacement, distance),
            Dialect::New => self.moved_new(replacement, distance),
        }
    }

    fn moved_old(&self, replacement: &Content, distance: i64) -> Option<Content> {
        let mut new = replacement.clone();
        let first = new.bytes.first().copied();
        let adjusted = self.replacement_len == 5 && matches!(first, Some(insn::CALL | insn::JMP32));
        for fix in &mut new.fixes {
            // What is not adjusted keeps pointing from where it was.
            if matches!(fix.form, Form::Pc32 | Form::Pc64) && !(adjusted && fix.at == 1) {
                fix.addend = fix.addend.checked_sub(distance)?;
            }
        }
        if adjusted && new.fixes.iter().all(|f| f.at != 1) {
            let rel = i64::from(bytes::i32_at(&new.bytes, 1)?).checked_add(distance)?;
            if first == Some(insn::JMP32) {
                return jump_old(rel);
            }
            bytes::put(&mut new.bytes, 1, &i32::try_from(rel).ok()?.to_le_bytes());
        }
        Some(new)
    }

    fn moved_new(&self, replacement: &Content, distance: i64) -> Option<Content> {
        let mut new = replacement.clone();
        let mut at = 0usize;
        while at < new.bytes.len() {
            let Some(insn) = new.bytes.get(at..).and_then(Insn::decode) else {
                break;
            };
            let next = at.checked_add(insn.len)?;
            let field = if insn.is_relative_branch() {
                insn.immediate
            } else {
                None
            };
            let mut moved = false;
            for (offset, size) in [field, insn.rip_relative].into_iter().flatten() {
                moved |= self.move_field(&mut new, at, next, offset, size, distance)?;
            }
            if insn.opcode[0] == insn::JMP32 && moved {
                shorten_jump(&mut new, at, insn.len);
            }
            at = next;
        }
        Some(new)
    }

    /// Moves one relative field; false if it moves by itself.
    fn move_field(
        &self,
        new: &mut Content,
        at: usize,
        next: usize,
        offset: usize,
        size: usize,
        distance: i64,
    ) -> Option<bool> {
        let field = at.checked_add(offset)?;
        let relative = |f: &Fix| usize::from(f.at) == field && matches!(f.form, Form::Pc32 | Form::Pc64);
        if new.fixes.iter().any(relative) {
            return Some(false);
        }
        let value = match size {
            1 => i64::from((*new.bytes.get(field)?).cast_signed()),
            4 => i64::from(bytes::i32_at(&new.bytes, field)?),
            _ => return Some(false),
        };
        let target = bytes::signed(next).checked_add(value)?;
        // Inside the replacement: moves along.
        if (0..=bytes::signed(self.replacement_len)).contains(&target) {
            return Some(false);
        }
        let moved = value.checked_add(distance)?;
        let ok = match size {
            1 => bytes::put(&mut new.bytes, field, &i8::try_from(moved).ok()?.to_le_bytes()),
            _ => bytes::put(&mut new.bytes, field, &i32::try_from(moved).ok()?.to_le_bytes()),
        };
        ok.then_some(true)
    }
}

/// `recompute_jump`: the shortest form of a five-byte jump.
fn jump_old(rel: i64) -> Option<Content> {
    // `n_dspl`, from the start of the instruction.
    let from_start = rel.checked_add(5)?;
    let short = from_start.checked_sub(2)?;
    let fits = if from_start >= 0 {
        short <= 127
    } else {
        (short & 0xff) == short
    };
    if fits {
        let distance = i8::try_from(short).ok()?.cast_unsigned();
        return Some(Content::fixed(&[insn::JMP8, distance, 0x0f, 0x1f, 0x00]));
    }
    let mut new = vec![insn::JMP32];
    new.extend(i32::try_from(rel).ok()?.to_le_bytes());
    Some(Content {
        bytes: new,
        fixes: Vec::new(),
    })
}

/// `jmp rel32` becomes `jmp rel8; int3…` where it reaches.
fn shorten_jump(new: &mut Content, at: usize, len: usize) -> Option<()> {
    let field = at.checked_add(len)?.checked_sub(4)?;
    let rel = bytes::i32_at(&new.bytes, field)?.checked_add(3)?;
    let short = i8::try_from(rel).ok()?;
    let into = new.bytes.get_mut(at..at.checked_add(len)?)?;
    into.fill(insn::INT3);
    bytes::put(into, 0, &[insn::JMP8, short.cast_unsigned()]);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::image::Section;

    #[test]
    fn max_len_refuses_a_patch_that_the_kernel_would_not_make() {
        let read = |len: usize| {
            let section = |name: &str, va, execute, raw| Section {
                name: name.to_owned(),
                va,
                execute,
                raw,
                linked: None,
            };
            let mut entry = (-0x1000_i32).to_le_bytes().to_vec();
            entry.extend([0, 0, 0, 0, 0, 0, u8::try_from(len).unwrap(), 0]);
            let sections = vec![
                section(".text", 0x1000, true, vec![0x90; 0x200]),
                section(".altinstructions", 0x2000, false, entry),
            ];
            super::read(&Image::new(sections, Vec::new()), None)
        };
        assert_eq!(read(MAX_LEN).unwrap().len(), 1);
        assert!(read(MAX_LEN + 1).is_none());
    }
}
