//! UNSAFE. The global allocator. It passes every call on to mimalloc and samples about one allocation per 512 kB for
//! the heap profile.
//!
//! If an allocation is not sampled, the extra cost is a subtraction and a comparison. The extra cost of a free is a
//! multiplication, a byte load and a comparison.
#![expect(unsafe_code, reason = "an allocator is an unsafe trait by its nature")]

use std::alloc::{GlobalAlloc, Layout};

use mimalloc::MiMalloc;

use super::heap;

/// The allocator that the program sets as its `#[global_allocator]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allocator;

impl Allocator {
    /// Returns the allocator. All instances share the tables of the heap profile.
    #[must_use]
    pub const fn new() -> Self {
        Allocator
    }
}

#[inline(always)]
fn note(pointer: *mut u8, bytes: usize) {
    if heap::is_due(bytes) && !pointer.is_null() {
        heap::sample(pointer.addr(), bytes);
    }
}

#[inline(always)]
fn forget(pointer: *mut u8) {
    if heap::may_be_sampled(pointer.addr()) {
        heap::forget(pointer.addr());
    }
}

// SAFETY: every call is passed on unchanged to mimalloc, which fulfils the contract of `GlobalAlloc`. The sampling uses
// addresses only as numbers, does not allocate and does not unwind.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: mimalloc has the same requirement for `layout` as this function, and the caller guarantees it.
        let pointer = unsafe { MiMalloc.alloc(layout) };
        note(pointer, layout.size());
        pointer
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: mimalloc has the same requirement for `layout` as this function, and the caller guarantees it.
        let pointer = unsafe { MiMalloc.alloc_zeroed(layout) };
        note(pointer, layout.size());
        pointer
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // The address must be removed from the profile before the memory is freed: afterwards another thread may get
        // the same address.
        forget(pointer);
        // SAFETY: `pointer` was returned by a function of this allocator, and therefore by mimalloc, for this layout.
        unsafe { MiMalloc.dealloc(pointer, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // If `realloc` fails, the old allocation stays alive but is missing from the profile. This is accepted, because
        // the program is out of memory then.
        forget(pointer);
        // SAFETY: `pointer` was returned by a function of this allocator, and therefore by mimalloc, for this layout.
        // The caller guarantees that `bytes` is valid.
        let pointer = unsafe { MiMalloc.realloc(pointer, layout, bytes) };
        note(pointer, bytes);
        pointer
    }
}
