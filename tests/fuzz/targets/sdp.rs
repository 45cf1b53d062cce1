//! Takes any text as an SDP offer. It must be refused, or answered with the same m-lines, one of which sends H.264.
#![no_main]

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use streaming_server::session::{SessionContext, SrtpChoice, Viewer};
use support::session_peer;

fn context() -> &'static Arc<SessionContext> {
    static CONTEXT: OnceLock<Arc<SessionContext>> = OnceLock::new();
    CONTEXT.get_or_init(|| session_peer::context(SrtpChoice::Gcm))
}

/// Returns the media kinds of all m-lines.
fn kinds(sdp: &str) -> Vec<&str> {
    let lines = sdp.split(['\r', '\n']).filter_map(|line| line.strip_prefix("m="));
    lines.map(|line| line.split_ascii_whitespace().next().unwrap_or_default()).collect()
}

fuzz_target!(|offer: &str| {
    let Ok((viewer, answer)) = Viewer::accept(context(), 7, offer, Instant::now()) else { return };
    assert!(answer.starts_with("v=0\r\n") && answer.ends_with("\r\n"));
    let lines: Vec<&str> = answer.split("\r\n").collect();
    assert!(
        lines.iter().any(|line| line.starts_with("a=rtpmap:") && line.contains("H264/90000")),
        "{answer}"
    );
    assert_eq!(lines.iter().filter(|line| **line == "a=sendonly").count(), 1, "{answer}");
    assert!(lines.iter().all(|line| !line.contains(['\r', '\n'])), "{answer}");
    assert_eq!(kinds(&answer), kinds(offer), "{answer}");
    assert!(lines.contains(&format!("a=ice-ufrag:{}", viewer.local_ufrag()).as_str()), "{answer}");
});
