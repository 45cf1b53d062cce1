//! A browser of a simulated day: str0m's client at the other end of the real session, and a decoder that knows which
//! units can be shown. It uses no clock and no socket.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use str0m::change::{SdpAnswer, SdpPendingOffer};
use str0m::config::DtlsVersion;
use str0m::media::{Direction, KeyframeRequestKind, MediaKind, Mid};
use str0m::net::{Protocol, Receive};
use str0m::rtp::RtpPacket;
use str0m::{Candidate, Event, Input, Output, Rtc, RtcConfig};

use super::camera::Ledger;
use super::network::{Link, Weather};
use super::{MS, SECOND};
use support::depacketize::Depacketizer;

/// How long a receiver waits for a missing packet before it skips it.
const PATIENCE_NS: i64 = 600 * MS;

/// Time after a join or an IDR request in which units may be missing: the viewer then gets the current GOP without
/// non-reference units. After this time it has caught up.
const REPLAY_NS: i64 = 2 * SECOND;

/// How a browser behaves.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Manners {
    /// Closes the session when it leaves.
    Polite,
    /// Leaves without closing the session.
    Vanishing,
    /// Makes an offer and never sends a datagram.
    Silent,
    /// Sends STUN and never finishes DTLS.
    Stuck,
}

pub(super) struct Browser {
    pub(super) manners: Manners,
    pub(super) link: Link,
    pub(super) address: SocketAddr,
    pub(super) joined_ns: i64,
    pub(super) leaves_ns: i64,
    pub(super) connected_ns: Option<i64>,
    pub(super) deadline: Instant,
    pub(super) decoder: Decoder,
    /// Datagrams for the server. The day takes them after every call.
    pub(super) outbox: Vec<Vec<u8>>,
    rtc: Rtc,
    mid: Mid,
    pending: Option<SdpPendingOffer>,
    asked_at_ns: i64,
}

/// The server's UDP address.
pub(super) fn server_address() -> SocketAddr {
    "192.0.2.1:8189".parse().unwrap()
}

fn rtc(address: SocketAddr, now: Instant, id: u32) -> Rtc {
    let version = if id.is_multiple_of(3) { DtlsVersion::Dtls12 } else { DtlsVersion::Auto };
    let mut config =
        RtcConfig::new().set_rtp_mode(true).set_dtls_version(version).clear_codecs().enable_h264(true);
    for (id, extension) in
        [(5, str0m::rtp::Extension::PlayoutDelay), (6, str0m::rtp::Extension::AbsoluteCaptureTime)]
    {
        config = config.set_extension(id, extension);
    }
    let mut rtc = config.build(now);
    rtc.add_local_candidate(Candidate::host(address, Protocol::Udp).unwrap());
    rtc
}

impl Browser {
    /// Returns a browser and its SDP offer.
    pub(super) fn new(
        id: u32,
        manners: Manners,
        link: Link,
        (now, now_ns): (Instant, i64),
    ) -> (Browser, String) {
        let octets = id.to_be_bytes();
        let address = SocketAddr::from(([10, octets[1], octets[2], octets[3]], 40_000));
        let mut rtc = rtc(address, now, id);
        let mut api = rtc.sdp_api();
        let mid = api.add_media(MediaKind::Video, Direction::RecvOnly, None, None, None);
        let (offer, pending) = api.apply().unwrap();
        let browser = Browser {
            manners,
            link,
            address,
            joined_ns: now_ns,
            leaves_ns: i64::MAX,
            connected_ns: None,
            deadline: now,
            decoder: Decoder::default(),
            outbox: Vec::new(),
            rtc,
            mid,
            pending: Some(pending),
            asked_at_ns: 0,
        };
        (browser, offer.to_sdp_string())
    }

    pub(super) fn take_answer(&mut self, answer: &str) {
        let answer = SdpAnswer::from_sdp_string(answer).unwrap();
        let pending = self.pending.take().unwrap();
        self.rtc.sdp_api().accept_answer(pending, answer).unwrap();
    }

    pub(super) fn handle_datagram(&mut self, now: Instant, now_ns: i64, bytes: &[u8]) {
        if let Ok(receive) = Receive::new(Protocol::Udp, server_address(), self.address, bytes) {
            // The result is ignored: a bad network can break DTLS and end this browser. The server must handle that.
            let _ = self.rtc.handle_input(Input::Receive(now, receive));
        }
        self.drain(now_ns);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, now_ns: i64) {
        let _ = self.rtc.handle_input(Input::Timeout(now));
        self.drain(now_ns);
    }

    pub(super) fn close(&mut self, now_ns: i64) {
        let _ = self.rtc.close();
        self.drain(now_ns);
    }

    /// Requests an IDR, at most once a second.
    pub(super) fn request_idr(&mut self, now_ns: i64) {
        if now_ns - self.asked_at_ns < SECOND {
            return;
        }
        if let Some(stream) = self.rtc.direct_api().stream_rx_by_mid(self.mid, None) {
            stream.request_keyframe(KeyframeRequestKind::Pli);
            self.asked_at_ns = now_ns;
            self.decoder.asked += 1;
        }
    }

    fn drain(&mut self, now_ns: i64) {
        loop {
            match self.rtc.poll_output() {
                Ok(Output::Timeout(deadline)) => {
                    self.deadline = deadline;
                    return;
                }
                Ok(Output::Transmit(transmit)) => self.transmit(Vec::from(transmit.contents)),
                Ok(Output::Event(Event::Connected)) => self.connected_ns = Some(now_ns),
                Ok(Output::Event(Event::RtpPacket(packet))) => self.decoder.hold(now_ns, packet),
                Ok(Output::Event(_)) => {}
                Err(_) => return,
            }
        }
    }

    fn transmit(&mut self, bytes: Vec<u8>) {
        let is_stun = bytes.first().is_some_and(|first| *first < 4);
        let is_sent = match self.manners {
            Manners::Polite | Manners::Vanishing => true,
            Manners::Silent => false,
            Manners::Stuck => is_stun,
        };
        if is_sent {
            self.outbox.push(bytes);
        }
    }

    /// Returns the time from which on the browser must get every published unit: [`REPLAY_NS`] after the join or the
    /// latest IDR request.
    pub(super) fn owed_since_ns(&self) -> i64 {
        self.connected_ns.unwrap_or(i64::MAX - REPLAY_NS).max(self.asked_at_ns) + REPLAY_NS
    }

    /// Assembles and checks what arrived. On a clean or narrow link no sent unit may be missing, and every unit must be
    /// decodable. On a clean link no unit may be skipped either.
    pub(super) fn check_arrived(&mut self, now_ns: i64, ledger: &Ledger) -> Result<(), String> {
        let weather = self.link.weather;
        for unit in self.decoder.whole_units(now_ns) {
            let connected_ns = self.connected_ns.unwrap_or(now_ns);
            let owed_since_ns = (weather == Weather::Clean).then(|| self.owed_since_ns());
            let verdict = self.decoder.judge(&unit, ledger, weather, (connected_ns, owed_since_ns));
            match verdict {
                Ok(Verdict::Shown | Verdict::Excused) => {}
                Ok(Verdict::Hidden) if weather.loses() => self.request_idr(now_ns),
                Ok(Verdict::Hidden) => {
                    return Err(format!("a unit whose reference unit was not sent: {:?}", self.decoder));
                }
                Err(error) => return Err(format!("{error}: {:?}", self.decoder)),
            }
        }
        Ok(())
    }
}

/// What the decoder can do with a unit.
enum Verdict {
    /// The unit can be shown.
    Shown,
    /// The unit cannot be shown, because the unit that it refers to is missing.
    Hidden,
    /// The unit cannot be shown, but that is no fault. Its IDR was sent before the browser had finished its handshake,
    /// and browsers drop such packets.
    Excused,
}

/// Sorts packets, assembles units and decides which of them can be shown.
#[derive(Default)]
pub(super) struct Decoder {
    held: BTreeMap<u64, (i64, RtpPacket)>,
    next_sequence: Option<u64>,
    depacketizer: Depacketizer,
    /// The newest reference unit that was shown.
    reference: Option<u32>,
    /// The last unit that arrived.
    last: Option<u32>,
    /// The newest unit that arrived so far.
    pub(super) newest: Option<u32>,
    /// Number of IDR requests so far.
    asked: u32,
    /// Number of GOPs that arrived again.
    came_again: u32,
    pub(super) shown: u64,
    pub(super) hidden: u64,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "last unit {:?}, newest reference {:?}, {} shown, {} not, {:?}",
            self.last,
            self.reference,
            self.shown,
            self.hidden,
            self.depacketizer.counters()
        )
    }
}

impl Decoder {
    fn hold(&mut self, now_ns: i64, packet: RtpPacket) {
        self.held.entry(*packet.seq_no).or_insert((now_ns, packet));
    }

    /// Returns the complete units. A gap older than [`PATIENCE_NS`] is skipped.
    fn whole_units(&mut self, now_ns: i64) -> Vec<Vec<Vec<u8>>> {
        let mut units = Vec::new();
        while let Some(entry) = self.held.first_entry() {
            let (sequence, arrived_ns) = (*entry.key(), entry.get().0);
            let is_next = self.next_sequence.is_none_or(|next| sequence <= next);
            if !is_next && now_ns - arrived_ns < PATIENCE_NS {
                break;
            }
            let (_, packet) = entry.remove();
            self.next_sequence = Some(self.next_sequence.map_or(sequence, |next| next.max(sequence)) + 1);
            let RtpPacket { header, payload, .. } = packet;
            units.extend(self.depacketizer.push(
                &payload,
                header.marker,
                header.timestamp,
                header.sequence_number,
            ));
        }
        units
    }

    /// Decides if the unit can be shown. Returns an error for a fault that no network can cause.
    fn judge(
        &mut self,
        nals: &[Vec<u8>],
        ledger: &Ledger,
        weather: Weather,
        (connected_ns, owed_since_ns): (i64, Option<i64>),
    ) -> Result<Verdict, String> {
        let slice = nals.last().ok_or("an empty unit")?;
        let number = crate::recorder::tests::harness::unit_number_of(slice);
        let unit = ledger.get(number).ok_or(format!("unit {number} was never published"))?;
        if self.newest.is_none() && unit.nals.len() > nals.len() && unit.nals.ends_with(nals) {
            // The beginning of the first unit is missing. The receiver cannot notice that, because it does not know
            // which packets came before its first one.
            let is_lost = weather.loses();
            return if is_lost { Ok(Verdict::Hidden) } else { Err("no beginning".to_owned()) };
        }
        if nals != unit.nals {
            return Err(format!("unit {number} is not what was published"));
        }
        if self.last.is_some_and(|last| number <= last) {
            // A viewer that requests an IDR may get the current GOP once more.
            self.came_again += 1;
            let is_whole = unit.is_idr || weather.loses();
            if !is_whole || self.came_again > self.asked {
                return Err(format!("unit {number} arrived again or late"));
            }
        }
        let from = self.last.replace(number).map_or(number, |last| last + 1);
        self.newest = self.newest.max(Some(number));
        if let Some(missed) = owed_since_ns.and_then(|since_ns| ledger.first_owed(from..number, since_ns)) {
            return Err(format!("unit {missed} is missing before {number}"));
        }
        if unit.is_idr || self.reference == Some(unit.refers_to) {
            self.shown += 1;
            if unit.is_reference {
                self.reference = Some(number);
            }
            return Ok(Verdict::Shown);
        }
        self.hidden += 1;
        let is_too_early = self.shown == 0 && ledger.idr_before_ns(number) <= connected_ns;
        Ok(if is_too_early { Verdict::Excused } else { Verdict::Hidden })
    }
}
