//! Implements [`Backend`] for the HTTP endpoints: makes sessions, distributes them over the workers and reports the
//! state of the program. All of this runs on the HTTP thread, except profiles and traces, which get a thread each. This
//! module must not touch sockets or the camera's ring.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::broadcast;

use crate::app::addresses::Addresses;
use crate::app::detections::DetectionHub;
use crate::app::publish::board::PublishBoard;
use crate::app::service::{Health, Heartbeat};
use crate::app::viewer_places::{GivesWay, NoPlace, SessionKey, ViewerPlaces};
use crate::app::{live, login_watch, recordings, sessions};
use crate::base::{clock, limits};
use crate::camera::{Camera, CameraStatus};
use crate::h264::SlotFault;
use crate::http::{
    ApiError, Backend, BoxFuture, CameraPicture, CameraSummary, Inspection, LiveFormat, LiveOrigin,
    LiveStream, OfferOrigin, Offered, PlaceHolder, PostedDetections, RecordingCommand, RecordingFile,
    RecordingReply, RecordingStatus, SessionCommand, SessionReply, StreamNames, Summary, ViewerOffer,
};
use crate::live::Live;
use crate::metrics::status::ViewerStatus;
use crate::metrics::{LoginCounters, WorkerCounters, trace};
use crate::profiling::{self, Contention, ProfileError};
use crate::recorder::RecorderHandle;
use crate::session::{OfferError, Viewer};
use crate::worker::commands::{Command, Mailbox, hand_over, session_guard};

/// Longest time to wait until a worker has reported its viewers.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// Seconds in the `Retry-After` header of a refused offer or profile.
const RETRY_AFTER_S: u32 = 5;

/// The implementation of [`Backend`]. It gives the HTTP endpoints access to the rest of the program.
pub struct AppBackend {
    pub(super) stream: StreamNames,
    pub(super) camera: Camera,
    pub(super) addresses: Addresses,
    pub(super) mailboxes: Vec<Mailbox>,
    pub(super) counters: Vec<Arc<WorkerCounters>>,
    /// Handle of the recorder; `None` if the server was started with --no-recorder.
    pub(super) recorder: Option<RecorderHandle>,
    /// What was found in the pictures.
    pub(super) detections: Arc<DetectionHub>,
    /// The stream for viewers over HTTP.
    pub(super) live: Arc<Live>,
    pub(super) logins: Arc<LoginCounters>,
    /// State of publishing; `None` without --whip.
    pub(super) publish: Option<Arc<PublishBoard>>,
    pub(super) viewers_max: u32,
    pub(super) places: ViewerPlaces<PlaceHolder>,
    pub(super) next_id: AtomicU32,
    /// Number of sessions made since the start. `counters` hold the number of sessions that have closed.
    pub(super) adopted: AtomicU32,
    /// Time of the start, in nanoseconds of CLOCK_MONOTONIC.
    pub(super) started_ns: i64,
}

impl AppBackend {
    /// Sends every worker the command to close its sessions and to end.
    pub fn stop(&self) {
        for mailbox in &self.mailboxes {
            // A full mailbox refuses the command, so this loop tries again. A worker empties its mailbox within one
            // turn.
            for _ in 0..100 {
                if mailbox.send(Command::Stop).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Requests that the recorder finishes a running recording and then ends. Does not wait until that has happened.
    pub fn stop_recorder(&self) {
        if let Some(recorder) = &self.recorder {
            recorder.shutdown();
        }
    }

    /// Returns the status line and the heartbeats for the service manager. The threads that live video needs are vital:
    /// the workers and the camera wait. The recorder is not: if the disk hangs, a restart would only interrupt the live
    /// picture.
    pub fn health(&self) -> Health {
        let beat = |name: String, turns| Heartbeat { name, turns, is_vital: true };
        let workers = self.counters.iter().enumerate();
        let workers = workers.map(|(index, worker)| beat(format!("worker {index}"), worker.turns.get()));
        let camera_wait = beat("camera wait".to_owned(), self.camera.counters().wakes.get());
        let recorder = self.recorder.iter().map(|recorder| Heartbeat {
            name: "the recorder".to_owned(),
            turns: recorder.counters().turns.get(),
            is_vital: false,
        });
        Health {
            summary: self.status_line(),
            heartbeats: workers.chain([camera_wait]).chain(recorder).collect(),
        }
    }

    fn status_line(&self) -> String {
        let camera = match self.camera_summary() {
            CameraSummary::Away { .. } => "away".to_owned(),
            CameraSummary::Live(picture) => format!("live {}x{}", picture.width, picture.height),
            CameraSummary::Stalled(picture) => format!("stalled {}x{}", picture.width, picture.height),
        };
        let viewers: u64 = self.counters.iter().map(|counters| counters.viewers.get()).sum();
        let recording = match &self.recorder {
            Some(_) if self.is_recording() => "recording",
            Some(_) => "not recording",
            None => "no recorder",
        };
        format!("camera {camera}, viewers {viewers}, {recording}")
    }

    /// Returns what the workers did in the last `seconds`, as JSON in the Trace Event Format, which Perfetto and Chrome
    /// can show. The workers keep the events of about one minute.
    fn trace(&self, seconds: u32) -> String {
        let since_ns = clock::monotonic_ns().saturating_sub(i64::from(seconds) * 1_000_000_000);
        trace::to_chrome_json(self.counters.iter().map(|worker| &worker.trace), since_ns)
    }

    pub(super) fn is_recording(&self) -> bool {
        self.recorder.as_ref().is_some_and(|recorder| recorder.counters().active.load(Ordering::Relaxed))
    }

    pub(super) fn sessions(&self) -> u32 {
        let closed: u64 = self.counters.iter().map(|counters| counters.sessions_closed.get()).sum();
        let adopted = u64::from(self.adopted.load(Ordering::Relaxed));
        u32::try_from(adopted.saturating_sub(closed)).unwrap_or(u32::MAX)
    }

    fn accept(&self, offer: &ViewerOffer, origin: OfferOrigin) -> Result<Offered, ApiError> {
        let OfferOrigin { local, holder, login_end } = origin;
        // Checked first, so that offers to a full server cost little. A malformed offer must not take a place away.
        self.places.check_room(holder).map_err(|reason| self.no_place(reason, holder))?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let now = clock::now();
        let context = self.addresses.context(local, now.monotonic_ns);
        let (mut viewer, answer) =
            Viewer::accept(&context, id, &offer.sdp, now.instant).map_err(|error| refused(&error))?;
        viewer.allow_playout_delay(offer.playout_delay_max_ms);
        let key = SessionKey::random()
            .ok_or_else(|| ApiError::new(500, "internal", "the system gave no random numbers"))?;
        let tag = viewer.ice_tag().to_owned();
        let owner = self.least_loaded();
        let Some(mailbox) = self.mailboxes.get(owner) else {
            return Err(ApiError::busy("no worker runs", RETRY_AFTER_S));
        };
        self.make_room(holder)?;
        let (guard, gone) = session_guard();
        let place = guard.place();
        hand_over(&self.mailboxes, owner, Box::new(viewer), Some(guard))
            .map_err(|full| ApiError::busy(full.to_string(), RETRY_AFTER_S))?;
        self.places.hold(holder, id, owner, Some(key), place);
        self.adopted.fetch_add(1, Ordering::Relaxed);
        if let Some(login_end) = login_end {
            // This task watches the login and ends the session when the login ends.
            tokio::spawn(login_watch::end_with_login(id, login_end, gone, mailbox.clone()));
        }
        Ok(Offered { answer, key: key.to_string(), tag })
    }

    /// Makes sure that there is a free place for a viewer of this address or login (`holder`). If all places are taken,
    /// another session may be ended for it.
    fn make_room(&self, holder: Option<PlaceHolder>) -> Result<(), ApiError> {
        let gives_way = self.places.make_room(holder).map_err(|reason| self.no_place(reason, holder))?;
        if let Some(GivesWay { viewer, worker }) = gives_way {
            // If the mailbox is full, the session lasts until its handshake times out.
            let _ = self.mailboxes.get(worker).map(|mailbox| mailbox.send(Command::GiveWay { viewer }));
        }
        Ok(())
    }

    /// Opens the stream for a viewer over HTTP. The place of the viewer is free when the returned value is dropped.
    fn open_live(&self, format: LiveFormat, origin: &LiveOrigin) -> Result<live::Opened, ApiError> {
        if let CameraStatus::Away { reason } = self.camera.status() {
            return Err(ApiError { code: "camera_away", ..ApiError::busy(reason, RETRY_AFTER_S) });
        }
        self.make_room(origin.holder)?;
        let (guard, _) = session_guard();
        // The viewer has an open connection, so it does not give way as a session does whose viewer is unproven.
        guard.note_stun();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.places.hold(origin.holder, id, 0, None, guard.place());
        Ok(live::open(&self.live, id, format, origin, guard))
    }

    /// Sends a command to the worker that has the session. The key of a deleted session is forgotten at once, so that
    /// only the first of several deletes finds the session.
    fn command_session(
        &self,
        key: &str,
        command: SessionCommand,
    ) -> Result<Option<sessions::Pending>, ApiError> {
        let (viewer, worker) =
            SessionKey::parse(key).and_then(|key| self.places.find(&key)).ok_or_else(sessions::unknown)?;
        let mailbox = self.mailboxes.get(worker).ok_or_else(sessions::unknown)?;
        match command {
            SessionCommand::Find => Ok(None),
            SessionCommand::Report(report) => match self.places.report(viewer, report, clock::monotonic_ns())
            {
                true => Ok(None),
                false => Err(sessions::reported_too_soon()),
            },
            SessionCommand::Delete => {
                let pending = sessions::delete(viewer, mailbox)?;
                self.places.forget_key(viewer);
                Ok(Some(pending))
            }
            SessionCommand::Fragment { text, if_match } => {
                sessions::send_fragment(viewer, mailbox, &text, if_match).map(Some)
            }
        }
    }

    /// Returns the answer to an offer that gets no place.
    fn no_place(&self, reason: NoPlace, holder: Option<PlaceHolder>) -> ApiError {
        let max = self.viewers_max;
        let message = match (reason, holder) {
            (NoPlace::Share, Some(PlaceHolder::Login(_))) => {
                format!(
                    "this login holds half of the {max} viewer slots (--max-viewers), and few are free: try again later"
                )
            }
            (NoPlace::Share, _) => {
                format!(
                    "this address holds half of the {max} viewer slots (--max-viewers), and few are free: try again later"
                )
            }
            (NoPlace::Full, _) => {
                format!("all {max} viewer slots are in use (--max-viewers): try again later")
            }
        };
        ApiError { code: "full", ..ApiError::busy(message, RETRY_AFTER_S) }
    }

    pub(super) fn least_loaded(&self) -> usize {
        let loads = self.counters.iter().map(|counters| counters.sessions.get());
        loads.enumerate().min_by_key(|&(_, load)| load).map_or(0, |(index, _)| index)
    }

    fn camera_summary(&self) -> CameraSummary {
        let layout = match self.camera.status() {
            CameraStatus::Away { reason } => return CameraSummary::Away { reason },
            CameraStatus::Attached { layout, .. } => layout.to_string(),
        };
        let now_ns = clock::now().monotonic_ns.unsigned_abs();
        let last_ns = self.first_counter(|counters| counters.last_unit_at_ns.get());
        let stalled_after_ns = self.first_counter(|counters| counters.stalled_after_ns.get());
        let is_live = last_ns != 0 && now_ns.saturating_sub(last_ns) < stalled_after_ns;
        let interval_ns = self.first_counter(|counters| counters.unit_interval_ns.get());
        let tenths_fps = if is_live && interval_ns > 0 { 10_000_000_000 / interval_ns } else { 0 };
        #[expect(clippy::cast_precision_loss, reason = "the frame rate is for display")]
        let fps = tenths_fps as f64 / 10.0;
        let picture = CameraPicture {
            layout,
            width: self.first_counter(|counters| counters.width.get()),
            height: self.first_counter(|counters| counters.height.get()),
            fps,
            b_frames: self.first_counter(|counters| counters.b_frames.get()) > 0,
            bitrate_request_kbps: Some(self.camera.counters().bitrate_request_kbps.get())
                .filter(|kbps| *kbps > 0),
            stalled_after_ms: stalled_after_ns / 1_000_000,
            last_idr_s: self.last_idr_s(now_ns),
            notice: self.notice(now_ns).filter(|_| is_live),
            slot_fault: SlotFault::of_number(self.first_counter(|counters| counters.slot_fault.get()))
                .map(SlotFault::text),
        };
        if is_live { CameraSummary::Live(picture) } else { CameraSummary::Stalled(picture) }
    }

    fn last_idr_s(&self, now_ns: u64) -> Option<u64> {
        let last_ns = self.first_counter(|counters| counters.last_idr_at_ns.get());
        (last_ns != 0).then(|| now_ns.saturating_sub(last_ns) / 1_000_000_000)
    }

    /// Returns what connected viewers wait for although units arrive, or `None` if no viewer waits.
    fn notice(&self, now_ns: u64) -> Option<String> {
        let waiting: u64 = self.counters.iter().map(|counters| counters.viewers_without_idr.get()).sum();
        (waiting > 0).then(|| waiting_for_idr(self.last_idr_s(now_ns)))
    }

    fn first_counter(&self, get: impl Fn(&WorkerCounters) -> u64) -> u64 {
        self.counters.first().map_or(0, |counters| get(counters))
    }
}

/// Returns the text for a viewer or a recording that cannot begin before the camera's next IDR.
fn waiting_for_idr(last_idr_s: Option<u64>) -> String {
    match last_idr_s {
        Some(age_s) => format!("waiting for the camera's next IDR, last one {age_s} s ago"),
        None => "waiting for the camera's next IDR; none has arrived yet".to_owned(),
    }
}

fn refused(error: &OfferError) -> ApiError {
    ApiError { status: error.status(), code: error.code(), message: error.to_string(), retry_after_s: None }
}

/// Returns the state of all viewers over HTTP (`over_http`) and of all sessions, then of at most
/// [`limits::ENDED_SESSIONS_MAX`] that ended last. The sessions of a worker that does not answer in time are left out.
async fn viewers(mailboxes: Vec<Mailbox>, over_http: Vec<ViewerStatus>) -> Vec<ViewerStatus> {
    let mut viewers = over_http;
    for mailbox in mailboxes {
        let (reply, answer) = tokio::sync::oneshot::channel();
        if mailbox.send(Command::Statuses(reply)).is_err() {
            continue;
        }
        if let Ok(Ok(statuses)) = tokio::time::timeout(REPLY_TIMEOUT, answer).await {
            viewers.extend(statuses.into_iter().filter(|status| !status.is_publisher));
        }
    }
    viewers.sort_unstable_by_key(|viewer| (viewer.ended.as_ref().map(|ended| ended.ms_ago), viewer.id));
    let live = viewers.iter().filter(|viewer| viewer.ended.is_none()).count();
    viewers.truncate(live + limits::ENDED_SESSIONS_MAX);
    viewers
}

impl Backend for AppBackend {
    fn offer(&self, offer: ViewerOffer, origin: OfferOrigin) -> BoxFuture<Result<Offered, ApiError>> {
        Box::pin(std::future::ready(self.accept(&offer, origin)))
    }

    fn session(&self, key: &str, command: SessionCommand) -> BoxFuture<Result<SessionReply, ApiError>> {
        let pending = self.command_session(key, command);
        Box::pin(async move {
            match pending? {
                Some(pending) => sessions::finish(pending).await,
                None => Ok(SessionReply::Found),
            }
        })
    }

    fn live(
        &self,
        format: LiveFormat,
        origin: LiveOrigin,
    ) -> BoxFuture<Result<Box<dyn LiveStream>, ApiError>> {
        let opened = self.open_live(format, &origin);
        let no_idr = waiting_for_idr(self.last_idr_s(clock::now().monotonic_ns.unsigned_abs()));
        Box::pin(async move { live::wait_for_start(opened?, no_idr).await })
    }

    fn stream(&self) -> StreamNames {
        self.stream.clone()
    }

    fn viewers(&self) -> BoxFuture<Vec<ViewerStatus>> {
        let over_http = live::statuses(&self.live, clock::now().instant).collect();
        let reports = self.places.reports(clock::monotonic_ns());
        let listed = viewers(self.mailboxes.clone(), over_http);
        Box::pin(async move {
            let mut listed = listed.await;
            for viewer in listed.iter_mut().filter(|viewer| viewer.ended.is_none()) {
                viewer.glass_ms = reports.iter().find(|(id, _)| *id == viewer.id).map(|(_, glass)| *glass);
            }
            listed
        })
    }

    fn recording(&self, command: RecordingCommand) -> BoxFuture<Result<RecordingReply, ApiError>> {
        Box::pin(recordings::run(self.recorder.clone(), command))
    }

    fn recording_status(&self) -> BoxFuture<Result<RecordingStatus, ApiError>> {
        Box::pin(recordings::status(self.recorder.clone()))
    }

    fn open_recording(
        &self,
        name: String,
        until: Option<u64>,
    ) -> BoxFuture<Result<Arc<dyn RecordingFile>, ApiError>> {
        Box::pin(recordings::open(self.recorder.clone(), name, until))
    }

    fn inspect(&self, what: Inspection) -> Result<Vec<u8>, ApiError> {
        let result = match what {
            Inspection::Index => Ok(profiling::index().as_bytes().to_vec()),
            Inspection::Cmdline => Ok(profiling::cmdline()),
            Inspection::Trace { seconds } => Ok(self.trace(seconds).into_bytes()),
            Inspection::Cpu { seconds } => {
                let duration = Duration::from_secs(u64::from(seconds));
                profiling::cpu_profile(duration, limits::PROFILE_FREQUENCY_HZ)
            }
            Inspection::Heap => Ok(profiling::heap_profile(profiling::Heap::InUse)),
            Inspection::Allocs => Ok(profiling::heap_profile(profiling::Heap::Allocs)),
            Inspection::Threads { debug } => profiling::threads(debug),
            Inspection::Mutex => Ok(profiling::contention_profile(Contention::Mutex)),
            Inspection::Block => Ok(profiling::contention_profile(Contention::Block)),
        };
        result.map_err(|error| match error {
            ProfileError::Busy => ApiError::busy(error.to_string(), RETRY_AFTER_S),
            ProfileError::Range(_) => ApiError::new(400, "bad_query", error.to_string()),
            ProfileError::Signal(_) => ApiError::new(500, "profile", error.to_string()),
        })
    }

    fn ready(&self) -> Result<(), String> {
        match self.camera_summary() {
            CameraSummary::Live(_) => Ok(()),
            CameraSummary::Stalled(_) => Err("the camera is attached but writes no access units".to_owned()),
            CameraSummary::Away { reason } => Err(reason),
        }
    }

    fn summary(&self) -> Summary {
        Summary {
            camera: self.camera_summary(),
            viewers: self.sessions(),
            http_viewers: u32::try_from(self.live.viewer_count()).unwrap_or(u32::MAX),
            is_recording: self.is_recording(),
            detections: self.detections.status(clock::monotonic_ns()),
            publish: self.publish.as_ref().map(|publish| publish.status()),
        }
    }

    fn detections(&self) -> broadcast::Receiver<Bytes> {
        self.detections.subscribe_events()
    }

    fn post_detections(&self, posted: PostedDetections) -> Result<(), ApiError> {
        self.detections.post(&posted, clock::monotonic_ns())
    }

    fn metrics(&self) -> String {
        self.metrics_page()
    }
}
