//! A viewer without a decoder. str0m acts as the browser: full ICE in the controlling role, DTLS client, NACK and RTX.
//! Each viewer has one UDP socket or one TCP connection, and one thread, and keeps its counts in a [`Report`].

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;
use str0m::change::{SdpAnswer, SdpOffer, SdpPendingOffer};
use str0m::media::{Direction, KeyframeRequestKind, MediaKind, Mid};
use str0m::net::{Protocol, Receive};
use str0m::{Candidate, Event, IceConnectionState, Input, Output, Rtc, RtcConfig};

use super::account::{Account, Arrived, KeptUnit, Report};
use super::http::{self, Response};
use super::{monotonic_ns, wait_for};
use streaming_server::uring::framing::{FRAME_HEADER_BYTES, frame_header};

const WATCH: u8 = 0;
const REQUEST_IDR: u8 = 1;
const LEAVE: u8 = 2;
const VANISH: u8 = 3;
const STALL: u8 = 4;

/// A viewer in its own thread. On drop it stops without closing the session.
pub struct ViewerSimulator {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    report: Mutex<Report>,
    kept: Mutex<Vec<KeptUnit>>,
    command: AtomicU8,
}

/// An SDP offer that has no answer yet.
pub struct Offer {
    rtc: Rtc,
    pending: SdpPendingOffer,
    mid: Mid,
    socket: UdpSocket,
    pub sdp: String,
}

/// Returns an agent for H.264 with a socket on loopback as its only candidate.
fn rtc() -> (Rtc, UdpSocket) {
    static CRYPTO: Once = Once::new();
    CRYPTO.call_once(|| str0m::crypto::from_feature_flags().install_process_default());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 4 << 20);
    socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    let mut rtc = RtcConfig::new().clear_codecs().enable_h264(true).set_rtp_mode(true).build(Instant::now());
    rtc.add_local_candidate(Candidate::host(socket.local_addr().unwrap(), "udp").unwrap());
    (rtc, socket)
}

impl Offer {
    /// Creates an offer with one receive-only H.264 section and a host candidate on loopback.
    pub fn create() -> Self {
        let (mut rtc, socket) = rtc();
        let mut change = rtc.sdp_api();
        let mid = change.add_media(MediaKind::Video, Direction::RecvOnly, None, None, None);
        let (offer, pending) = change.apply().unwrap();
        let sdp = offer.to_sdp_string();
        Self { rtc, pending, mid, socket, sdp }
    }

    /// Posts the offer. Returns the SDP of the answer, or the response with which the server refused.
    pub fn post(&self, server: SocketAddr) -> Result<String, Box<Response>> {
        self.post_with(server, &[])
    }

    fn post_with(&self, server: SocketAddr, headers: &[(&str, &str)]) -> Result<String, Box<Response>> {
        let body = json!({"type": "offer", "sdp": self.sdp}).to_string();
        let headers = [&[("Content-Type", "application/json")], headers].concat();
        let response = http::request(server, "POST", "/api/webrtc/offer", &headers, body.as_bytes());
        if response.status != 200 {
            return Err(Box::new(response));
        }
        let answer = response.json();
        assert_eq!(answer["type"], "answer");
        Ok(answer["sdp"].as_str().unwrap().to_owned())
    }

    /// Applies the answer and starts the viewer.
    pub fn watch(self, answer_sdp: &str) -> ViewerSimulator {
        self.watch_with(answer_sdp, Account::default())
    }

    /// Applies the answer and starts a viewer that reaches the server only over TCP. str0m does not know this: it
    /// believes in the UDP candidate with the same address.
    pub fn watch_over_tcp(self, answer_sdp: &str) -> ViewerSimulator {
        let candidate = answer_sdp.lines().find(|line| line.ends_with("typ host tcptype passive"));
        let words: Vec<&str> = candidate.expect("a TCP candidate").split(' ').collect();
        let address = format!("{}:{}", words[4], words[5]).parse::<SocketAddr>().unwrap();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        let (local, mut rtc) = (self.socket.local_addr().unwrap(), self.rtc);
        rtc.sdp_api().accept_answer(self.pending, SdpAnswer::from_sdp_string(answer_sdp).unwrap()).unwrap();
        let link = Link::Tcp { stream, server: address, received: Vec::new() };
        ViewerSimulator::start(rtc, self.mid, local, link, Account::default())
    }

    fn watch_with(self, answer_sdp: &str, account: Account) -> ViewerSimulator {
        let mut rtc = self.rtc;
        let answer = SdpAnswer::from_sdp_string(answer_sdp)
            .unwrap_or_else(|error| panic!("the answer does not parse: {error}\n{answer_sdp}"));
        rtc.sdp_api().accept_answer(self.pending, answer).unwrap();
        let local = self.socket.local_addr().unwrap();
        ViewerSimulator::start(rtc, self.mid, local, Link::Udp(self.socket), account)
    }
}

impl ViewerSimulator {
    fn start(rtc: Rtc, mid: Mid, local: SocketAddr, link: Link, account: Account) -> Self {
        let shared = Arc::new(Shared::default());
        let life = Life { rtc, mid, local, link, shared: Arc::clone(&shared), account };
        Self { shared, thread: Some(thread::spawn(move || life.run())) }
    }

    /// Starts a viewer that answers the offer of a publisher, as a WHIP server does. Returns the answer too.
    pub fn answering(offer_sdp: &str) -> (Self, String) {
        let (mut rtc, socket) = rtc();
        let offer = SdpOffer::from_sdp_string(offer_sdp)
            .unwrap_or_else(|error| panic!("the offer does not parse: {error}\n{offer_sdp}"));
        let answer = rtc.sdp_api().accept_offer(offer).unwrap().to_sdp_string();
        let local = socket.local_addr().unwrap();
        (Self::start(rtc, "0".into(), local, Link::Udp(socket), Account::default()), answer)
    }

    /// Posts an offer and starts the viewer. If the server refuses, returns its response.
    pub fn connect(server: SocketAddr) -> Result<Self, Box<Response>> {
        Self::connect_with(server, &[])
    }

    /// Posts an offer and starts a viewer over TCP, see [`Offer::watch_over_tcp`].
    pub fn connect_over_tcp(server: SocketAddr) -> Self {
        let offer = Offer::create();
        let answer = offer.post(server).unwrap_or_else(|refusal| panic!("refused: {}", refusal.text()));
        offer.watch_over_tcp(&answer)
    }

    /// Connects like [`Self::connect`], with additional request headers.
    pub fn connect_with(server: SocketAddr, headers: &[(&str, &str)]) -> Result<Self, Box<Response>> {
        let offer = Offer::create();
        let answer = offer.post_with(server, headers)?;
        Ok(offer.watch(&answer))
    }

    /// Connects like [`Self::connect`]. The viewer keeps every complete unit for [`Self::kept`].
    pub fn connect_keeping(server: SocketAddr) -> Result<Self, Box<Response>> {
        let offer = Offer::create();
        let answer = offer.post(server)?;
        Ok(offer.watch_with(&answer, Account::keeping_units()))
    }

    /// Starts `count` viewers and waits until each has received a unit.
    pub fn crowd(server: SocketAddr, count: usize) -> Vec<Self> {
        let connect =
            |_| Self::connect(server).unwrap_or_else(|refusal| panic!("refused: {}", refusal.text()));
        let viewers: Vec<Self> = (0..count).map(connect).collect();
        viewers.iter().for_each(|viewer| viewer.wait_units(1));
        viewers
    }

    pub fn report(&self) -> Report {
        self.shared.report.lock().unwrap().clone()
    }

    /// Returns the units that a viewer of [`Self::connect_keeping`] has received so far.
    pub fn kept(&self) -> Vec<KeptUnit> {
        self.shared.kept.lock().unwrap().clone()
    }

    /// Waits until the viewer has received at least `count` units since it started.
    pub fn wait_units(&self, count: u64) {
        wait_for(&format!("{count} units at a viewer, so far {:?}", self.brief()), || {
            (self.report().units >= count).then_some(())
        });
    }

    /// Waits until the viewer has received `count` more units.
    pub fn wait_more_units(&self, count: u64) {
        self.wait_units(self.report().units + count);
    }

    /// Makes the viewer send a PLI.
    pub fn request_idr(&self) {
        self.shared.command.store(REQUEST_IDR, Ordering::Relaxed);
    }

    /// Makes the viewer read nothing any more. It still sends.
    pub fn stall(&self) {
        self.shared.command.store(STALL, Ordering::Relaxed);
    }

    /// Closes the session by DTLS, as a closed tab does, and returns the final counts.
    pub fn leave(mut self) -> Report {
        self.end(LEAVE);
        self.report()
    }

    /// Stops without closing the session, as after kill -9, and returns the final counts.
    pub fn vanish(mut self) -> Report {
        self.end(VANISH);
        self.report()
    }

    fn brief(&self) -> Report {
        Report { latencies_ns: Vec::new(), ..self.report() }
    }

    fn end(&mut self, how: u8) {
        self.shared.command.store(how, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for ViewerSimulator {
    fn drop(&mut self) {
        self.end(VANISH);
    }
}

struct Life {
    rtc: Rtc,
    mid: Mid,
    local: SocketAddr,
    link: Link,
    shared: Arc<Shared>,
    account: Account,
}

/// How datagrams reach the server.
enum Link {
    Udp(UdpSocket),
    /// Each datagram is a frame (RFC 4571). `received` is what is not a whole frame yet.
    Tcp {
        stream: TcpStream,
        server: SocketAddr,
        received: Vec<u8>,
    },
}

impl Link {
    fn send(&mut self, bytes: &[u8], to: SocketAddr) {
        // A datagram that cannot be sent is lost.
        let _ = match self {
            Link::Udp(socket) => socket.send_to(bytes, to).map(drop),
            Link::Tcp { stream, .. } => {
                stream.write_all(&[&frame_header(bytes.len()).unwrap(), bytes].concat())
            }
        };
    }

    /// Waits up to 5 ms for a datagram and copies it to `buffer`. Returns its length and its source.
    fn receive(&mut self, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
        match self {
            Link::Udp(socket) => socket.recv_from(buffer).ok(),
            Link::Tcp { stream, server, received } => {
                let frame = |received: &[u8]| {
                    let length = usize::from(u16::from_be_bytes(*received.first_chunk()?));
                    received.get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + length).map(<[u8]>::to_vec)
                };
                if frame(received).is_none() {
                    let mut part = [0; 16 * 1024];
                    let count = stream.read(&mut part).ok()?;
                    received.extend_from_slice(&part[..count]);
                    if count == 0 {
                        thread::sleep(Duration::from_millis(5));
                    }
                }
                let bytes = frame(received)?;
                received.drain(..FRAME_HEADER_BYTES + bytes.len());
                buffer[..bytes.len()].copy_from_slice(&bytes);
                Some((bytes.len(), *server))
            }
        }
    }
}

impl Life {
    fn run(mut self) {
        let mut buffer = vec![0; 2048];
        let mut leave_by: Option<Instant> = None;
        while self.rtc.is_alive() {
            match self.shared.command.load(Ordering::Relaxed) {
                VANISH => return,
                LEAVE if leave_by.is_none() => {
                    let _ = self.rtc.close();
                    leave_by = Some(Instant::now() + Duration::from_secs(2));
                }
                REQUEST_IDR => self.send_pli(),
                _ => {}
            }
            if leave_by.is_some_and(|deadline| Instant::now() > deadline) {
                break;
            }
            let due = self.drain();
            self.publish();
            // str0m's timeouts are handled in every pass, even if datagrams keep arriving, because a handshake may
            // depend on a timer.
            if Instant::now() >= due {
                let _ = self.rtc.handle_input(Input::Timeout(Instant::now()));
                self.drain();
            }
            if self.shared.command.load(Ordering::Relaxed) == STALL {
                thread::sleep(Duration::from_millis(5));
                continue;
            }
            if let Some((count, remote)) = self.link.receive(&mut buffer) {
                self.receive(remote, &buffer[..count]);
            }
        }
        self.drain();
        self.account.report.ended = true;
        self.publish();
    }

    fn receive(&mut self, remote: SocketAddr, bytes: &[u8]) {
        if let Ok(receive) = Receive::new(Protocol::Udp, remote, self.local, bytes) {
            let _ = self.rtc.handle_input(Input::Receive(Instant::now(), receive));
        }
    }

    /// Handles all output of str0m. Returns the time of its next timeout.
    fn drain(&mut self) -> Instant {
        let far = Instant::now() + Duration::from_millis(50);
        while self.rtc.is_alive() {
            match self.rtc.poll_output() {
                Ok(Output::Timeout(due)) => return due,
                Ok(Output::Transmit(transmit)) => {
                    self.link.send(&transmit.contents, transmit.destination);
                }
                Ok(Output::Event(event)) => self.note(event),
                Err(_) => return far,
            }
        }
        far
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Connected => {
                self.account.report.connected = true;
                self.account.report.connected_at_ns.get_or_insert_with(monotonic_ns);
            }
            Event::Closed => self.account.report.got_close_notify = true,
            Event::IceConnectionStateChange(IceConnectionState::Disconnected) => {
                self.account.report.connected = false;
            }
            Event::RtpPacket(packet) => {
                let arrived = Arrived {
                    payload: packet.payload.to_vec(),
                    marker: packet.header.marker,
                    rtp_time: packet.header.timestamp,
                    at_ns: monotonic_ns(),
                };
                if !arrived.payload.is_empty() {
                    self.account.report.first_media_at_ns.get_or_insert(arrived.at_ns);
                    self.account.push(*packet.seq_no, arrived);
                }
            }
            _ => {}
        }
    }

    fn send_pli(&mut self) {
        let _ =
            self.shared.command.compare_exchange(REQUEST_IDR, WATCH, Ordering::Relaxed, Ordering::Relaxed);
        if let Some(stream) = self.rtc.direct_api().stream_rx_by_mid(self.mid, None) {
            stream.request_keyframe(KeyframeRequestKind::Pli);
        }
    }

    /// Copies the counts to the shared report. Latency samples are moved, because a copy after every datagram is too
    /// slow.
    fn publish(&mut self) {
        if !self.account.kept.is_empty() {
            self.shared.kept.lock().unwrap().append(&mut self.account.kept);
        }
        let mut shared = self.shared.report.lock().unwrap();
        let mut samples = std::mem::take(&mut shared.latencies_ns);
        samples.append(&mut self.account.report.latencies_ns);
        *shared = self.account.report.clone();
        shared.latencies_ns = samples;
    }
}
