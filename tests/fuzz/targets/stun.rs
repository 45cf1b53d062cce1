//! Takes any bytes as STUN. A message without a valid MESSAGE-INTEGRITY must be refused. A message with
//! a valid MESSAGE-INTEGRITY must be handled, whatever its attributes are.
#![no_main]

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use streaming_server::session::{
    DatagramSink, Destination, SessionConfig, SessionContext, SrtpChoice, Viewer, stun_ufrag,
};

const OFFER: &str = include_str!("../seeds/sdp/chromium");

static CONTEXT: LazyLock<Arc<SessionContext>> = LazyLock::new(|| {
    let candidates = vec![SocketAddr::new(server(), 8189)];
    SessionContext::new(SessionConfig { candidates, advertise: Vec::new(), srtp: SrtpChoice::Gcm }).unwrap()
});

fn server() -> IpAddr {
    IpAddr::from([192, 0, 2, 1])
}

/// A sink that checks the size of each datagram and then drops the datagram.
struct Discard;

impl DatagramSink for Discard {
    fn push_datagram(&mut self, _: &Destination, bytes: usize, write: impl FnOnce(&mut [u8])) {
        assert!(bytes <= 1_500);
        write(&mut vec![0; bytes]);
    }
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend(kind.to_be_bytes());
    body.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// Builds a STUN binding request with the given attributes and a valid MESSAGE-INTEGRITY.
fn signed_request(answer: &str, attributes: &[u8]) -> Vec<u8> {
    let value = |sdp: &'static str, name| sdp.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let own = |name| answer.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let username = format!("{}:{}", own("a=ice-ufrag:"), value(OFFER, "a=ice-ufrag:"));
    let mut body = Vec::new();
    attribute(&mut body, 0x0006, username.as_bytes());
    attribute(&mut body, 0x0024, &[110, 0, 1, 255]);
    body.extend(attributes);
    body.resize(body.len().next_multiple_of(4), 0);
    let mut bytes = vec![0, 1];
    bytes.extend((u16::try_from(body.len()).unwrap() + 24).to_be_bytes());
    bytes.extend([0x21, 0x12, 0xa4, 0x42]);
    bytes.extend([3; 12]);
    bytes.extend(body);
    let hmac = str0m::crypto::from_feature_flags().sha1_hmac_provider;
    let tag = hmac.sha1_hmac(own("a=ice-pwd:").as_bytes(), &[&bytes]);
    attribute(&mut bytes, 0x0008, &tag);
    bytes
}

/// Asserts that a ufrag is found only in a complete binding request, where it is the part of USERNAME before the colon.
fn check_ufrag(bytes: &[u8]) {
    let Some(ufrag) = stun_ufrag(bytes) else { return };
    assert!(!ufrag.is_empty() && !ufrag.contains(':'));
    assert!(bytes.starts_with(&[0, 1]) && bytes[4..8] == [0x21, 0x12, 0xA4, 0x42]);
    assert_eq!(bytes.len(), 20 + usize::from(u16::from_be_bytes([bytes[2], bytes[3]])));
    let start = ufrag.as_ptr() as usize - bytes.as_ptr() as usize;
    assert_eq!(&bytes[start..start + ufrag.len()], ufrag.as_bytes());
    assert_eq!(bytes[start + ufrag.len()], b':');
    assert_eq!(stun_ufrag(&bytes[..bytes.len() - 1]), None, "a truncated message is refused");
}

fuzz_target!(|data: &[u8]| {
    check_ufrag(data);
    let now = Instant::now();
    let remote = SocketAddr::from(([198, 51, 100, 7], 40_000));
    let (mut viewer, answer) = Viewer::accept(&CONTEXT, 7, OFFER, now).unwrap();
    viewer.handle_datagram(now, Some(server()), remote, data);
    viewer.drain(now, &mut Discard);
    assert!(!viewer.accepts_address(remote), "an unauthenticated request is refused");
    let request = signed_request(&answer, data.get(..1_000).unwrap_or(data));
    viewer.handle_datagram(now, Some(server()), remote, &request);
    viewer.drain(now, &mut Discard);
    viewer.handle_timeout(now);
    viewer.drain(now, &mut Discard);
});
