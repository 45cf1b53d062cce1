//! Hostile inputs for each parser: what looks like a chance for a quadratic step, in any size.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use smallvec::SmallVec;
use str0m::config::DtlsVersion;
use streaming_server::camera::detections::{SEGMENT_BYTES, parse};
use streaming_server::h264::{Assembler, scan};
use streaming_server::http::access::Access;
use streaming_server::http::request::Head;
use streaming_server::http::routes::{self, Action};
use streaming_server::http::{Hosts, Policy, ranges};
use streaming_server::session::media::rtcp::{self, Packet};
use streaming_server::session::{SessionContext, SrtpChoice, Viewer, stun_ufrag};
use support::session_peer::{
    Outbox, Pair, USUAL_PRIORITY, client_address, context, server_address, signed_request,
};

use super::{Case, parser_measured};

pub(crate) fn cases() -> Vec<Case> {
    [sdp_cases(), http_cases(), datagram_cases(), h264_cases(), detection_cases()]
        .into_iter()
        .flatten()
        .collect()
}

fn long(name: &'static str, line: f64, run: fn(usize)) -> Case {
    Case { name, line, run, sizes: [8_000, 16_000, 64_000] }
}

/// A case of many NAL units: a unit with more than 256 is refused at once.
fn short(name: &'static str, line: f64, run: fn(usize)) -> Case {
    Case { name, line, run, sizes: [400, 800, 1_900] }
}

fn sdp_cases() -> Vec<Case> {
    vec![
        long("SDP formats", 1_100.0, |bytes| offer(&m_line(bytes, |n| format!(" {}", n % 128)))),
        long("SDP rtpmap of one payload", 1_100.0, |bytes| {
            offer(&lines(bytes, |_| "rtpmap:96 H264/90000".into()))
        }),
        long("SDP fmtp of all payloads", 1_100.0, |bytes| {
            offer(&lines(bytes, |n| format!("fmtp:{} apt={};packetization-mode=1", n % 128, n % 128)));
        }),
        long("SDP one long fmtp", 1_100.0, |bytes| offer(&one_line("fmtp:96 ", "apt=9;", bytes))),
        long("SDP rtcp-fb", 1_100.0, |bytes| {
            offer(&lines(bytes, |n| format!("rtcp-fb:{} nack pli", n % 128)))
        }),
        long("SDP extmap", 1_100.0, |bytes| offer(&lines(bytes, |n| format!("extmap:{} urn:x", n % 14 + 1)))),
        long("SDP fingerprint", 1_100.0, |bytes| {
            offer(&lines(bytes, |_| "fingerprint:sha-256 00:11:22:33:44:55:66:77:88".into()));
        }),
        long("SDP groups", 1_100.0, |bytes| offer(&groups(bytes))),
        long("SDP empty attributes", 1_100.0, |bytes| offer(&lines(bytes, |_| String::new()))),
        long("SDP line ends", 1_100.0, |bytes| offer(&(good_offer() + &"\r\n".repeat(bytes / 2)))),
        long("SDP m-lines", 1_100.0, |bytes| offer(&many_media(bytes))),
    ]
}

fn http_cases() -> Vec<Case> {
    vec![
        long("JSON escapes", 1_300.0, |bytes| {
            post("/api/webrtc/offer", &quoted(&"\\u00e4".repeat(bytes / 6)))
        }),
        long("JSON keys", 1_300.0, |bytes| post("/api/recording/start", &json_keys(bytes))),
        long("JSON nesting", 1_300.0, |bytes| post("/api/recording/start", &"[".repeat(bytes))),
        long("JSON number", 1_300.0, |bytes| {
            post("/api/recording/start", &format!("{{\"a\":{}}}", "9".repeat(bytes)))
        }),
        long("HTTP host", 600.0, |bytes| head(Head { host: Some(&"a.".repeat(bytes / 2)), ..get("/") })),
        long("HTTP origin", 600.0, |bytes| {
            head(Head { origin: Some(&"http://a".repeat(bytes / 8)), ..get("/") })
        }),
        long("HTTP cookie", 600.0, |bytes| {
            head(Head { cookie: Some(&"login=a; ".repeat(bytes / 9)), ..get("/") })
        }),
        long("HTTP authorization", 600.0, |bytes| {
            head(Head { authorization: Some(&"Bearer ".repeat(bytes / 7)), ..get("/") });
        }),
        long("HTTP path", 600.0, |bytes| head(get(&"/%41/..".repeat(bytes / 7)))),
        long("HTTP query", 600.0, |bytes| {
            head(Head { query: Some(&"follow=1&".repeat(bytes / 9)), ..get("/") })
        }),
        long("HTTP range", 600.0, |bytes| {
            head(Head { range: Some(&format!("bytes={}", "0-1,".repeat(bytes / 4))), ..get("/") })
        }),
        long("HTTP if-none-match", 600.0, |bytes| {
            head(Head { if_none_match: Some(&"\"a\", ".repeat(bytes / 5)), ..get("/") });
        }),
    ]
}

fn datagram_cases() -> Vec<Case> {
    vec![
        long("STUN attributes", 200.0, stun_attributes),
        long("STUN of a viewer", 200.0, stun_of_a_viewer),
        long("DTLS empty records", 200.0, |bytes| {
            dtls(bytes, &[22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        }),
        long("DTLS fragments", 200.0, dtls_fragments),
        long("RTCP reports", 300.0, |bytes| rtcp(bytes, &[0x80, 201, 0, 1, 0, 0, 0, 7])),
        long("RTCP empty packets", 300.0, |bytes| rtcp(bytes, &[0x80, 204, 0, 0])),
        long("RTCP NACK", 1_600.0, rtcp_nack),
        long("RTCP extended report", 300.0, rtcp_blocks),
        long("RTCP arrivals", 1_000.0, |bytes| rtcp_arrivals(bytes, 14 * 122, &[0x80, 0])),
        long("RTCP arrivals of no packet", 300.0, |bytes| rtcp_arrivals(bytes, 0xffff, &[0x1f, 0xff])),
    ]
}

fn h264_cases() -> Vec<Case> {
    vec![
        short("NAL start codes", 200.0, |bytes| nals(&[0, 0, 1, 9, 0x10, 9, 9, 9].repeat(bytes / 8))),
        long("NAL zero bytes", 60.0, |bytes| nals(&vec![0; bytes])),
        long("NAL almost start codes", 60.0, |bytes| {
            nals(&[&[0, 0, 1, 0x41][..], &[0, 0, 3].repeat(bytes / 3)].concat())
        }),
        short("unit of many slices", 1_000.0, |bytes| {
            unit(&[0, 0, 1, 0x41, 0xe0, 0x80, 9, 9].repeat(bytes / 8))
        }),
        short("unit of many SPS", 1_000.0, |bytes| {
            unit(&sps_and(&[0, 0, 1, 0x67, 66, 0xc0, 0x1e, 0x95], bytes))
        }),
        short("unit of many PPS", 4_000.0, |bytes| unit(&many_pps(bytes))),
        short("unit of many SEI", 1_000.0, |bytes| unit(&sps_and(&[0, 0, 1, 6, 5, 1, 9, 0x80], bytes))),
        long("one long SPS", 60.0, |bytes| {
            unit(&sps_and(&[&[0, 0, 1, 0x67, 100, 0, 30][..], &vec![0x55; bytes]].concat(), 0))
        }),
    ]
}

fn detection_cases() -> Vec<Case> {
    vec![
        long("JSON detections", 1_300.0, |bytes| {
            let entry = r#"{"class_name":"cat","confidence":0.5,"x":1,"y":1,"w":5,"h":5}"#;
            let entries = vec![entry; bytes / entry.len()].join(",");
            post("/api/detections", &format!("{{\"frame\":1,\"detections\":[{entries}]}}"));
        }),
        long("segments of detections", 200.0, |bytes| segments(bytes, b'x')),
        long("segments of zero bytes", 200.0, |bytes| segments(bytes, 0)),
    ]
}

/// Parses segments of the detector with ten entries each, which are full of one byte.
fn segments(bytes: usize, filler: u8) {
    let mut segment = [filler; SEGMENT_BYTES];
    segment[8..16].fill(0);
    segment[16..20].copy_from_slice(&10_i32.to_le_bytes());
    parser_measured(&mut || {
        for _ in 0..bytes / SEGMENT_BYTES {
            used(parse(&segment, &mut used));
        }
    });
}

// ---- SDP -------------------------------------------------------------------------------------------

fn good_offer() -> String {
    "v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\na=mid:0\r\na=recvonly\r\na=ice-ufrag:Zt9k\r\n\
     a=ice-pwd:nTAa8gyYvJLQDPJTHF2Xp9Nv\r\na=fingerprint:sha-256 \
     0A:1B:2C:3D:4E:5F:60:71:82:93:A4:B5:C6:D7:E8:F9:0A:1B:2C:3D:4E:5F:60:71:82:93:A4:B5:C6:D7:E8:F9\r\n\
     a=setup:actpass\r\na=rtpmap:96 H264/90000\r\n"
        .to_owned()
}

/// Appends about `bytes` bytes of attribute lines to a good offer.
fn lines(bytes: usize, attribute: impl Fn(usize) -> String) -> String {
    let mut text = good_offer();
    let end = text.len() + bytes;
    for number in 0.. {
        if text.len() >= end {
            break;
        }
        text += &format!("a={}\r\n", attribute(number));
    }
    text
}

fn one_line(start: &str, repeated: &str, bytes: usize) -> String {
    good_offer() + "a=" + start + &repeated.repeat(bytes / repeated.len()) + "\r\n"
}

fn m_line(bytes: usize, format: impl Fn(usize) -> String) -> String {
    let formats: String = (0..bytes / 4).map(format).collect();
    good_offer().replace("SAVPF 96", &format!("SAVPF 96{formats}"))
}

fn groups(bytes: usize) -> String {
    let groups: String = (0..bytes / 24).map(|n| format!("a=group:BUNDLE {n} {n} 1\r\n")).collect();
    good_offer().replace("v=0\r\n", &format!("v=0\r\n{groups}a=group:BUNDLE 0\r\n"))
}

/// An offer in which each m-line has many attributes of payload types.
fn many_media(bytes: usize) -> String {
    let attributes: String =
        (0..bytes / 31 / 30).map(|n| format!("a=rtpmap:{} H264/90000\r\n", n % 128)).collect();
    let section = format!("m=video 9 UDP/TLS/RTP/SAVPF 127\r\na=mid:x\r\na=inactive\r\n{attributes}");
    good_offer().replace("v=0\r\n", &format!("v=0\r\n{}", section.repeat(30)))
}

/// One context for all sessions: the certificate is made once. The first offer makes what all sessions share.
static CONTEXT: LazyLock<Arc<SessionContext>> = LazyLock::new(|| {
    let context = context(SrtpChoice::Gcm);
    context.join_preparation();
    Viewer::accept(&context, 1, &good_offer(), now()).unwrap();
    context
});

fn offer(text: &str) {
    let now = now();
    let context = LazyLock::force(&CONTEXT);
    parser_measured(&mut || used(Viewer::accept(context, 1, text, now)));
}

/// Keeps the compiler from removing the work whose result this is.
fn used<T>(value: T) {
    drop(std::hint::black_box(value));
}

fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "the origin of a fake clock")]
    Instant::now()
}

// ---- HTTP ------------------------------------------------------------------------------------------

fn quoted(text: &str) -> String {
    format!("{{\"type\":\"offer\",\"sdp\":\"v=0{text}\"}}")
}

fn json_keys(bytes: usize) -> String {
    let keys: Vec<String> = (0..bytes / 12).map(|number| format!("\"{number:06}\":1")).collect();
    format!("{{{}}}", keys.join(","))
}

fn get(path: &str) -> Head<'_> {
    Head { method: "GET", path, ..Head::default() }
}

fn policy() -> Policy {
    Policy {
        allow_origin: vec!["https://home.example".to_owned()],
        hosts: Some(Hosts::new("camera", [])),
        ..Policy::default()
    }
}

fn decide(policy: &Policy, head: &Head<'_>, body: &[u8]) -> Action {
    routes::admit(policy, head).map_or_else(Action::Respond, |route| route.act(head, body))
}

fn post(path: &str, body: &str) {
    let policy = Policy { hosts: None, ..policy() };
    let head = Head { method: "POST", ..get(path) };
    parser_measured(&mut || used(decide(&policy, &head, body.as_bytes())));
}

fn head(head: Head<'_>) {
    use streaming_server::base::clock::Moment;
    use streaming_server::config::{Config, Parsed};
    let no_file = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
    let parsed = Config::from_args(["--token".into(), "correct-horse-battery".into()], |_| None, no_file);
    let Ok(Parsed::Run(config)) = parsed else { panic!("the options are valid") };
    let moment = Moment::now();
    let access = Access::new(config.token.unwrap(), 8080, Arc::default());
    let policy = policy();
    let from = IpAddr::from([127, 0, 0, 1]);
    parser_measured(&mut || {
        let _ = access.check(&head, from, moment);
        if let Action::Respond(response) = decide(&policy, &head, &[]) {
            let _ = routes::finish(&policy, &head, response);
        }
        let _ = ranges::part(head.range, head.if_range, "\"etag\"", 1_000);
        let _ = ranges::decode_segment(head.path);
    });
}

// ---- datagrams -------------------------------------------------------------------------------------

/// Size of a datagram, near the largest that arrives unfragmented.
const DATAGRAM_BYTES: usize = 1_200;

fn stun_attributes(bytes: usize) {
    let mut message = vec![0, 1];
    let body = [0x80, 0x22, 0, 0].repeat(bytes.min(60_000) / 4);
    message.extend((body.len() as u16).to_be_bytes());
    message.extend([0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    message.extend(body);
    parser_measured(&mut || used(stun_ufrag(&message)));
}

/// Passes datagrams to a session that has answered one STUN request of its viewer.
fn to_viewer(datagrams: &[Vec<u8>]) {
    let mut pair = Pair::new(&CONTEXT, DtlsVersion::Dtls12);
    let local = Some(server_address().ip());
    let request = signed_request(&pair, USUAL_PRIORITY, &[]);
    pair.viewer.handle_datagram(pair.now, local, client_address(), &request);
    pair.viewer.drain(pair.now, &mut Outbox::default());
    parser_measured(&mut || {
        for datagram in datagrams {
            pair.viewer.handle_datagram(pair.now, local, client_address(), datagram);
            pair.viewer.drain(pair.now, &mut Outbox::default());
        }
    });
}

fn stun_of_a_viewer(bytes: usize) {
    let mut pair = Pair::new(&CONTEXT, DtlsVersion::Dtls12);
    let attributes: Vec<(u16, Vec<u8>)> = (0..DATAGRAM_BYTES / 4).map(|_| (0x8022, Vec::new())).collect();
    let request = signed_request(&pair, USUAL_PRIORITY, &attributes);
    let local = Some(server_address().ip());
    parser_measured(&mut || {
        for _ in 0..bytes / request.len() {
            pair.viewer.handle_datagram(pair.now, local, client_address(), &request);
            pair.viewer.drain(pair.now, &mut Outbox::default());
        }
    });
}

fn dtls(bytes: usize, record: &[u8]) {
    let datagram = record.repeat(DATAGRAM_BYTES / record.len());
    to_viewer(&vec![datagram; bytes / DATAGRAM_BYTES]);
}

/// Fragments of one byte of a ClientHello that never becomes complete, from its end to its start.
fn dtls_fragments(bytes: usize) {
    let fragments: Vec<Vec<u8>> = (0..bytes / 26)
        .map(|number| {
            let number = number as u16;
            let [high, low] = number.to_be_bytes();
            let [at_high, at_low] = (60_000 - number).to_be_bytes();
            let header = [22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, high, low, 0, 13];
            let handshake = [1, 0, 0xea, 0x60, 0, 0, 0, at_high, at_low, 0, 0, 1, 9];
            [&header[..], &handshake].concat()
        })
        .collect();
    let datagrams: Vec<Vec<u8>> =
        fragments.chunks(DATAGRAM_BYTES / 26).map(|several| several.concat()).collect();
    to_viewer(&datagrams);
}

fn read_rtcp(compound: &[u8]) {
    parser_measured(&mut || {
        for packet in rtcp::packets(compound) {
            match packet {
                Packet::Report(blocks) => used(blocks.iter().count()),
                Packet::Nack { lost, .. } => used(lost.iter().count()),
                Packet::Arrivals(arrivals) => used(arrivals.iter().count()),
                Packet::Fir(requests) => used(requests.contains(1)),
                _ => {}
            }
        }
    });
}

fn rtcp(bytes: usize, packet: &[u8]) {
    read_rtcp(&packet.repeat(bytes / packet.len()));
}

/// One packet whose body has `words` words.
fn rtcp_packet(kind: u8, count: u8, words: usize, word: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0x80 | count, kind];
    packet.extend((words as u16).to_be_bytes());
    packet.extend(word.repeat(words));
    packet
}

fn rtcp_nack(bytes: usize) {
    read_rtcp(&rtcp_packet(205, 1, bytes / 4 - 1, [1, 2, 0xff, 0xff]));
}

/// Transport-wide feedback about `count` packets, with 122 chunks that are all alike.
fn rtcp_arrivals(bytes: usize, count: u16, chunk: &[u8; 2]) {
    let head = [0x8f, 205, 0, 65, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0];
    let packet = [&head[..], &count.to_be_bytes(), &[0; 4], &chunk.repeat(122)].concat();
    read_rtcp(&packet.repeat(bytes / packet.len()));
}

fn rtcp_blocks(bytes: usize) {
    read_rtcp(&rtcp_packet(207, 0, bytes / 4 - 1, [9, 0, 0, 0]));
}

// ---- H.264 -----------------------------------------------------------------------------------------

fn nals(bytes: &[u8]) {
    let mut found = SmallVec::new();
    parser_measured(&mut || used(scan(bytes, &mut found)));
}

const SPS: [u8; 13] = [0, 0, 0, 1, 0x67, 66, 0xc0, 0x1e, 0x95, 0xa0, 0x50, 0x16, 0xc8];
const PPS: [u8; 8] = [0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80];
const IDR: [u8; 6] = [0, 0, 0, 1, 0x65, 0xb8];

/// An IDR with its parameter sets, and about `bytes` bytes of a repeated NAL unit before the slice.
fn sps_and(repeated: &[u8], bytes: usize) -> Vec<u8> {
    let times = (bytes / repeated.len()).max(1);
    [&SPS[..], &PPS, &repeated.repeat(times), &IDR, &[0x84; 40]].concat()
}

/// Picture parameter sets with many ids: `pps_id` is an Exp-Golomb code in the first bits.
fn many_pps(bytes: usize) -> Vec<u8> {
    let pps = |number: usize| {
        let code = (number % 256) as u32 + 1;
        let length = 2 * (31 - code.leading_zeros()) + 1;
        let bits = (u64::from(code) << (64 - length))
            | (0b1_1001_1100 << (64 - length - 9))
            | (1 << (64 - length - 10));
        [&[0, 0, 1, 0x68][..], &bits.to_be_bytes()[..5]].concat()
    };
    let all: Vec<u8> = (0..bytes / 9).flat_map(pps).collect();
    [&SPS[..], &PPS, &all, &IDR, &[0x84; 40]].concat()
}

fn unit(bytes: &[u8]) {
    let mut assembler = Assembler::default();
    let start = [&SPS[..], &PPS, &IDR, &[0x84; 40]].concat();
    let _ = assembler.assemble(&start);
    parser_measured(&mut || used(assembler.assemble(bytes)));
}
