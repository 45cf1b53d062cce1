//! Tests of how viewers get an IDR, with real worker turns and sessions on a fake clock: joins before the worker has read
//! a unit, and viewers that request IDRs all the time.

use super::scene::{Scene, lease, publish};
use super::server::Server;
use crate::camera::test_waiter::TestWaiter;
use crate::camera::{Camera, Layout, RingWriter, Wake};

#[test]
fn viewers_that_join_before_a_unit_was_read_get_the_gop_that_the_ring_holds() {
    for (layout, workers) in [(Layout::V3, 1), (Layout::V3, 2), (lease(), 1), (lease(), 2)] {
        let mut scene = Scene::new(layout, workers, 5);
        (1..=3).for_each(|id| drop(scene.join(id)));
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
    drop(scene.join(1));
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
    (1..=2).for_each(|id| drop(scene.join(id)));
    scene.run(500);
    for unit in 0..1_800_u32 {
        if unit % 31 == 0 {
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
