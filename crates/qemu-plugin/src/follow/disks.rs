//! What the servers of disks say.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nephoscope_guest::PAGE_SIZE;
use nephoscope_wire::{DiskMessage, Frame, LandedPart, Region};

use super::Follow;
use super::qtest::Qtest;
use crate::counters::Count;
use crate::plugin::Plugin;

/// Between two tries to connect.
const PAUSE: Duration = Duration::from_millis(5);
const PAGE: u64 = PAGE_SIZE as u64;

/// Connects to each disk's server, and again when it is another one.
pub(crate) fn start(plugin: &'static Plugin) {
    for path in &plugin.config.disks {
        let started = std::thread::Builder::new()
            .name("nephoscope-disk".into())
            .spawn(move || run(plugin, path));
        if started.is_err() {
            eprintln!("nephoscope plugin: no thread for {}", path.display());
        }
    }
}

fn run(plugin: &'static Plugin, path: &Path) {
    let Some(follow) = &plugin.follow else { return };
    while !plugin.exiting.load(Ordering::Relaxed) {
        if let Ok(mut stream) = UnixStream::connect(path) {
            while let Ok(message) = DiskMessage::receive(&mut stream) {
                match message {
                    DiskMessage::Regions(regions) => plugin.take_regions(follow, &regions),
                    DiskMessage::Landed { parts, frames } => {
                        plugin.landed(follow, &parts, &frames);
                    }
                }
                if stream.write_all(&[0]).is_err() {
                    break;
                }
            }
        }
        std::thread::sleep(PAUSE);
    }
}

impl Plugin {
    fn take_regions(&'static self, follow: &Follow, regions: &[Region]) {
        let new = follow.regions.set(regions);
        if !new.is_empty()
            && let Err(why) = follow.register(self, &new)
            && !follow.blind.swap(true, Ordering::Relaxed)
        {
            self.counters.add(Count::FileAccessesBlind, 1);
            eprintln!("nephoscope plugin: who reads files is not seen: {why}");
        }
    }

    fn landed(&self, follow: &Follow, parts: &[LandedPart], frames: &[u8]) {
        for part in parts.iter().filter(|part| !part.follow) {
            for (gpa, len) in pages(part) {
                let Some(hva) = follow.regions.hva(gpa) else {
                    continue;
                };
                let page = hva & !(PAGE - 1);
                follow.disarm(page);
                if self.frames.take_translated(page) {
                    self.invalidate(follow, page, gpa, len);
                }
            }
        }
        let mut rest = frames;
        while let Some((frame, next)) = first(rest) {
            self.tell_of_files(follow, u16::MAX, &frame);
            rest = next;
        }
        if follow.blind.load(Ordering::Relaxed) {
            return;
        }
        for part in parts.iter().filter(|part| part.follow) {
            for (gpa, _) in pages(part) {
                if let Some(hva) = follow.regions.hva(gpa) {
                    follow.arm(self, hva & !(PAGE - 1));
                }
            }
        }
    }

    /// Has QEMU throw away what it translated of a page.
    fn invalidate(&self, follow: &Follow, page: u64, gpa: u64, len: u64) {
        let Some((_, bytes)) = follow.regions.page(page) else {
            return;
        };
        let from = usize::try_from(gpa % PAGE).unwrap_or(0);
        let to = from
            .saturating_add(usize::try_from(len).unwrap_or(0))
            .min(PAGE_SIZE);
        let Some(bytes) = bytes.get(from..to) else { return };
        let mut qtest = follow.qtest.lock().unwrap_or_else(PoisonError::into_inner);
        if qtest.is_none() {
            *qtest = self
                .config
                .qtest
                .as_deref()
                .and_then(|path| Qtest::connect(path).ok());
        }
        let done = qtest.as_mut().map(|qtest| qtest.write(gpa, bytes));
        if done
            .as_ref()
            .is_some_and(|done| done.as_ref().is_err_and(Qtest::is_over))
        {
            *qtest = None;
        }
        if matches!(done, Some(Ok(()))) {
            self.counters.add(Count::CodeInvalidated, 1);
        } else {
            eprintln!(
                "nephoscope plugin: QEMU does not drop what it translated at {gpa:#x}: stale code may run there"
            );
        }
    }
}

/// The first frame of several, and the rest.
fn first(bytes: &[u8]) -> Option<(Frame<'_>, &[u8])> {
    let len = usize::try_from(u32::from_le_bytes(*bytes.first_chunk()?)).ok()?;
    let (frame, rest) = bytes.split_at_checked(len)?;
    Some((Frame::decode(frame).ok()?.1, rest))
}

/// The pages that a part lies in, each with where the part begins in it and how many of its bytes are there.
fn pages(part: &LandedPart) -> impl Iterator<Item = (u64, u64)> + use<> {
    let end = part.gpa.saturating_add(part.len.into());
    let mut at = part.gpa;
    std::iter::from_fn(move || {
        let from = at;
        at = (from / PAGE).saturating_add(1).saturating_mul(PAGE).min(end);
        (from < end).then(|| (from, at - from))
    })
}

#[cfg(test)]
mod tests {
    use nephoscope_wire::{FileFrame, Stamp};

    use super::*;

    #[test]
    fn a_part_lies_in_pages() {
        let part = |gpa, len| {
            let part = LandedPart {
                gpa,
                len,
                follow: false,
            };
            pages(&part).collect::<Vec<_>>()
        };
        assert_eq!(part(0x1000, 4096), [(0x1000, 4096)]);
        assert_eq!(
            part(0x1e00, 0x1400),
            [(0x1e00, 0x200), (0x2000, 0x1000), (0x3000, 0x200)]
        );
        assert_eq!(part(0x1000, 0), []);
        assert_eq!(part(u64::MAX - 1, 9).len(), 1);
    }

    #[test]
    fn frames_are_taken_one_after_the_other_and_what_is_none_ends_them() {
        let (mut all, mut one) = (Vec::new(), Vec::new());
        for number in 0..3 {
            let file = FileFrame {
                file: number,
                ..FileFrame::default()
            };
            Frame::File(file, b"/a").encode(Stamp::default(), &mut one);
            all.extend_from_slice(&one);
        }
        let take = |mut bytes: &[u8]| {
            let mut count = 0;
            while let Some((_, rest)) = first(bytes) {
                (count, bytes) = (count + 1, rest);
            }
            count
        };
        assert_eq!(take(&all), 3);
        assert_eq!(take(&all[..all.len() - 1]), 2);
        assert_eq!(take(&[0; 64]), 0);
    }
}
