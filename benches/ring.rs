//! Measures the cost of passing a unit from the camera to a consumer, on the lease ring and on layout v3. One bench
//! finds, leases and releases a unit. The other publishes a unit of 33 kB, its size at 8 Mbit/s.
#![allow(missing_docs, reason = "a bench has no public interface")]

use divan::Bencher;
use streaming_server::camera::{Camera, Cursor, FORMAT_H264, Layout, Next, RingWriter, SlotMetadata, Wake};

const UNIT_BYTES: usize = 33_000;
const LAYOUTS: [&str; 2] = ["v3", "lease"];

fn main() {
    divan::main();
}

/// A ring with a camera and a consumer in one process.
struct Ring {
    writer: RingWriter,
    cursor: Cursor,
    unit: Vec<u8>,
    frame_number: u64,
}

impl Ring {
    fn new(layout: &str) -> Ring {
        let name = format!("/ss-bench-{}-{layout}", std::process::id());
        let layout: Layout = layout.parse().expect("a layout");
        let writer = RingWriter::create(&name, layout, 33).expect("a ring");
        let cursor = Camera::new(&name, Wake::Poll).cursor();
        Ring { writer, cursor, unit: vec![0x55; UNIT_BYTES], frame_number: 0 }
    }

    fn publish(&mut self) {
        let metadata = SlotMetadata {
            frame_number: self.frame_number,
            width: 1280,
            height: 720,
            format: FORMAT_H264,
            data_bytes: UNIT_BYTES as u64,
            ..SlotMetadata::default()
        };
        self.frame_number += 1;
        assert!(self.writer.publish(&metadata, &self.unit), "a slot is free");
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.writer.unlink();
    }
}

/// Finds the newest unit, checks that it is intact and releases it.
#[divan::bench(args = LAYOUTS)]
fn next_check_drop(bencher: Bencher, layout: &str) {
    let mut ring = Ring::new(layout);
    (0..40).for_each(|_| {
        ring.publish();
        let _ = ring.cursor.next(0);
    });
    let newest = ring.cursor.clone();
    bencher.bench_local(|| {
        let Some(mut cursor) = newest.units_back(1) else { unreachable!("the unit is there") };
        let Next::Unit(unit) = cursor.next(0) else { unreachable!("the unit is there") };
        assert!(unit.is_intact());
    });
}

/// Copies one unit into its slot and publishes it.
#[divan::bench(args = LAYOUTS)]
fn publish(bencher: Bencher, layout: &str) {
    let mut ring = Ring::new(layout);
    bencher.bench_local(|| ring.publish());
}
