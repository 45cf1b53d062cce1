//! Load viewers beside the measured browser: they watch the same server over loopback, so their link is good. Their
//! figures show whether a viewer on a bad link disturbs the others.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::server::Server;
use crate::Fallible;
use crate::http;
use crate::load::Load;
use crate::measure::{count, in_window};
use crate::process::Usage;
use crate::record::Quantiles;
use crate::viewer::{Offering, Viewer};

const CONNECT_PATIENCE: Duration = Duration::from_secs(60);
/// Units published less than this time before the end may still be on their way.
const TAIL_NS: i64 = 200_000_000;

/// Figures of the load viewers in the counted time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Beside {
    pub(crate) viewers: usize,
    pub(crate) received: u64,
    /// Units that a viewer did not receive completely.
    pub(crate) missing: u64,
    /// Time from the publication of a unit to the arrival of its last datagram, in ms.
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// CPU time of the server for all its viewers, in ms per second.
    pub(crate) cpu_ms: f64,
}

/// Load viewers that play.
pub(crate) struct Crowd {
    load: Load,
    viewers: usize,
    server: u32,
    began: Option<(i64, Usage)>,
}

impl Crowd {
    /// Connects this many viewers. The calling thread must be in the server's namespace.
    pub(crate) fn join(server: &Server, viewers: usize) -> Fallible<Crowd> {
        let load = Load::start(true)?;
        let deadline = Instant::now() + CONNECT_PATIENCE;
        for index in 0..viewers {
            load.add(connect(server.address, server.kind.offer_path())?);
            while load.progress.playing.load(Ordering::Relaxed) <= index {
                if Instant::now() > deadline {
                    return Err(format!("only {index} of {viewers} load viewers got a picture").into());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        load.measure(false);
        Ok(Crowd { load, viewers, server: server.id(), began: None })
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.began.is_some()
    }

    /// Begins the counted time.
    pub(crate) fn begin(&mut self, now_ns: i64) {
        self.began = Some((now_ns, Usage::of_process(self.server)));
    }

    /// Ends the counted time and all sessions. Returns the figures, or `None` if the counted time never began.
    pub(crate) fn finish(self, now_ns: i64) -> Fallible<Option<Beside>> {
        let used = Usage::of_process(self.server);
        std::thread::sleep(Duration::from_nanos(TAIL_NS.unsigned_abs()));
        let viewers = self.load.finish()?;
        let Some((from_ns, before)) = self.began else { return Ok(None) };
        let window = from_ns..now_ns - TAIL_NS;
        let samples: Vec<_> = viewers.iter().map(|viewer| in_window(viewer, &window)).collect();
        let units = count(&viewers, &samples);
        let latency = Quantiles::of(samples.iter().flatten().map(|sample| sample.latency_ns).collect());
        let seconds = (now_ns - from_ns) as f64 / 1e9;
        let rounded = |value: f64| (value * 100.0).round() / 100.0;
        Ok(Some(Beside {
            viewers: self.viewers,
            received: units.received,
            missing: units.missing,
            p50_ms: rounded(latency.p50 / 1e3),
            p99_ms: rounded(latency.p99 / 1e3),
            cpu_ms: rounded(used.since(&before).run_ns as f64 / 1e6 / seconds),
        }))
    }
}

fn connect(server: SocketAddr, path: &str) -> Fallible<Viewer> {
    let offering = Offering::new(true, false, false)?;
    let offered_at_ns = crate::clock::monotonic_ns();
    let offer = json!({"type": "offer", "sdp": offering.sdp}).to_string();
    let (status, text) = http::request(server, "POST", path, &offer)?;
    let answer: Value = serde_json::from_str(&text).unwrap_or_default();
    let sdp = answer["sdp"].as_str().ok_or_else(|| format!("{path}: {status} {text}"))?;
    offering.accept(sdp, offered_at_ns)
}
