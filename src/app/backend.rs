//! What the HTTP side may ask of the workers: it makes sessions and spreads them. May not touch a socket or
//! the ring; runs on the control thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::app::service::{Health, Heartbeat};
use crate::app::{login_watch, metrics_text, recordings};
use crate::base::clock;
use crate::camera::{Camera, CameraStatus};
use crate::http::{ApiError, Backend, BoxFuture, RecordingCommand, RecordingFile, Summary};
use crate::metrics::{LoginCounters, WorkerCounters, trace};
use crate::recorder::RecorderHandle;
use crate::session::{OfferError, SessionContext, Viewer, ViewerStatus};
use crate::worker::commands::{Command, Mailbox, hand_over, session_guard};

/// How long a worker may take to tell about its viewers.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// A camera that is attached but silent for longer is called stalled.
pub(super) const STALLED_AFTER_NS: u64 = 1_500_000_000;

/// Seconds after which a refused browser may try again.
const RETRY_AFTER_S: u32 = 5;

/// The workers as the HTTP side sees them.
pub struct AppBackend {
    camera: Camera,
    context: Arc<SessionContext>,
    mailboxes: Vec<Mailbox>,
    counters: Vec<Arc<WorkerCounters>>,
    recorder: Option<RecorderHandle>,
    logins: Arc<LoginCounters>,
    viewers_max: u32,
    next_id: AtomicU32,
    /// Sessions made so far; those closed are counted by the workers.
    adopted: AtomicU32,
    started_ns: i64,
}

impl AppBackend {
    /// The backend of running workers and of a recorder, if there is one.
    pub fn new(
        camera: Camera,
        context: Arc<SessionContext>,
        mailboxes: Vec<Mailbox>,
        counters: Vec<Arc<WorkerCounters>>,
        recorder: Option<RecorderHandle>,
        logins: Arc<LoginCounters>,
        viewers_max: u32,
    ) -> Self {
        let started_ns = clock::now().monotonic_ns;
        AppBackend {
            camera,
            context,
            mailboxes,
            counters,
            recorder,
            logins,
            viewers_max,
            next_id: AtomicU32::new(1),
            adopted: AtomicU32::new(0),
            started_ns,
        }
    }

    /// Tells every worker to say goodbye and end.
    pub fn stop(&self) {
        for mailbox in &self.mailboxes {
            let mut command = Command::Stop;
            // A full mailbox empties within a turn.
            for _ in 0..100 {
                match mailbox.send(command) {
                    Ok(()) => break,
                    Err(back) => command = back,
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Ends the recorder; a running recording is finished first. Does not wait.
    pub fn stop_recorder(&self) {
        if let Some(recorder) = &self.recorder {
            recorder.shutdown();
        }
    }

    /// How it goes, for the service manager: the threads that must turn for video to flow are the workers and the
    /// doorbell. Not the recorder: a disk that hangs is no reason to take the live picture away.
    pub fn health(&self) -> Health {
        let beat = |name: String, turns| Heartbeat { name, turns };
        let workers = self.counters.iter().enumerate();
        let workers = workers.map(|(index, worker)| beat(format!("worker {index}"), worker.turns.get()));
        let doorbell = beat("doorbell".to_owned(), self.camera.counters().wakes.load(Ordering::Relaxed));
        Health { summary: self.status_line(), heartbeats: workers.chain([doorbell]).collect() }
    }

    fn status_line(&self) -> String {
        let camera = match self.camera_state() {
            (state @ ("live" | "stalled"), _) => {
                let (width, height) =
                    (self.first_counter(|c| c.width.get()), self.first_counter(|c| c.height.get()));
                format!("{state} {width}x{height}")
            }
            (state, _) => state.to_owned(),
        };
        let viewers: u64 = self.counters.iter().map(|counters| counters.viewers.get()).sum();
        let recording = match &self.recorder {
            Some(_) if self.is_recording() => "recording",
            Some(_) => "not recording",
            None => "no recorder",
        };
        format!("camera {camera}, viewers {viewers}, {recording}")
    }

    /// What every worker did in the last `seconds` (at most a minute is kept), in the Trace Event Format: JSON
    /// for Perfetto or Chrome.
    pub fn trace(&self, seconds: u32) -> String {
        let since_ns = clock::monotonic_ns().saturating_sub(i64::from(seconds) * 1_000_000_000);
        trace::to_chrome_json(self.counters.iter().map(|worker| &worker.trace), since_ns)
    }

    fn is_recording(&self) -> bool {
        self.recorder.as_ref().is_some_and(|recorder| recorder.counters().active.load(Ordering::Relaxed))
    }

    fn sessions(&self) -> u32 {
        let closed: u64 = self.counters.iter().map(|counters| counters.sessions_closed.get()).sum();
        let adopted = u64::from(self.adopted.load(Ordering::Relaxed));
        u32::try_from(adopted.saturating_sub(closed)).unwrap_or(u32::MAX)
    }

    fn accept(&self, offer_sdp: &str, login_end: Option<BoxFuture<()>>) -> Result<String, ApiError> {
        if self.sessions() >= self.viewers_max {
            let message = format!("all {} places are taken (--max-viewers)", self.viewers_max);
            return Err(ApiError { code: "full", ..busy(message) });
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (viewer, answer) = Viewer::accept(&self.context, id, offer_sdp, clock::now().instant)
            .map_err(|error| refused(&error))?;
        let owner = self.least_loaded();
        let Some(mailbox) = self.mailboxes.get(owner) else { return Err(busy("no worker".to_owned())) };
        let (guard, gone) = session_guard();
        let guard = login_end.is_some().then_some(guard);
        hand_over(&self.mailboxes, owner, Box::new(viewer), guard).map_err(|full| busy(full.to_string()))?;
        self.adopted.fetch_add(1, Ordering::Relaxed);
        if let Some(login_end) = login_end {
            // As many of these as there are sessions.
            tokio::spawn(login_watch::end_with_login(id, login_end, gone, mailbox.clone()));
        }
        Ok(answer)
    }

    fn least_loaded(&self) -> usize {
        let load = |counters: &Arc<WorkerCounters>| counters.sessions.get();
        (0..self.counters.len()).min_by_key(|&index| self.counters.get(index).map_or(0, load)).unwrap_or(0)
    }

    fn camera_state(&self) -> (&'static str, Value) {
        let now_ns = clock::now().monotonic_ns.unsigned_abs();
        match self.camera.status() {
            CameraStatus::Away { reason } => ("away", json!({ "state": "away", "reason": reason })),
            CameraStatus::Attached { layout, .. } => {
                let last = self.first_counter(|counters| counters.last_unit_at_ns.get());
                let live = last != 0 && now_ns.saturating_sub(last) < STALLED_AFTER_NS;
                let state = if live { "live" } else { "stalled" };
                let interval = self.first_counter(|counters| counters.unit_interval_ns.get());
                let fps = if live && interval > 0 { 10_000_000_000 / interval } else { 0 };
                #[expect(clippy::cast_precision_loss, reason = "frames per second for people")]
                let fps = fps as f64 / 10.0;
                let detail = json!({
                    "state": state,
                    "layout": layout.to_string(),
                    "width": self.first_counter(|counters| counters.width.get()),
                    "height": self.first_counter(|counters| counters.height.get()),
                    "fps": fps,
                });
                (state, detail)
            }
        }
    }

    fn first_counter(&self, get: impl Fn(&WorkerCounters) -> u64) -> u64 {
        self.counters.first().map_or(0, |counters| get(counters))
    }
}

fn busy(message: String) -> ApiError {
    ApiError { status: 503, code: "busy", message, retry_after_s: Some(RETRY_AFTER_S) }
}

fn refused(error: &OfferError) -> ApiError {
    ApiError { status: error.status(), code: error.code(), message: error.to_string(), retry_after_s: None }
}

/// Asks every worker for its sessions; one that does not answer in time is left out.
async fn statuses(mailboxes: Vec<Mailbox>) -> Vec<ViewerStatus> {
    let mut statuses = Vec::new();
    for mailbox in mailboxes {
        let (reply, answer) = tokio::sync::oneshot::channel();
        if mailbox.send(Command::Statuses(reply)).is_err() {
            continue;
        }
        if let Ok(Ok(mut some)) = tokio::time::timeout(REPLY_TIMEOUT, answer).await {
            statuses.append(&mut some);
        }
    }
    statuses
}

impl Backend for AppBackend {
    fn offer(&self, sdp: &str, login_end: Option<BoxFuture<()>>) -> BoxFuture<Result<String, ApiError>> {
        Box::pin(std::future::ready(self.accept(sdp, login_end)))
    }

    fn viewers(&self) -> BoxFuture<Value> {
        let mailboxes = self.mailboxes.clone();
        Box::pin(async move { json!(statuses(mailboxes).await) })
    }

    fn recording(&self, command: RecordingCommand) -> BoxFuture<Result<Value, ApiError>> {
        Box::pin(recordings::perform(self.recorder.clone(), command))
    }

    fn open_recording(&self, name: String) -> BoxFuture<Result<Arc<dyn RecordingFile>, ApiError>> {
        Box::pin(recordings::open(self.recorder.clone(), name))
    }

    fn ready(&self) -> Result<(), String> {
        match self.camera_state() {
            ("live", _) => Ok(()),
            ("stalled", _) => Err("the camera is attached but writes no access units".to_owned()),
            (_, detail) => Err(detail
                .get("reason")
                .and_then(Value::as_str)
                .unwrap_or("waiting for the camera")
                .to_owned()),
        }
    }

    fn summary(&self) -> Summary {
        Summary { camera: self.camera_state().1, viewers: self.sessions(), is_recording: self.is_recording() }
    }

    fn metrics(&self) -> String {
        let uptime_ns = clock::now().monotonic_ns.saturating_sub(self.started_ns).unsigned_abs();
        metrics_text::metrics(&metrics_text::Sources {
            workers: &self.counters,
            camera: self.camera.counters(),
            camera_dropped: self.camera.units_dropped(),
            slots: match self.camera.status() {
                CameraStatus::Attached { layout, .. } => layout.slot_count(),
                CameraStatus::Away { .. } => 0,
            },
            camera_live: self.ready().is_ok(),
            recorder: self.recorder.as_ref().map(RecorderHandle::counters),
            logins: &self.logins,
            sessions: self.sessions(),
            viewers_max: self.viewers_max,
            uptime_ns,
        })
    }
}
