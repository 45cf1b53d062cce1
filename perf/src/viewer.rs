//! One load viewer. str0m does SDP, ICE, the DTLS handshake and consent checks; a separate fast path receives the
//! media. A viewer of the bare sender uses no WebRTC at all.

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use str0m::change::{SdpAnswer, SdpPendingOffer};
use str0m::media::{Direction, MediaKind};
use str0m::net::{Protocol, Receive};
use str0m::{Candidate, Input, Output, Rtc, RtcConfig};

use crate::Fallible;
use crate::dtls::{self, Keys};
use crate::feedback::{self, Feedback};
use crate::floor::Hello;
use crate::received::{Arrival, Received};
use crate::socket::{Datagram, prepare_viewer};
use crate::srtp::Srtp;

/// Interval between two receiver reports, or between two hello messages to the bare sender.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// SSRC of our receiver reports.
const OWN_SSRC: u32 = 0x5050_4552;

/// The protocol between viewer and server.
enum Link {
    WebRtc(Box<Rtc>),
    /// Sends hello messages to the bare sender.
    Bare {
        hello: Vec<u8>,
    },
}

/// The received RTP stream.
struct Track {
    ssrc: u32,
    /// Extended sequence number.
    highest: u64,
}

/// A viewer and its socket.
pub(crate) struct Viewer {
    pub(crate) socket: UdpSocket,
    pub(crate) received: Received,
    /// CLOCK_MONOTONIC ns at which the offer was posted.
    pub(crate) offered_at_ns: i64,
    /// Datagrams lost in our own socket buffer, which is a fault of the harness.
    pub(crate) lost_by_harness: u32,
    pub(crate) profile: Option<&'static str>,
    pub(crate) is_over: bool,
    /// Time of the next timeout.
    pub(crate) due: Instant,
    link: Link,
    local: SocketAddr,
    remote: Option<SocketAddr>,
    payload_types: Vec<u8>,
    send: Option<Srtp>,
    receive: Option<Srtp>,
    is_unencrypted: bool,
    track: Option<Track>,
    report_due: Instant,
    rtcp_index: u32,
    feedback: Option<Feedback>,
}

/// A viewer whose offer has not been answered yet.
pub(crate) struct Offering {
    viewer: Viewer,
    rtc: Box<Rtc>,
    pending: SdpPendingOffer,
    pub(crate) sdp: String,
}

fn open_socket(gro: bool) -> Fallible<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    prepare_viewer(&socket, gro)?;
    Ok(socket)
}

impl Offering {
    /// Makes an offer with one receive-only H.264 media line and a host candidate on loopback.
    pub(crate) fn new(gro: bool, checks_all: bool, feedback: bool) -> Fallible<Offering> {
        let socket = open_socket(gro)?;
        let local = socket.local_addr()?;
        let config = RtcConfig::new().set_crypto_provider(dtls::provider()).clear_codecs().enable_h264(true);
        let mut rtc = config.set_rtp_mode(true).build(Instant::now());
        rtc.add_local_candidate(Candidate::host(local, "udp")?);
        let mut change = rtc.sdp_api();
        change.add_media(MediaKind::Video, Direction::RecvOnly, None, None, None);
        let (offer, pending) = change.apply().ok_or("str0m makes no offer")?;
        let viewer = Viewer::new(socket, local, Link::Bare { hello: Vec::new() }, checks_all);
        let sdp = offer.to_sdp_string();
        let sdp = if feedback { sdp } else { feedback::without_feedback(&sdp) };
        Ok(Offering { viewer, rtc: Box::new(rtc), pending, sdp })
    }

    /// Applies the server's answer and returns the viewer.
    pub(crate) fn accept(mut self, answer: &str, offered_at_ns: i64) -> Fallible<Viewer> {
        self.rtc.sdp_api().accept_answer(self.pending, SdpAnswer::from_sdp_string(answer)?)?;
        self.viewer.payload_types = h264_payload_types(answer);
        self.viewer.feedback = Feedback::new(answer, Instant::now());
        self.viewer.link = Link::WebRtc(self.rtc);
        self.viewer.offered_at_ns = offered_at_ns;
        Ok(self.viewer)
    }
}

/// Returns the H.264 payload types of an SDP.
fn h264_payload_types(sdp: &str) -> Vec<u8> {
    let maps = sdp.lines().filter_map(|line| line.strip_prefix("a=rtpmap:")?.split_once(' '));
    maps.filter(|(_, codec)| codec.starts_with("H264/")).filter_map(|(pt, _)| pt.parse().ok()).collect()
}

impl Viewer {
    fn new(socket: UdpSocket, local: SocketAddr, link: Link, checks_all: bool) -> Viewer {
        let now = Instant::now();
        Viewer {
            socket,
            received: Received::new(checks_all),
            offered_at_ns: 0,
            lost_by_harness: 0,
            profile: None,
            is_over: false,
            due: now,
            link,
            local,
            remote: None,
            payload_types: Vec::new(),
            send: None,
            receive: None,
            is_unencrypted: false,
            track: None,
            report_due: now + REPORT_INTERVAL,
            rtcp_index: 0,
            feedback: None,
        }
    }

    /// Returns a viewer of the bare sender at `server`.
    pub(crate) fn bare(server: SocketAddr, hello: &Hello, gro: bool, checks_all: bool) -> Fallible<Viewer> {
        let socket = open_socket(gro)?;
        let local = socket.local_addr()?;
        let mut viewer = Viewer::new(socket, local, Link::Bare { hello: hello.encode() }, checks_all);
        viewer.remote = Some(server);
        viewer.payload_types = vec![crate::floor::PAYLOAD_TYPE];
        viewer.receive = hello.srtp();
        viewer.is_unencrypted = viewer.receive.is_none();
        viewer.profile = Some(hello.profile.map_or("none", |profile| profile.name()));
        viewer.offered_at_ns = crate::clock::monotonic_ns();
        Ok(viewer)
    }

    /// Handles one datagram, or several joined by GRO.
    pub(crate) fn handle_datagram(&mut self, datagram: &Datagram<'_>, realtime_offset_ns: i64) {
        if let Some(lost) = datagram.lost_in_total {
            self.lost_by_harness = self.lost_by_harness.max(lost);
        }
        let at_ns = datagram.at_realtime_ns - realtime_offset_ns;
        for bytes in datagram.bytes.chunks(datagram.segment_bytes) {
            match bytes {
                [128..=191, 192..=223, ..] => {} // sender reports are not needed
                [128..=191, ..] => {
                    self.handle_rtp(bytes, at_ns);
                }
                _ => self.handle_other(bytes, datagram.from),
            }
        }
    }

    fn handle_rtp(&mut self, packet: &[u8], at_ns: i64) -> Option<()> {
        let header = Header::parse(packet)?;
        if let (Some(feedback), Some(extensions)) = (&mut self.feedback, packet.get(header.extensions())) {
            feedback.note(extensions, at_ns);
        }
        if !self.payload_types.contains(&header.payload_type) || header.is_empty {
            return None;
        }
        let track = self.track.get_or_insert(Track { ssrc: header.ssrc, highest: header.sequence.into() });
        if track.ssrc != header.ssrc {
            return None;
        }
        let sequence = extend(track.highest, header.sequence);
        track.highest = track.highest.max(sequence);
        let keys = self.receive.as_ref();
        if keys.is_none() && !self.is_unencrypted {
            return None;
        }
        let arrival = Arrival { sequence, rtp_time: header.rtp_time, marker: header.marker, at_ns };
        self.received.push(arrival, |out| match keys {
            Some(keys) => keys.open_rtp(packet, header.bytes, header.ssrc, sequence, out).is_some(),
            None => {
                out.extend_from_slice(&packet[header.bytes..]);
                true
            }
        });
        Some(())
    }

    fn handle_other(&mut self, bytes: &[u8], from: SocketAddrV4) {
        let Link::WebRtc(rtc) = &mut self.link else { return };
        if let Ok(receive) = Receive::new(Protocol::Udp, SocketAddr::V4(from), self.local, bytes) {
            let _ = rtc.handle_input(Input::Receive(Instant::now(), receive));
        }
        self.drain();
    }

    /// Handles all timeouts that are due at `now`.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if let Link::WebRtc(rtc) = &mut self.link {
            let _ = rtc.handle_input(Input::Timeout(now));
        }
        self.drain();
        if now >= self.report_due || matches!(self.link, Link::Bare { .. } if self.track.is_none()) {
            self.report_due = now + REPORT_INTERVAL;
            self.report();
        }
        self.send_feedback(now);
        let next = if self.track.is_none() { now + Duration::from_millis(20) } else { self.report_due };
        self.due = self.due.min(next);
    }

    fn drain(&mut self) {
        let far = Instant::now() + REPORT_INTERVAL;
        let Link::WebRtc(rtc) = &mut self.link else {
            self.due = far;
            return;
        };
        loop {
            let output = rtc.poll_output();
            if let Some(Keys { profile, send, receive }) = dtls::take_keys() {
                self.profile = Some(profile.name());
                (self.send, self.receive) = (Some(send), Some(receive));
            }
            match output {
                Ok(Output::Timeout(due)) => {
                    let feedback_due = self.feedback.as_ref().map_or(far, |feedback| feedback.due);
                    self.due = due.min(self.report_due).min(feedback_due);
                    return;
                }
                Ok(Output::Transmit(transmit)) => {
                    self.remote = Some(transmit.destination);
                    let _ = self.socket.send_to(&transmit.contents, transmit.destination);
                }
                Ok(Output::Event(str0m::Event::Closed)) => self.is_over = true,
                Ok(Output::Event(_)) => {}
                Err(_) => {
                    self.is_over = true;
                    self.due = far;
                    return;
                }
            }
        }
    }

    /// Sends a receiver report, or another hello if the server is the bare sender.
    fn report(&mut self) -> Option<()> {
        if let Link::Bare { hello } = &self.link {
            let _ = self.socket.send_to(hello, self.remote?);
            return None;
        }
        let track = self.track.as_ref()?;
        let mut packet = vec![0x81, 201, 0, 7];
        packet.extend_from_slice(&OWN_SSRC.to_be_bytes());
        packet.extend_from_slice(&track.ssrc.to_be_bytes());
        packet.extend_from_slice(&0u32.to_be_bytes()); // nothing lost
        packet.extend_from_slice(&(track.highest as u32).to_be_bytes());
        packet.extend_from_slice(&[0; 12]); // jitter and last sender report are unknown
        self.send_rtcp(&packet)
    }

    fn send_rtcp(&mut self, packet: &[u8]) -> Option<()> {
        self.rtcp_index += 1;
        let sealed = self.send.as_ref()?.seal_rtcp(packet, OWN_SSRC, self.rtcp_index)?;
        let _ = self.socket.send_to(&sealed, self.remote?);
        Some(())
    }

    /// Sends transport-wide feedback if it is due.
    fn send_feedback(&mut self, now: Instant) -> Option<()> {
        let (feedback, track) = (self.feedback.as_mut()?, self.track.as_ref()?);
        if now >= feedback.due {
            feedback.due = now + feedback::INTERVAL;
            let packet = feedback.take(OWN_SSRC, track.ssrc);
            self.due = self.due.min(feedback.due);
            return self.send_rtcp(&packet?);
        }
        self.due = self.due.min(feedback.due);
        None
    }

    /// Closes the session, as a browser does when its tab is closed.
    pub(crate) fn leave(&mut self) {
        if let Link::WebRtc(rtc) = &mut self.link {
            let _ = rtc.close();
            self.drain();
        }
    }
}

/// Returns the 64-bit sequence number that is nearest to `highest` and has the low 16 bits `sequence`.
fn extend(highest: u64, sequence: u16) -> u64 {
    let distance = sequence.wrapping_sub(highest as u16).cast_signed();
    highest.saturating_add_signed(distance.into())
}

/// Fields of an RTP header (RFC 3550 section 5.1).
struct Header {
    payload_type: u8,
    marker: bool,
    sequence: u16,
    rtp_time: u32,
    ssrc: u32,
    /// Size of the header with CSRC list and extension, in bytes, and without the extension.
    bytes: usize,
    bytes_before_extension: usize,
    /// True if the packet has no payload.
    is_empty: bool,
}

impl Header {
    /// Returns the place of the header extensions in the packet.
    fn extensions(&self) -> std::ops::Range<usize> {
        (self.bytes_before_extension + 4).min(self.bytes)..self.bytes
    }

    fn parse(packet: &[u8]) -> Option<Header> {
        let (fixed, _) = packet.split_first_chunk::<12>()?;
        let bytes_before_extension = 12 + 4 * usize::from(fixed[0] & 0x0F);
        let mut bytes = bytes_before_extension;
        if fixed[0] & 0x10 != 0 {
            let words = packet.get(bytes + 2..bytes + 4)?;
            bytes += 4 + 4 * usize::from(u16::from_be_bytes([words[0], words[1]]));
        }
        Some(Header {
            payload_type: fixed[1] & 0x7F,
            marker: fixed[1] & 0x80 != 0,
            sequence: u16::from_be_bytes([fixed[2], fixed[3]]),
            rtp_time: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            ssrc: u32::from_be_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]),
            bytes,
            bytes_before_extension,
            is_empty: bytes >= packet.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_extend_across_the_wrap_in_both_directions() {
        assert_eq!(extend(0xFFFF, 0), 0x1_0000);
        assert_eq!(extend(0x1_0000, 0xFFFE), 0xFFFE);
        assert_eq!(extend(0x1_0005, 7), 0x1_0007);
    }

    #[test]
    fn header_ends_after_csrc_list_and_extension() {
        let mut packet = vec![0x91, 0xE0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3];
        packet.extend_from_slice(&[0; 4]); // one source
        packet.extend_from_slice(&[0xBE, 0xDE, 0, 1, 0, 0, 0, 0]);
        packet.push(0x65);
        let header = Header::parse(&packet).unwrap();
        assert_eq!(
            (header.bytes, header.marker, header.payload_type, header.is_empty),
            (24, true, 96, false)
        );
        assert!(Header::parse(&packet[..11]).is_none());
    }

    #[test]
    fn only_h264_payload_types_are_accepted() {
        let sdp = "a=rtpmap:96 H264/90000\r\na=rtpmap:97 rtx/90000\r\na=rtpmap:98 H264/90000\r\n";
        assert_eq!(h264_payload_types(sdp), [96, 98]);
    }
}
