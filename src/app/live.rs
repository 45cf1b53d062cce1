//! Opens HTTP live for a viewer, and waits for its first bytes. This code runs on the HTTP thread.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use tokio::time::timeout;

use crate::base::{clock, limits};
use crate::http::{ApiError, LiveFormat, LiveOrigin, LiveStream};
use crate::live::{Format, Live, LiveViewer, ViewerOrigin};
use crate::metrics::status::{GateState, Via, ViewerState, ViewerStatus, ViewerTransport};
use crate::worker::commands::SessionGuard;

/// A viewer that was opened.
pub(super) struct Opened {
    viewer: LiveViewer,
    /// The first bytes of the stream, until they are taken.
    first: Option<Bytes>,
    /// Holds the viewer's place.
    _guard: SessionGuard,
}

impl LiveStream for Opened {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => self.viewer.poll_next(context),
        }
    }
}

/// Opens the stream for a viewer that holds a place. It begins to wait for its first bytes.
pub(super) fn open(
    live: &Arc<Live>,
    id: u32,
    format: LiveFormat,
    origin: &LiveOrigin,
    guard: SessionGuard,
) -> Opened {
    let format = match format {
        LiveFormat::Mp4 => Format::Mp4,
        LiveFormat::AnnexB => Format::AnnexB,
    };
    let viewer = ViewerOrigin { id, remote: origin.remote, since: clock::now().instant };
    let viewer = live.open(viewer, format, Arc::clone(&origin.must_close));
    Opened { viewer, first: None, _guard: guard }
}

/// Returns the entries of `/api/viewers` for the viewers over HTTP.
pub(super) fn statuses(live: &Live, now: Instant) -> impl Iterator<Item = ViewerStatus> {
    live.viewer_states().into_iter().map(move |viewer| {
        let connected = now.saturating_duration_since(viewer.origin.since);
        ViewerStatus {
            id: viewer.origin.id,
            is_publisher: false,
            via: Via::Http,
            state: ViewerState::Connected,
            gate: if viewer.has_begun { GateState::Live } else { GateState::WaitingForIdr },
            remote: Some(viewer.origin.remote),
            transport: Some(ViewerTransport::Tcp),
            profile: None,
            connected_ms: u64::try_from(connected.as_millis()).unwrap_or(u64::MAX),
            first_idr_ms: None,
            units_sent: viewer.units_taken,
            units_replayed: 0,
            replays: 0,
            units_dropped: viewer.units_skipped,
            drops_to_idr: 0,
            bytes_sent: viewer.bytes_taken,
            datagrams: 0,
            datagrams_rejected: 0,
            nacks: 0,
            plis: 0,
            retransmits: 0,
            retransmits_refused: 0,
            link_kbps: None,
            stream_kbps: None,
            paced: false,
            units_thinned: 0,
            lag_ms: Some(viewer.lag_90k / 90),
            loss_fraction: None,
            rtt_ms: None,
            jitter_ms: None,
            glass_ms: None,
            ended: None,
        }
    })
}

/// Waits for the first bytes. `no_idr` says why there may be none.
///
/// # Errors
/// Returns 503 if the stream has no IDR in [`limits::LIVE_START_TIMEOUT`].
pub(super) async fn wait_for_start(
    mut opened: Opened,
    no_idr: String,
) -> Result<Box<dyn LiveStream>, ApiError> {
    let first =
        timeout(limits::LIVE_START_TIMEOUT, poll_fn(|context| opened.viewer.poll_next(context))).await;
    match first {
        Ok(Some(first)) => {
            opened.first = Some(first);
            Ok(Box::new(opened))
        }
        Ok(None) => Err(ApiError::busy("the stream has just ended: try again", limits::LIVE_RETRY_AFTER_S)),
        Err(_) => Err(ApiError { code: "no_idr", ..ApiError::busy(no_idr, limits::LIVE_RETRY_AFTER_S) }),
    }
}
