//! Takes any text as the SDP answer of a WHIP server. It must be refused with a short reason, or give a session that sends
//! a bounded number of STUN requests.
#![no_main]

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use streaming_server::base::limits::{CANDIDATE_CHECKS_MAX, HANDSHAKE_TIMEOUT, VIEWER_PATHS_MAX};
use streaming_server::session::{Output, PublishOffer, SessionContext, SrtpChoice, Viewer};
use support::session_peer::{self, Outbox};

fn context() -> &'static Arc<SessionContext> {
    static CONTEXT: OnceLock<Arc<SessionContext>> = OnceLock::new();
    CONTEXT.get_or_init(|| session_peer::context(SrtpChoice::Gcm))
}

fuzz_target!(|answer: &str| {
    let start = Instant::now();
    let (offer, sdp) = PublishOffer::new(context(), 7, Some(0x64_0028), start).unwrap();
    assert!(sdp.starts_with("v=0\r\n") && sdp.ends_with("\r\n"));
    let mut viewer = match Viewer::publish(offer, answer, start) {
        Ok(viewer) => viewer,
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() < 400 && !text.contains(char::is_control), "{text}");
            return;
        }
    };
    let mut sent = Outbox::default();
    let mut now = start;
    while let Output::Wait(due) = viewer.drain(now, &mut sent) {
        assert!(now <= start + HANDSHAKE_TIMEOUT, "the session lasts longer than a handshake may");
        now = now.max(due);
        viewer.handle_timeout(now);
    }
    assert!(sent.0.len() <= CANDIDATE_CHECKS_MAX as usize * VIEWER_PATHS_MAX, "{} datagrams", sent.0.len());
    assert!(sent.0.iter().all(|(to, _)| !to.remote.ip().is_multicast() && to.remote.port() != 0));
});
