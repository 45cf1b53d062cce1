//! Publishes the stream to a WHIP server (RFC 9725) as long as the camera is live, and connects again after every failure.
//!
//! ```text
//!  wait for the camera ─► POST offer ─► 201, answer ─► session of a worker ─► it ends ─► DELETE ─► wait (backoff) ─┐
//!   ▲                      └─► refused, no answer, unusable answer ─────────────────────────────────►──────────────┤
//!   └──────────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The HTTP part runs here, on the HTTP runtime. The session is a viewer of a worker, as those of browsers are.

pub(super) mod backoff;
pub(super) mod board;
pub(super) mod error;
pub(super) mod exchange;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::app::backend::AppBackend;
use crate::base::{clock, limits};
use crate::config::{Whip, WhipUrl};
use crate::http::{Backend, PublishState};
use crate::metrics::status::{ViewerState, ViewerStatus};
use crate::session::{PublishOffer, Viewer};
use crate::worker::commands::{Command, SessionEnd, hand_over, session_guard};
use backoff::Backoff;
use board::PublishBoard;
use error::PublishError;
use exchange::{Body, Exchange, SDP, printable};

/// Publishes to one WHIP server. Runs as one task.
pub(super) struct Publisher {
    pub(super) whip: Whip,
    pub(super) backend: Arc<AppBackend>,
    pub(super) board: Arc<PublishBoard>,
    /// Becomes true when the program stops.
    pub(super) stopped: watch::Receiver<bool>,
}

/// A session that a worker has.
struct Session {
    id: u32,
    /// Index of the worker.
    worker: usize,
    /// URL of the session at the server.
    url: WhipUrl,
    gone: SessionEnd,
}

impl Publisher {
    /// Publishes until the program stops, and then ends the session at the server.
    pub(super) async fn run(mut self) {
        if !self.whip.url.is_tls && self.whip.token.is_some() {
            log::warn!("publishing to {}: the token is sent without TLS: use https", self.host());
        }
        let mut log = FailureLog::default();
        let mut backoff = Backoff::default();
        while !*self.stopped.borrow() {
            self.board.set(PublishState::WaitingForCamera);
            self.wait_for_camera().await;
            if *self.stopped.borrow() {
                break;
            }
            self.board.set(PublishState::Connecting);
            self.board.attempts.add(1);
            let (error, connected) = match self.negotiate().await {
                Ok(session) => self.watch(session).await,
                Err(error) => (error, Duration::ZERO),
            };
            if *self.stopped.borrow() {
                break;
            }
            self.board.failures.get(error.reason()).into_iter().for_each(|count| count.add(1));
            let wait = backoff.after(&error, connected, random());
            log.note(&self.host(), &error, wait);
            self.board.set_failure(error.to_string(), wait.as_secs().max(1));
            self.pause(wait).await;
        }
        self.board.set(PublishState::Stopped);
    }

    fn host(&self) -> String {
        self.whip.url.authority()
    }

    /// Waits for `time` or until the program stops.
    async fn pause(&mut self, time: Duration) {
        let _ = timeout(time, self.stopped.wait_for(|stopped| *stopped)).await;
    }

    /// Waits until the camera is live and its parameter sets are known, or until the program stops.
    async fn wait_for_camera(&mut self) {
        while !*self.stopped.borrow() && (self.backend.ready().is_err() || self.profile_level_id().is_none())
        {
            self.pause(limits::WHIP_POLL_INTERVAL).await;
        }
    }

    fn profile_level_id(&self) -> Option<u32> {
        let id = self.backend.counters.first()?.profile_level_id.get();
        u32::try_from(id).ok().filter(|id| *id != 0)
    }

    /// Sends the offer, and hands the session to a worker.
    async fn negotiate(&self) -> Result<Session, PublishError> {
        let now = clock::now();
        let context = self.backend.addresses.context(None, now.monotonic_ns);
        let id = self.backend.next_id.fetch_add(1, Ordering::Relaxed);
        let (offer, sdp) = PublishOffer::new(&context, id, self.profile_level_id(), now.instant)?;
        let (url, answer) = post(&self.whip, sdp).await?;
        if *self.stopped.borrow() {
            // The workers have stopped, but the server has a session now.
            delete(&self.whip, &url).await;
            return Err(PublishError::Ended("the program has stopped meanwhile".to_owned()));
        }
        match self.start(id, offer, &answer) {
            Ok((worker, gone)) => Ok(Session { id, worker, url, gone }),
            Err(error) => {
                delete(&self.whip, &url).await;
                Err(error)
            }
        }
    }

    fn start(&self, id: u32, offer: PublishOffer, answer: &str) -> Result<(usize, SessionEnd), PublishError> {
        debug_assert!(id != 0, "numbers begin with 1");
        let viewer = Viewer::publish(offer, answer, clock::now().instant)?;
        let worker = self.backend.least_loaded();
        let (guard, gone) = session_guard();
        hand_over(&self.backend.mailboxes, worker, Box::new(viewer), Some(guard))?;
        Ok((worker, gone))
    }

    /// Follows the session until it ends or the program stops, and ends it at the server. Returns why it ended, and how
    /// long it was connected.
    async fn watch(&mut self, mut session: Session) -> (PublishError, Duration) {
        let mut connected = Duration::ZERO;
        let mut is_noted = false;
        loop {
            tokio::select! {
                biased;
                _ = self.stopped.wait_for(|stopped| *stopped) => break,
                _ = &mut session.gone => break,
                () = sleep(limits::WHIP_POLL_INTERVAL) => {}
            }
            if let Some(status) = self.status_of(&session) {
                if status.state == ViewerState::Connected && !is_noted {
                    is_noted = true;
                    self.note_connected(&status);
                }
                connected = connected.max(Duration::from_millis(status.connected_ms));
                self.board.note_session(&status);
            }
        }
        // At the stop of the program, a worker that has ended does not reply. DELETE must not wait for that.
        let (detail, ()) = tokio::join!(self.end_of(&session), delete(&self.whip, &session.url));
        self.board.end_session();
        (PublishError::Ended(detail), connected)
    }

    fn note_connected(&self, status: &ViewerStatus) {
        self.board.set(PublishState::Publishing);
        self.board.sessions.add(1);
        let remote = status.remote.map_or_else(String::new, |remote| format!(" ({remote})"));
        log::info!("publishing to {}{remote}: connected", self.host());
    }

    /// Returns the latest statistics of a running session.
    fn status_of(&self, session: &Session) -> Option<ViewerStatus> {
        let statuses = self.backend.counters.get(session.worker)?.viewer_statuses.get();
        statuses.into_iter().find(|status| status.id == session.id)
    }

    /// Returns why the session has ended, and notes its final statistics.
    async fn end_of(&self, session: &Session) -> String {
        let (reply, answer) = oneshot::channel();
        let mailbox = self.backend.mailboxes.get(session.worker);
        let is_sent = mailbox.is_some_and(|mailbox| mailbox.send(Command::Statuses(reply)).is_ok());
        let statuses = match timeout(limits::WHIP_FINISH_TIMEOUT, answer).await {
            Ok(Ok(statuses)) if is_sent => statuses,
            _ => Vec::new(),
        };
        let status = statuses.into_iter().find(|status| status.id == session.id);
        status.iter().for_each(|status| self.board.note_session(status));
        let ended = status.and_then(|status| status.ended).map(|ended| ended.detail);
        ended.unwrap_or_else(|| "the session has ended".to_owned())
    }
}

/// Posts the offer. Returns the URL of the session and the answer.
async fn post(whip: &Whip, sdp: String) -> Result<(WhipUrl, String), PublishError> {
    let offer = Body { media_type: SDP, bytes: Bytes::from(sdp), signature: None };
    let exchange = Exchange { whip, method: Method::POST, body: Some(offer) };
    let reply = exchange.run(&whip.url).await?;
    let host = reply.url.authority();
    if reply.status != 201 {
        // The status says more than a fault of the body.
        let is_text = reply.content_type.as_deref() != Some("text/html");
        let text = if is_text { printable(&reply.body.text) } else { "an HTML page".to_owned() };
        let (status, retry_after) = (reply.status, reply.retry_after);
        return Err(PublishError::Status { host, status, text, retry_after });
    }
    let Some(url) = reply.location else {
        reply.body.whole()?;
        return Err(PublishError::NoLocation(host, 201));
    };
    let answer = match reply.content_type {
        Some(other) if other != SDP && !is_sdp(&reply.body.text) => Err(PublishError::NotSdp(host, other)),
        _ => reply.body.whole(),
    };
    match answer {
        Ok(answer) => Ok((url, answer)),
        Err(error) => {
            delete(whip, &url).await;
            Err(error)
        }
    }
}

/// Returns true if the body is SDP. Simple servers, such as the example of pion, send it without its type, and then their
/// HTTP library chooses text/plain.
fn is_sdp(body: &str) -> bool {
    body.starts_with("v=0")
}

/// Ends the session at the server. A failure is only logged: the server ends the session by itself without media.
async fn delete(whip: &Whip, url: &WhipUrl) {
    let exchange = Exchange { whip, method: Method::DELETE, body: None };
    match timeout(limits::WHIP_FINISH_TIMEOUT, exchange.run(url)).await {
        Ok(Ok(reply)) => log::debug!("DELETE of the WHIP session: {}", reply.status),
        Ok(Err(error)) => log::debug!("DELETE of the WHIP session failed: {error}"),
        Err(_) => log::debug!("DELETE of the WHIP session: no answer"),
    }
}

/// Sends OPTIONS to the WHIP endpoint and returns the status of the response. Opens no session.
pub(super) async fn probe(whip: &Whip) -> Result<u16, PublishError> {
    let exchange = Exchange { whip, method: Method::OPTIONS, body: None };
    Ok(exchange.run(&whip.url).await?.status)
}

/// Logs failures: a new one at once, and a repeated one at most once a minute.
#[derive(Default)]
struct FailureLog {
    last: Option<(String, i64)>,
}

impl FailureLog {
    fn note(&mut self, host: &str, error: &PublishError, wait: Duration) {
        let (text, now_ns) = (error.to_string(), clock::monotonic_ns());
        let is_repeated =
            |(last, at_ns): &(String, i64)| *last == text && now_ns - at_ns < limits::LOG_INTERVAL_NS;
        if !self.last.as_ref().is_some_and(is_repeated) {
            log::warn!("publishing to {host} failed: {text}; trying again in {:.1} s", wait.as_secs_f32());
            self.last = Some((text, now_ns));
        }
    }
}

/// Returns a random number for the jitter. Without random numbers there is no jitter.
fn random() -> u16 {
    let mut bytes = [0; 2];
    let filled = aws_lc_rs::rand::fill(&mut bytes);
    if filled.is_ok() { u16::from_be_bytes(bytes) } else { u16::MAX }
}

#[cfg(test)]
mod tests;
