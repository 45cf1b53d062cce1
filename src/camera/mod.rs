//! SOURCE: access units borrowed from the camera's slot ring. May not know who consumes them.
//!
//! ```text
//!  segment ─► mapping ─► cursor ─► UnitView       one cursor per consumer, any number
//!     │          ▲
//!     │       source      which segment, which run, status, counters, bells
//!     │          ▲
//!     └───────► doorbell ─► watch ─► settle       a thread of its own or a worker's: waits, follows the index,
//!                                                 re-attaches, rings
//! ```
//!
//! On a lease ring `mapping` is a [`lease`] of each slot that is read: nothing is torn and nothing copied.
//!
//! # Reading a ring from another program
//!
//! A consumer is a [`Camera`] (which segment, kept up to date by the [`doorbell`] on a thread of its own), a [`Wakeup`]
//! that wakes the consumer, and a [`Cursor`]. It works on every layout, beside the server and beside other
//! consumers; each reads at its own pace and none of them can hold up the camera. (The five legacy rings have one
//! semaphore, whose wakes only one process can take: a second one uses [`Wake::Poll`].) This one counts IDRs and
//! bytes:
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicBool, Ordering};
//! use std::thread::{self, Thread};
//! use std::time::Duration;
//!
//! use streaming_server::camera::{Wakeup, Camera, Next, Wake, waiter};
//! use streaming_server::h264::Assembler;
//!
//! /// Wakes the thread that counts.
//! struct Unpark(Thread);
//!
//! impl Wakeup for Unpark {
//!     fn wake(&self) {
//!         self.0.unpark();
//!     }
//! }
//!
//! /// Counts until `idrs_wanted` IDRs came: those, and the bytes of all access units up to the last.
//! fn count(ring: &str, idrs_wanted: u64) -> (u64, u64) {
//!     let camera = Camera::new(ring, Wake::Auto);
//!     camera.add_wakeup(Arc::new(Unpark(thread::current())));
//!     let stop = Arc::new(AtomicBool::new(false));
//!     let waiting = {
//!         let (camera, stop) = (camera.clone(), Arc::clone(&stop));
//!         thread::spawn(move || waiter::run(camera, stop, false))
//!     };
//!     let mut cursor = camera.cursor();
//!     let mut assembler = Assembler::new();
//!     let (mut idrs, mut bytes) = (0, 0);
//!     while idrs < idrs_wanted {
//!         match cursor.next(clock::monotonic_ns()) {
//!             Next::Unit(unit) => {
//!                 // `unit.bytes` lies in the slot. Keep a clone of it as long as you like: on a lease ring the
//!                 // slot stays yours, on the others `is_intact` tells afterwards whether it did.
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
//!             Next::Rejected(reason) => eprintln!("a slot without a unit: {reason}"),
//!             Next::Restarted => assembler = Assembler::new(),
//!         }
//!     }
//!     stop.store(true, Ordering::Release);
//!     waiting.join().expect("the doorbell does not panic");
//!     (idrs, bytes)
//! }
//!
//! # use streaming_server::simulator::{self, SimulatorConfig, Source};
//! # let ring = format!("/ss-doc-{}", std::process::id());
//! # let ended = Arc::new(AtomicBool::new(false));
//! # let config = SimulatorConfig {
//! #     name: ring.clone(),
//! #     layout: "lease".parse().unwrap(),
//! #     source: Source::Pattern { width: 320, height: 240 },
//! #     gop: 10,
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

mod commit_detector;
pub mod cursor;
pub mod layout;
pub mod lease;
pub mod lease_header;
mod lease_ring;
mod lease_writer;
mod locks;
pub mod mapping;
mod segment_follower;
pub mod source;
pub mod waiter;
pub mod writer;

#[cfg(test)]
mod lease_tests;
#[cfg(test)]
mod test_ring;
#[cfg(test)]
pub(crate) mod test_waiter;

pub use cursor::{Cursor, MonotonicNs, Next, Rejection, UnitView};
pub use layout::{FORMAT_H264, Layout, LayoutError, MetadataError, SlotMetadata};
pub use lease_header::Geometry;
pub use source::{Camera, CameraCounters, CameraStatus, Wake, Wakeup};
pub use writer::{RingWriter, WriterError};
