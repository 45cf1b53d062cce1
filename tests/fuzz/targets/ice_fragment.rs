//! Takes any text as a fragment of SDP in a PATCH. A refused fragment changes nothing; an accepted one keeps the tag, or
//! restarts ICE with new credentials on our side.
#![no_main]

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use streaming_server::session::{IceFragment, SessionConfig, SessionContext, SrtpChoice, Viewer};

const OFFER: &str = include_str!("../seeds/sdp/chromium");

fn context() -> &'static Arc<SessionContext> {
    static CONTEXT: OnceLock<Arc<SessionContext>> = OnceLock::new();
    CONTEXT.get_or_init(|| {
        let candidates = vec!["192.0.2.1:8189".parse().unwrap()];
        SessionContext::new(SessionConfig { candidates, advertise: vec![], srtp: SrtpChoice::Gcm }).unwrap()
    })
}

fuzz_target!(|text: &str| {
    let Ok(fragment) = IceFragment::parse(text) else { return };
    let now = Instant::now();
    let (mut viewer, _) = Viewer::accept(context(), 7, OFFER, now).unwrap();
    for if_match in [None, Some(vec!["*".to_owned()]), Some(vec!["other".to_owned()])] {
        let before = viewer.ice_tag().to_owned();
        let handled = viewer.handle_fragment(now, &fragment, if_match.as_deref());
        let is_restart = viewer.ice_tag() != before;
        match handled {
            Ok(Some(restart)) => {
                assert!(is_restart && if_match.is_some() && text.contains("ice-pwd"));
                assert_eq!(restart.tag, viewer.ice_tag());
                assert!(restart.fragment.contains(&format!("a=ice-ufrag:{}\r\n", restart.tag)));
                assert!(IceFragment::parse(&restart.fragment).is_ok());
            }
            Ok(None) | Err(_) => assert!(!is_restart),
        }
        assert!((1..=2).contains(&viewer.local_ufrags().count()));
    }
});
