//! Measures the cost of sending one access unit, which is 29 datagrams to each viewer, on loopback. Compares `sendto`,
//! one io_uring send per datagram, and GSO batches. Prints microseconds per unit and viewer, and the ratio to `sendto`.
//! The three methods take turns, so that noise of the machine affects all of them.
//!
//! Run it with `cargo bench --bench uring`. It does not use a bench framework, because only the ratio matters.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a bench fails by panicking and reads the clock"
)]

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use streaming_server::uring::{Driver, Features, UdpDriver, UdpDriverConfig, open_socket};

const DATAGRAMS: usize = 29;
const DATAGRAM_BYTES: usize = 1_170;
const ROUNDS: usize = 1_500;

fn main() {
    for viewers in [1, 10] {
        measure(viewers);
    }
}

/// Sends one unit to all sinks and empties them, `ROUNDS` times with each of the three methods in turn. Prints the
/// median times.
fn measure(viewer_count: u32) {
    let sinks: Vec<UdpSocket> = (0..viewer_count).map(|_| sink()).collect();
    let remotes: Vec<SocketAddr> = sinks.iter().map(|sink| sink.local_addr().unwrap()).collect();
    let plain = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut singles = driver(Features::all() - Features::GSO);
    let mut batches = driver(Features::all());
    let mut times: [Vec<Duration>; 3] = Default::default();
    for _ in 0..ROUNDS {
        let [sendto_times, single_times, batch_times] = &mut times;
        sendto_times.push(timed(|| send_plain(&plain, &remotes)));
        drain(&sinks);
        single_times.push(timed(|| send_all(&mut singles, &remotes)));
        drain(&sinks);
        batch_times.push(timed(|| send_all(&mut batches, &remotes)));
        drain(&sinks);
    }
    let names = ["sendto", "io_uring, a send per datagram", "io_uring, GSO batches"];
    let medians = times.map(|mut times| {
        times.sort_unstable();
        times.get(ROUNDS / 2).unwrap().as_secs_f64() * 1e6 / f64::from(viewer_count)
    });
    println!(
        "{viewer_count} viewers, {DATAGRAMS} datagrams of {DATAGRAM_BYTES} bytes; median per unit and viewer"
    );
    let [base, ..] = medians;
    for (name, median) in names.iter().zip(medians) {
        println!("  {name:30} {median:8.1} us  ratio {:.2}", median / base);
    }
    let counters = batches.counters();
    println!("  enters per turn with batches: {:.2}", ratio(counters.enters, ROUNDS));
    println!("  sends per turn with batches: {:.2}", ratio(counters.sends, ROUNDS));
    assert_eq!(counters.gso_fallbacks + counters.datagrams_dropped + counters.send_errors, 0);
}

fn ratio(count: u64, rounds: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap()) / f64::from(u32::try_from(rounds).unwrap())
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn sink() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

fn drain(sinks: &[UdpSocket]) {
    let mut buffer = [0; 2_048];
    for sink in sinks {
        while sink.recv(&mut buffer).is_ok() {}
    }
}

fn driver(features: Features) -> UdpDriver {
    let (socket, _) = open_socket("127.0.0.1:0".parse().unwrap()).unwrap();
    let config =
        UdpDriverConfig { socket: Arc::new(socket), receives: false, eventfds: Vec::new(), sends_max: 512 };
    UdpDriver::with_features(config, features).unwrap()
}

fn send_plain(socket: &UdpSocket, remotes: &[SocketAddr]) {
    let bytes = [0x5a; DATAGRAM_BYTES];
    for remote in remotes {
        for _ in 0..DATAGRAMS {
            socket.send_to(&bytes, remote).unwrap();
        }
    }
}

fn send_all(driver: &mut UdpDriver, remotes: &[SocketAddr]) {
    for (viewer, &remote) in (0..).zip(remotes) {
        for _ in 0..DATAGRAMS {
            driver.send_with(viewer, None, remote, DATAGRAM_BYTES, |room| room.fill(0x5a));
        }
    }
    driver.submit_and_wait(Duration::from_secs(1)).unwrap();
    while driver.next_completion().is_some() {}
}
