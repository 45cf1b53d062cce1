//! Sessions whose browsers vanish after DTLS, and which no request ends.

use super::heap::{as_server, server_bytes};
use super::scene::{Scene, lease};
use crate::base::limits;
use crate::metrics::status::EndReason;

const ROUNDS: u32 = 10;
const SESSIONS_PER_ROUND: u32 = 100;

/// Number of units in the first round: so many that the trace of the last minute is full after it.
const UNITS_OF_FIRST_ROUND: u32 = 350;

/// Index of the round after which pools have their final size.
const FULL_ROUND: usize = 2;

/// Bytes for each session by which the server may grow after [`FULL_ROUND`], because a table may still double. 30 to 60
/// were measured.
const GROWTH_BYTES_MAX: i64 = 200;

/// In each round browsers connect, watch, and vanish at once without a goodbye.
#[test]
fn a_thousand_connected_sessions_end_by_consent_and_leave_nothing_behind() {
    let mut scene = Scene::new(lease(), 2, 5);
    let mut held_bytes = Vec::new();
    for round in 0..ROUNDS {
        let before_bytes = server_bytes();
        let ids = round * SESSIONS_PER_ROUND + 1..=(round + 1) * SESSIONS_PER_ROUND;
        // A few at a time, as the mailbox of a worker has a bound.
        let mut places = Vec::new();
        for id in ids.clone() {
            places.push(scene.join(id));
            scene.run(1);
        }
        let units = if round == 0 { UNITS_OF_FIRST_ROUND } else { 30 };
        for number in 0..units {
            scene.publish_unit(number % 10 == 0);
            scene.run_in_steps(33, 33);
        }
        assert!(places.iter().all(|place| place.has_stun() && !place.is_over()));
        assert!(ids.clone().all(|id| scene.units_sent(id) >= 20), "all have finished DTLS and get video");
        let session_bytes = (server_bytes() - before_bytes) / i64::from(SESSIONS_PER_ROUND);

        scene.browsers.clear();
        let timeout_s = limits::CONSENT_TIMEOUT.as_secs();
        for second in 0..timeout_s + 5 {
            assert_eq!(scene.server.sessions() > 0, places.iter().any(|place| !place.is_over()));
            scene.publish_unit(second % 10 == 0);
            scene.run_in_steps(1_000, 100);
        }
        assert_eq!(scene.server.sessions(), 0);
        assert_eq!(scene.server.check_tables(), Ok(()));
        assert!(places.iter().all(|place| place.is_over()));
        as_server(|| drop(places));
        held_bytes.push(server_bytes());
        println!("round {round}: {session_bytes} bytes for each connected session, {held_bytes:?} after it");
    }
    let consent = EndReason::ALL.iter().position(|(reason, _)| *reason == EndReason::ConsentExpired).unwrap();
    let ended = scene.server.count(|counters| &counters.sessions_ended[consent]);
    assert_eq!(ended, u64::from(ROUNDS * SESSIONS_PER_ROUND));
    let later = &held_bytes[FULL_ROUND..];
    let sessions = i64::from(SESSIONS_PER_ROUND) * (later.len() as i64 - 1);
    let grown = later[later.len() - 1] - later[0];
    assert!(grown <= GROWTH_BYTES_MAX * sessions, "{held_bytes:?} bytes are held after each round");
}
