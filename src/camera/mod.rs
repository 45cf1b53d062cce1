//! SOURCE: reads access units by borrowing them from the camera's slot ring. This module must not know its consumers.
//!
//! ```text
//!  segment ─► mapping ─► cursor ─► UnitView      one cursor per consumer, any number of them
//!     │          ▲
//!     │       source                             the attached segment and run, status, counters, wake-ups
//!     │          ▲
//!     └───────► waiter ─► segment_follower       on a separate thread or in a worker: waits, follows the index,
//!                         ─► commit_detector     finds complete units, re-attaches, wakes the consumers
//! ```
//!
//! [`detections`] reads what an object detector found in the pictures.
//!
//! On a lease ring, a cursor leases every slot that it reads (see [`lease`]). So no unit is torn, and none needs a
//! copy.
//!
//! # Reading a ring from another program
//!
//! A consumer has a [`Camera`], a [`Wakeup`] and a [`Cursor`]. The [`Camera`] stands for the segment;
//! [`waiter::run`] keeps it up to date on a separate thread. A consumer works on every layout, also next to the server
//! and other consumers. Each consumer reads at its own speed, and none can delay the camera.
//!
//! A legacy ring has one semaphore, and only one process can take its posts. So a second process must use
//! [`Wake::Poll`].
//!
//! This example counts IDRs and bytes:
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicBool, Ordering};
//! use std::thread::{self, Thread};
//! use std::time::Duration;
//!
//! use streaming_server::base::clock;
//! use streaming_server::camera::{Camera, Next, Wake, Wakeup, waiter};
//! use streaming_server::h264::Assembler;
//!
//! /// Wakes the counting thread.
//! struct Unpark(Thread);
//!
//! impl Wakeup for Unpark {
//!     fn wake(&self) {
//!         self.0.unpark();
//!     }
//! }
//!
//! /// Reads until `idr_count` IDRs have arrived. Returns the number of IDRs and the bytes of all access units.
//! fn count(ring: &str, idr_count: u64) -> (u64, u64) {
//!     let camera = Camera::new(ring, Wake::Auto);
//!     camera.add_wakeup(Arc::new(Unpark(thread::current())));
//!     let stop = Arc::new(AtomicBool::new(false));
//!     let waiting = {
//!         let (camera, stop) = (camera.clone(), Arc::clone(&stop));
//!         thread::spawn(move || waiter::run(camera, stop, false))
//!     };
//!     let mut cursor = camera.cursor();
//!     let mut assembler = Assembler::default();
//!     let (mut idrs, mut bytes) = (0, 0);
//!     while idrs < idr_count {
//!         match cursor.next(clock::monotonic_ns()) {
//!             Next::Unit(unit) => {
//!                 // `unit.bytes` borrows from the slot. On a lease ring, a clone keeps the slot leased. On other
//!                 // rings, the camera may overwrite the slot, so call `is_intact` after the last read.
//!                 let is_idr = assembler.assemble(&unit.bytes).is_ok_and(|assembled| assembled.is_idr());
//!                 if unit.is_intact() {
//!                     idrs += u64::from(is_idr);
//!                     bytes += unit.bytes.len() as u64;
//!                 } else {
//!                     assembler.forget_last_unit();
//!                 }
//!             }
//!             Next::Empty | Next::Away => thread::park_timeout(Duration::from_millis(200)),
//!             Next::Lapped { missed_units } => eprintln!("{missed_units} units missed"),
//!             Next::Rejected(reason) => eprintln!("skipped slot: {reason}"),
//!             Next::Restarted => assembler = Assembler::default(),
//!         }
//!     }
//!     stop.store(true, Ordering::Release);
//!     waiting.join().expect("the waiter does not panic");
//!     (idrs, bytes)
//! }
//!
//! # use streaming_server::simulator::{self, SimulatorConfig, TestCardConfig};
//! # let ring = format!("/ss-doc-{}", std::process::id());
//! # let ended = Arc::new(AtomicBool::new(false));
//! # let config = SimulatorConfig {
//! #     name: ring.clone(),
//! #     layout: "lease".parse().unwrap(),
//! #     card: TestCardConfig { width: 320, height: 240, gop: 10, ..TestCardConfig::default() },
//! #     ..SimulatorConfig::default()
//! # };
//! # let camera = {
//! #     let ended = Arc::clone(&ended);
//! #     thread::spawn(move || simulator::run(&config, &ended))
//! # };
//! let (idrs, bytes) = count(&ring, 2);
//! assert!(idrs == 2 && bytes > 0);
//! # ended.store(true, Ordering::Relaxed);
//! # camera.join().unwrap().unwrap();
//! ```

mod capture_timeline;
mod commit_detector;
mod cursor;
pub mod detections;
pub mod faults;
mod layout;
pub mod lease;
pub mod lease_header;
mod lease_ring;
mod lease_writer;
mod locks;
mod mapping;
mod region;
mod segment;
mod segment_follower;
mod semaphore;
mod sequence;
mod shared_map;
mod source;
mod unit_interval;
pub mod waiter;
mod writer;

#[cfg(test)]
mod lease_tests;
#[cfg(test)]
pub(crate) mod test_camera;
#[cfg(test)]
mod test_ring;
#[cfg(test)]
pub(crate) mod test_waiter;

pub use capture_timeline::{CaptureTimeline, UnitInterval};
pub use cursor::{Cursor, Next, UnitView};
pub use layout::{FORMAT_H264, Layout, LayoutError, MetadataError, SlotMetadata};
pub use lease_header::Geometry;
pub use mapping::{Access, Mapping};
pub use segment::MappingError;
pub use source::{Camera, CameraCounters, CameraStatus, IdrRequest, MonotonicNs, Wake, Wakeup};
pub use unit_interval::{ArrivalPredictor, PredictedArrival};
pub use writer::{RingWriter, WriterError};
