//! Tests of how viewers get an IDR, with real worker turns and sessions on a fake clock: joins before the worker has read
//! a unit, and viewers that request IDRs all the time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::browser::{Browser, Manners, server_address};
use super::network::{Link, Weather};
use super::server::Server;
use super::{MS, SECOND};
use crate::base::clock::{self, Now};
use crate::camera::test_waiter::TestWaiter;
use crate::camera::{Camera, FORMAT_H264, Layout, RingWriter, SlotMetadata, Wake};
use crate::recorder::tests::harness::parameter_sets;
use crate::session::{SessionConfig, SessionContext, SrtpChoice, Viewer};

/// A camera, a server and browsers on a network without loss or delay.
struct Scene {
    writer: RingWriter,
    camera: Camera,
    waiter: TestWaiter,
    server: Server,
    context: Arc<SessionContext>,
    start: Now,
    now: Now,
    units: u32,
    browsers: BTreeMap<u32, Browser>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.writer.unlink();
    }
}

impl Scene {
    /// Starts a server with `workers` workers in the middle of a GOP: the ring holds an IDR and `deltas` other units.
    fn new(layout: Layout, workers: usize, deltas: u32) -> Scene {
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

    fn join(&mut self, id: u32) {
        let moment = (self.now.instant, self.now.monotonic_ns);
        let (mut browser, offer) =
            Browser::new(id, Manners::Polite, Link::new(Weather::Clean, (1, 0), id), moment);
        let (viewer, answer) = Viewer::accept(&self.context, id, &offer, self.now.instant).unwrap();
        self.server.adopt(viewer);
        browser.take_answer(&answer);
        browser.handle_timeout(self.now.instant, self.now.monotonic_ns);
        self.browsers.insert(id, browser);
    }

    /// Publishes a unit, which is an IDR if the server has requested one.
    fn publish(&mut self) {
        let is_idr = self.writer.take_idr_request();
        publish(&mut self.writer, &mut self.units, is_idr, self.now.monotonic_ns);
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            let since_start_ns = self.now.monotonic_ns - self.start.monotonic_ns + MS;
            let instant = self.start.instant + Duration::from_nanos(since_start_ns.cast_unsigned());
            self.now = Now { instant, monotonic_ns: self.start.monotonic_ns + since_start_ns };
            self.waiter.poll(self.now.monotonic_ns);
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

    fn units_sent(&mut self, viewer: u32) -> u64 {
        let now = self.now.instant;
        self.server.viewer(viewer).unwrap().status(now).units_sent
    }

    fn requested(&self) -> u64 {
        self.camera.counters().idrs_requested.get()
    }
}

fn publish(writer: &mut RingWriter, units: &mut u32, is_idr: bool, now_ns: i64) {
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

fn lease() -> Layout {
    "lease".parse().unwrap()
}

#[test]
fn viewers_that_join_before_a_unit_was_read_get_the_gop_that_the_ring_holds() {
    for (layout, workers) in [(Layout::V3, 1), (Layout::V3, 2), (lease(), 1), (lease(), 2)] {
        let mut scene = Scene::new(layout, workers, 5);
        (1..=3).for_each(|id| scene.join(id));
        scene.run(2_000);
        for id in 1..=3 {
            assert_eq!(scene.units_sent(id), 6, "{layout}, {workers} workers: the camera is silent");
        }
        scene.publish();
        scene.run(50);
        assert_eq!(scene.units_sent(1), 7, "{layout}, {workers} workers");
    }
}

#[test]
fn viewer_that_joins_before_the_camera_starts_gets_its_first_idr() {
    let mut scene = Scene::new(Layout::V3, 1, 0);
    scene.writer.unlink();
    let name = format!("/ss-test-idr-late-{}", std::process::id());
    scene.camera = Camera::new(&name, Wake::Poll);
    (scene.waiter, scene.server) = (TestWaiter::new(&scene.camera), Server::new(&scene.camera, 1));
    scene.join(1);
    scene.run(1_000);
    scene.writer = RingWriter::create(&name, Layout::V3, 33).unwrap();
    scene.units = 0;
    publish(&mut scene.writer, &mut scene.units, true, scene.now.monotonic_ns);
    (0..4).for_each(|_| scene.publish());
    scene.run(1_000);
    assert_eq!(scene.units_sent(1), 5);
}

#[test]
fn viewer_that_requests_idrs_all_the_time_makes_the_camera_produce_few() {
    let mut scene = Scene::new(lease(), 1, 5);
    (1..=2).for_each(|id| scene.join(id));
    scene.run(500);
    for unit in 0..1_800_u32 {
        if unit % 30 == 0 {
            let now_ns = scene.now.monotonic_ns;
            scene.browsers.get_mut(&1).unwrap().request_idr(now_ns);
        }
        scene.publish();
        scene.run(33);
    }
    let requested = scene.requested();
    assert!((4..=18).contains(&requested), "{requested} IDRs in a minute");
    let now = scene.now.instant;
    let status = scene.server.viewer(1).unwrap().status(now);
    assert!(status.plis > 50 && status.replays > 5, "replays answer the other requests: {status:?}");
    let other = scene.server.viewer(2).unwrap().status(now);
    assert_eq!((other.units_dropped, other.replays), (0, 1), "{other:?}");
}
