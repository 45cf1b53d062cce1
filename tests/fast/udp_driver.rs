//! Tests of the UDP driver on real sockets: datagrams arrive whole and in order, received datagrams are reported, and
//! memory that the kernel holds is neither lost nor freed.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, and its sizes are small"
)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use streaming_server::base::limits::{
    GSO_SEGMENTS_MAX, RECEIVE_BUFFER_BYTES, RECEIVE_BUFFERS, SUBMIT_DATAGRAMS,
};
use streaming_server::uring::{
    Completion, Driver, Features, Received, UdpDriver, UdpDriverConfig, open_socket,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// No optional kernel feature. The driver then uses its fallbacks for the oldest supported kernel.
const NO_FEATURES: Features = Features::empty();

fn driver_with(address: &str, receives: bool, features: Features) -> (UdpDriver, SocketAddr) {
    let (socket, bound) = open_socket(address.parse().unwrap()).unwrap();
    let config = UdpDriverConfig { socket: Arc::new(socket), receives, eventfds: Vec::new(), sends_max: 64 };
    (UdpDriver::with_features(config, features).unwrap(), bound)
}

fn driver(address: &str) -> (UdpDriver, SocketAddr) {
    driver_with(address, true, Features::all())
}

/// Opens a plain socket in the place of a browser, and returns it with its address.
fn viewer(address: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(address).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 4 << 20).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let bound = socket.local_addr().unwrap();
    (socket, bound)
}

fn send(driver: &mut UdpDriver, viewer: u32, remote: SocketAddr, bytes: &[u8]) {
    driver.send_with(viewer, None, remote, bytes.len(), |room| room.copy_from_slice(bytes));
}

/// Returns `count` datagrams of `bytes` bytes each. The number of a datagram determines its contents.
fn numbered(count: usize, bytes: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| (0..bytes).map(|at| (n * 31 + at) as u8).collect()).collect()
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 70_000];
    let (bytes, from) = socket.recv_from(&mut buffer).unwrap();
    buffer.truncate(bytes);
    (buffer, from)
}

/// Runs turns until `count` datagrams are received. Returns copies of them and recycles their buffers.
fn turn_until_received(driver: &mut UdpDriver, count: usize) -> Vec<(Vec<u8>, SocketAddr, Option<IpAddr>)> {
    let mut out = Vec::new();
    while out.len() < count {
        driver.submit_and_wait(PATIENCE).unwrap();
        let before = out.len();
        while let Some(completion) = driver.next_completion() {
            if let Completion::Datagram(received) = completion {
                out.push((driver.datagram(&received).to_vec(), received.remote, received.local));
                driver.recycle(received);
            }
        }
        assert!(out.len() > before, "only {before} of {count} datagrams arrived");
    }
    out
}

/// Runs turns until the sends of `count` datagrams have completed, and returns the results. A turn in which the kernel
/// refuses a batch gives no completion.
fn turn_until_sent(driver: &mut UdpDriver, count: u32) -> Vec<(u32, u32, Result<u32, i32>)> {
    let mut out = Vec::new();
    let mut ended = 0;
    while ended < count {
        let before = (ended, driver.counters().gso_fallbacks);
        driver.submit_and_wait(PATIENCE).unwrap();
        while let Some(completion) = driver.next_completion() {
            if let Completion::Sent { viewer, datagrams, result } = completion {
                ended += datagrams;
                out.push((viewer, datagrams, result));
            }
        }
        assert_ne!(
            (ended, driver.counters().gso_fallbacks),
            before,
            "not all sends of {count} datagrams completed"
        );
    }
    out
}

#[test]
fn datagrams_arrive_whole_and_in_order() {
    for features in [Features::all(), NO_FEATURES] {
        let (mut driver, from) = driver_with("127.0.0.1:0", false, features);
        let (viewer, to) = viewer("127.0.0.1:0");
        let sizes = [1200, 1200, 1200, 7, 1200, 0, 0, 900, 900, 899, 1, 1, 1200, 9_000];
        let datagrams: Vec<Vec<u8>> =
            sizes.iter().enumerate().map(|(n, &bytes)| numbered(n + 1, bytes).pop().unwrap()).collect();
        datagrams.iter().for_each(|bytes| send(&mut driver, 1, to, bytes));
        turn_until_sent(&mut driver, datagrams.len() as u32);
        for datagram in &datagrams {
            assert_eq!(receive(&viewer), (datagram.clone(), from));
        }
        assert_eq!(driver.counters().datagrams_sent, datagrams.len() as u64);
        assert_eq!(driver.counters().bytes_sent, sizes.iter().sum::<usize>() as u64);
        assert_eq!(driver.in_flight(1), 0);
    }
}

#[test]
fn batch_of_equal_sizes_is_one_send_and_separate_datagrams() {
    let (mut driver, _) = driver_with("127.0.0.1:0", false, Features::all());
    let (viewer, to) = viewer("127.0.0.1:0");
    let mut datagrams = numbered(20, 1200);
    datagrams[19].truncate(333);
    datagrams.iter().for_each(|bytes| send(&mut driver, 7, to, bytes));
    assert_eq!(driver.in_flight(7), 20, "the short datagram closed the batch");
    let sent = turn_until_sent(&mut driver, 20);
    assert_eq!(sent, [(7, 20, Ok(19 * 1200 + 333))]);
    assert_eq!((driver.counters().sends, driver.counters().gso_batches), (1, 1));
    for datagram in datagrams {
        assert_eq!(receive(&viewer).0, datagram);
    }
}

/// Sends each of ten viewers a unit of `count` datagrams. Returns the number of `io_uring_enter` calls before the end
/// of the turn, and the number of calls in the whole turn.
fn enters_for_ten_viewers(count: usize) -> (u64, u64) {
    let (mut driver, _) = driver_with("127.0.0.1:0", false, Features::all());
    let viewers: Vec<_> = (0..10).map(|_| viewer("127.0.0.1:0")).collect();
    let before = *driver.counters();
    for (id, (_, to)) in (0..).zip(&viewers) {
        numbered(count, 1200).into_iter().for_each(|bytes| send(&mut driver, id, *to, &bytes));
        driver.flush();
    }
    let early = driver.counters().enters - before.enters;
    driver.submit_and_wait(PATIENCE).unwrap();
    assert_eq!(driver.counters().sqes - before.sqes, 10);
    assert_eq!(driver.counters().gso_batches, 10);
    for (socket, _) in &viewers {
        for datagram in numbered(count, 1200) {
            assert_eq!(receive(socket).0, datagram);
        }
    }
    (early, driver.counters().enters - before.enters)
}

#[test]
fn small_units_of_ten_viewers_need_one_enter() {
    assert_eq!(enters_for_ten_viewers(2), (0, 1));
}

#[test]
fn large_unit_is_submitted_before_the_next_viewer_is_served() {
    const { assert!(29 >= SUBMIT_DATAGRAMS) };
    assert_eq!(enters_for_ten_viewers(29), (10, 11));
}

#[test]
fn long_batch_is_split_at_the_kernels_limit() {
    let (mut driver, _) = driver_with("127.0.0.1:0", false, Features::all());
    let (viewer, to) = viewer("127.0.0.1:0");
    let datagrams = numbered(3 * GSO_SEGMENTS_MAX + 1, 1200);
    datagrams.iter().for_each(|bytes| send(&mut driver, 1, to, bytes));
    driver.flush();
    turn_until_sent(&mut driver, datagrams.len() as u32);
    assert_eq!((driver.counters().sends, driver.counters().gso_batches), (4, 3));
    for datagram in datagrams {
        assert_eq!(receive(&viewer).0, datagram);
    }
}

#[test]
fn addresses_are_reported_unmapped_on_every_family() {
    for features in [Features::all(), NO_FEATURES] {
        for (ours, to, theirs) in [
            ("127.0.0.1:0", "127.0.0.1", "127.0.0.1:0"),
            ("127.0.0.1:0", "127.0.0.1", "127.0.0.2:0"),
            ("[::1]:0", "::1", "[::1]:0"),
            ("0.0.0.0:0", "127.0.0.1", "127.0.0.1:0"),
            ("0.0.0.0:0", "::1", "[::1]:0"),
            ("[::]:0", "127.0.0.1", "127.0.0.1:0"),
        ] {
            let (mut driver, bound) = driver_with(ours, true, features);
            let to = SocketAddr::new(to.parse().unwrap(), bound.port());
            let (viewer, from) = viewer(theirs);
            viewer.send_to(b"hello", to).unwrap();
            let got = turn_until_received(&mut driver, 1);
            assert_eq!(got, [(b"hello".to_vec(), from, Some(to.ip()))], "{ours} {theirs}");
            send(&mut driver, 1, from, b"and back");
            turn_until_sent(&mut driver, 1);
            assert_eq!(receive(&viewer), (b"and back".to_vec(), to));
        }
    }
}

#[test]
fn reply_leaves_from_the_address_that_the_request_was_sent_to() {
    for ours in ["0.0.0.0:0", "[::]:0"] {
        let (mut driver, bound) = driver(ours);
        let (viewer, from) = viewer("127.0.0.1:0");
        let asked = SocketAddr::from(([127, 0, 0, 9], bound.port()));
        viewer.send_to(b"to nine", asked).unwrap();
        let (_, remote, local) = turn_until_received(&mut driver, 1).pop().unwrap();
        assert_eq!((remote, local), (from, Some(asked.ip())));
        for bytes in numbered(3, 800) {
            driver.send_with(1, local, remote, bytes.len(), |room| room.copy_from_slice(&bytes));
        }
        turn_until_sent(&mut driver, 3);
        for datagram in numbered(3, 800) {
            assert_eq!(receive(&viewer), (datagram, asked));
        }
        assert_eq!(driver.counters().gso_batches, 1, "one GSO send must carry all three datagrams");
    }
}

#[test]
fn every_write_to_an_eventfd_completes_the_wait() {
    for flags in [EventfdFlags::CLOEXEC, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK] {
        let eventfds: Vec<Arc<OwnedFd>> = (0..3).map(|_| Arc::new(eventfd(0, flags).unwrap())).collect();
        let (socket, _) = open_socket("127.0.0.1:0".parse().unwrap()).unwrap();
        let config = UdpDriverConfig {
            socket: Arc::new(socket),
            receives: true,
            eventfds: eventfds.clone(),
            sends_max: 4,
        };
        let mut driver = UdpDriver::new(config).unwrap();
        for index in [1, 0, 2, 2, 1] {
            let eventfd = Arc::clone(&eventfds[index]);
            let writer = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(5));
                rustix::io::write(&eventfd, &3u64.to_ne_bytes()).unwrap();
            });
            driver.submit_and_wait(PATIENCE).unwrap();
            let completion = driver.next_completion();
            assert!(
                matches!(completion, Some(Completion::Eventfd(written)) if written == index),
                "{completion:?}"
            );
            assert!(driver.next_completion().is_none());
            writer.join().unwrap();
        }
        driver.submit_and_wait(Duration::from_millis(1)).unwrap();
        assert!(driver.next_completion().is_none(), "all eventfds have been read");
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test measures time")]
fn wait_without_completions_lasts_its_timeout() {
    let (mut driver, _) = driver("127.0.0.1:0");
    for timeout in [Duration::ZERO, Duration::from_micros(300), Duration::from_millis(20)] {
        let start = std::time::Instant::now();
        driver.submit_and_wait(timeout).unwrap();
        assert!(start.elapsed() >= timeout);
        assert!(driver.next_completion().is_none());
    }
}

#[test]
fn submit_does_not_wait_while_completions_are_left() {
    let (mut driver, to) = driver("127.0.0.1:0");
    let (viewer, _) = viewer("127.0.0.1:0");
    viewer.send_to(b"one", to).unwrap();
    driver.submit_and_wait(PATIENCE).unwrap();
    driver.submit_and_wait(Duration::MAX).unwrap();
    assert!(matches!(driver.next_completion(), Some(Completion::Datagram(_))));
}

/// Receives 10 000 datagrams in bursts larger than the number of buffers. Buffers are recycled only when no datagram
/// arrives any more. Returns the received numbers and the driver.
fn flood(features: Features) -> (Vec<u32>, UdpDriver) {
    let (mut driver, to) = driver_with("127.0.0.1:0", true, features);
    let (viewer, _) = viewer("127.0.0.1:0");
    let (mut got, mut held, mut sent): (Vec<u32>, Vec<Received>, u32) = (Vec::new(), Vec::new(), 0);
    while sent < 10_000 {
        for _ in 0..500 {
            viewer.send_to(&sent.to_ne_bytes(), to).unwrap();
            sent += 1;
        }
        while got.len() < sent as usize {
            driver
                .submit_and_wait(if held.is_empty() { PATIENCE } else { Duration::from_micros(200) })
                .unwrap();
            let before = held.len();
            while let Some(Completion::Datagram(received)) = driver.next_completion() {
                got.push(u32::from_ne_bytes(driver.datagram(&received).try_into().unwrap()));
                held.push(received);
            }
            if held.len() == before {
                assert!(!held.is_empty(), "{} of {sent} arrived, the rest is lost", got.len());
                held.drain(..).for_each(|received| driver.recycle(received));
            }
        }
    }
    (got, driver)
}

#[test]
fn flood_beyond_the_buffers_loses_no_datagram() {
    let (got, driver) = flood(Features::all());
    assert_eq!(got, (0..10_000).collect::<Vec<_>>());
    assert!(driver.counters().recv_no_buffers > 0, "the buffers ran out");
    assert_eq!(driver.counters().received, 10_000);
}

#[test]
fn flood_loses_no_datagram_without_the_newer_features() {
    let (mut got, driver) = flood(NO_FEATURES);
    got.sort_unstable();
    assert_eq!(got, (0..10_000).collect::<Vec<_>>());
    assert!(!driver.features().contains(Features::MULTISHOT_RECEIVE));
}

#[test]
fn recycled_buffers_are_reused() {
    let (mut driver, to) = driver("127.0.0.1:0");
    let (viewer, _) = viewer("127.0.0.1:0");
    for _ in 0..10 * u32::from(RECEIVE_BUFFERS) / 64 {
        let datagrams = numbered(64, 500);
        datagrams.iter().for_each(|bytes| assert_eq!(viewer.send_to(bytes, to).unwrap(), 500));
        let got: Vec<_> = turn_until_received(&mut driver, 64).into_iter().map(|(bytes, ..)| bytes).collect();
        assert_eq!(got, datagrams);
    }
    assert_eq!(driver.counters().recv_no_buffers, 0);
}

#[test]
fn oversized_datagram_is_counted_and_the_next_arrives() {
    for features in [Features::all(), NO_FEATURES] {
        let (mut driver, to) = driver_with("127.0.0.1:0", true, features);
        let (viewer, from) = viewer("127.0.0.1:0");
        viewer.send_to(&vec![1; RECEIVE_BUFFER_BYTES + 1], to).unwrap();
        viewer.send_to(b"", to).unwrap();
        viewer.send_to(&[2; 1500], to).unwrap();
        let mut got = Vec::new();
        while got.len() < 2 {
            driver.submit_and_wait(PATIENCE).unwrap();
            while let Some(Completion::Datagram(received)) = driver.next_completion() {
                got.push((driver.datagram(&received).to_vec(), received.remote));
                driver.recycle(received);
            }
        }
        assert_eq!(got, [(Vec::new(), from), (vec![2; 1500], from)]);
        assert_eq!(driver.counters().recv_truncated, 1);
    }
}

#[test]
fn datagram_of_another_driver_is_neither_read_nor_recycled() {
    let (mut ours, to) = driver("127.0.0.1:0");
    let (mut other, _) = driver("127.0.0.1:0");
    let (viewer, _) = viewer("127.0.0.1:0");
    viewer.send_to(b"mine", to).unwrap();
    ours.submit_and_wait(PATIENCE).unwrap();
    let Some(Completion::Datagram(received)) = ours.next_completion() else { panic!("no datagram arrived") };
    assert_eq!(ours.datagram(&received), b"mine");
    assert_eq!(other.datagram(&received), b"");
    other.recycle(received);
}

#[test]
fn closed_port_does_not_stop_sending() {
    let (mut driver, _) = driver("127.0.0.1:0");
    let closed = viewer("127.0.0.1:0").1;
    let (viewer, to) = viewer("127.0.0.1:0");
    for round in 0..20u8 {
        send(&mut driver, 1, closed, &[round; 100]);
        send(&mut driver, 2, to, &[round; 100]);
        turn_until_sent(&mut driver, 2);
        assert_eq!(receive(&viewer).0, vec![round; 100]);
    }
}

#[test]
fn unreachable_destination_is_counted_and_other_datagrams_are_sent() {
    let (mut driver, _) = driver_with("127.0.0.1:0", false, Features::all());
    let (viewer, to) = viewer("127.0.0.1:0");
    send(&mut driver, 1, "[::1]:5000".parse().unwrap(), &[0; 10]);
    send(&mut driver, 1, to, &[0; 70_000]);
    send(&mut driver, 1, to, &[5; 10]);
    let sent = turn_until_sent(&mut driver, 2);
    assert_eq!(sent, [(1, 1, Err(libc::EMSGSIZE)), (1, 1, Ok(10))]);
    assert_eq!(driver.counters().send_errors, 2);
    assert_eq!(receive(&viewer).0, vec![5; 10]);
    assert_eq!(driver.in_flight(1), 0);
}

#[test]
fn one_send_operation_is_reused_within_a_turn() {
    let (socket, _) = open_socket("127.0.0.1:0".parse().unwrap()).unwrap();
    let config =
        UdpDriverConfig { socket: Arc::new(socket), receives: false, eventfds: Vec::new(), sends_max: 1 };
    let mut driver = UdpDriver::new(config).unwrap();
    let (viewer, to) = viewer("127.0.0.1:0");
    for n in 0..50u8 {
        send(&mut driver, u32::from(n), to, &[n; 40]);
    }
    turn_until_sent(&mut driver, 50);
    for n in 0..50u8 {
        assert_eq!(receive(&viewer).0, vec![n; 40]);
    }
    assert_eq!(driver.counters().datagrams_dropped, 0);
}

#[test]
fn dropped_driver_sends_what_is_queued_and_closes_its_descriptors() {
    for features in [Features::all(), NO_FEATURES] {
        let (socket, _) = open_socket("127.0.0.1:0".parse().unwrap()).unwrap();
        let (socket, wakeup) = (Arc::new(socket), Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap()));
        let config = UdpDriverConfig {
            socket: Arc::clone(&socket),
            receives: true,
            eventfds: vec![Arc::clone(&wakeup)],
            sends_max: 8,
        };
        let mut driver = UdpDriver::with_features(config, features).unwrap();
        let (viewer, to) = viewer("127.0.0.1:0");
        driver.submit_and_wait(Duration::from_millis(1)).unwrap();
        send(&mut driver, 1, to, b"good bye");
        drop(driver);
        assert_eq!(receive(&viewer).0, b"good bye");
        assert_eq!((Arc::strong_count(&socket), Arc::strong_count(&wakeup)), (1, 1));
        rustix::io::write(&wakeup, &1u64.to_ne_bytes()).unwrap();
    }
}

#[test]
fn drivers_share_one_socket() {
    let (socket, bound) = open_socket("127.0.0.1:0".parse().unwrap()).unwrap();
    let socket = Arc::new(socket);
    let config = |receives| UdpDriverConfig {
        socket: Arc::clone(&socket),
        receives,
        eventfds: Vec::new(),
        sends_max: 8,
    };
    let mut first = UdpDriver::new(config(true)).unwrap();
    let (viewer, to) = viewer("127.0.0.1:0");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut second = UdpDriver::new(config(false)).unwrap();
            send(&mut second, 1, to, b"from the second");
            turn_until_sent(&mut second, 1);
        });
    });
    assert_eq!(receive(&viewer), (b"from the second".to_vec(), bound));
    viewer.send_to(b"to the first", bound).unwrap();
    assert_eq!(turn_until_received(&mut first, 1)[0].0, b"to the first");
}

/// Runs one of the ignored tests below in its own network namespace, prepared by `script`. On a machine that does not
/// allow namespaces, it prints a line and tests nothing.
fn in_own_network(test: &str, script: &str) {
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "sh", "-c", script]);
        command
    };
    if !unshare(script).status().is_ok_and(|status| status.success()) {
        println!("not tested: this machine does not allow network namespaces");
        return;
    }
    let exe = std::env::current_exe().unwrap();
    let script =
        format!("{script} && exec '{}' --exact udp_driver::{test} --ignored --nocapture", exe.display());
    let output = unshare(&script).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn route_that_refuses_gso_gets_single_datagrams() {
    in_own_network("inner_route_that_refuses_gso", "ip link set lo mtu 1280 up");
}

#[test]
#[ignore = "the test above runs it in a network namespace"]
fn inner_route_that_refuses_gso() {
    let (mut driver, _) = driver_with("127.0.0.1:0", false, Features::all());
    let (viewer, to) = viewer("127.0.0.1:0");
    for round in 0..3u64 {
        // Each datagram is larger than the path's MTU. The kernel refuses it as a GSO segment, but fragments and
        // delivers it when it is sent alone.
        let datagrams = numbered(20, 1400);
        datagrams.iter().for_each(|bytes| send(&mut driver, 1, to, bytes));
        turn_until_sent(&mut driver, 20);
        for datagram in datagrams {
            assert_eq!(receive(&viewer).0, datagram);
        }
        assert_eq!(
            driver.counters().gso_fallbacks,
            1,
            "the kernel refuses GSO only once, also after round {round}"
        );
        assert_eq!(driver.counters().datagrams_sent, 20 * (round + 1));
    }
    assert_eq!((driver.counters().gso_batches, driver.counters().send_errors), (1, 0));
    assert_eq!(driver.in_flight(1), 0);
}

#[test]
fn sends_that_the_kernel_holds_survive_the_drop_of_the_driver() {
    in_own_network(
        "inner_sends_the_kernel_holds",
        "ip link set lo up && ip link add v0 type veth peer name v1 && ip addr add 10.9.9.1/24 dev v0 \
         && ip link set v0 up && ip link set v1 up",
    );
}

#[test]
#[ignore = "the test above runs it in a network namespace"]
fn inner_sends_the_kernel_holds() {
    let (socket, _) = open_socket("10.9.9.1:0".parse().unwrap()).unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, 8_192).unwrap();
    let config =
        UdpDriverConfig { socket: Arc::new(socket), receives: true, eventfds: Vec::new(), sends_max: 16 };
    let mut driver = UdpDriver::new(config).unwrap();
    // No host answers ARP for this address. Datagrams fill the socket's send buffer, and the kernel holds further
    // sends.
    let unanswered = "10.9.9.77:5000".parse().unwrap();
    for n in 0..100 {
        send(&mut driver, n, unanswered, &[0; 1200]);
    }
    driver.submit_and_wait(Duration::from_millis(10)).unwrap();
    let held: u32 = (0..100).map(|viewer| driver.in_flight(viewer)).sum();
    assert!(held > 0, "the kernel holds some sends");
    assert!(driver.counters().datagrams_dropped > 0, "datagrams are dropped when no operation is free");
    let enters = driver.counters().enters;
    assert!(enters < 10, "a full queue must not cost one enter for each datagram: {enters}");
    drop(driver);
}
