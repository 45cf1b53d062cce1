//! Takes the results of the detector, from its segment and from HTTP, and passes them to all consumers. This code runs
//! on the HTTP thread.
//!
//! ```text
//!  segment ─► reader ─┐            ┌─► text of an event ─► GET /api/events
//!                     ├─► publish ─┤
//!  POST ─► check ─────┘            └─► DetectionResult ─► other consumers (subscribe)
//! ```

mod event;
mod posted;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, broadcast, watch};

use crate::base::counters::Counter;
use crate::base::histogram::LatencyTotals;
use crate::base::log_limit::LogLimit;
use crate::base::{clock, limits};
use crate::camera::Camera;
use crate::camera::detections::{DetectionReader, Detections, Fault, Polled, Rejection, Schedule};
use crate::http::{ApiError, DetectionsState, DetectionsStatus, PostedDetections};
use crate::metrics::WorkerCounters;
use crate::session;

/// One result of the detector, with what the server knows about its picture.
#[derive(Clone, Debug)]
pub struct DetectionResult {
    /// What was found. Its capture time is on CLOCK_REALTIME, as that of the access unit.
    pub detections: Detections,
    /// RTP timestamp of the picture, for every viewer. `None` if the picture is unknown.
    pub rtp_time: Option<u32>,
    /// Nanoseconds from the capture of the picture until the result was read. `None` if the capture time is unknown.
    pub delay_ns: Option<i64>,
    /// Nanoseconds after which the boxes must not be shown any more.
    pub expires_ns: i64,
}

/// Where a result comes from.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Source {
    Segment,
    Post,
}

/// The newest result.
#[derive(Copy, Clone, Debug)]
struct Latest {
    source: Source,
    arrived_at_ns: i64,
    box_count: usize,
}

#[derive(Debug, Default)]
struct Board {
    /// One schedule for each source.
    segment: Schedule,
    post: Schedule,
    latest: Option<Latest>,
    /// Why the segment cannot be read.
    fault: Option<Fault>,
    /// True while a consumer needs results, so that the segment is polled often.
    is_needed: bool,
}

impl Board {
    fn schedule(&mut self, source: Source) -> &mut Schedule {
        match source {
            Source::Segment => &mut self.segment,
            Source::Post => &mut self.post,
        }
    }

    /// Returns true if the boxes of the newest result are still shown. If the segment is polled rarely, the result is
    /// known that much later.
    fn is_live(&self, latest: Latest, now_ns: i64) -> bool {
        let expires_ns = match latest.source {
            Source::Segment if !self.is_needed => 2 * limits::DETECTIONS_IDLE_POLL_NS,
            Source::Segment => self.segment.expires_ns(),
            Source::Post => self.post.expires_ns(),
        };
        now_ns.saturating_sub(latest.arrived_at_ns) < expires_ns
    }

    fn state(&self, has_segment: bool, now_ns: i64) -> DetectionsState {
        let is_missing = matches!(self.fault, Some(Fault::Missing(_)));
        match self.latest {
            Some(latest) if self.is_live(latest, now_ns) => DetectionsState::Live,
            _ if self.fault.is_some() && !is_missing => DetectionsState::Faulty,
            Some(_) => DetectionsState::Expired,
            None if has_segment => DetectionsState::Waiting,
            None => DetectionsState::Off,
        }
    }
}

/// Takes results and passes them on.
pub struct DetectionHub {
    /// Name of the detector's segment. `None` if none is read.
    segment: Option<String>,
    camera: Camera,
    workers: Vec<Arc<WorkerCounters>>,
    results: broadcast::Sender<Arc<DetectionResult>>,
    /// The same results as text, for GET /api/events.
    events: broadcast::Sender<Bytes>,
    /// Notified when a consumer begins to need results.
    needed: Notify,
    board: Mutex<Board>,
    fault_log: LogLimit,
    /// Results taken.
    pub(super) taken: Counter,
    /// Results and entries refused, in the order of [`Rejection::ALL`].
    rejected: [Counter; Rejection::ALL.len()],
    /// Times from the capture of a picture until its result was read.
    pub(super) delay: LatencyTotals,
}

impl DetectionHub {
    /// Returns a hub that reads the segment called `segment` while its task runs.
    #[must_use]
    pub fn new(segment: Option<String>, camera: Camera, workers: Vec<Arc<WorkerCounters>>) -> DetectionHub {
        let fault = segment.clone().map(Fault::Missing);
        DetectionHub {
            segment,
            camera,
            workers,
            results: broadcast::Sender::new(limits::DETECTIONS_KEPT),
            events: broadcast::Sender::new(limits::DETECTIONS_KEPT),
            needed: Notify::new(),
            board: Mutex::new(Board { fault, ..Board::default() }),
            fault_log: LogLimit::default(),
            taken: Counter::default(),
            rejected: Default::default(),
            delay: LatencyTotals::default(),
        }
    }

    /// Returns a receiver of all results from now on. A receiver that is too slow loses results. While there is a
    /// receiver, the segment is polled often.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<DetectionResult>> {
        let receiver = self.results.subscribe();
        self.needed.notify_one();
        receiver
    }

    /// Returns a receiver of the same results, each as the text of an event.
    pub(super) fn subscribe_events(&self) -> broadcast::Receiver<Bytes> {
        let receiver = self.events.subscribe();
        self.needed.notify_one();
        receiver
    }

    /// Takes a result that came over HTTP.
    ///
    /// # Errors
    /// The error 400 for a value out of range, and 429 if there are too many results.
    pub(super) fn post(&self, posted: &PostedDetections, now_ns: i64) -> Result<(), ApiError> {
        let detections = posted::check(posted).map_err(|(reason, error)| {
            self.reject(reason);
            error
        })?;
        if !self.lock().post.may_pass(now_ns) {
            self.reject(Rejection::TooMany);
            return Err(ApiError {
                retry_after_s: Some(limits::DETECTIONS_RETRY_AFTER_S),
                ..ApiError::new(429, "too_many_detections", Rejection::TooMany.to_string())
            });
        }
        self.publish(Source::Post, detections, now_ns, true);
        Ok(())
    }

    /// Reads the segment once. Returns the nanoseconds until the next time. `is_prompt` is false if the last time is
    /// long ago.
    fn poll(&self, reader: &mut DetectionReader, is_prompt: bool, now_ns: i64) -> i64 {
        let is_needed = self.results.receiver_count() + self.events.receiver_count() > 0;
        let may_pass = {
            let mut board = self.lock();
            board.is_needed = is_needed;
            board.segment.may_pass(now_ns)
        };
        // Results beyond the limit are not read: the one that is read later is newer.
        if may_pass {
            match reader.poll(now_ns, &mut |reason| self.reject(reason)) {
                Polled::New(detections) => self.publish(Source::Segment, detections, now_ns, is_prompt),
                Polled::Rejected(reason) => self.reject(reason),
                Polled::Nothing => {}
            }
        }
        let mut board = self.lock();
        if reader.fault() != board.fault.as_ref() {
            board.fault = reader.fault().cloned();
            self.log_fault(board.fault.as_ref(), now_ns);
        }
        board.segment.poll_after_ns(now_ns, is_needed)
    }

    fn log_fault(&self, fault: Option<&Fault>, now_ns: i64) {
        if !self.fault_log.allows(now_ns) {
            return;
        }
        match fault {
            None => log::info!("detections: reading {}", self.segment.as_deref().unwrap_or_default()),
            Some(fault @ Fault::Missing(_)) => log::info!("detections: {fault}"),
            Some(fault) => log::warn!("detections: {fault}"),
        }
    }

    fn reject(&self, reason: Rejection) {
        let counters = Rejection::ALL.iter().zip(&self.rejected);
        counters.filter(|(known, _)| **known == reason).for_each(|(_, counter)| counter.add_shared(1));
    }

    /// Passes a result to all consumers. Its capture time is still the stamp of the camera.
    fn publish(&self, source: Source, mut detections: Detections, now_ns: i64, is_prompt: bool) {
        let stamp_ns = detections.captured_at_ns;
        let captured = stamp_ns.and_then(|stamp_ns| self.camera.capture_times_of(stamp_ns, now_ns));
        detections.captured_at_ns = captured.map(|(realtime_ns, _)| realtime_ns);
        let delay_ns = captured.map(|(_, monotonic_ns)| now_ns.saturating_sub(monotonic_ns));
        let expires_ns = {
            let mut board = self.lock();
            let (arrived_at_ns, box_count) = (now_ns, detections.boxes.len());
            board.latest = Some(Latest { source, arrived_at_ns, box_count });
            let schedule = board.schedule(source);
            schedule.on_result(now_ns, is_prompt);
            schedule.expires_ns()
        };
        self.taken.add_shared(1);
        delay_ns.into_iter().for_each(|delay_ns| self.delay.record(delay_ns.unsigned_abs()));
        let rtp_time = detections.captured_at_ns.and_then(|captured_ns| self.rtp_time(captured_ns));
        let result = DetectionResult { detections, rtp_time, delay_ns, expires_ns };
        // A send fails if there is no receiver, so both errors are ignored.
        if self.events.receiver_count() > 0 {
            let _ = self.events.send(event::text(&result));
        }
        let _ = self.results.send(Arc::new(result));
    }

    /// Returns the RTP timestamp of the picture that was captured at `captured_at_ns`. The workers agree on it.
    fn rtp_time(&self, captured_at_ns: i64) -> Option<u32> {
        let offset = session::rtp_offset().ok()?;
        let known = self.workers.iter().find_map(|worker| worker.rtp_times.find(captured_at_ns));
        known.map(|rtp_time| rtp_time.wrapping_add(offset))
    }

    /// Returns the state for `GET /api/status`.
    pub(super) fn status(&self, now_ns: i64) -> DetectionsStatus {
        let mut board = self.lock();
        let state = board.state(self.segment.is_some(), now_ns);
        let source = board.latest.map_or(Source::Segment, |latest| latest.source);
        let interval_ns = board.schedule(source).interval_ns();
        let shows_fault = matches!(state, DetectionsState::Waiting | DetectionsState::Faulty);
        DetectionsStatus {
            state,
            source: match source {
                Source::Post => Some("post".to_owned()),
                Source::Segment => self.segment.clone(),
            },
            fault: board.fault.as_ref().filter(|_| shows_fault).map(Fault::to_string),
            results: self.taken.get(),
            rejected: self.rejected.iter().map(Counter::get).sum(),
            interval_ms: (interval_ns > 0).then_some(interval_ns.unsigned_abs() / 1_000_000),
        }
    }

    /// Returns the number of boxes that are shown now.
    pub(super) fn boxes_shown(&self, now_ns: i64) -> usize {
        let board = self.lock();
        board.latest.filter(|latest| board.is_live(*latest, now_ns)).map_or(0, |latest| latest.box_count)
    }

    /// Returns the number of refused results and entries, by reason.
    pub(super) fn rejections(&self) -> impl Iterator<Item = (Rejection, u64)> {
        Rejection::ALL.into_iter().zip(self.rejected.iter().map(Counter::get))
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Polls the segment until `stopped` becomes true. Returns at once if there is none to read.
pub(super) async fn run(hub: Arc<DetectionHub>, mut stopped: watch::Receiver<bool>) {
    let Some(name) = &hub.segment else { return };
    let mut reader = DetectionReader::new(name);
    let mut is_prompt = false;
    loop {
        let wait_ns = hub.poll(&mut reader, is_prompt, clock::monotonic_ns());
        is_prompt = wait_ns <= limits::DETECTIONS_POLL_NS_MAX;
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => return,
            () = hub.needed.notified() => is_prompt = false,
            () = tokio::time::sleep(Duration::from_nanos(wait_ns.unsigned_abs())) => {}
        }
    }
}

#[cfg(test)]
mod tests;
