//! ICE-TCP: viewers whose network blocks UDP get the same video over TCP, and none of them harms another viewer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test: a panic is the report")]

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use support::camera::{CameraSim, words};
use support::random::Random;
use support::server::{Server, loopback};
use support::viewer::{Offer, ViewerSimulator};
use support::{unique_shm, wait_until};

use crate::hostile::binding_request;

const CAMERA: &str = "--layout v3 --pattern 640x480 --fps 30 --bitrate-kbps 2000 --gop 30";

fn connect(server: &Server) -> ViewerSimulator {
    ViewerSimulator::connect(server.http).unwrap_or_else(|refusal| panic!("{}", refusal.text()))
}

/// Returns how many viewers of /api/viewers get media over `transport`.
fn viewers_over(server: &Server, transport: &str) -> usize {
    server.viewers().iter().filter(|viewer| viewer["transport"] == transport).count()
}

/// Returns the private memory of the server.
fn private_kb(server: &Server) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", server.process.id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Waits until the server has closed the connection. What the server sends before is ignored.
fn wait_closed(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    loop {
        match stream.read(&mut [0; 64]) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
            Err(error) => panic!("the connection stays open: {error}"),
        }
    }
}

#[test]
fn viewers_over_tcp_get_every_unit_from_each_worker() {
    let shm = unique_shm();
    let _camera = CameraSim::start(&shm, &words(CAMERA));
    let mut server = Server::start(&shm, &["--workers", "2"]);
    server.wait_ready();
    let over_udp = connect(&server);
    let over_tcp: Vec<_> = (0..4).map(|_| ViewerSimulator::connect_over_tcp(server.http)).collect();
    for viewer in over_tcp.iter().chain([&over_udp]) {
        viewer.wait_units(90);
    }
    assert_eq!((viewers_over(&server, "tcp"), viewers_over(&server, "udp")), (4, 1));
    wait_until("the viewers are counted", || server.metrics().expect("tcp_viewers") == 4.0);
    assert_eq!(server.metrics().expect("tcp_connections"), 4.0);
    for viewer in over_tcp {
        viewer.leave().assert_perfect("over TCP");
    }
    over_udp.leave().assert_perfect("over UDP");
    wait_until("the connections are closed", || server.metrics().expect("tcp_connections") == 0.0);
    assert_eq!(server.metrics().expect("tcp_frames_dropped_total"), 0.0);
    let last = ViewerSimulator::connect_over_tcp(server.http);
    last.wait_units(1);
    assert_eq!(server.terminate(), Some(0));
    wait_until("the close_notify", || last.report().got_close_notify);
}

#[test]
fn viewer_over_tcp_that_reads_nothing_holds_bounded_memory_and_disturbs_no_other() {
    let shm = unique_shm();
    let line = "--layout v3 --pattern 1280x720 --fps 30 --bitrate-kbps 16000 --gop 30";
    let _camera = CameraSim::start(&shm, &words(line));
    let mut server = Server::start(&shm, &[]);
    server.wait_ready();
    let (other, stalled) = (connect(&server), ViewerSimulator::connect_over_tcp(server.http));
    other.wait_units(30);
    stalled.wait_units(30);
    let before = private_kb(&server);
    stalled.stall();
    wait_until("the viewer drops to the next IDR", || {
        server.viewers().iter().any(|viewer| viewer["drops_to_idr"].as_u64() > Some(0))
    });
    other.wait_more_units(90);
    let growth = private_kb(&server).saturating_sub(before);
    // Two buffers of UNSENT_BYTES_MAX, and what the other viewer and the pool of payloads need.
    assert!(growth < 8_000, "{growth} kB more after 6 MB of video");
    other.wait_more_units(600);
    assert_eq!(viewers_over(&server, "udp"), 1);
    wait_until("the stalled connection is closed", || server.metrics().expect("tcp_connections") == 0.0);
    other.leave().assert_perfect("the other viewer");
    drop(stalled);
    server.assert_healthy();
}

#[test]
fn connections_without_a_frame_of_a_session_are_closed() {
    let shm = unique_shm();
    let _camera = CameraSim::start(&shm, &words(CAMERA));
    let mut server = Server::start(&shm, &[]);
    server.wait_ready();
    let viewer = connect(&server);
    viewer.wait_units(10);
    let unknown = [&[0, 20, 0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42][..], &[7; 12]].concat();
    let inputs: [&[u8]; 6] =
        [b"GET / HTTP/1.1\r\n\r\n", &[0; 2], &[0, 4, 1, 2, 3, 4], &[0xFF; 4096], &unknown, &[22, 3, 1, 2, 0]];
    for input in inputs {
        let mut stream = TcpStream::connect(server.udp).unwrap();
        stream.write_all(input).unwrap();
        wait_closed(&mut stream);
    }
    // A known name with a wrong password.
    let offer = Offer::create();
    let answer = offer.post(server.http).unwrap_or_else(|refusal| panic!("{}", refusal.text()));
    let ufrag = answer.lines().find_map(|line| line.strip_prefix("a=ice-ufrag:")).unwrap();
    let request = binding_request(&format!("{ufrag}:me"), &mut Random::new(1));
    let mut forged = TcpStream::connect(server.udp).unwrap();
    forged.write_all(&[&u16::try_from(request.len()).unwrap().to_be_bytes(), &request[..]].concat()).unwrap();
    wait_closed(&mut forged);
    // Silent connections, and one byte of a frame at a time.
    let mut silent: Vec<_> = (0..100).map(|_| TcpStream::connect(server.udp).unwrap()).collect();
    silent.last_mut().unwrap().write_all(&[0]).unwrap();
    wait_until("few of them are kept", || {
        let metrics = server.metrics();
        metrics.expect("tcp_connections_total") >= 107.0 && metrics.expect("tcp_connections") <= 16.0
    });
    silent.iter_mut().for_each(wait_closed);
    wait_until("all are counted", || server.metrics().expect("tcp_connections_refused_total") >= 107.0);
    viewer.wait_more_units(30);
    viewer.leave().assert_perfect("the other viewer");
    server.assert_healthy();
}

#[test]
fn server_whose_tcp_port_is_taken_serves_udp() {
    let shm = unique_shm();
    let _camera = CameraSim::start(&shm, &words(CAMERA));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = loopback(&shm, &["--udp", &address]);
    let mut server = Server::spawn(&mut command);
    assert!(server.process.log().contains("cannot listen on tcp"), "{}", server.process.log());
    server.wait_ready();
    let offer = Offer::create();
    let answer = offer.post(server.http).unwrap_or_else(|refusal| panic!("{}", refusal.text()));
    assert!(!answer.contains(" tcp "), "{answer}");
    let viewer = offer.watch(&answer);
    viewer.wait_units(30);
    viewer.leave().assert_perfect("over UDP");
    server.assert_healthy();
}

#[test]
fn ice_tcp_can_be_switched_off() {
    let server = Server::start(&unique_shm(), &["--ice-tcp", "off"]);
    let offer = Offer::create();
    let answer = offer.post(server.http).unwrap_or_else(|refusal| panic!("{}", refusal.text()));
    assert!(answer.contains(" udp ") && !answer.contains(" tcp "), "{answer}");
    assert!(TcpStream::connect(server.udp).is_err());
}
