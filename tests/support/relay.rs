//! A UDP relay between one viewer and the server. It loses, delays and reorders datagrams. The same seed and the same
//! datagrams give the same losses.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::random::Random;

/// Properties of the simulated network. They hold in each direction.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub seed: u64,
    pub loss_percent: f64,
    /// Delay in one direction, which is half of the round trip.
    pub delay: Duration,
    /// Percentage of datagrams that are delayed by another 5 ms, so that later ones overtake them.
    pub reorder_percent: f64,
}

/// A running relay. It stops on drop.
pub struct LossyRelay {
    /// The address that the viewer sends to.
    pub address: SocketAddr,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Counters {
    forwarded: AtomicU64,
    lost: AtomicU64,
}

struct Held {
    due: Instant,
    order: u64,
    bytes: Vec<u8>,
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Held {}
impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Held {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

impl LossyRelay {
    pub fn start(server: SocketAddr, weather: Weather) -> Self {
        let toward_viewer = socket();
        let toward_server = socket();
        toward_server.connect(server).unwrap();
        let address = toward_viewer.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let counters = Arc::new(Counters::default());
        let viewer: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
        let upstream = Direction {
            from: toward_viewer.try_clone().unwrap(),
            to: toward_server.try_clone().unwrap(),
            viewer: Arc::clone(&viewer),
            learns_viewer: true,
            weather,
            counters: Arc::clone(&counters),
            stop: Arc::clone(&stop),
        };
        let downstream = Direction {
            from: toward_server,
            to: toward_viewer,
            viewer,
            learns_viewer: false,
            weather: Weather { seed: weather.seed ^ 0xD0_1E, ..weather },
            counters: Arc::clone(&counters),
            stop: Arc::clone(&stop),
        };
        let threads = vec![thread::spawn(|| upstream.run()), thread::spawn(|| downstream.run())];
        Self { address, counters, stop, threads }
    }

    pub fn lost(&self) -> u64 {
        self.counters.lost.load(Ordering::Relaxed)
    }

    pub fn forwarded(&self) -> u64 {
        self.counters.forwarded.load(Ordering::Relaxed)
    }
}

impl Drop for LossyRelay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 4 << 20);
    socket
}

struct Direction {
    from: UdpSocket,
    to: UdpSocket,
    viewer: Arc<Mutex<Option<SocketAddr>>>,
    learns_viewer: bool,
    weather: Weather,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
}

impl Direction {
    fn run(self) {
        let mut random = Random::new(self.weather.seed);
        let mut held: BinaryHeap<Reverse<Held>> = BinaryHeap::new();
        let mut order = 0;
        let mut buffer = [0; 2048];
        while !self.stop.load(Ordering::Relaxed) {
            let wait = held.peek().map_or(Duration::from_millis(20), |Reverse(first)| {
                first.due.saturating_duration_since(Instant::now())
            });
            self.from
                .set_read_timeout(Some(wait.clamp(Duration::from_micros(500), Duration::from_millis(20))))
                .unwrap();
            if let Ok((count, remote)) = self.from.recv_from(&mut buffer) {
                if self.learns_viewer {
                    *self.viewer.lock().unwrap() = Some(remote);
                }
                if random.chance(self.weather.loss_percent) {
                    self.counters.lost.fetch_add(1, Ordering::Relaxed);
                } else {
                    let late = random.chance(self.weather.reorder_percent);
                    let extra = if late { Duration::from_millis(5) } else { Duration::ZERO };
                    let due = Instant::now() + self.weather.delay + extra;
                    order += 1;
                    held.push(Reverse(Held { due, order, bytes: buffer[..count].to_vec() }));
                }
            }
            self.deliver(&mut held);
        }
    }

    fn deliver(&self, held: &mut BinaryHeap<Reverse<Held>>) {
        let now = Instant::now();
        while held.peek().is_some_and(|Reverse(first)| first.due <= now) {
            let Some(Reverse(datagram)) = held.pop() else { return };
            let sent = if self.learns_viewer {
                self.to.send(&datagram.bytes)
            } else {
                let Some(viewer) = *self.viewer.lock().unwrap() else { continue };
                self.to.send_to(&datagram.bytes, viewer)
            };
            if sent.is_ok() {
                self.counters.forwarded.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Returns the SDP answer with the relay's candidate in place of all others.
pub fn rewrite_answer(sdp: &str, relay: SocketAddr) -> String {
    let mut out = String::new();
    let mut written = false;
    for line in sdp.lines() {
        if !line.starts_with("a=candidate:") {
            out.push_str(line);
            out.push_str("\r\n");
        } else if !written {
            written = true;
            out.push_str(&format!(
                "a=candidate:1 1 udp 2130706431 {} {} typ host\r\n",
                relay.ip(),
                relay.port()
            ));
        }
    }
    assert!(written, "the answer has no candidate:\n{sdp}");
    out
}
