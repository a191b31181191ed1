//! How much of files the monitor has in its memory, and when to let go of it.
//!
//! A catalog is mapped, and what is asked for stays mapped, with some pages around it: after a while that is most of a small
//! catalog. The kernel may take it back and does so late; who watches many VMs wants to know what each costs.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nephoscope_pipeline::Session;

/// What may be mapped of files, in bytes. It bounds what a guest that runs code from all over the catalog keeps in memory.
const MAX_MAPPED_BYTES: u64 = 96 << 20;

/// Looks at it.
#[derive(Debug)]
pub(super) struct Resident {
    /// proc(5): sizes in pages; the third is what is mapped of files, and shared.
    statm: Option<File>,
    /// The host's; the system is not to be asked for it later.
    page_bytes: u64,
    most: u64,
}

impl Resident {
    /// To be called while files may still be opened.
    pub(super) fn open() -> Self {
        Self {
            statm: File::open("/proc/self/statm").ok(),
            page_bytes: rustix::param::page_size() as u64,
            most: MAX_MAPPED_BYTES,
        }
    }

    /// Lets go of the catalog when too much is mapped.
    pub(super) fn look(&self, session: &mut Session) {
        let mut text = [0; 128];
        let read = self.statm.as_ref().map(|statm| statm.read_at(&mut text, 0));
        let Some(Ok(len)) = read else { return };
        let text = text.get(..len).unwrap_or_default();
        let bytes = shared_pages(&String::from_utf8_lossy(text)).map(|n| n.saturating_mul(self.page_bytes));
        if bytes.is_some_and(|bytes| bytes > self.most) {
            session.let_go_of_catalog();
        }
    }
}

/// What a line of `statm` says is mapped of files and shared, in pages.
fn shared_pages(statm: &str) -> Option<u64> {
    statm.split(' ').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::fixture::session;

    #[test]
    fn max_mapped_bytes_are_kept_of_files_and_then_the_catalog_is_let_go_of() {
        let (mut resident, mut session) = (Resident::open(), session());
        let counted = |session: &mut Session| session.report().counters.get("catalog_let_go").copied();
        resident.look(&mut session);
        assert_eq!((resident.most, counted(&mut session)), (MAX_MAPPED_BYTES, None));
        // As if this test's own libraries were more than that.
        resident.most = 0;
        resident.look(&mut session);
        assert_eq!(counted(&mut session), Some(1));
    }

    #[test]
    fn the_third_number_is_what_is_mapped_of_files_in_pages() {
        assert_eq!(shared_pages("5000 900 70 12 0 300 0\n"), Some(70));
        assert_eq!((shared_pages("5000"), shared_pages("1 2 x 4")), (None, None));
    }
}
