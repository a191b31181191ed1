//! Who accesses armed pages.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nephoscope_guest::PAGE_SIZE;
use nephoscope_wire::{Frame, FrameAccessed};

use super::armed::Access;
use super::{Follow, regions};
use crate::counters::Count;
use crate::plugin::Plugin;
use crate::uffd::{Fault, Uffd};

const PAGE: u64 = PAGE_SIZE as u64;

impl Follow {
    /// Has accesses to this memory told. A reason, if that cannot be.
    pub(super) fn register(&self, plugin: &'static Plugin, memory: &[(u64, u64)]) -> Result<(), String> {
        let uffd = self.uffd(plugin)?;
        for (hva, len) in memory {
            uffd.register_minor(*hva, *len)
                .map_err(|error| format!("accesses to memory at {hva:#x} cannot be told: {error}"))?;
        }
        Ok(())
    }

    fn uffd(&self, plugin: &'static Plugin) -> Result<&Uffd, String> {
        if let Some(uffd) = self.uffd.get() {
            return Ok(uffd);
        }
        let uffd = Uffd::for_minor_faults().map_err(|error| {
            format!(
                "no userfaultfd with minor faults ({error}): QEMU needs CAP_SYS_PTRACE, access to /dev/userfaultfd, or the sysctl \
                 vm.unprivileged_userfaultfd=1, and Linux 5.14"
            )
        })?;
        let uffd = self.uffd.get_or_init(|| uffd);
        // Not before somebody lets those go on who wait.
        std::thread::Builder::new()
            .name("nephoscope-hits".into())
            .spawn(move || run(plugin))
            .map_err(|error| format!("no thread for accesses to files: {error}"))?;
        Ok(uffd)
    }

    /// Arms pages that were open.
    pub(super) fn close(&self) {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = armed.close(PAGE);
        self.open.store(armed.open(), Ordering::Relaxed);
        // Under the lock: who opens a page meanwhile would find it closed here.
        for (from, len) in runs {
            regions::take_out(from, len);
        }
    }

    /// Follows a page from now on.
    pub(super) fn arm(&self, plugin: &Plugin, hva: u64) {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        if armed.arm(hva) {
            regions::take_out(hva, PAGE);
            plugin.counters.add(Count::FramesArmed, 1);
        } else {
            plugin.counters.add(Count::FileFramesLost, 1);
        }
    }

    /// It holds something else now.
    pub(super) fn disarm(&self, hva: u64) {
        self.armed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .disarm(hva);
    }
}

/// Lets everyone go on who waits, for ever: whatever goes wrong with one is tried again when it comes back.
fn run(plugin: &'static Plugin) {
    let Some(follow) = &plugin.follow else { return };
    let Some(uffd) = follow.uffd.get() else { return };
    loop {
        let told = catch_unwind(AssertUnwindSafe(|| match uffd.next_fault() {
            Ok(Some(fault)) => {
                let told = catch_unwind(AssertUnwindSafe(|| plugin.accessed(follow, &fault)));
                let page = fault.at & !(PAGE - 1);
                let on = uffd.go_on(page, PAGE).is_ok() || uffd.wake(page, PAGE).is_ok();
                told.is_ok() && on
            }
            _ => false,
        }));
        if !matches!(told, Ok(true)) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Plugin {
    fn accessed(&self, follow: &Follow, fault: &Fault) {
        let page = fault.at & !(PAGE - 1);
        let vcpu = self.vcpus.iter().find(|vcpu| vcpu.is_on_thread(fault.thread));
        let alone = !self.round_robin.load(Ordering::Relaxed);
        let by = vcpu.filter(|_| alone).and_then(|vcpu| vcpu.loaded_now());
        let access = {
            let mut armed = follow.armed.lock().unwrap_or_else(PoisonError::into_inner);
            let access = armed.access(page, by, fault.is_write);
            follow.open.store(armed.open(), Ordering::Relaxed);
            access
        };
        if access != Access::News {
            return;
        }
        let Some((gpa, bytes)) = follow.regions.page(page) else {
            return;
        };
        self.counters.add(Count::FileAccesses, 1);
        let accessed = FrameAccessed { gpa, by };
        let vcpu = vcpu.map_or(u16::MAX, |vcpu| vcpu.index);
        let held = (!fault.is_write).then_some(&*bytes);
        self.tell_of_files(follow, vcpu, &Frame::FrameAccessed(accessed, held));
    }
}
