//! Requests a bit rate from the camera (`--min-kbps`), as a task of the HTTP runtime. The workers are not involved: the
//! task reads the statistics that they write twice a second anyway.

pub mod policy;

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::timeout;

use self::policy::{BitratePolicy, Situation, StreamRate, ViewerLink};
use crate::app::backend::AppBackend;
use crate::base::log_limit::LogLimit;
use crate::base::{clock, limits};
use crate::metrics::status::{ViewerState, ViewerStatus};

/// Checks the viewers until `stopped` becomes true, then withdraws the request.
pub(super) async fn run(backend: Arc<AppBackend>, min_kbps: u32, mut stopped: watch::Receiver<bool>) {
    let (mut policy, mut rate) = (BitratePolicy::new(min_kbps), StreamRate::default());
    let (mut before, mut obeyed) = (0, true);
    let (limit, other_limit) = (LogLimit::new(limits::BITRATE_LOG_NS), LogLimit::default());
    while timeout(limits::BITRATE_CHECK, stopped.wait_for(|&stopped| stopped)).await.is_err() {
        let now = clock::now();
        let viewers = viewers(&backend);
        let bytes = backend.counters.first().map_or(0, |worker| worker.unit_bytes.get());
        let situation = Situation {
            viewers: &viewers,
            http_viewers: backend.live.viewer_count(),
            stream_kbps: rate.note(now.instant, bytes),
            is_recording: backend.is_recording(),
        };
        let kbps = policy.check(now.instant, &situation);
        let obeys = backend.camera.request_bitrate(kbps, now.monotonic_ns);
        if kbps > 0 && !obeys && obeyed && other_limit.allows(now.monotonic_ns) {
            log::warn!(
                "--min-kbps: viewers need a lower bit rate, but the camera does not obey requests for it"
            );
        }
        if obeys && kbps != before && limit.allows(now.monotonic_ns) {
            match kbps {
                0 => log::info!("the camera may use its own bit rate again"),
                _ => {
                    log::info!("the camera is requested to use at most {kbps} kbit/s, for the viewers' links")
                }
            }
            before = kbps;
        }
        obeyed = obeys || kbps == 0;
    }
    backend.camera.request_bitrate(0, clock::monotonic_ns());
}

/// Returns the connected sessions. The WHIP server is one of them: it gets what its link carries, as viewers do.
fn viewers(backend: &AppBackend) -> Vec<ViewerLink> {
    let statuses = backend.counters.iter().flat_map(|worker| worker.viewer_statuses.get());
    let connected = statuses.filter(|status| status.state == ViewerState::Connected);
    let link = |status: ViewerStatus| ViewerLink {
        id: status.id,
        link_kbps: status.link_kbps,
        units_thinned: status.units_thinned,
    };
    connected.map(link).collect()
}
