//! The recorder's thread. It passes access units, commands and completions to `recording.rs`, and the operations that
//! result from them to `disk.rs`. Each turn carries out all outputs, then waits for the next input.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::disk::Disk;
use super::file_threads::{FileThreads, RecorderThreads};
use super::library::Library;
use super::names::{Format, Stem, Zone};
use super::operation::{Completion, FileId, IncomingUnit, Output, Start};
use super::pre_roll::{PreRoll, StoredUnit};
use super::recording::{Recording, StartPoint};
use super::results_feed::ResultsFeed;
use super::types::{
    Event, RecordedEvent, RecorderConfig, RecorderError, RecorderState, StartReply, StartRequest, Status,
    StopReply,
};
use crate::base::clock::{monotonic_ns, unix_s};
use crate::base::limits;
use crate::camera::{Camera, CameraStatus, Cursor, Next, UnitView};
use crate::h264::Assembler;

type Reply<T> = oneshot::Sender<Result<T, RecorderError>>;

/// A request to the recorder, with the channel on which the recorder sends its reply.
pub(super) enum Command {
    Start(StartRequest, Reply<StartReply>),
    /// Record an event of this class, from so many seconds before now on.
    StartEvent(String, f64, Reply<StartReply>),
    /// The event has ended.
    EndEvent(Event, Reply<Option<(String, RecordedEvent)>>),
    Stop(Reply<StopReply>),
    Heartbeat(Reply<()>),
    Status(Reply<Status>),
    KnownSets(Reply<Assembler>),
}

pub(super) struct Engine {
    camera: Camera,
    cursor: Cursor,
    recording: Recording,
    disk: Disk,
    completions: mpsc::UnboundedReceiver<(FileId, Completion)>,
    commands: mpsc::Receiver<Command>,
    /// Signals the shutdown: the value changes, or all senders are dropped.
    shutdown: watch::Receiver<bool>,
    /// Notified when the camera publishes a unit.
    unit_published: Arc<Notify>,
    library: Library,
    config: RecorderConfig,
    retention_ran_at_ns: i64,
    retention_task: Option<JoinHandle<()>>,
    file_operations: FileThreads,
    zone: Zone,
    /// Copies of the newest units, if the configuration wants them.
    pre_roll: Option<PreRoll>,
    /// Copies with which the recording begins, before the cursor's next unit.
    begin: VecDeque<StoredUnit>,
    results: ResultsFeed,
    /// The unit that is being written. The view holds the lease on its slot until the write completes.
    current: Option<UnitView>,
    start_reply: Option<Reply<StartReply>>,
    stop_reply: Option<Reply<StopReply>>,
    /// True if the camera lapped the cursor between two polls while no recording ran. From then on, the idle recorder
    /// also wakes for every published unit.
    follow_while_idle: bool,
    shutting_down: bool,
}

impl Engine {
    pub(super) fn new(
        camera: Camera,
        library: Library,
        config: RecorderConfig,
        commands: mpsc::Receiver<Command>,
        shutdown: watch::Receiver<bool>,
        unit_published: Arc<Notify>,
        threads: RecorderThreads,
    ) -> Engine {
        let (disk, completions) = Disk::new(library.clone(), threads.disk);
        let directory = config.directory.display().to_string();
        let pre_roll = config.pre_roll.map(PreRoll::new);
        let results = ResultsFeed::new(config.results.clone(), config.pre_roll);
        Engine {
            cursor: camera.cursor(),
            camera,
            recording: Recording::new(Arc::clone(&library.counters), directory),
            disk,
            completions,
            commands,
            shutdown,
            unit_published,
            library,
            config,
            retention_ran_at_ns: i64::MIN,
            retention_task: None,
            file_operations: threads.operations,
            zone: Zone::local(),
            follow_while_idle: pre_roll.is_some(),
            results,
            pre_roll,
            begin: VecDeque::new(),
            current: None,
            start_reply: None,
            stop_reply: None,
            shutting_down: false,
        }
    }

    /// Runs the recorder until its shutdown is requested or all handles are dropped.
    pub(super) async fn run(mut self) {
        loop {
            // Without turns, the service manager learns that the recorder is stuck.
            if !self.disk.is_stuck(monotonic_ns()) {
                self.library.counters.turns.add(1);
            }
            self.advance();
            let idle = self.recording.state() == RecorderState::Idle;
            if self.shutting_down && idle {
                return;
            }
            let is_waiting_for_unit = self.recording.can_take_unit() || (idle && self.follow_while_idle);
            let wait = self.wait_max(idle);
            tokio::select! {
                Some((file, completion)) = self.completions.recv() => self.handle_completion(file, completion),
                Some(command) = self.commands.recv() => self.handle_command(command),
                Some(result) = self.results.next() => {
                    self.results.keep(monotonic_ns(), &result);
                    self.recording.push_result(&result);
                }
                _ = self.shutdown.changed(), if !self.shutting_down => {
                    self.shutting_down = true;
                    self.recording.handle_shutdown(monotonic_ns());
                }
                () = self.unit_published.notified(), if is_waiting_for_unit => {}
                () = tokio::time::sleep(wait) => {}
            }
            let now_ns = monotonic_ns();
            if self.recording.next_deadline().is_some_and(|deadline| deadline <= now_ns) {
                self.recording.handle_tick(now_ns);
            }
        }
    }

    /// Returns the longest time to wait for an input: the time until the next deadline or the next poll of the ring,
    /// whichever comes first.
    fn wait_max(&self, idle: bool) -> std::time::Duration {
        let poll_ms = if idle { limits::RECORDER_IDLE_POLL_MS } else { limits::RECORDER_POLL_MS };
        let poll = std::time::Duration::from_millis(poll_ms);
        let deadline = self.recording.next_deadline().map(|deadline_ns| {
            std::time::Duration::from_nanos(u64::try_from(deadline_ns - monotonic_ns()).unwrap_or(0))
        });
        deadline.map_or(poll, |deadline| deadline.min(poll))
    }

    /// Carries out all outputs and takes units from the ring, until the recorder must wait for a completion, a command
    /// or a new unit.
    fn advance(&mut self) {
        let mut ring_is_empty = false;
        loop {
            if let Some(output) = self.recording.poll_output() {
                self.execute(output);
            } else if self.recording.can_take_unit() && !ring_is_empty {
                ring_is_empty = !self.record_next(monotonic_ns());
            } else {
                break;
            }
        }
        if self.recording.state() == RecorderState::Idle {
            self.cache_parameter_sets(monotonic_ns());
        }
        self.delete_old_recordings();
    }

    fn execute(&mut self, output: Output) {
        match output {
            Output::Started(result) => {
                self.log_wait(&result);
                if result.is_ok() {
                    // The pictures of these results are about to be recorded.
                    self.results.begin().iter().for_each(|result| self.recording.push_result(result));
                }
                reply_to_start(self.start_reply.take(), result);
            }
            Output::Stopped(result) => reply(self.stop_reply.take(), result),
            Output::Write { .. } => {
                let unit = self.current.clone();
                self.disk.execute(output, move || unit.is_none_or(|unit| unit.is_intact()));
            }
            output => self.disk.execute(output, || true),
        }
    }

    /// Logs that a recording which has just started begins only at the camera's next IDR.
    fn log_wait(&self, started: &Result<StartReply, RecorderError>) {
        let report = self.recording.report(monotonic_ns());
        let waits = started.as_ref().is_ok_and(|reply| reply.waits_for_idr);
        if let Some(text) = report.filter(|_| waits).and_then(|report| report.waiting_text()) {
            log::warn!("the recording is {text}: the camera's ring holds no IDR");
        }
    }

    /// Records the next unit of the ring. Returns false if the ring holds no further unit now.
    fn record_next(&mut self, now_ns: i64) -> bool {
        if let Some(stored) = self.begin.pop_front() {
            self.current = None;
            self.recording.push_unit(stored.read_ns, &stored.unit);
            return true;
        }
        match self.cursor.next(now_ns) {
            Next::Unit(view) => {
                let incoming = IncomingUnit::from(&view);
                let start = self.recording.push_unit(now_ns, &incoming);
                store(self.pre_roll.as_mut(), &view, start, now_ns);
                self.current = Some(view);
                if !self.recording.has_pending_unit() {
                    self.current = None;
                }
            }
            Next::Lapped { missed_units } => {
                self.library.counters.lapped.add_shared(u64::from(missed_units));
                self.handle_gap(missed_units);
            }
            Next::Rejected(_) => {
                self.library.counters.rejected.add_shared(1);
                self.handle_gap(1);
            }
            Next::Restarted => self.handle_gap(0),
            Next::Empty | Next::Away => {
                self.recording.handle_ring_empty(now_ns, self.cursor.begun_slots() > 0);
                return false;
            }
        }
        true
    }

    /// Reads new units while no recording runs, and caches their parameter sets. Some cameras send parameter sets only
    /// once, so a later recording may need the cached ones.
    fn cache_parameter_sets(&mut self, now_ns: i64) {
        self.current = None;
        for _ in 0..limits::IDLE_UNITS_PER_POLL_MAX {
            match self.cursor.next(now_ns) {
                Next::Unit(view) => {
                    let start = self.remember_intact(now_ns, &view);
                    store(self.pre_roll.as_mut(), &view, start, now_ns);
                }
                Next::Lapped { .. } => {
                    self.follow_while_idle = true;
                    self.handle_cursor_moved();
                }
                Next::Rejected(_) | Next::Restarted => self.handle_cursor_moved(),
                Next::Empty | Next::Away => return,
            }
        }
    }

    /// Learns from a unit without recording it. Returns how decoding can start with it. Returns `None` if it cannot, or
    /// if the camera overwrote the unit.
    fn remember_intact(&mut self, now_ns: i64, view: &UnitView) -> Option<StartPoint> {
        let start = self.recording.remember(now_ns, &view.bytes, view.captured_monotonic_ns);
        let intact = view.is_intact();
        if !intact {
            self.recording.forget_parameter_sets();
        }
        start.filter(|_| intact)
    }

    fn handle_completion(&mut self, file: FileId, completion: Completion) {
        let now_ns = monotonic_ns();
        let was_idle = self.recording.state() == RecorderState::Idle;
        let is_write = matches!(completion, Completion::Written { .. });
        if let Completion::Finished(Err(error)) = &completion {
            log::error!("a recording file could not be finished: {error}");
        }
        self.disk.note_completion(now_ns);
        self.recording.handle_completion(now_ns, file, completion);
        if !self.recording.has_pending_unit() {
            self.current = None;
        }
        if is_write && let Some(progress) = self.recording.progress(file) {
            self.disk.publish_progress(file, progress);
        }
        if !was_idle && self.recording.state() == RecorderState::Idle {
            self.handle_recording_end();
        }
    }

    fn handle_recording_end(&mut self) {
        self.begin.clear();
        if self.pre_roll.is_none() {
            self.cursor = self.camera.cursor();
        }
        self.results.handle_recording_end();
        self.retention_ran_at_ns = i64::MIN;
        match self.recording.last() {
            (Some(last), None) if !last.kept => log::warn!("{}", last.not_kept_text()),
            (Some(last), None) => log::info!(
                "recorded {}: {} units, {} bytes, {:.1} s, {} units dropped (stop reason: {})",
                last.report.name,
                last.report.frame_count,
                last.report.bytes_written,
                last.report.duration,
                last.report.dropped_units,
                last.reason.as_str()
            ),
            (_, Some(error)) => log::error!("the recording ended with an error: {error}"),
            (None, None) => {}
        }
    }

    fn handle_command(&mut self, command: Command) {
        let now_ns = monotonic_ns();
        match command {
            Command::Start(request, caller) => match self.take_over(now_ns, &request) {
                Some(taken) => reply(Some(caller), Ok(taken)),
                None => match self.start(now_ns, &request, None) {
                    Ok(()) => self.start_reply = Some(caller),
                    Err(error) => reply_to_start(Some(caller), Err(error)),
                },
            },
            Command::StartEvent(label, pre_roll_s, caller) => {
                let request = StartRequest { pre_roll_s: Some(pre_roll_s), ..StartRequest::default() };
                match self.start(now_ns, &request, Some(label)) {
                    Ok(()) => self.start_reply = Some(caller),
                    Err(error) => reply(Some(caller), Err(error)),
                }
            }
            Command::EndEvent(event, caller) => {
                reply(Some(caller), Ok(self.recording.handle_event_end(now_ns, &event)));
            }
            Command::Stop(caller) => match self.recording.handle_stop(now_ns) {
                Ok(()) => self.stop_reply = Some(caller),
                Err(error) => reply(Some(caller), Err(error)),
            },
            Command::Heartbeat(caller) => reply(Some(caller), self.recording.handle_heartbeat(now_ns)),
            Command::Status(caller) => reply(Some(caller), Ok(self.status())),
            Command::KnownSets(caller) => reply(Some(caller), Ok(self.recording.known_sets())),
        }
    }

    fn status(&self) -> Status {
        let state = self.recording.state();
        let (last, error) = self.recording.last();
        let report = self.recording.report(monotonic_ns()).or_else(|| last.map(|last| last.report.clone()));
        let reason = if state == RecorderState::Idle { last.map(|last| last.reason.clone()) } else { None };
        let pre_roll_held_s = self.pre_roll.as_ref().map(PreRoll::held_s);
        let (recording, error) = (state == RecorderState::Recording, error.cloned());
        Status { recording, state, report, reason, error, pre_roll_held_s }
    }

    /// Tells the state machine and the copies that units are missing before the cursor's next one.
    fn handle_gap(&mut self, missed_units: u32) {
        self.recording.handle_gap(missed_units);
        if let Some(pre_roll) = &mut self.pre_roll {
            pre_roll.clear();
        }
    }

    /// Does the same while no recording runs.
    fn handle_cursor_moved(&mut self) {
        self.recording.handle_cursor_moved();
        if let Some(pre_roll) = &mut self.pre_roll {
            pre_roll.clear();
        }
    }

    /// Lets a request without a name take over the recording of an event. Returns `None` if that is not possible.
    fn take_over(&mut self, now_ns: i64, request: &StartRequest) -> Option<StartReply> {
        if request.filename.as_deref().is_some_and(|name| !name.is_empty()) {
            return None;
        }
        let start = validate(request, self.config.format, &self.zone, None).ok()?;
        self.recording.take_over(now_ns, &start)
    }

    fn start(
        &mut self,
        now_ns: i64,
        request: &StartRequest,
        event_label: Option<String>,
    ) -> Result<(), RecorderError> {
        self.recording.check_can_start()?;
        if self.shutting_down {
            return Err(RecorderError::Unresponsive);
        }
        let mut start = validate(request, self.config.format, &self.zone, event_label)?;
        let pre_roll_ns = seconds("pre_roll_s", request.pre_roll_s)?.unwrap_or(0);
        if let CameraStatus::Away { .. } = self.camera.status() {
            return Err(RecorderError::CameraAway);
        }
        self.cache_parameter_sets(now_ns);
        if self.begin_with_copies(now_ns, pre_roll_ns) {
            return self.recording.handle_start(now_ns, start);
        }
        let begin = self.find_start(now_ns, pre_roll_ns);
        self.recording.handle_cursor_moved();
        start.waits_for_idr = begin.is_none();
        self.cursor = begin.unwrap_or_else(|| self.camera.cursor());
        self.recording.handle_start(now_ns, start)
    }

    /// Lets the recording begin with copies of units. The cursor is then directly after them. Returns false if there are
    /// none.
    fn begin_with_copies(&mut self, now_ns: i64, pre_roll_ns: i64) -> bool {
        let Some((units, begin)) = self.pre_roll.as_ref().and_then(|held| held.from(now_ns, pre_roll_ns))
        else {
            return false;
        };
        self.recording.handle_cursor_moved();
        for StoredUnit { unit, read_ns, .. } in units.range(..begin) {
            self.recording.remember(*read_ns, &unit.bytes, unit.captured_ns);
        }
        self.begin = units.range(begin..).cloned().collect();
        self.recording.handle_cursor_moved();
        true
    }

    /// Returns a cursor at the IDR with which the recording shall begin.
    ///
    /// Chooses the newest IDR that is at least `pre_roll_ns` old, so that the recording covers the whole pre-roll. If
    /// no IDR in the ring is that old, chooses the oldest IDR in the ring. If the ring holds no IDR, because the GOP is
    /// longer than the ring, chooses a recovery point in the same way. Returns `None` if the ring holds neither.
    fn find_start(&mut self, now_ns: i64, pre_roll_ns: i64) -> Option<Cursor> {
        self.recording.handle_cursor_moved();
        let newest = self.camera.cursor();
        let CameraStatus::Attached { layout, .. } = self.camera.status() else { return None };
        let slots = layout.slot_count();
        let held = slots.saturating_sub(limits::PRE_ROLL_MARGIN_UNITS.min(slots / 2));
        let (oldest, mut cursor) =
            (1..=held).rev().find_map(|back| Some((back, newest.units_back(back)?)))?;
        let (mut idr, mut recovery_point) = (None, None);
        for back in (1..=oldest).rev() {
            match cursor.next(now_ns) {
                Next::Unit(view) => {
                    let old_enough = view.captured_monotonic_ns <= now_ns.saturating_sub(pre_roll_ns);
                    let chosen = match self.remember_intact(now_ns, &view) {
                        Some(StartPoint::Idr) => &mut idr,
                        Some(StartPoint::RecoveryPoint) => &mut recovery_point,
                        None => continue,
                    };
                    if old_enough || chosen.is_none() {
                        *chosen = Some(back);
                    }
                }
                Next::Rejected(_) => self.recording.handle_cursor_moved(),
                Next::Lapped { .. } | Next::Restarted | Next::Empty | Next::Away => break,
            }
        }
        newest.units_back(idr.or(recovery_point)?)
    }

    /// Applies the retention rules if [`limits::RETENTION_INTERVAL_NS`] has passed since the last time. The work runs
    /// on the thread for operations on the directory.
    fn delete_old_recordings(&mut self) {
        let now_ns = monotonic_ns();
        let due = now_ns >= self.retention_ran_at_ns.saturating_add(limits::RETENTION_INTERVAL_NS);
        let busy = self.retention_task.as_ref().is_some_and(|task| !task.is_finished());
        if self.config.retention.is_empty() || !due || busy {
            return;
        }
        self.retention_ran_at_ns = now_ns;
        let (library, rules) = (self.library.clone(), self.config.retention);
        let operations = self.file_operations.clone();
        let retain = move || match library.retain(&rules, u64::try_from(unix_s()).unwrap_or(0)) {
            Ok(retired) => retired.iter().for_each(|name| log::info!("retention: deleted {name}")),
            Err(error) => log::warn!("the retention rules could not be applied: {error}"),
        };
        self.retention_task = Some(tokio_uring::spawn(async move {
            let _not_run_if_the_queue_is_full = operations.run(retain).await;
        }));
    }
}

/// Stores a copy of a unit that was just read from the ring.
fn store(pre_roll: Option<&mut PreRoll>, view: &UnitView, start: Option<StartPoint>, now_ns: i64) {
    let Some(pre_roll) = pre_roll else { return };
    let bytes = Bytes::copy_from_slice(&view.bytes);
    if view.is_intact() {
        pre_roll.push(IncomingUnit { bytes, ..IncomingUnit::from(view) }, start, now_ns);
    } else {
        pre_roll.clear();
    }
}

fn reply<T>(caller: Option<Reply<T>>, result: Result<T, RecorderError>) {
    if let Some(caller) = caller {
        let _ignored_if_caller_left = caller.send(result);
    }
}

fn reply_to_start(caller: Option<Reply<StartReply>>, result: Result<StartReply, RecorderError>) {
    if let Err(error) = &result {
        log::warn!("recording not started: {error}");
    }
    reply(caller, result);
}

fn validate(
    request: &StartRequest,
    format: Format,
    zone: &Zone,
    event_label: Option<String>,
) -> Result<Start, RecorderError> {
    let requested = request.filename.as_deref().filter(|name| !name.is_empty());
    let stem = match (requested, &event_label) {
        (Some(name), _) => Stem::from_request(name, format)?,
        (None, Some(label)) => Stem { stem: zone.event_stem(unix_s(), label), format },
        (None, None) => Stem { stem: zone.default_stem(unix_s()), format },
    };
    Ok(Start {
        stem,
        exact: requested.is_some(),
        max_duration_ns: seconds("max_duration_s", request.max_duration_s)?.filter(|ns| *ns > 0),
        heartbeat_ns: seconds("heartbeat_s", request.heartbeat_s)?.filter(|ns| *ns > 0),
        started_at_s: u64::try_from(unix_s()).unwrap_or(0),
        event_label,
        waits_for_idr: false,
    })
}

/// Converts the number of seconds in the request field `field` to nanoseconds.
fn seconds(field: &'static str, value: Option<f64>) -> Result<Option<i64>, RecorderError> {
    let Some(value) = value else { return Ok(None) };
    if !(0.0..=limits::REQUEST_SECONDS_MAX).contains(&value) {
        return Err(RecorderError::Seconds(field));
    }
    Ok(i64::try_from(std::time::Duration::from_secs_f64(value).as_nanos()).ok())
}
