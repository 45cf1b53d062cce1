//! The load of `scripts/soak`: real viewers that come and go, politely or not, at a server that runs on this
//! machine, and recordings on and off. Measures nothing: the script does.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use support::http;
use support::random::Random;
use support::viewer::ViewerSimulator;

/// A guest comes or goes so often.
const STEP: Duration = Duration::from_secs(1);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

#[test]
#[ignore = "scripts/soak runs it against a server"]
fn viewers_come_and_go() {
    let server: SocketAddr = std::env::var("SOAK_HTTP").unwrap().parse().unwrap();
    let (seconds, viewers) = (number("SOAK_SECONDS", 60), number("SOAK_VIEWERS", 10) as usize);
    let mut random = Random::new(number("SOAK_SEED", 1));
    let end = Instant::now() + Duration::from_secs(seconds);
    let residents = ViewerSimulator::crowd(server, viewers.div_ceil(2));
    let mut guests = Vec::new();
    let mut joined = residents.len();
    while Instant::now() < end {
        std::thread::sleep(STEP);
        if guests.len() < viewers / 2 && random.chance(60.0) {
            guests.push(ViewerSimulator::connect(server).unwrap());
            joined += 1;
        } else if !guests.is_empty() && random.chance(60.0) {
            let guest = guests.swap_remove(random.below(guests.len() as u64) as usize);
            // Some are gone in the middle of their handshake.
            let _ = if random.chance(50.0) { guest.leave() } else { guest.vanish() };
        }
        match random.below(40) {
            0 => drop(http::post_json(server, "/api/recording/start", &json!({}))),
            1 => drop(http::post_json(server, "/api/recording/stop", &json!({}))),
            2 => residents.iter().for_each(ViewerSimulator::ask_idr),
            _ => {}
        }
    }
    http::post_json(server, "/api/recording/stop", &json!({}));
    residents.iter().for_each(|resident| resident.wait_more_units(10));
    for (index, resident) in residents.into_iter().enumerate() {
        let report = resident.leave();
        let (units, missing, torn) = (report.units, report.missing, report.torn);
        println!("resident {index}: {units} units, {missing} missing, {torn} torn");
        assert_eq!((report.torn, report.duplicated, report.bad_idrs), (0, 0, 0));
    }
    println!("{joined} viewers joined");
}
