//! Observes what a connection does: it waits for a request, receives the head of one, or answers. hyper has one timeout
//! for the first two, and does not report which connections are idle.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::lock;
use super::stream::Stream;
use super::timeouts::HttpTimeouts;

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The TLS handshake is not complete.
    Opening,
    /// The connection waits for a request of which no byte has arrived.
    Idle,
    /// A part of a request's head has arrived.
    Head,
    /// A request is being answered.
    Answer,
}

/// How readily a connection gives way to a new one. A smaller value is closed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// Nothing is lost: the caller opens a new connection for its next request.
    Idle,
    /// A request is lost that the caller has not finished to send.
    Unfinished,
}

/// The current phase of a connection.
#[derive(Debug)]
pub(super) struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Time at which the phase began.
    since: Instant,
    /// True while the request is read and its answer is computed. Bytes that hyper then reads belong to the body.
    is_in_service: bool,
    /// True if the caller has not yet taken all bytes of an answer.
    is_write_blocked: bool,
    /// True if the answer is the live stream, whose bytes the caller must take in a limited time.
    is_live: bool,
    /// Time of the last write. Counts while `is_write_blocked`.
    wrote_at: Instant,
}

impl Activity {
    pub(super) fn new() -> Activity {
        let state = State {
            phase: Phase::Opening,
            since: Instant::now(),
            is_in_service: false,
            is_write_blocked: false,
            is_live: false,
            wrote_at: Instant::now(),
        };
        Activity(Mutex::new(state))
    }

    /// Records that the connection is ready for its first request.
    pub(super) fn opened(&self) {
        lock(&self.0).enter(Phase::Idle);
    }

    /// Records that the head of a request is complete.
    pub(super) fn begin_answer(&self) {
        let mut state = lock(&self.0);
        state.is_in_service = true;
        state.is_live = false;
        state.enter(Phase::Answer);
    }

    /// Records that the answer will be the live stream.
    pub(super) fn begin_live(&self) {
        lock(&self.0).is_live = true;
    }

    /// Records that the head of the answer is known. The bytes of the answer may still follow.
    pub(super) fn end_service(&self) {
        lock(&self.0).is_in_service = false;
    }

    /// Returns the time at which the connection must be closed, or `None` if its phase has no limit here.
    pub(super) fn deadline(&self, timeouts: &HttpTimeouts) -> Option<Instant> {
        let state = lock(&self.0);
        match state.phase {
            // The last bytes of an answer wait for a slow reader. TCP_USER_TIMEOUT limits that time.
            Phase::Idle if state.is_write_blocked => None,
            Phase::Idle => Some(state.since + timeouts.idle),
            Phase::Head => Some(state.since + timeouts.header),
            Phase::Answer if state.is_live && state.is_write_blocked => Some(state.wrote_at + timeouts.live),
            Phase::Opening | Phase::Answer => None,
        }
    }

    /// Returns how readily the connection gives way to a new one, and the time since which it could. Returns `None` if
    /// the connection is being answered.
    pub(super) fn rank(&self) -> Option<(Rank, Instant)> {
        let state = lock(&self.0);
        match state.phase {
            Phase::Idle if !state.is_write_blocked => Some((Rank::Idle, state.since)),
            Phase::Opening | Phase::Head => Some((Rank::Unfinished, state.since)),
            Phase::Idle | Phase::Answer => None,
        }
    }
}

impl State {
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
    }

    /// Records that a write was tried, and that the caller must read before the next one if `is_blocked`. The wait for
    /// the next request begins when the last answer is written.
    fn wrote(&mut self, is_blocked: bool) {
        if self.is_write_blocked && !is_blocked && self.phase == Phase::Idle {
            self.since = Instant::now();
        }
        if !is_blocked || !self.is_write_blocked {
            self.wrote_at = Instant::now();
        }
        self.is_write_blocked = is_blocked;
    }
}

/// A stream that reports its reads and writes to an [`Activity`].
pub(super) struct Watched {
    pub(super) stream: Stream,
    pub(super) activity: Arc<Activity>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        {
            let mut state = lock(&self.activity.0);
            // hyper reads nothing while it sends an answer, so this read is for the next request.
            if state.phase == Phase::Answer && !state.is_in_service {
                state.enter(Phase::Idle);
            }
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            let mut state = lock(&self.activity.0);
            if state.phase == Phase::Idle {
                state.enter(Phase::Head);
            }
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        lock(&self.activity.0).wrote(polled.is_pending());
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        lock(&self.activity.0).wrote(polled.is_pending());
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        lock(&self.activity.0).wrote(polled.is_pending());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
