//! A heap with a bound: an input that asks for more than its target may have ends the run, and is kept.
#![allow(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's heap, counted. Memory that C libraries take is not counted here; libFuzzer bounds the process as a whole.
#[derive(Debug)]
pub struct Bounded {
    limit: usize,
    used: AtomicUsize,
    most: AtomicUsize,
}

impl Bounded {
    /// At most so many MiB at a time.
    #[must_use]
    pub const fn mib(mib: usize) -> Self {
        Self {
            limit: mib << 20,
            used: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        }
    }

    /// The most bytes that were used at a time.
    #[must_use]
    pub fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if used > self.most.load(Ordering::Relaxed) {
            self.most.store(used, Ordering::Relaxed);
            if used > self.limit {
                over(bytes, used, self.limit);
            }
        }
    }
}

#[cold]
fn over(bytes: usize, used: usize, limit: usize) {
    // What a panic prints takes memory of its own.
    if std::thread::panicking() {
        return;
    }
    let mut line = [0; 128];
    let mut room = &mut line[..];
    // Without the heap.
    let _ = std::io::Write::write_fmt(
        &mut room,
        format_args!("\nHEAP BOUND: {bytes} bytes more make {used}, over {limit}\n"),
    );
    let _ = std::io::Write::write_all(&mut std::io::stderr(), &line);
    std::process::abort()
}

// SAFETY: every call is passed on to the system's allocator with its arguments unchanged; the counting beside it neither
// allocates nor unwinds.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.take(layout.size());
        // SAFETY: the caller keeps `alloc`'s contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.take(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.used.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `pointer` came from `System` with this layout, because all allocations do.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.take(size);
        self.used.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
