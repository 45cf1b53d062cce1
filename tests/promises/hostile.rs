//! Hostile input: each case ends in a clear error or a counted drop, and other viewers are not disturbed.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test: a panic is the report, and random bytes are cut to size"
)]

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use support::camera::{CameraSim, words};
use support::http::{self, Response};
use support::random::Random;
use support::server::Server;
use support::unique_shm;
use support::viewer::{Offer, ViewerSimulator};

const OFFER: &str = "/api/webrtc/offer";

/// A camera, a server and a viewer. Hostile input to the server must not disturb this viewer.
struct Setup {
    _camera: CameraSim,
    server: Server,
    viewer: ViewerSimulator,
}

fn setup() -> Setup {
    let shm = unique_shm();
    let line = "--layout v3 --pattern 640x480 --fps 30 --bitrate-kbps 2000 --gop 30";
    let camera = CameraSim::start(&shm, &words(line));
    let server = Server::start(&shm, &[]);
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    viewer.wait_units(10);
    Setup { _camera: camera, server, viewer }
}

impl Setup {
    fn assert_undisturbed(mut self) {
        self.viewer.wait_more_units(30);
        assert!(self.viewer.report().connected);
        self.viewer.leave().assert_perfect("the other viewer");
        self.server.assert_healthy();
    }

    fn post(&self, body: &[u8]) -> Response {
        http::request(self.server.http, "POST", OFFER, &[("Content-Type", "application/json")], body)
    }

    fn offer(&self, sdp: &str) -> Response {
        self.post(json!({"type": "offer", "sdp": sdp}).to_string().as_bytes())
    }
}

/// Returns a STUN binding request (RFC 8489) with this username and a wrong MESSAGE-INTEGRITY.
pub(crate) fn binding_request(username: &str, random: &mut Random) -> Vec<u8> {
    let mut attributes = Vec::new();
    let mut attribute = |kind: u16, value: &[u8]| {
        attributes.extend_from_slice(&kind.to_be_bytes());
        attributes.extend_from_slice(&u16::try_from(value.len()).unwrap().to_be_bytes());
        attributes.extend_from_slice(value);
        attributes.resize(attributes.len().next_multiple_of(4), 0);
    };
    attribute(0x0006, username.as_bytes());
    attribute(0x802A, &[1; 8]);
    attribute(0x0024, &[0, 0, 1, 0]);
    attribute(0x0008, &random.bytes(20));
    let mut message = vec![0, 1];
    message.extend_from_slice(&u16::try_from(attributes.len()).unwrap().to_be_bytes());
    message.extend_from_slice(&0x2112_A442_u32.to_be_bytes());
    message.extend_from_slice(&random.bytes(12));
    message.extend_from_slice(&attributes);
    message
}

#[test]
fn random_datagrams_change_nothing() {
    let setup = setup();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut random = Random::new(1);
    for round in 0..20_000_u32 {
        let count = random.below(1500) as usize;
        let mut bytes = random.bytes(count);
        // The first byte of a datagram selects its class (RFC 7983): 0 and 1 are STUN, 20 to 23 DTLS, 64 TURN, 128 and
        // 144 RTP or RTCP. The values 200 and 255 belong to no class.
        if let Some(first) = bytes.first_mut() {
            *first = [0, 1, 20, 22, 23, 64, 128, 144, 200, 255][random.below(10) as usize];
        }
        let _ = socket.send_to(&bytes, setup.server.udp);
        if round % 200 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    for count in [0, 1, 2, 19, 20, 21, 65_000] {
        let _ = socket.send_to(&random.bytes(count), setup.server.udp);
    }
    setup.assert_undisturbed();
}

#[test]
fn stun_with_a_wrong_name_or_signature_is_not_answered_as_success() {
    let setup = setup();
    let offer = Offer::create();
    let answer = offer.post(setup.server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    let ufrag = answer.lines().find_map(|line| line.strip_prefix("a=ice-ufrag:")).unwrap().to_owned();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut random = Random::new(2);
    for username in ["unknown:me", &format!("{ufrag}:me"), &ufrag, "", ":", &"x".repeat(500)] {
        for _ in 0..50 {
            socket.send_to(&binding_request(username, &mut random), setup.server.udp).unwrap();
        }
        let whole = binding_request(username, &mut random);
        for cut in 0..whole.len() {
            socket.send_to(&whole[..cut], setup.server.udp).unwrap();
        }
    }
    let mut buffer = [0; 1500];
    while let Ok((count, _)) = socket.recv_from(&mut buffer) {
        assert!(count < 2 || buffer[..2] != [0x01, 0x01], "a success response to a forged request");
    }
    setup.assert_undisturbed();
}

#[test]
fn broken_offers_get_a_clear_400() {
    let setup = setup();
    let mut random = Random::new(3);
    let garbage = random.bytes(4096);
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"{".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"{}".to_vec(),
        b"{\"type\":\"offer\"}".to_vec(),
        b"{\"type\":\"offer\",\"sdp\":5}".to_vec(),
        b"{\"type\":\"answer\",\"sdp\":\"v=0\\r\\n\"}".to_vec(),
        b"{\"type\":\"offer\",\"sdp\":\"\"}".to_vec(),
        b"{\"type\":\"offer\",\"sdp\":\"v=0\"}".to_vec(),
        "[".repeat(20_000).into_bytes(),
        garbage,
    ];
    for body in bodies {
        setup.post(&body).assert_error(&[400]);
    }
    for sdp in ["\u{0}\u{0}\u{0}", "m=video 9 X 96", &"a=x\r\n".repeat(5_000), "v=0\r\nm=\r\nm=\r\n"] {
        setup.offer(sdp).assert_error(&[400, 422]);
    }
    setup.assert_undisturbed();
}

#[test]
fn truncated_and_mutated_offers_do_no_harm() {
    let setup = setup();
    let good = Offer::create().sdp.clone();
    let mut random = Random::new(4);
    for _ in 0..150 {
        let cut = good[..random.below(good.len() as u64) as usize].to_owned();
        assert_ne!(setup.offer(&cut).status, 500);
        let mut bytes = good.clone().into_bytes();
        for _ in 0..=random.below(8) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = b' ' + random.below(95) as u8;
        }
        let response = setup.offer(&String::from_utf8(bytes).unwrap());
        assert!(matches!(response.status, 200 | 400 | 422 | 503), "{}", response.text());
    }
    setup.assert_undisturbed();
}

#[test]
fn a_body_of_ten_megabytes_is_refused() {
    let setup = setup();
    let response = setup.post(&vec![b'x'; 10_000_000]);
    assert!(matches!(response.status, 413 | 400 | 0), "{}", response.status);
    let request = format!("POST {OFFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n");
    let response = http::raw(setup.server.http, &[request.as_bytes()]);
    assert!(matches!(response.status, 413 | 400 | 0), "{}", response.status);
    setup.assert_undisturbed();
}

#[test]
fn an_offer_without_h264_gets_422() {
    let setup = setup();
    let sdp = Offer::create().sdp.replace("H264/90000", "VP8/90000");
    setup.offer(&sdp).assert_error(&[422]);
    setup.assert_undisturbed();
}

#[test]
fn additional_media_sections_are_answered_in_order_or_refused() {
    let setup = setup();
    let good = Offer::create().sdp.clone();
    let line_at = good.find("m=video").unwrap();
    let twice = format!("{good}{}", good[line_at..].replace("a=mid:", "a=mid:second"));
    let response = setup.offer(&twice);
    assert!(matches!(response.status, 200 | 400 | 422), "{}", response.text());
    let many = format!("{good}{}", good[line_at..].repeat(50));
    assert!(matches!(setup.offer(&many).status, 200 | 400 | 413 | 422));
    setup.assert_undisturbed();
}

#[test]
fn wrong_methods_and_paths_get_405_and_404() {
    let setup = setup();
    let response = http::get(setup.server.http, OFFER);
    response.assert_error(&[405]);
    assert!(response.header("allow").is_some_and(|allow| allow.contains("POST")));
    http::get(setup.server.http, "/no/such/thing").assert_error(&[404]);
    http::get(setup.server.http, "/../../etc/passwd").assert_error(&[400, 404]);
    setup.assert_undisturbed();
}

#[test]
fn a_foreign_origin_may_not_offer() {
    let setup = setup();
    let body = json!({"type": "offer", "sdp": Offer::create().sdp}).to_string();
    let headers = [("Content-Type", "application/json"), ("Origin", "http://evil.example")];
    let response = http::request(setup.server.http, "POST", OFFER, &headers, body.as_bytes());
    response.assert_error(&[403]);
    setup.assert_undisturbed();
}

#[test]
fn slow_and_endless_requests_delay_no_viewer() {
    let setup = setup();
    let open = || TcpStream::connect(setup.server.http).unwrap();
    let mut idle: Vec<TcpStream> = (0..50).map(|_| open()).collect();
    for stream in &mut idle {
        let _ =
            stream.write_all(b"POST /api/webrtc/offer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{");
    }
    let mut endless = open();
    endless.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let _ = endless.write_all(b"GET / HTTP/1.1\r\n");
    for number in 0..20_000 {
        if endless.write_all(format!("X-{number}: {number}\r\n").as_bytes()).is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    endless.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let _ = endless.take(64 * 1024).read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "endless headers were accepted");
    let viewers: Value = setup.server.get("/api/viewers").json();
    assert!(!viewers.is_null());
    drop(idle);
    setup.assert_undisturbed();
}

#[test]
fn malformed_rings_are_refused_and_the_server_keeps_waiting() {
    let shm = unique_shm();
    let path = support::camera::segment_path(&shm);
    std::fs::write(&path, vec![0xFF; 4096]).unwrap();
    let mut server = Server::start(&shm, &[]);
    support::wait_until("the reason names the size", || server.get("/ready").text().contains("4096"));
    std::fs::remove_file(&path).unwrap();
    let camera = CameraSim::start(&shm, &words("--layout v1 --pattern 640x480 --fps 30 --gop 30"));
    server.wait_ready();
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    viewer.wait_units(10);
    drop(camera);
    server.assert_healthy();
}

#[test]
fn slots_with_malformed_metadata_are_counted_and_skipped() {
    let shm = unique_shm();
    let line = "--layout v3 --pattern 640x480 --fps 60 --bitrate-kbps 2000 --gop 30 --lie 25";
    let _camera = CameraSim::start(&shm, &words(line));
    let mut server = Server::start(&shm, &[]);
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    viewer.wait_units(20);
    let report = viewer.leave();
    assert_eq!(report.torn + report.duplicated + report.bad_idrs, 0, "{report:?}");
    server.assert_healthy();
}
