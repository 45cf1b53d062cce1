//! Cost that the profiling allocator adds to a pair of allocation and free, unsampled and sampled.
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
    // SAFETY: the layout is not empty.
    let pointer = unsafe { allocator.alloc(layout) };
    let pointer = black_box(pointer);
    // SAFETY: allocated just above with this layout, freed once.
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

/// Nearly every allocation of 16 MB is sampled.
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
