//! A small simulated world for tests of single behaviours: real worker turns and sessions, a real ring, and browsers on a
//! network without loss or delay, on a fake clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::SECOND;
use super::browser::{Browser, Manners, server_address};
use super::heap::{as_server, as_world};
use super::network::{Link, Weather};
use super::server::Server;
use crate::base::clock::{self, Now};
use crate::camera::test_waiter::TestWaiter;
use crate::camera::{Camera, FORMAT_H264, Layout, RingWriter, SlotMetadata, Wake};
use crate::recorder::tests::harness::parameter_sets;
use crate::session::{SessionConfig, SessionContext, SrtpChoice, Viewer};
use crate::worker::commands::SessionPlace;

/// A camera, a server and browsers on a network without loss or delay.
pub(super) struct Scene {
    pub(super) writer: RingWriter,
    pub(super) camera: Camera,
    pub(super) waiter: TestWaiter,
    pub(super) server: Server,
    context: Arc<SessionContext>,
    pub(super) start: Now,
    pub(super) now: Now,
    pub(super) units: u32,
    pub(super) browsers: BTreeMap<u32, Browser>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.writer.unlink();
    }
}

impl Scene {
    /// Starts a server with `workers` workers in the middle of a GOP: the ring holds an IDR and `deltas` other units.
    pub(super) fn new(layout: Layout, workers: usize, deltas: u32) -> Scene {
        static SCENES: AtomicU32 = AtomicU32::new(0);
        let name = format!("/ss-test-idr-{}-{}", std::process::id(), SCENES.fetch_add(1, Ordering::Relaxed));
        let (now, mut units) = (clock::now(), 0);
        let mut writer = RingWriter::create(&name, layout, 33).unwrap();
        for unit in 0..=deltas {
            publish(&mut writer, &mut units, unit == 0, now.monotonic_ns);
        }
        let camera = Camera::new(&name, Wake::Poll);
        let config =
            SessionConfig { candidates: vec![server_address()], advertise: vec![], srtp: SrtpChoice::Gcm };
        Scene {
            writer,
            waiter: TestWaiter::new(&camera),
            server: Server::new(&camera, workers),
            camera,
            context: SessionContext::new(config).unwrap(),
            start: now,
            now,
            units,
            browsers: BTreeMap::new(),
        }
    }

    /// Lets a browser join. Returns the place of its session.
    pub(super) fn join(&mut self, id: u32) -> SessionPlace {
        let moment = (self.now.instant, self.now.monotonic_ns);
        let (mut browser, offer) =
            Browser::new(id, Manners::Polite, Link::new(Weather::Clean, (1, 0), id), moment);
        let (context, server) = (&self.context, &self.server);
        let (answer, place) = as_server(|| {
            let (viewer, answer) = Viewer::accept(context, id, &offer, moment.0).unwrap();
            let place = server.adopt(viewer);
            (as_world(|| answer.clone()), place)
        });
        browser.take_answer(&answer);
        browser.handle_timeout(moment.0, moment.1);
        self.browsers.insert(id, browser);
        place
    }

    /// Publishes a unit, which is an IDR if the server has requested one.
    pub(super) fn publish(&mut self) {
        let is_idr = self.writer.take_idr_request();
        self.publish_unit(is_idr);
    }

    pub(super) fn publish_unit(&mut self, is_idr: bool) {
        publish(&mut self.writer, &mut self.units, is_idr, self.now.monotonic_ns);
    }

    pub(super) fn run(&mut self, ms: u64) {
        self.run_in_steps(ms, 1);
    }

    /// Advances the clock by `ms`, in steps of `step_ms`.
    pub(super) fn run_in_steps(&mut self, ms: u64, step_ms: u64) {
        for _ in 0..ms / step_ms {
            let step_ns = Duration::from_millis(step_ms).as_nanos() as i64;
            let since_start_ns = self.now.monotonic_ns - self.start.monotonic_ns + step_ns;
            let instant = self.start.instant + Duration::from_nanos(since_start_ns.cast_unsigned());
            self.now = Now { instant, monotonic_ns: self.start.monotonic_ns + since_start_ns };
            as_server(|| self.waiter.poll(self.now.monotonic_ns));
            self.step();
        }
    }

    fn step(&mut self) {
        let (instant, now_ns) = (self.now.instant, self.now.monotonic_ns);
        for browser in self.browsers.values_mut() {
            if browser.deadline <= instant {
                browser.handle_timeout(instant, now_ns);
            }
            let outbox = std::mem::take(&mut browser.outbox);
            outbox.into_iter().for_each(|bytes| self.server.receive(browser.address, bytes));
        }
        self.server.turn(self.now);
        for (viewer, _, bytes) in self.server.take_outbox() {
            self.server.left(viewer);
            if let Some(browser) = self.browsers.get_mut(&viewer) {
                browser.handle_datagram(instant, now_ns, &bytes);
            }
        }
    }

    pub(super) fn units_sent(&mut self, viewer: u32) -> u64 {
        let now = self.now.instant;
        self.server.viewer(viewer).unwrap().status(now).units_sent
    }

    pub(super) fn requested(&self) -> u64 {
        self.camera.counters().idrs_requested.get()
    }
}

pub(super) fn publish(writer: &mut RingWriter, units: &mut u32, is_idr: bool, now_ns: i64) {
    let mut bytes = if is_idr { parameter_sets(80) } else { Vec::new() };
    bytes.extend_from_slice(&[0, 0, 0, 1, if is_idr { 0x65 } else { 0x41 }, 0xb8, 0x80, 0x80]);
    bytes.resize(bytes.len() + 200, 0x55);
    let metadata = SlotMetadata {
        frame_number: u64::from(*units),
        timestamp_s: now_ns / SECOND,
        timestamp_ns: now_ns % SECOND,
        width: 1280,
        height: 720,
        format: FORMAT_H264,
        data_bytes: bytes.len() as u64,
        ..SlotMetadata::default()
    };
    writer.publish(&metadata, &bytes);
    *units += 1;
}

pub(super) fn lease() -> Layout {
    "lease".parse().unwrap()
}
