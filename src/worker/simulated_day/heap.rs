//! UNSAFE. The allocator of the unit tests: counts, per thread, the heap bytes that the server of a simulated day
//! holds. A simulated day runs in one thread. The bytes of browsers and of the simulated network are not counted.
#![expect(unsafe_code, reason = "an allocator is an unsafe trait by its nature")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Counting;

thread_local! {
    static IN_SERVER: Cell<bool> = const { Cell::new(false) };
    static SERVER_BYTES: Cell<i64> = const { Cell::new(0) };
}

/// Adds `bytes` times `sign` to this thread's `SERVER_BYTES` while the server's part of a step runs. Does nothing in a
/// thread that is ending.
fn count(bytes: usize, sign: i64) {
    let in_server = IN_SERVER.try_with(Cell::get).unwrap_or(false);
    if in_server && let Ok(bytes) = i64::try_from(bytes) {
        let _ = SERVER_BYTES.try_with(|sum| sum.set(sum.get() + sign * bytes));
    }
}

// SAFETY: every call is passed on unchanged to the system's allocator; counting does not allocate or unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: `pointer` came from `alloc` with this layout, and so from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        count(layout.size(), -1);
        count(new_bytes, 1);
        // SAFETY: `pointer` came from the system's allocator, as in `dealloc`, and the caller promises a valid
        // `new_bytes`.
        unsafe { System.realloc(pointer, layout, new_bytes) }
    }
}

/// Runs the server's part of a step and counts its allocations. Data that passes between the simulation and the server
/// must be copied inside `work`: otherwise its allocation and its release are not both counted.
pub(super) fn as_server<T>(work: impl FnOnce() -> T) -> T {
    let before = IN_SERVER.replace(true);
    let result = work();
    IN_SERVER.set(before);
    result
}

/// Runs a part of the server's step whose allocations are not counted, because they belong to the simulation.
pub(super) fn as_world<T>(work: impl FnOnce() -> T) -> T {
    let before = IN_SERVER.replace(false);
    let result = work();
    IN_SERVER.set(before);
    result
}

/// Returns how many bytes the server holds that were allocated in this thread.
pub(super) fn server_bytes() -> i64 {
    SERVER_BYTES.get()
}

#[test]
fn only_the_bytes_of_the_server_are_counted() {
    let before = server_bytes();
    let ours = vec![0_u8; 1_000];
    let mut kept: Vec<u8> = as_server(|| {
        drop(vec![0_u8; 5_000]);
        Vec::with_capacity(300)
    });
    assert_eq!(server_bytes() - before, 300);
    as_server(|| kept.reserve_exact(400));
    assert_eq!(server_bytes() - before, 400);
    drop(ours);
    as_server(|| drop(kept));
    assert_eq!(server_bytes(), before);
}
