//! Tests of a viewer behind a simulated link with a rate, a queue, a delay and random loss: what leaves at once, what
//! is paced, and what is left out if the link carries less than the stream. The browser is str0m's client. The tests
//! run in memory on a fake clock.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

use support::session_peer as peer;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use peer::{Pair, client_address, context, payloads, server_address, unit};
use str0m::Input;
use str0m::config::DtlsVersion;
use str0m::net::{Protocol, Receive};
use streaming_server::app::bitrate::policy::{BitratePolicy, Situation, StreamRate, ViewerLink};
use streaming_server::metrics::status::ViewerStatus;
use streaming_server::session::SrtpChoice;
use support::random::Random;

const MS: Duration = Duration::from_millis(1);
const PAYLOAD_BYTES: usize = 1_180;

/// The link from the server to the browser.
struct Link {
    kbps: u64,
    queue_bytes: u64,
    delay: Duration,
    loss_percent: f64,
    rtx_ssrc: [u8; 4],
    random: Random,
    busy_until: Instant,
    arriving: VecDeque<(Instant, Vec<u8>)>,
    /// Datagrams that the full queue has dropped, with the time.
    dropped: Vec<Instant>,
}

impl Link {
    fn send(&mut self, now: Instant, bytes: &[u8]) {
        let rate = self.kbps * 125;
        let waiting = self.busy_until.saturating_duration_since(now).as_nanos() as u64 * rate / 1_000_000_000;
        let size = bytes.len() as u64 + 28;
        if waiting + size > self.queue_bytes {
            self.dropped.push(now);
            return;
        }
        self.busy_until = self.busy_until.max(now) + Duration::from_nanos(size * 1_000_000_000 / rate);
        // str0m requests a packet only once, so retransmissions are not lost.
        let is_retransmission = bytes.get(8..12) == Some(&self.rtx_ssrc);
        if is_retransmission || !self.random.chance(self.loss_percent) {
            self.arriving.push_back((self.busy_until + self.delay, bytes.to_vec()));
        }
    }
}

/// A stream of 30 units per second with an IDR every second.
#[derive(Clone, Copy)]
struct Stream {
    idr_bytes: usize,
    other_bytes: usize,
    /// True if every second unit is a non-reference unit.
    has_disposable: bool,
}

impl Stream {
    /// Returns the number of packets of a unit, of which a camera that obeys sends only `percent`.
    fn count(self, unit: u32, percent: u64) -> usize {
        let bytes = if unit.is_multiple_of(GOP) { self.idr_bytes } else { self.other_bytes };
        (bytes * percent as usize / 100).div_ceil(PAYLOAD_BYTES)
    }

    fn kbps(self) -> u64 {
        (self.idr_bytes + 29 * self.other_bytes) as u64 * 8 / 1_000
    }
}

/// A camera that obeys requests for a bit rate, and what requests it. The request is checked twice a second, and the
/// camera reads it at each IDR.
struct ObeyingCamera {
    policy: BitratePolicy,
    rate: StreamRate,
    bytes: u64,
    request: u32,
    /// All requests with the time in seconds.
    requests: Vec<(u64, u32)>,
    percent: u64,
}

impl ObeyingCamera {
    fn new(min_kbps: u32) -> ObeyingCamera {
        let (policy, rate) = (BitratePolicy::new(min_kbps), StreamRate::default());
        ObeyingCamera { policy, rate, bytes: 0, request: 0, requests: Vec::new(), percent: 100 }
    }

    fn check(&mut self, now: Instant, second: u64, status: &ViewerStatus) {
        let ViewerStatus { id, link_kbps, units_thinned, .. } = *status;
        let stream_kbps = self.rate.note(now, self.bytes);
        let viewers = [ViewerLink { id, link_kbps, units_thinned }];
        let situation = Situation { viewers: &viewers, http_viewers: 0, stream_kbps, is_recording: false };
        let request = self.policy.check(now, &situation);
        if request != self.request {
            self.requests.push((second, request));
        }
        self.request = request;
    }
}

/// 8 Mbit/s as a hardware encoder makes it, and as x264 does.
const HARDWARE: Stream = Stream { idr_bytes: 165_000, other_bytes: 28_800, has_disposable: false };
const X264: Stream = Stream { idr_bytes: 259_000, other_bytes: 25_500, has_disposable: false };
const MEDIUM: Stream = Stream { idr_bytes: 41_000, other_bytes: 7_200, has_disposable: false };
const SMALL: Stream = Stream { idr_bytes: 12_000, other_bytes: 2_170, has_disposable: false };

const GOP: u32 = 30;

/// Returns the SSRC of retransmissions, or 0 without RTX.
fn rtx_ssrc(answer: &str) -> [u8; 4] {
    let group = answer.lines().find_map(|line| line.strip_prefix("a=ssrc-group:FID "));
    group.map_or(0, |group| group.split(' ').nth(1).unwrap().parse::<u32>().unwrap()).to_be_bytes()
}

/// Removes RTX from an offer.
fn without_rtx(offer: String) -> String {
    let of_type = |line: &str| line.split_once(':')?.1.split_once(' ').map(|(number, _)| number.to_owned());
    let is_rtx = |line: &&str| line.starts_with("a=rtpmap:") && line.contains(" rtx/");
    let types: Vec<String> = offer.lines().filter(is_rtx).filter_map(of_type).collect();
    assert!(!types.is_empty());
    let is_kept = |line: &&str| {
        let is_about = ["a=rtpmap:", "a=fmtp:", "a=rtcp-fb:"].iter().any(|prefix| line.starts_with(prefix));
        !is_about || of_type(line).is_none_or(|number| !types.contains(&number))
    };
    let media = |line: &str| match line.strip_prefix("m=video ") {
        Some(rest) => {
            let words: Vec<&str> =
                rest.split(' ').filter(|word| !types.iter().any(|rtx| rtx == word)).collect();
            format!("m=video {}", words.join(" "))
        }
        None => line.to_owned(),
    };
    offer.lines().filter(is_kept).map(media).fold(String::new(), |text, line| text + &line + "\r\n")
}

struct Scene {
    pair: Pair,
    link: Rc<RefCell<Link>>,
    stream: Stream,
    begun: Instant,
    /// Number of the next unit.
    next: u32,
    /// Received parts of each unit, and when the unit was complete.
    parts: BTreeMap<u32, HashSet<u32>>,
    complete: BTreeMap<u32, Instant>,
    /// Number of packets of each unit.
    counts: Vec<usize>,
    camera: Option<ObeyingCamera>,
    /// State of the viewer in each half second.
    log: Vec<String>,
}

/// One picture that the browser has shown.
#[derive(Clone, Copy, Debug)]
struct Picture {
    unit: u32,
    at: Instant,
    age: Duration,
}

impl Scene {
    fn new(stream: Stream, kbps: u64, queue_kb: u64, rtt_ms: u64) -> Scene {
        Scene::with_offer(stream, (kbps, queue_kb, rtt_ms), |offer| offer)
    }

    /// Creates the scene of a browser whose offer is changed on its way.
    fn with_offer(
        stream: Stream,
        (kbps, queue_kb, rtt_ms): (u64, u64, u64),
        edit: impl FnOnce(String) -> String,
    ) -> Scene {
        let mut pair = Pair::with_offer(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12, None, edit);
        pair.connect();
        let link = Rc::new(RefCell::new(Link {
            kbps,
            queue_bytes: queue_kb * 1_000,
            delay: Duration::from_millis(rtt_ms),
            loss_percent: 0.0,
            rtx_ssrc: rtx_ssrc(&pair.answer),
            random: Random::new(5),
            busy_until: pair.now,
            arriving: VecDeque::new(),
            dropped: Vec::new(),
        }));
        let begun = pair.now;
        Scene {
            pair,
            link,
            stream,
            begun,
            next: 0,
            parts: BTreeMap::new(),
            complete: BTreeMap::new(),
            counts: Vec::new(),
            camera: None,
            log: Vec::new(),
        }
    }

    fn captured(&self, unit: u32) -> Instant {
        self.begun + Duration::from_micros(33_333) * unit
    }

    fn is_reference(&self, unit: u32) -> bool {
        !self.stream.has_disposable || (unit % GOP).is_multiple_of(2)
    }

    /// Runs the stream and the link for this many seconds.
    fn run(&mut self, seconds: u64) {
        let end = self.pair.now + Duration::from_secs(seconds);
        while self.pair.now < end {
            let (link, now) = (Rc::clone(&self.link), self.pair.now);
            // The pair tells the time only in steps, and within a step everything is sent at its beginning.
            self.pair.to_client = Box::new(move |bytes| {
                link.borrow_mut().send(now, bytes);
                false
            });
            if self.captured(self.next) <= now {
                self.publish();
            }
            self.pair.run(MS);
            self.deliver();
            if self.pair.now.saturating_duration_since(self.begun).as_millis().is_multiple_of(500) {
                let ViewerStatus { link_kbps, rtt_ms, loss_fraction, nacks, datagrams, .. } = self.status();
                let line = format!("{link_kbps:?} {rtt_ms:?} {loss_fraction:?} {nacks} {datagrams}");
                self.log.push(line);
                let (status, second) = (self.status(), (self.pair.now - self.begun).as_secs());
                if let Some(camera) = &mut self.camera {
                    camera.check(self.pair.now, second, &status);
                }
            }
        }
    }

    /// Sends the next unit of the camera.
    fn publish(&mut self) {
        let (number, full_kbps) = (self.next, self.stream.kbps());
        let mut percent = 100;
        if let Some(camera) = &mut self.camera {
            if number.is_multiple_of(GOP) {
                let kbps = if camera.request == 0 { full_kbps } else { u64::from(camera.request) };
                camera.percent = (kbps * 100 / full_kbps).min(100);
            }
            percent = camera.percent;
        }
        let count = self.stream.count(number, percent);
        self.counts.push(count);
        let payloads = payloads(number, count, PAYLOAD_BYTES);
        if let Some(camera) = &mut self.camera {
            camera.bytes += (count * PAYLOAD_BYTES) as u64;
        }
        let mut unit = unit(&payloads, u64::from(number), number.is_multiple_of(GOP));
        unit.info.is_reference = self.is_reference(number);
        self.pair.push(&unit);
        self.next += 1;
    }

    fn deliver(&mut self) {
        let now = self.pair.now;
        loop {
            let mut link = self.link.borrow_mut();
            if link.arriving.front().is_none_or(|(at, _)| *at > now) {
                break;
            }
            let (_, bytes) = link.arriving.pop_front().unwrap();
            drop(link);
            let receive = Receive::new(Protocol::Udp, server_address(), client_address(), &bytes).unwrap();
            self.pair.client.handle_input(Input::Receive(now, receive)).unwrap();
            self.pair.settle();
        }
        for packet in &self.pair.packets {
            let number = |at: usize| u32::from_be_bytes(packet.payload[at..at + 4].try_into().unwrap());
            let (unit, part) = (number(0), number(4));
            let parts = self.parts.entry(unit).or_default();
            parts.insert(part);
            if Some(&parts.len()) == self.counts.get(unit as usize) {
                self.complete.entry(unit).or_insert(now);
            }
        }
        self.pair.packets.clear();
    }

    fn status(&self) -> ViewerStatus {
        self.pair.viewer.status(self.pair.now)
    }

    /// Returns the pictures that a decoder shows from second `from` to second `to`: complete units whose reference was
    /// shown. A unit is shown after its reference.
    fn pictures(&self, from: u64, to: u64) -> Vec<Picture> {
        let mut shown: Vec<Picture> = Vec::new();
        let mut reference: Option<(u32, Instant)> = None;
        for (&unit, &complete) in &self.complete {
            let is_idr = unit.is_multiple_of(GOP);
            let needed = (0..unit).rev().find(|other| self.is_reference(*other));
            let at = match reference {
                _ if is_idr => complete,
                Some((other, at)) if Some(other) == needed => complete.max(at),
                _ => continue,
            };
            if self.is_reference(unit) {
                reference = Some((unit, at));
            }
            shown.push(Picture { unit, at, age: at.saturating_duration_since(self.captured(unit)) });
        }
        let (from, to) = (self.second(from), self.second(to));
        shown.retain(|picture| (from..to).contains(&picture.at));
        shown
    }

    fn second(&self, second: u64) -> Instant {
        self.begun + Duration::from_secs(second)
    }

    fn dropped(&self, from: u64, to: u64) -> usize {
        let (from, to) = (self.second(from), self.second(to));
        self.link.borrow().dropped.iter().filter(|at| (from..to).contains(*at)).count()
    }

    /// Checks that each unit of which a part arrived between these seconds was shown.
    fn assert_unbroken(&self, from: u64, to: u64) {
        let shown: HashSet<u32> = self.pictures(0, 1_000).iter().map(|picture| picture.unit).collect();
        let range = |unit: &&u32| (self.second(from)..self.second(to)).contains(&self.captured(**unit));
        let broken: Vec<&u32> =
            self.parts.keys().filter(range).filter(|unit| !shown.contains(unit)).collect();
        assert!(broken.is_empty(), "parts of {broken:?} were not shown: {:?}", self.status());
    }

    fn report(&self, from: u64, to: u64) -> String {
        let pictures = self.pictures(from, to);
        let freeze = longest_freeze(&pictures);
        format!(
            "{} pictures, longest freeze {freeze:?}, age p95 {:?}, {} packets dropped, {:?}",
            pictures.len(),
            age_p95(&pictures),
            self.dropped(from, to),
            self.status()
        )
    }
}

fn longest_freeze(pictures: &[Picture]) -> Duration {
    pictures
        .windows(2)
        .map(|two| two[1].at.saturating_duration_since(two[0].at))
        .max()
        .unwrap_or(Duration::MAX)
}

fn age_p95(pictures: &[Picture]) -> Duration {
    let mut ages: Vec<Duration> = pictures.iter().map(|picture| picture.age).collect();
    ages.sort();
    ages.get(ages.len() * 95 / 100).copied().unwrap_or(Duration::MAX)
}

#[test]
fn good_link_gets_whole_units_at_once() {
    let mut scene = Scene::new(HARDWARE, 1_000_000, 1_000, 5);
    scene.run(4);
    let report = scene.report(1, 4);
    println!("{report}");
    assert_eq!(scene.pictures(1, 4).len(), 90, "{report}");
    assert!(age_p95(&scene.pictures(1, 4)) < 12 * MS, "{report}");
}

#[test]
fn large_idrs_pass_a_short_queue() {
    for (stream, age_ms) in [(HARDWARE, 130), (X264, 180)] {
        let mut scene = Scene::new(stream, 15_000, 60, 20);
        scene.run(14);
        let report = scene.report(3, 13);
        println!("{report}");
        assert_eq!(scene.dropped(3, 13), 0, "{report}");
        scene.assert_unbroken(3, 12);
        let pictures = scene.pictures(3, 13);
        assert_eq!(pictures.len(), 300, "{report}");
        assert!(age_p95(&pictures) < age_ms * MS, "{report}");
        assert!(scene.status().paced && scene.status().units_thinned == 0, "{report}");
        let kbps = scene.status().link_kbps.unwrap();
        assert!((13_000..=17_000).contains(&kbps), "{report}");
    }
}

#[test]
fn link_that_is_little_faster_than_the_stream_shows_every_picture() {
    for stream in [HARDWARE, X264] {
        let mut scene = Scene::new(stream, 10_000, 100, 40);
        scene.run(14);
        let report = scene.report(4, 13);
        println!("{report}");
        scene.assert_unbroken(4, 12);
        let pictures = scene.pictures(4, 13);
        assert_eq!(pictures.len(), 270, "{report}");
        assert!(longest_freeze(&pictures) < 400 * MS && age_p95(&pictures) < 320 * MS, "{report}");
    }
}

#[test]
fn link_with_half_of_the_rate_shows_a_steady_unbroken_part() {
    for (stream, least) in [(HARDWARE, 8), (X264, 5)] {
        let mut scene = Scene::new(stream, 4_000, 100, 40);
        scene.run(24);
        let report = scene.report(10, 23);
        println!("{report}");
        scene.assert_unbroken(10, 21);
        assert!(age_p95(&scene.pictures(10, 23)) < 760 * MS, "{report}");
        let counts: Vec<usize> = (10..23).map(|second| scene.pictures(second, second + 1).len()).collect();
        let (fewest, most) = (*counts.iter().min().unwrap(), *counts.iter().max().unwrap());
        assert!(fewest >= least && most - fewest <= 2, "{counts:?}: {report}");
        assert_eq!(scene.dropped(10, 23), 0, "{report}");
    }
}

#[test]
fn link_slower_than_the_idrs_shows_idrs() {
    for (stream, freeze_ms) in [(HARDWARE, 2_000), (X264, 3_500)] {
        let mut scene = Scene::new(stream, 1_000, 60, 80);
        scene.run(34);
        let report = scene.report(9, 32);
        println!("{report}\n{}", scene.log.join("\n"));
        scene.assert_unbroken(9, 26);
        let pictures = scene.pictures(9, 32);
        assert!(age_p95(&pictures) < freeze_ms * MS, "{report}");
        assert!(longest_freeze(&pictures) < freeze_ms * MS, "{report}");
    }
}

#[test]
fn deep_queue_is_not_filled() {
    // No packet is lost: the only sign of the slow link is a queue of up to two seconds.
    let mut scene = Scene::new(HARDWARE, 6_000, 1_500, 40);
    scene.run(15);
    let report = scene.report(6, 14);
    println!("{report}");
    assert!(scene.status().paced, "{report}");
    scene.assert_unbroken(6, 13);
    assert!(age_p95(&scene.pictures(6, 14)) < 800 * MS, "{report}");
}

#[test]
fn lost_feedback_is_no_sign_of_a_slow_link() {
    let mut scene = Scene::new(HARDWARE, 100_000, 1_000, 20);
    let mut random = Random::new(9);
    scene.pair.to_viewer = Box::new(move |_| !random.chance(50.0));
    scene.run(10);
    let report = scene.report(1, 9);
    println!("{report}");
    assert!(!scene.status().paced, "{report}");
    assert_eq!(scene.pictures(1, 9).len(), 240, "{report}");
}

#[test]
fn small_stream_fits_a_slow_link_with_loss() {
    let mut scene = Scene::new(SMALL, 1_000, 60, 80);
    scene.link.borrow_mut().loss_percent = 2.0;
    scene.run(14);
    let report = scene.report(3, 13);
    println!("{report}");
    assert!(scene.pictures(3, 13).len() >= 298, "{report}");
}

#[test]
fn random_loss_is_not_taken_for_congestion() {
    // str0m accepts only retransmissions of its newest 100 packets, so the stream has few packets per second.
    let mut scene = Scene::new(MEDIUM, 5_000, 50, 30);
    scene.link.borrow_mut().loss_percent = 5.0;
    scene.run(15);
    let report = scene.report(3, 14);
    println!("{report}");
    assert!(scene.pictures(3, 14).len() >= 320, "{report}");
    assert!(longest_freeze(&scene.pictures(3, 14)) < 500 * MS, "{report}");
    assert!(scene.status().units_thinned < 10, "{report}");
    assert!(scene.status().link_kbps.is_none_or(|kbps| kbps > 3_500), "{report}");
}

#[test]
fn full_rate_comes_back_within_seconds_after_the_link_was_slow() {
    let mut scene = Scene::new(HARDWARE, 20_000, 200, 20);
    for kbps in [20_000, 2_000, 20_000] {
        scene.link.borrow_mut().kbps = kbps;
        scene.run(10);
    }
    let report = scene.report(24, 29);
    println!("{}", scene.report(13, 20));
    println!("{report}\n{}", scene.log.join("\n"));
    assert_eq!(scene.pictures(5, 10).len(), 150, "a good link: {report}");
    assert!(scene.pictures(15, 20).len() >= 4, "{report}");
    assert!(scene.pictures(24, 29).len() >= 149, "{report}");
}

#[test]
fn non_reference_units_are_left_out_first() {
    let mut scene = Scene::new(Stream { has_disposable: true, ..HARDWARE }, 6_500, 100, 40);
    scene.run(20);
    let report = scene.report(10, 19);
    println!("{report}");
    scene.assert_unbroken(10, 18);
    let shown: HashSet<u32> = scene.pictures(10, 19).iter().map(|picture| picture.unit).collect();
    let (first, last) = (*shown.iter().min().unwrap(), *shown.iter().max().unwrap());
    let missing: Vec<u32> = (first..last).filter(|unit| !shown.contains(unit)).collect();
    assert!(!missing.is_empty(), "the link is too slow for all units: {report}");
    let references = missing.iter().filter(|unit| scene.is_reference(**unit)).count();
    assert!(references * 4 < missing.len(), "{missing:?} are missing: {report}");
}

#[test]
fn viewer_without_rtx_gets_an_unbroken_part_too() {
    // Without RTX, str0m requests no packet again, and it sends a receiver report every few seconds.
    for (kbps, least, freeze_ms) in
        [(2_000, 8, 2_000), (4_000, 80, 900), (10_000, 370, 400), (15_000, 370, 400)]
    {
        let mut scene = Scene::with_offer(HARDWARE, (kbps, 100, 40), without_rtx);
        scene.run(40);
        let report = scene.report(25, 38);
        println!("{kbps}: {report}\n{}", scene.log.join("\n"));
        scene.assert_unbroken(25, 37);
        let pictures = scene.pictures(25, 38);
        assert!(pictures.len() >= least && longest_freeze(&pictures) < freeze_ms * MS, "{kbps}: {report}");
    }
}

#[test]
fn camera_that_obeys_shows_every_picture_on_a_link_with_half_of_the_rate() {
    for stream in [HARDWARE, X264] {
        let mut scene = Scene::new(stream, 4_000, 100, 40);
        scene.camera = Some(ObeyingCamera::new(500));
        scene.run(64);
        let requests = &scene.camera.as_ref().unwrap().requests;
        let report = format!("{}, requests {requests:?}", scene.report(5, 63));
        println!("{report}\n{}", scene.log.join("\n"));
        scene.assert_unbroken(5, 62);
        let pictures = scene.pictures(5, 63);
        assert!(pictures.len() >= 58 * 30 - 1, "{report}");
        assert!(longest_freeze(&pictures) < 300 * MS && age_p95(&pictures) < 300 * MS, "{report}");
        assert!(requests.len() <= 4, "the rate is steady: {report}");
        let kbps = requests.last().unwrap().1;
        assert!((2_600..=3_600).contains(&kbps), "most of the link is used: {report}");
    }
}

#[test]
fn camera_that_obeys_gets_its_rate_back_when_the_link_does() {
    let mut scene = Scene::new(HARDWARE, 20_000, 200, 20);
    scene.camera = Some(ObeyingCamera::new(500));
    for (kbps, seconds) in [(20_000, 10), (2_000, 20), (20_000, 30)] {
        scene.link.borrow_mut().kbps = kbps;
        scene.run(seconds);
    }
    let requests = &scene.camera.as_ref().unwrap().requests;
    let report = format!("{}, requests {requests:?}", scene.report(32, 59));
    println!("{report}\n{}", scene.log.join("\n"));
    assert!(requests.first().unwrap().0 >= 10, "a good link: {report}");
    assert_eq!(requests.last().unwrap().1, 0, "{report}");
    assert!(requests.last().unwrap().0 < 50, "{report}");
    assert!(scene.pictures(16, 30).len() >= 14 * 30 - 5, "{report}");
    assert!(scene.pictures(32, 59).len() >= 27 * 30 - 2, "nothing is lost while the rate rises: {report}");
}

#[test]
fn camera_that_obeys_gets_its_rate_back_from_a_rate_too_low_to_measure_the_link() {
    let mut scene = Scene::new(HARDWARE, 800, 60, 40);
    scene.camera = Some(ObeyingCamera::new(200));
    scene.run(30);
    let slow = scene.report(15, 29);
    assert!(scene.pictures(15, 29).len() >= 14 * 30 - 5, "{slow}, {:?}", scene.camera.unwrap().requests);
    scene.link.borrow_mut().kbps = 50_000;
    scene.run(90);
    let requests = &scene.camera.as_ref().unwrap().requests;
    let report = format!("{slow}\n{}, requests {requests:?}", scene.report(110, 119));
    println!("{report}\n{}", scene.log.join("\n"));
    assert_eq!(requests.last().unwrap().1, 0, "{report}");
}
