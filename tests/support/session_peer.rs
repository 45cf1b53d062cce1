//! A browser in memory: str0m's client on a fake clock. It is connected to a session of the server
//! ([`Viewer`]) by queues that a test can read. It uses no sockets and never sleeps.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use str0m::change::{SdpAnswer, SdpOffer};
use str0m::config::DtlsVersion;
use str0m::crypto::CryptoProvider;
use str0m::media::{Direction, MediaKind, Mid};
use str0m::net::{Protocol, Receive};
use str0m::rtp::RtpPacket;
use str0m::{Candidate, Event, Input, Rtc, RtcConfig};
use streaming_server::base::limits::FULL_PAYLOADS_OF_BUFFER;
use streaming_server::h264::Payloads;
use streaming_server::metrics::status::ViewerState;
use streaming_server::session::{
    AnswerError, CloseReason, DatagramSink, Destination, Output, PacketizedUnit, PublishOffer, SessionConfig,
    SessionContext, SrtpChoice, UnitInfo, Viewer,
};

/// Returns the address of the server.
pub fn server_address() -> SocketAddr {
    "192.0.2.1:8189".parse().unwrap()
}

/// Returns the address of the browser.
pub fn client_address() -> SocketAddr {
    "198.51.100.7:40000".parse().unwrap()
}

pub fn context(srtp: SrtpChoice) -> Arc<SessionContext> {
    SessionContext::new(SessionConfig { candidates: vec![server_address()], advertise: vec![], srtp })
        .unwrap()
}

/// A sink that keeps all datagrams.
#[derive(Default)]
pub struct Outbox(pub Vec<(Destination, Vec<u8>)>);

impl DatagramSink for Outbox {
    fn push_datagram(&mut self, to: &Destination, bytes: usize, write: impl FnOnce(&mut [u8])) {
        // The buffer starts with a recognisable fill pattern, so bytes that the sender did not write are visible in
        // tests.
        let mut datagram = vec![0xEE; bytes];
        write(&mut datagram);
        self.0.push((*to, datagram));
    }
}

/// A sink that reuses one buffer, as the UDP driver does.
pub struct ReusedBuffer(pub Vec<u8>);

impl DatagramSink for ReusedBuffer {
    fn push_datagram(&mut self, _: &Destination, bytes: usize, write: impl FnOnce(&mut [u8])) {
        if self.0.len() + bytes > self.0.capacity() {
            self.0.clear();
        }
        let start = self.0.len();
        self.0.resize(start + bytes, 0);
        write(&mut self.0[start..]);
    }
}

/// The network in one direction. The function may change a datagram, and loses the datagram by returning `false`.
pub type Fate = Box<dyn FnMut(&mut Vec<u8>) -> bool>;

pub struct Pair {
    pub viewer: Viewer,
    pub client: Rtc,
    pub now: Instant,
    pub mid: Mid,
    pub connected: bool,
    pub client_closed: bool,
    pub closed: Option<CloseReason>,
    /// The browser's latest error, for example the alert that it has received.
    pub client_error: Option<String>,
    /// RTP packets that the browser has received and decrypted.
    pub packets: Vec<RtpPacket>,
    /// Sizes of the datagrams that the server sent, in order.
    pub sent_sizes: Vec<usize>,
    /// The network from the server to the browser.
    pub to_client: Fate,
    /// The network from the browser to the server.
    pub to_viewer: Fate,
    pub answer: String,
    pub offer: String,
    /// Address that the server sees the browser's datagrams come from. A test changes it to rebind the browser's NAT.
    /// Datagrams to any other address are then lost and kept in `astray`.
    pub seen_as: SocketAddr,
    /// TCP connection on which the browser's datagrams arrive and on which it gets datagrams; `None` for UDP.
    pub connection: Option<NonZeroU32>,
    pub astray: Vec<(SocketAddr, Vec<u8>)>,
    client_deadline: Instant,
    viewer_deadline: Instant,
    /// Datagrams in flight. The flag is true for a datagram to the browser.
    in_flight: VecDeque<(bool, Vec<u8>)>,
}

/// Creates a browser's session with H.264 as its only codec.
pub fn client(now: Instant, version: DtlsVersion, provider: Option<CryptoProvider>) -> Rtc {
    client_with(RtcConfig::new().set_dtls_version(version), now, provider)
}

fn client_with(config: RtcConfig, now: Instant, provider: Option<CryptoProvider>) -> Rtc {
    let mut config = config.set_rtp_mode(true).clear_codecs().enable_h264(true);
    for (id, extension) in
        [(5, str0m::rtp::Extension::PlayoutDelay), (6, str0m::rtp::Extension::AbsoluteCaptureTime)]
    {
        config = config.set_extension(id, extension);
    }
    if let Some(provider) = provider {
        config = config.set_crypto_provider(Arc::new(provider));
    }
    let mut rtc = config.build(now);
    rtc.add_local_candidate(Candidate::host(client_address(), Protocol::Udp).unwrap());
    rtc
}

impl Pair {
    pub fn new(context: &Arc<SessionContext>, version: DtlsVersion) -> Self {
        Self::with_provider(context, version, None)
    }

    pub fn with_provider(
        context: &Arc<SessionContext>,
        version: DtlsVersion,
        provider: Option<CryptoProvider>,
    ) -> Self {
        Self::with_offer(context, version, provider, |offer| offer)
    }

    /// Connects a browser whose offer is changed by `edit` on its way to the server.
    pub fn with_offer(
        context: &Arc<SessionContext>,
        version: DtlsVersion,
        provider: Option<CryptoProvider>,
        edit: impl FnOnce(String) -> String,
    ) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the origin of a fake clock")]
        let now = Instant::now();
        let mut client = client(now, version, provider);
        let mut api = client.sdp_api();
        let mid = api.add_media(MediaKind::Video, Direction::RecvOnly, None, None, None);
        let (offer, pending) = api.apply().unwrap();
        let offer = edit(offer.to_sdp_string());
        let (viewer, answer) = Viewer::accept(context, 1, &offer, now).unwrap();
        let parsed = SdpAnswer::from_sdp_string(&answer).unwrap();
        client.sdp_api().accept_answer(pending, parsed).unwrap();
        Self::of((viewer, client), now, mid, (offer, answer))
    }

    /// Publishes to a WHIP server that is ICE-lite if `is_lite`. The functions change the offer on its way to that
    /// server, and its answer on the way back. The field `client` is that server.
    ///
    /// # Errors
    /// Returns the error of an answer that is refused.
    pub fn publishing(
        context: &Arc<SessionContext>,
        is_lite: bool,
        edit_offer: impl FnOnce(String) -> String,
        edit_answer: impl FnOnce(String) -> String,
    ) -> Result<Self, AnswerError> {
        #[expect(clippy::disallowed_methods, reason = "the origin of a fake clock")]
        let now = Instant::now();
        let mut client = client_with(RtcConfig::new().set_ice_lite(is_lite), now, None);
        let (publish, offer) = PublishOffer::new(context, 1, Some(0x42_e01f), now).unwrap();
        let offer = edit_offer(offer);
        let answer = client.sdp_api().accept_offer(SdpOffer::from_sdp_string(&offer).unwrap()).unwrap();
        let answer = edit_answer(answer.to_sdp_string());
        let viewer = Viewer::publish(publish, &answer, now)?;
        Ok(Self::of((viewer, client), now, "0".into(), (offer, answer)))
    }

    fn of(
        (viewer, client): (Viewer, Rtc),
        now: Instant,
        mid: Mid,
        (offer, answer): (String, String),
    ) -> Self {
        Self {
            viewer,
            client,
            now,
            mid,
            connected: false,
            client_closed: false,
            closed: None,
            client_error: None,
            packets: Vec::new(),
            sent_sizes: Vec::new(),
            to_client: Box::new(|_| true),
            to_viewer: Box::new(|_| true),
            answer,
            offer,
            seen_as: client_address(),
            connection: None,
            astray: Vec::new(),
            client_deadline: now,
            viewer_deadline: now,
            in_flight: VecDeque::new(),
        }
    }

    /// Connects the browser and the server. Panics after a minute on the fake clock.
    pub fn connect(&mut self) {
        let deadline = self.now + Duration::from_secs(60);
        while !(self.connected && self.viewer.status(self.now).state == ViewerState::Connected) {
            assert!(self.now < deadline && self.closed.is_none(), "not connected: {:?}", self.closed);
            self.run(Duration::from_millis(10));
        }
    }

    /// Advances the clock by `time`, and handles every timer and datagram on the way.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.settle();
            let next = self.client_deadline.min(self.viewer_deadline);
            if next >= end {
                break;
            }
            self.now = self.now.max(next);
            self.tick();
        }
        self.now = end;
        self.tick();
        self.settle();
    }

    fn tick(&mut self) {
        self.client.handle_input(Input::Timeout(self.now)).unwrap();
        self.drain_client();
        // The worker, too, calls `handle_timeout` only after the deadline.
        if self.viewer_deadline <= self.now {
            self.viewer.handle_timeout(self.now);
        }
    }

    /// Delivers datagrams until neither the server nor the browser sends another one.
    pub fn settle(&mut self) {
        self.drain_viewer();
        self.drain_client();
        while let Some((to_client, bytes)) = self.in_flight.pop_front() {
            if to_client {
                let receive =
                    Receive::new(Protocol::Udp, server_address(), client_address(), &bytes).unwrap();
                if let Err(error) = self.client.handle_input(Input::Receive(self.now, receive)) {
                    self.client_error = Some(error.to_string());
                }
                self.drain_client();
            } else {
                let local = Some(server_address().ip());
                let from = Destination { local, remote: self.seen_as, connection: self.connection };
                self.viewer.handle_bytes(self.now, from, &bytes);
                self.drain_viewer();
            }
        }
    }

    pub fn push(&mut self, unit: &PacketizedUnit<'_>) {
        let mut outbox = Outbox::default();
        self.viewer.push_access_unit(self.now, unit, &mut outbox);
        self.deliver(outbox);
        self.settle();
    }

    /// Queues the datagrams in `outbox` for the browser.
    pub fn deliver(&mut self, outbox: Outbox) {
        for (to, mut bytes) in outbox.0 {
            // A publisher learns its own address from the answer to its first request.
            let is_first = self.viewer.is_publisher() && to.local.is_none();
            assert!(is_first || to.local == Some(server_address().ip()), "{to:?}");
            if to.remote != self.seen_as || to.connection != self.connection {
                self.astray.push((to.remote, bytes));
                continue;
            }
            self.sent_sizes.push(bytes.len());
            if (self.to_client)(&mut bytes) {
                self.in_flight.push_back((true, bytes));
            }
        }
        self.viewer_deadline = self.viewer.next_deadline();
    }

    fn drain_viewer(&mut self) {
        let mut outbox = Outbox::default();
        let output = self.viewer.drain(self.now, &mut outbox);
        self.deliver(outbox);
        match output {
            Output::Wait(deadline) => assert_eq!(deadline, self.viewer.next_deadline()),
            Output::Closed(reason) => {
                self.closed = Some(reason);
                self.viewer_deadline = self.now + Duration::from_secs(3_600);
            }
        }
    }

    fn drain_client(&mut self) {
        loop {
            match self.client.poll_output().unwrap() {
                str0m::Output::Timeout(deadline) => {
                    self.client_deadline = deadline;
                    return;
                }
                str0m::Output::Transmit(transmit) => {
                    let mut bytes = Vec::from(transmit.contents);
                    if (self.to_viewer)(&mut bytes) {
                        self.in_flight.push_back((false, bytes));
                    }
                }
                str0m::Output::Event(Event::Connected) => self.connected = true,
                str0m::Output::Event(Event::RtpPacket(packet)) => self.packets.push(packet),
                str0m::Output::Event(Event::Closed) => self.client_closed = true,
                str0m::Output::Event(_) => {}
            }
        }
    }
}

/// Sends units for `tenths` of a second. Returns the number of packets that arrived.
pub fn watch(pair: &mut Pair, from: u32, tenths: u32) -> usize {
    let before = pair.packets.len();
    for number in from..from + tenths {
        let payloads = payloads(number, 2, 500);
        pair.push(&unit(&payloads, u64::from(number), number.is_multiple_of(10)));
        pair.run(Duration::from_millis(100));
    }
    pair.packets.len() - before
}

/// Returns the payloads of one unit: `count` payloads of `bytes` bytes each, but the last one is shorter. Each payload
/// begins with the number of the unit and the index of the payload.
pub fn payloads(unit: u32, count: usize, bytes: usize) -> Vec<Arc<Payloads>> {
    let payload = |index: usize| {
        let length = if index + 1 == count { bytes / 3 + 8 } else { bytes };
        let mut payload = vec![0x7c; length];
        payload[..4].copy_from_slice(&unit.to_be_bytes());
        payload[4..8].copy_from_slice(&u32::try_from(index).unwrap().to_be_bytes());
        payload
    };
    let all: Vec<Vec<u8>> = (0..count).map(payload).collect();
    all.chunks(FULL_PAYLOADS_OF_BUFFER).map(|several| Arc::new(several.iter().collect())).collect()
}

/// Returns all payloads one by one, in order.
pub fn each(payloads: &[Arc<Payloads>]) -> Vec<&[u8]> {
    payloads.iter().flat_map(|several| several.iter()).collect()
}

/// Returns a unit with these payloads. The RTP times of successive units are 3000 ticks of 90 kHz apart.
pub fn unit(payloads: &[Arc<Payloads>], number: u64, is_idr: bool) -> PacketizedUnit<'_> {
    let info = UnitInfo {
        is_idr,
        is_reference: true,
        rtp_time_90k: number * 3_000,
        captured_at_ns: Some(1_700_000_000_000_000_000),
        ..UnitInfo::default()
    };
    PacketizedUnit { info, payloads }
}

/// ICE priority of a peer-reflexive candidate.
pub const USUAL_PRIORITY: [u8; 4] = [110, 0, 1, 255];

/// Builds a STUN binding request with a valid MESSAGE-INTEGRITY, additional attributes and a new transaction id.
pub fn signed_request(pair: &Pair, priority: [u8; 4], attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let value = |sdp: &str, name: &str| {
        sdp.lines().find_map(|line| line.strip_prefix(name)).map(|text| text.trim().to_owned()).unwrap()
    };
    let local = value(&pair.answer, "a=ice-ufrag:");
    let remote = value(&pair.offer, "a=ice-ufrag:");
    let password = value(&pair.answer, "a=ice-pwd:");
    let mut body = Vec::new();
    let mut attribute = |kind: u16, value: &[u8]| {
        body.extend(kind.to_be_bytes());
        body.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    };
    attribute(0x0006, format!("{local}:{remote}").as_bytes());
    attribute(0x0024, &priority);
    attributes.iter().for_each(|(kind, value)| attribute(*kind, value));
    let mut bytes = vec![0, 1];
    bytes.extend((u16::try_from(body.len()).unwrap() + 24).to_be_bytes());
    bytes.extend([0x21, 0x12, 0xa4, 0x42]);
    static NEXT_ID: AtomicU64 = AtomicU64::new(0);
    bytes.extend([3; 4]);
    bytes.extend(NEXT_ID.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    bytes.extend(body);
    let tag =
        str0m::crypto::from_feature_flags().sha1_hmac_provider.sha1_hmac(password.as_bytes(), &[&bytes]);
    bytes.extend([0, 8, 0, 20]);
    bytes.extend(tag);
    bytes
}
