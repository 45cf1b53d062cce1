//! Tests of the requests over minutes of simulated time: links of viewers, recordings, and viewers over HTTP.

#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::base::clock;

const CHECK: Duration = Duration::from_millis(500);

/// A stream whose camera obeys, and viewers whose links are measured well.
struct Scene {
    policy: BitratePolicy,
    now: Instant,
    full_kbps: u64,
    /// What the link of each viewer carries in kbit/s, and the number of units left out.
    links: Vec<(u64, u64)>,
    http_viewers: usize,
    is_recording: bool,
    request: u32,
    /// All requests that differ from the one before.
    requests: Vec<u32>,
}

impl Scene {
    fn new(full_kbps: u64, links: &[u64]) -> Scene {
        Scene {
            policy: BitratePolicy::new(500),
            now: clock::now().instant,
            full_kbps,
            links: links.iter().map(|kbps| (*kbps, 0)).collect(),
            http_viewers: 0,
            is_recording: false,
            request: 0,
            requests: Vec::new(),
        }
    }

    fn stream_kbps(&self) -> u64 {
        if self.request == 0 { self.full_kbps } else { self.full_kbps.min(self.request.into()) }
    }

    fn run(&mut self, seconds: u32) {
        for _ in 0..2 * seconds {
            self.now += CHECK;
            let stream_kbps = self.stream_kbps();
            let mut viewers = Vec::new();
            for (id, (link_kbps, units_thinned)) in (0..).zip(&mut self.links) {
                *units_thinned += u64::from(stream_kbps * 21 / 20 > *link_kbps) * 3;
                // A link with much room is not paced.
                let estimate = Some(*link_kbps).filter(|kbps| *units_thinned > 0 && *kbps / 3 < stream_kbps);
                viewers.push(ViewerLink { id, link_kbps: estimate, units_thinned: *units_thinned });
            }
            let request = self.policy.check(
                self.now,
                &Situation {
                    viewers: &viewers,
                    http_viewers: self.http_viewers,
                    stream_kbps,
                    is_recording: self.is_recording,
                },
            );
            if request != self.request {
                self.requests.push(request);
            }
            self.request = request;
        }
    }
}

#[test]
fn request_falls_at_once_to_what_the_link_carries_and_stays_there() {
    let mut scene = Scene::new(8_000, &[4_000]);
    scene.run(1);
    assert_eq!(scene.request, 3_200);
    scene.run(600);
    assert_eq!(scene.requests, [3_200], "no probing above a link that is measured");
}

#[test]
fn without_trouble_there_is_no_request() {
    let mut scene = Scene::new(8_000, &[9_000, 100_000]);
    scene.run(100);
    assert!(scene.requests.is_empty());
}

#[test]
fn request_is_what_three_quarters_of_the_viewers_can_carry() {
    for (links, expected) in [
        (&[4_000, 2_000][..], 1_600),
        (&[4_000, 5_000, 2_000], 1_600),
        (&[4_000, 5_000, 2_000, 6_000], 3_200),
        (&[2_000, 20_000, 20_000, 20_000], 0),
        (&[2_000, 3_000, 20_000, 20_000], 2_400),
        (&[5_000, 2_000, 2_500, 3_000, 3_500, 4_000, 4_500, 6_000], 2_400),
    ] {
        let mut scene = Scene::new(8_000, links);
        scene.run(4);
        assert_eq!(scene.request, expected, "{links:?}");
    }
}

#[test]
fn viewers_over_http_count_as_viewers_that_carry_the_stream() {
    let mut scene = Scene::new(8_000, &[4_000]);
    scene.http_viewers = 2;
    scene.run(4);
    assert_eq!(scene.request, 3_200);
    scene.http_viewers = 3;
    scene.policy = BitratePolicy::new(500);
    scene.run(4);
    assert_eq!(scene.request, 0, "one of four viewers is thinned instead");
}

#[test]
fn request_is_never_below_the_minimum() {
    let mut scene = Scene::new(8_000, &[150]);
    scene.run(3);
    assert_eq!(scene.request, 500);
    let mut scene = Scene::new(400, &[150]);
    scene.run(30);
    assert!(scene.requests.is_empty(), "the stream itself is below the minimum");
}

#[test]
fn recording_gets_the_full_rate_at_once_and_so_does_a_camera_without_viewers() {
    let mut scene = Scene::new(8_000, &[4_000]);
    scene.run(2);
    assert_eq!(scene.request, 3_200);
    scene.is_recording = true;
    scene.run(20);
    assert_eq!(scene.request, 0);
    scene.is_recording = false;
    scene.run(1);
    assert_eq!(scene.request, 3_200);
    scene.links.clear();
    scene.run(1);
    assert_eq!(scene.request, 0);
}

#[test]
fn request_ends_some_seconds_after_the_link_carries_the_stream_again() {
    let mut scene = Scene::new(8_000, &[2_000]);
    scene.run(30);
    assert_eq!(scene.request, 1_600);
    scene.links.first_mut().unwrap().0 = 20_000;
    scene.run(15);
    assert_eq!(scene.request, 0, "{:?}", scene.requests);
    scene.run(600);
    assert_eq!(scene.requests.last(), Some(&0), "{:?}", scene.requests);
}

#[test]
fn rate_that_is_too_low_to_measure_the_link_is_raised_by_probing_less_and_less_often() {
    let policy = BitratePolicy::new(300);
    let mut scene = Scene { policy, ..Scene::new(8_000, &[1_000]) };
    scene.run(2);
    assert_eq!(scene.request, 800);
    scene.run(1_200);
    assert!((2..30).contains(&scene.requests.len()), "{:?}", scene.requests);
    assert!(scene.requests.iter().all(|kbps| (800..1_100).contains(kbps)), "{:?}", scene.requests);
    scene.links.first_mut().unwrap().0 = 100_000;
    scene.run(400);
    assert_eq!(scene.request, 0, "{:?}", scene.requests);
}

#[test]
fn estimate_that_is_too_high_makes_rises_rare() {
    // The estimate says 5 Mbit/s, but units are left out above 3 Mbit/s.
    let mut policy = BitratePolicy::new(500);
    let (mut now, mut units_thinned, mut request, mut changes) = (clock::now().instant, 0, 0, 0);
    for _ in 0..2 * 600 {
        now += CHECK;
        let stream_kbps = if request == 0 { 8_000 } else { request.into() };
        let is_over = stream_kbps > 3_000;
        units_thinned += u64::from(is_over);
        let link_kbps = Some(if is_over { 3_500 } else { 5_000 });
        let viewers = [ViewerLink { id: 1, link_kbps, units_thinned }];
        let situation = Situation { viewers: &viewers, http_viewers: 0, stream_kbps, is_recording: false };
        let next = policy.check(now, &situation);
        changes += u32::from(next != request);
        request = next;
    }
    assert!((3..60).contains(&changes), "{changes} changes in ten minutes");
}

#[test]
fn rate_of_the_stream_is_the_mean_of_the_last_seconds() {
    let mut rate = StreamRate::default();
    let mut now = clock::now().instant;
    assert_eq!(rate.note(now, 5_000_000), 0, "unknown");
    for check in 1..=20 {
        now += CHECK;
        let kbps = rate.note(now, 5_000_000 + check * 50_000);
        assert_eq!(kbps, if check < 2 { 0 } else { 800 });
    }
    for check in 1..=20 {
        now += CHECK;
        rate.note(now, 6_000_000 + check * 100_000);
    }
    now += CHECK;
    assert_eq!(rate.note(now, 6_000_000 + 21 * 100_000), 1_600);
}
