//! UNSAFE. The global allocator: mimalloc, with one allocation per 512 kB sampled for the heap profile.
//!
//! The fast path adds a subtraction and a compare to an allocation, and a multiplication, a byte load and a compare
//! to a free.
#![expect(unsafe_code, reason = "an allocator is an unsafe trait by its nature")]

use std::alloc::{GlobalAlloc, Layout};

use mimalloc::MiMalloc;

use super::heap;

/// Set this as the `#[global_allocator]` of the program.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allocator;

impl Allocator {
    /// Returns the allocator; all instances share their state.
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

// SAFETY: every call is passed on unchanged to mimalloc, whose contract is this trait's. The sampling uses addresses
// as numbers only, does not allocate and does not unwind.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is passed on.
        let pointer = unsafe { MiMalloc.alloc(layout) };
        note(pointer, layout.size());
        pointer
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is passed on.
        let pointer = unsafe { MiMalloc.alloc_zeroed(layout) };
        note(pointer, layout.size());
        pointer
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // Before the memory is free: afterwards another thread may get the same address.
        forget(pointer);
        // SAFETY: `pointer` came from one of the functions here, that is from mimalloc, with this layout.
        unsafe { MiMalloc.dealloc(pointer, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // If the call fails, the old allocation stays alive but is missing from the profile: the program is out of memory.
        forget(pointer);
        // SAFETY: `pointer` came from one of the functions here, that is from mimalloc, with this layout; the
        // caller's promise about `bytes` is passed on.
        let pointer = unsafe { MiMalloc.realloc(pointer, layout, bytes) };
        note(pointer, bytes);
        pointer
    }
}
