//! Tests of TCP connections with a real driver and real sockets: frames, bounds and hand-over.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use streaming_server::base::limits::{
    TCP_FRAME_BYTES_MAX, TCP_PER_VIEWER_MAX, TCP_UNCLAIMED_PER_ADDRESS_MAX, UNSENT_BYTES_MAX,
};
use streaming_server::uring::{Completion, Driver, UdpDriver, UdpDriverConfig, open_listener, open_socket};
use support::wait_until;

fn driver() -> (UdpDriver, SocketAddr) {
    let (socket, _) = open_socket("127.0.0.1:0".parse().unwrap()).unwrap();
    let config =
        UdpDriverConfig { socket: Arc::new(socket), receives: false, eventfds: Vec::new(), sends_max: 4 };
    let mut driver = UdpDriver::new(config).unwrap();
    let listener = open_listener("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = rustix::net::getsockname(&listener).unwrap().try_into().unwrap();
    driver.listen(listener);
    (driver, address)
}

fn now() -> Instant {
    streaming_server::base::clock::now().instant
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// Runs turns of the driver until `done` returns a value for one of its completions.
fn until<T>(driver: &mut UdpDriver, mut done: impl FnMut(&mut UdpDriver, Completion) -> Option<T>) -> T {
    loop {
        driver.submit_and_wait(Duration::from_millis(20)).unwrap();
        while let Some(completion) = driver.next_completion() {
            if let Some(value) = done(driver, completion) {
                return value;
            }
        }
        driver.connections().unwrap().tend(now());
    }
}

/// Waits for frames, and returns all that have arrived with their connection.
fn frames(driver: &mut UdpDriver) -> (NonZeroU32, Vec<Vec<u8>>) {
    until(driver, |driver, completion| {
        let Completion::Frames(id) = completion else { return None };
        let mut all = Vec::new();
        while let Some(frame) = driver.connections().unwrap().next_frame(id) {
            all.push(frame.bytes.to_vec());
        }
        (!all.is_empty()).then_some((id, all))
    })
}

fn claimed(driver: &mut UdpDriver, address: SocketAddr, viewer: u32) -> (TcpStream, NonZeroU32) {
    let mut stream = connect(address);
    stream.write_all(&framed(b"first")).unwrap();
    let (id, all) = frames(driver);
    assert_eq!(all, [b"first"]);
    driver.connections().unwrap().claim(id, viewer);
    (stream, id)
}

fn send(driver: &mut UdpDriver, viewer: u32, id: NonZeroU32, bytes: &[u8]) {
    let remote = "127.0.0.1:9".parse().unwrap();
    driver.send_over(Some(id), viewer, None, remote, bytes.len(), |room| room.copy_from_slice(bytes));
}

fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    match stream.read(&mut [0; 4096]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn frames_arrive_whole_in_both_directions_however_they_are_split() {
    let (mut driver, address) = driver();
    let (mut stream, id) = claimed(&mut driver, address, 7);
    let datagrams: Vec<Vec<u8>> = (0..40).map(|n: u8| vec![n; 1 + usize::from(n) * 45]).collect();
    let stream_bytes: Vec<u8> = datagrams.iter().flat_map(|datagram| framed(datagram)).collect();
    let mut got = Vec::new();
    for part in stream_bytes.chunks(997) {
        stream.write_all(part).unwrap();
        driver.submit_and_wait(Duration::from_millis(1)).unwrap();
        while let Some(completion) = driver.next_completion() {
            let Completion::Frames(id) = completion else { continue };
            while let Some(frame) = driver.connections().unwrap().next_frame(id) {
                assert_eq!(frame.viewer, Some(7));
                got.push(frame.bytes.to_vec());
            }
        }
    }
    while got.len() < datagrams.len() {
        got.extend(frames(&mut driver).1);
    }
    assert_eq!(got, datagrams);
    datagrams.iter().for_each(|datagram| send(&mut driver, 7, id, datagram));
    assert!(driver.in_flight(7) > 0);
    until(&mut driver, |driver, _| (driver.in_flight(7) == 0).then_some(()));
    let mut echoed = vec![0; stream_bytes.len()];
    stream.read_exact(&mut echoed).unwrap();
    assert_eq!(echoed, stream_bytes);
}

#[test]
fn connection_that_reads_nothing_holds_a_bounded_number_of_whole_frames() {
    let (mut driver, address) = driver();
    let (mut stream, id) = claimed(&mut driver, address, 7);
    let datagram = vec![0x80; 1_200];
    for _ in 0..4 * UNSENT_BYTES_MAX / datagram.len() {
        send(&mut driver, 7, id, &datagram);
        driver.submit_and_wait(Duration::ZERO).unwrap();
        while driver.next_completion().is_some() {}
    }
    assert!(driver.in_flight(7) as usize * 1_200 <= UNSENT_BYTES_MAX);
    let counters = driver.counters().tcp;
    assert!(counters.frames_dropped > 0 && counters.frames_sent > 0);
    let reader = std::thread::spawn(move || {
        let mut frame = vec![0; 1_202];
        for _ in 0..counters.frames_sent {
            stream.read_exact(&mut frame).unwrap();
            assert_eq!(frame[..3], [4, 176, 0x80]);
        }
        stream
    });
    until(&mut driver, |driver, _| (driver.in_flight(7) == 0).then_some(()));
    reader.join().unwrap();
}

#[test]
fn frame_that_is_too_long_and_the_end_of_the_stream_close_the_connection() {
    let (mut driver, address) = driver();
    let (mut stream, id) = claimed(&mut driver, address, 7);
    stream.write_all(&u16::try_from(TCP_FRAME_BYTES_MAX + 1).unwrap().to_be_bytes()).unwrap();
    let ended = until(&mut driver, |driver, completion| match completion {
        Completion::Frames(id) => {
            assert!(driver.connections().unwrap().next_frame(id).is_none());
            None
        }
        Completion::Disconnected { connection, viewer } => Some((connection, viewer)),
        _ => None,
    });
    assert_eq!(ended, (id, 7));
    wait_until("the end", || is_closed(&mut stream));
    let (stream, id) = claimed(&mut driver, address, 8);
    drop(stream);
    let ended = until(&mut driver, |_, completion| match completion {
        Completion::Disconnected { connection, viewer } => Some((connection, viewer)),
        _ => None,
    });
    assert_eq!(ended, (id, 8));
    send(&mut driver, 8, id, b"late");
    assert_eq!(driver.in_flight(8), 0);
}

#[test]
fn new_connections_replace_old_ones_at_the_limits() {
    let (mut driver, address) = driver();
    let mut silent: Vec<TcpStream> =
        (0..TCP_UNCLAIMED_PER_ADDRESS_MAX + 4).map(|_| connect(address)).collect();
    wait_until("four are closed", || {
        driver.submit_and_wait(Duration::from_millis(1)).unwrap();
        driver.connections().unwrap().tend(now());
        silent.iter_mut().map(is_closed).filter(|closed| *closed).count() == 4
    });
    drop(silent);
    let mut all: Vec<_> = (0..=TCP_PER_VIEWER_MAX).map(|_| claimed(&mut driver, address, 7)).collect();
    let ended = until(&mut driver, |_, completion| match completion {
        Completion::Disconnected { connection, .. } => Some(connection),
        _ => None,
    });
    assert_eq!(ended, all[0].1, "the one that was silent for the longest time");
    assert!(!is_closed(&mut all[1].0));
}

#[test]
fn another_driver_takes_a_connection_over_with_what_it_has_received() {
    let (mut first, address) = driver();
    let (mut second, _) = driver();
    let mut stream = connect(address);
    stream.write_all(&[framed(b"one"), framed(b"two"), vec![0, 5, b't']].concat()).unwrap();
    let id = until(&mut first, |driver, completion| match completion {
        Completion::Frames(id) => driver.connections().unwrap().next_frame(id).map(|_| id),
        _ => None,
    });
    let handover = first.connections().unwrap().hand_over(id).unwrap();
    second.connections().unwrap().adopt(handover);
    let (id, mut all) = frames(&mut second);
    second.connections().unwrap().claim(id, 3);
    stream.write_all(b"hree").unwrap();
    while all.len() < 3 {
        all.extend(frames(&mut second).1);
    }
    assert_eq!(all, [&b"one"[..], b"two", b"three"]);
    // The end of the session: what is queued is sent, then the end of the stream.
    send(&mut second, 3, id, b"bye");
    second.connections().unwrap().finish(3);
    let reader = std::thread::spawn(move || {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        rest
    });
    while !reader.is_finished() {
        second.submit_and_wait(Duration::from_millis(5)).unwrap();
    }
    assert_eq!(reader.join().unwrap(), framed(b"bye"));
}
