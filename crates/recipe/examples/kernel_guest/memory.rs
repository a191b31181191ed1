//! Reading the snapshot through the guest's page tables (trusted here: the guest is ours).

use crate::guest::Snapshot;

impl Snapshot {
    /// The page that holds a virtual address.
    pub(crate) fn page(&self, va: u64) -> Option<&[u8; 4096]> {
        let mut table = self.root;
        let top = if self.five_levels { 5 } else { 4 };
        for level in (1..=top).rev() {
            let shift = 12 + 9 * (level - 1);
            let index = (va >> shift) & 0x1ff;
            let entry = self.word(table + index * 8)?;
            if entry & 1 == 0 {
                return None;
            }
            let base = entry & 0x000f_ffff_ffff_f000;
            if level == 1 || (level <= 3 && entry & 0x80 != 0) {
                let mask = (1u64 << shift) - 1;
                let frame = ((base & !mask) | (va & mask)) & !0xfff;
                return self.frame(frame);
            }
            table = base;
        }
        None
    }

    fn frame(&self, at: u64) -> Option<&[u8; 4096]> {
        let at = usize::try_from(at).ok()?;
        self.memory.get(at..at + 4096)?.try_into().ok()
    }

    fn word(&self, at: u64) -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        Some(u64::from_le_bytes(self.memory.get(at..at + 8)?.try_into().ok()?))
    }
}
