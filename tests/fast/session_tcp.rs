//! Tests of viewers over TCP: media leaves on their connection, and what waits there is bounded.

use std::num::NonZeroU32;

use str0m::config::DtlsVersion;
use streaming_server::base::limits;
use streaming_server::metrics::status::ViewerTransport;
use streaming_server::session::SrtpChoice;
use support::session_peer::{Pair, client_address, context, watch};

const CONNECTION: Option<NonZeroU32> = NonZeroU32::new(1);

fn pair() -> Pair {
    Pair::new(&context(SrtpChoice::Gcm), DtlsVersion::Dtls12)
}

fn transport(pair: &Pair) -> Option<ViewerTransport> {
    pair.viewer.status(pair.now).transport
}

#[test]
fn viewer_over_tcp_drops_to_the_next_idr_when_much_waits() {
    let mut pair = pair();
    pair.connection = CONNECTION;
    pair.connect();
    assert_eq!(watch(&mut pair, 0, 21), 42);
    assert_eq!(transport(&pair), Some(ViewerTransport::Tcp));
    assert!(pair.viewer.accepts_connection(CONNECTION.unwrap()) && pair.astray.is_empty());
    pair.viewer.note_congestion(limits::TCP_IN_FLIGHT_MAX + 1);
    assert_eq!(watch(&mut pair, 21, 5), 0);
    pair.viewer.note_congestion(0);
    assert_eq!(watch(&mut pair, 26, 4), 0, "they refer to a unit that was not sent");
    assert_eq!(watch(&mut pair, 30, 10), 20);
    assert_eq!(pair.viewer.status(pair.now).drops_to_idr, 1);
}

#[test]
fn viewer_whose_udp_is_blocked_moves_to_tcp_and_back_after_the_connection_has_ended() {
    let mut pair = pair();
    pair.connect();
    assert_eq!(watch(&mut pair, 0, 10), 20);
    assert_eq!(transport(&pair), Some(ViewerTransport::Udp));
    pair.connection = CONNECTION;
    pair.seen_as.set_port(50_000);
    watch(&mut pair, 10, 200);
    assert_eq!(watch(&mut pair, 210, 20), 40);
    assert_eq!(transport(&pair), Some(ViewerTransport::Tcp));
    pair.viewer.handle_disconnect(pair.now, CONNECTION.unwrap());
    assert_eq!(transport(&pair), None, "the UDP path is silent");
    assert!(!pair.viewer.accepts_connection(CONNECTION.unwrap()));
    pair.connection = None;
    pair.seen_as = client_address();
    watch(&mut pair, 230, 200);
    assert_eq!(watch(&mut pair, 430, 20), 40);
    assert_eq!(transport(&pair), Some(ViewerTransport::Udp));
    assert_eq!(pair.closed, None);
}
