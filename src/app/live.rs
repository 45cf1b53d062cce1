//! Opens HTTP live for a viewer, and waits for its first bytes. This code runs on the HTTP thread.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::time::timeout;

use crate::base::limits;
use crate::http::{ApiError, LiveFormat, LiveOrigin, LiveStream};
use crate::live::{Format, Live, LiveViewer};
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
pub(super) fn open(live: &Arc<Live>, format: LiveFormat, origin: &LiveOrigin, guard: SessionGuard) -> Opened {
    let format = match format {
        LiveFormat::Mp4 => Format::Mp4,
        LiveFormat::AnnexB => Format::AnnexB,
    };
    Opened { viewer: live.open(format, Arc::clone(&origin.must_close)), first: None, _guard: guard }
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
