//! Measures the cost that the profiling allocator adds to an allocation and its free, both without and with sampling.
#![allow(clippy::unwrap_used, reason = "a bench: a panic is the report")]
#![expect(unsafe_code, reason = "allocators are called by hand")]

use std::alloc::{GlobalAlloc, Layout};

use divan::{Bencher, black_box};
use mimalloc::MiMalloc;
use streaming_server::profiling::{Allocator, Heap, heap_profile};

const SIZES: [usize; 4] = [16, 256, 4_096, 40_000];

fn main() {
    divan::main();
}

fn pair(allocator: &impl GlobalAlloc, bytes: usize) {
    let layout = Layout::from_size_align(black_box(bytes), 8).unwrap();
    // SAFETY: the size of the layout is not 0.
    let pointer = unsafe { allocator.alloc(layout) };
    let pointer = black_box(pointer);
    // SAFETY: `pointer` was allocated just above with this layout, and it is freed only here.
    unsafe { allocator.dealloc(pointer, layout) }
}

#[divan::bench(args = SIZES)]
fn plain_mimalloc(bencher: Bencher<'_, '_>, bytes: usize) {
    bencher.bench_local(|| (0..1_000).for_each(|_| pair(&MiMalloc, bytes)));
}

#[divan::bench(args = SIZES)]
fn with_heap_profile(bencher: Bencher<'_, '_>, bytes: usize) {
    let allocator = Allocator::new();
    bencher.bench_local(|| (0..1_000).for_each(|_| pair(&allocator, bytes)));
}

/// Allocates 16 MB with plain mimalloc, for comparison with an allocation that is nearly always sampled.
#[divan::bench(args = [16 * 1024 * 1024])]
fn plain_large(bencher: Bencher<'_, '_>, bytes: usize) {
    bencher.bench_local(|| pair(&MiMalloc, bytes));
}

#[divan::bench(args = [16 * 1024 * 1024])]
fn sampled_large(bencher: Bencher<'_, '_>, bytes: usize) {
    let allocator = Allocator::new();
    bencher.bench_local(|| pair(&allocator, bytes));
}

#[divan::bench]
fn encode_heap_profile(bencher: Bencher<'_, '_>) {
    bencher.bench_local(|| heap_profile(Heap::InUse));
}
