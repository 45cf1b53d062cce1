//! The camera, which all its consumers share: the attached segment, the state, the counters and the wake-ups.
//! This module neither waits for units nor reads them.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::layout::{Layout, MetadataError};
use super::lease_header::seconds;
use super::mapping::{Access, Mapping};
use super::segment::MappingError;
use super::sequence::is_in_ring;
use crate::base::clock;
use crate::base::counters::{Counter, Gauge};
use crate::base::limits::{
    CLOCK_NOISE_NS, CLOCK_STEP_NS_MIN, IDR_BUDGET_BURST, IDR_BUDGET_INTERVAL_NS, IDR_REQUEST_INTERVAL_NS,
};
use crate::base::log_limit::LogLimit;
use crate::base::token_bucket::TokenBucket;

/// Time of CLOCK_MONOTONIC in nanoseconds.
pub type MonotonicNs = i64;

/// Wakes one consumer when there may be a new unit or when the camera's state changed.
///
/// A wake-up carries no data. A wake-up may be spurious, and several may merge into one. After a wake-up, the consumer
/// polls its cursor.
pub trait Wakeup: Send + Sync {
    /// Wakes the consumer. The caller is the thread of the camera wait, or a thread whose cursor finds a restart. The
    /// implementation must be quick and must not call [`Camera::add_wakeup`].
    fn wake(&self);
}

/// How the thread that waits for the camera learns that a new unit has arrived.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// By the semaphore or the lease ring's futex, if the layout has one and the segment is writable. Otherwise by
    /// polling.
    Auto,
    /// By the semaphore or futex. If neither can be used, by polling, with a warning in the log.
    Semaphore,
    /// By polling, without writing to the semaphore. The semaphore is left to another server on the same ring.
    Poll,
}

impl fmt::Display for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wake::Auto => "auto",
            Wake::Semaphore => "semaphore",
            Wake::Poll => "poll",
        })
    }
}

/// State of the camera.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CameraStatus {
    /// No segment is mapped.
    Away {
        /// Reason why no segment is mapped, as text for the user.
        reason: String,
    },
    /// A segment is mapped. Units may or may not arrive.
    Attached {
        /// The layout of the segment.
        layout: Layout,
    },
}

/// Counters for the camera wait and for all cursors together. They are zero when the process starts.
#[derive(Debug, Default)]
pub struct CameraCounters {
    /// Number of times that a segment was attached.
    pub attached: Counter,
    /// Number of polls by the camera wait, after wake-ups, time-outs and sleeps.
    pub wakes: Counter,
    /// Number of failed attempts to lease a unit, usually because this process already leased as many slots as it may.
    pub leases_refused: Counter,
    /// Number of IDRs requested from the camera.
    pub idrs_requested: Counter,
    /// Bit rate in kbit/s that the camera is requested not to exceed. 0 without a request, and if it would not obey.
    pub bitrate_request_kbps: Gauge,
}

/// Result of [`Camera::request_idr`].
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum IdrRequest {
    /// The camera was asked.
    Sent,
    /// The camera was asked too often. The caller may try again later.
    TooSoon,
    /// No request is possible: on legacy rings, and while the camera is away.
    Impossible,
}

/// One run of the camera on one mapped segment. A restart of the camera begins a new run.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) mapping: Arc<Mapping>,
    /// Number of the unit at which a cursor begins in this run.
    pub(super) start: u32,
    /// Number of the oldest unit that belongs to this run.
    pub(super) floor: u32,
    /// Epoch of the lease ring's writer in this run. 0 on legacy rings.
    ring_epoch: u64,
    /// On index-first layouts, all units before this number are completely written. The camera wait sets it.
    committed: AtomicU32,
    /// True after the camera has restarted in the same segment, which ends this run.
    is_superseded: AtomicBool,
}

impl Attachment {
    fn new(mapping: Arc<Mapping>, start: u32, floor: u32) -> Arc<Attachment> {
        let committed = AtomicU32::new(mapping.write_index().wrapping_sub(1));
        let ring_epoch = mapping.leases().map_or(0, |ring| ring.epoch());
        let is_superseded = AtomicBool::new(false);
        Arc::new(Attachment { mapping, start, floor, ring_epoch, committed, is_superseded })
    }

    /// Returns the number of the first unit that may not be read yet. All units before it are complete.
    pub(super) fn available(&self) -> u32 {
        let committed = self.committed.load(Ordering::Acquire);
        let index = self.mapping.write_index();
        if !self.mapping.layout().publishes_index_first() {
            return index;
        }
        // The camera begins a unit only after it has copied the previous one, so only the newest unit can be
        // incomplete.
        if committed == index { index } else { index.wrapping_sub(1) }
    }

    /// Records that all units before `committed` are completely written. For index-first layouts.
    pub(super) fn set_committed(&self, committed: u32) {
        self.committed.store(committed, Ordering::Release);
    }

    /// Returns true if the segment's slots still hold units of this run.
    pub(super) fn is_current(&self) -> bool {
        !self.is_superseded.load(Ordering::Acquire) && !self.mapping.is_lost() && self.has_its_writer()
    }

    /// Returns true if the writer of this run still owns the lease ring. Always true on legacy rings.
    pub(super) fn has_its_writer(&self) -> bool {
        self.mapping.leases().is_none_or(|ring| ring.epoch() == self.ring_epoch)
    }
}

#[derive(Debug)]
enum State {
    Away { reason: String },
    Attached(Arc<Attachment>),
}

struct Shared {
    name: String,
    wake: Wake,
    /// Number that grows with every change of `state`. Cursors compare it, so they need the lock only after a change.
    generation: AtomicU64,
    state: Mutex<State>,
    wakeups: Mutex<Vec<Arc<dyn Wakeup>>>,
    counters: CameraCounters,
    clocks: ClockOffset,
    clocks_limit: LogLimit,
    rejection_log: LogLimit,
    restart_log: LogLimit,
    idr_limit: LogLimit,
    idr_budget: Mutex<TokenBucket>,
}

/// Minimum nanoseconds between two log lines about restarts.
const RESTART_LOG_NS: i64 = 1_000_000_000; // local bound: restarts are rare, so each may have a log line

/// Minimum nanoseconds between two measurements of the clocks because of a capture time that is not just before the
/// current time.
const CLOCK_MEASURE_NS_MIN: i64 = 10_000_000; // local bound: less than the interval of any camera

/// Number of readings of both clocks for one measurement.
const CLOCK_PAIRS: u32 = 3; // local bound: one of them is not interrupted

/// Handle to the camera. Clones share its state.
#[derive(Clone)]
pub struct Camera {
    shared: Arc<Shared>,
}

impl Camera {
    /// Returns the camera whose segment is called `name`. If the segment exists, it is attached at once. Afterwards
    /// [`super::waiter::run`] must run to keep the camera up to date.
    #[must_use]
    pub fn new(name: &str, wake: Wake) -> Camera {
        let camera = Camera {
            shared: Arc::new(Shared {
                name: name.to_owned(),
                wake,
                generation: AtomicU64::new(0),
                state: Mutex::new(State::Away { reason: "not opened yet".to_owned() }),
                wakeups: Mutex::default(),
                counters: CameraCounters::default(),
                clocks: ClockOffset::new(),
                clocks_limit: LogLimit::new(CLOCK_MEASURE_NS_MIN),
                rejection_log: LogLimit::default(),
                restart_log: LogLimit::new(RESTART_LOG_NS),
                idr_limit: LogLimit::new(IDR_REQUEST_INTERVAL_NS),
                idr_budget: Mutex::new(TokenBucket::new(IDR_BUDGET_INTERVAL_NS, IDR_BUDGET_BURST)),
            }),
        };
        camera.refresh_clocks();
        match camera.open_mapping() {
            Ok(mapping) => {
                let index = mapping.write_index();
                camera.attach(mapping, index);
            }
            Err(error) => camera.detach(&error.to_string()),
        }
        camera
    }

    /// Registers a wake-up for all later units and changes of the camera's state.
    pub fn add_wakeup(&self, wakeup: Arc<dyn Wakeup>) {
        lock(&self.shared.wakeups).push(wakeup);
    }

    /// Returns the current state of the camera.
    #[must_use]
    pub fn status(&self) -> CameraStatus {
        match &*lock(&self.shared.state) {
            State::Away { reason } => CameraStatus::Away { reason: reason.clone() },
            State::Attached(attachment) => CameraStatus::Attached { layout: attachment.mapping.layout() },
        }
    }

    /// Returns the counters of the camera wait and of all cursors.
    #[must_use]
    pub fn counters(&self) -> &CameraCounters {
        &self.shared.counters
    }

    /// Requests an IDR from the camera. All consumers share the limits: a request per [`IDR_REQUEST_INTERVAL_NS`], and
    /// in the long run one per [`IDR_BUDGET_INTERVAL_NS`], because each IDR is sent to all viewers and recorded.
    pub fn request_idr(&self, now_ns: MonotonicNs) -> IdrRequest {
        let (_, attachment) = self.current();
        let Some(ring) = attachment.as_ref().and_then(|attachment| attachment.mapping.leases()) else {
            return IdrRequest::Impossible;
        };
        let mut budget = lock(&self.shared.idr_budget);
        if !budget.has_token(now_ns) || !self.shared.idr_limit.allows(now_ns) {
            return IdrRequest::TooSoon;
        }
        budget.take(now_ns);
        self.shared.counters.idrs_requested.add_shared(1);
        ring.request_idr();
        IdrRequest::Sent
    }

    /// Requests that the camera uses at most `kbps` kbit/s; 0 withdraws the request. The caller must repeat a request
    /// every second or two, because it ends after a few seconds. Returns false if the camera does not obey such requests:
    /// on legacy rings, if the ring's flags do not say that it does, and while the camera is away.
    pub fn request_bitrate(&self, kbps: u32, now_ns: MonotonicNs) -> bool {
        let (_, attachment) = self.current();
        let ring = attachment.as_ref().and_then(|attachment| attachment.mapping.leases());
        let obeys = ring.is_some_and(|ring| ring.request_bitrate(kbps, seconds(now_ns)));
        self.shared.counters.bitrate_request_kbps.set(if obeys { kbps.into() } else { 0 });
        obeys
    }

    /// Returns the number of units that the camera has dropped because no slot of the lease ring could take them.
    /// Returns 0 on legacy rings.
    #[must_use]
    pub fn units_dropped(&self) -> u64 {
        let (_, attachment) = self.current();
        attachment.and_then(|attachment| Some(attachment.mapping.leases()?.dropped())).unwrap_or(0)
    }

    /// Returns the name of the segment.
    #[must_use]
    pub(super) fn name(&self) -> &str {
        &self.shared.name
    }

    pub(super) fn wake(&self) -> Wake {
        self.shared.wake
    }

    pub(super) fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// Returns the generation of the state, and the current run. The run is `None` while the camera is away.
    pub(super) fn current(&self) -> (u64, Option<Arc<Attachment>>) {
        let state = lock(&self.shared.state);
        let attachment = match &*state {
            State::Away { .. } => None,
            State::Attached(attachment) => Some(Arc::clone(attachment)),
        };
        (self.shared.generation.load(Ordering::Acquire), attachment)
    }

    /// Maps the segment: read-write if `--wake` and the segment's permissions allow it, otherwise read-only.
    pub(super) fn open_mapping(&self) -> Result<Arc<Mapping>, MappingError> {
        if self.shared.wake != Wake::Poll {
            match Mapping::open(&self.shared.name, Access::Semaphore) {
                Err(error) if error.is_permission() => {}
                result => return result,
            }
        }
        Mapping::open(&self.shared.name, Access::ReadOnly)
    }

    /// Begins a new run on `mapping`, in which cursors begin at unit `start`.
    pub(super) fn attach(&self, mapping: Arc<Mapping>, start: u32) {
        let layout = mapping.layout();
        let first = mapping.write_index();
        let method = mapping.wake_method().filter(|_| self.shared.wake != Wake::Poll);
        if self.shared.wake == Wake::Semaphore && method.is_none() {
            log::warn!("camera {}: it has no usable semaphore, polling instead", self.shared.name);
        }
        log::info!(
            "camera attached: {}, layout {layout} ({} bytes, {} slots), unit {first}, woken {}",
            self.shared.name,
            layout.segment_bytes(),
            layout.slot_count(),
            method.unwrap_or("by polling")
        );
        self.shared.counters.attached.add_shared(1);
        let floor = mapping.leases().map_or(0, |ring| ring.epoch_start());
        let attachment = Attachment::new(mapping, start, floor);
        self.set_state(&mut lock(&self.shared.state), State::Attached(attachment));
        self.wake_consumers();
    }

    /// Ends the current run and sets the state to away. The segment is unmapped when no consumer borrows from it.
    pub(super) fn detach(&self, reason: &str) {
        let mut state = lock(&self.shared.state);
        if let State::Away { reason: known } = &mut *state {
            reason.clone_into(known);
            return;
        }
        self.set_state(&mut state, State::Away { reason: reason.to_owned() });
        drop(state);
        log::warn!("camera away: {reason}");
        self.wake_consumers();
    }

    /// Begins a new run on the segment of `old`, because the camera restarted in that segment. Does nothing if `old` is
    /// no longer the current run, so several cursors may report the same restart.
    pub(super) fn restart(&self, old: &Arc<Attachment>, now_ns: MonotonicNs) {
        let mut state = lock(&self.shared.state);
        if !matches!(&*state, State::Attached(current) if Arc::ptr_eq(current, old)) {
            return;
        }
        old.is_superseded.store(true, Ordering::Release);
        let (start, floor) = restart_at(&old.mapping);
        let attachment = Attachment::new(Arc::clone(&old.mapping), start, floor);
        self.set_state(&mut state, State::Attached(attachment));
        drop(state);
        self.log_restart(now_ns, "in the same segment");
        self.wake_consumers();
    }

    pub(super) fn log_restart(&self, now_ns: MonotonicNs, how: &str) {
        if self.shared.restart_log.allows(now_ns) {
            log::info!("camera restarted {how}: {}", self.shared.name);
        }
    }

    pub(super) fn log_rejection(&self, reason: MetadataError, now_ns: MonotonicNs) {
        if self.shared.rejection_log.allows(now_ns) {
            log::warn!("camera {}: slots are skipped: {reason}", self.shared.name);
        }
    }

    pub(super) fn wake_consumers(&self) {
        for wakeup in lock(&self.shared.wakeups).iter() {
            wakeup.wake();
        }
    }

    /// Returns CLOCK_REALTIME minus CLOCK_MONOTONIC in nanoseconds, as measured by the last [`Camera::refresh_clocks`].
    pub(super) fn realtime_offset_ns(&self) -> i64 {
        self.shared.clocks.offset_ns()
    }

    /// Measures the difference between CLOCK_REALTIME and CLOCK_MONOTONIC. The camera wait calls this about once a
    /// second.
    pub(super) fn refresh_clocks(&self) {
        // Time passes between the two readings, most of all if the thread is preempted. The nearest pair is the best.
        let pairs = (0..CLOCK_PAIRS).map(|_| (clock::monotonic_ns(), clock::realtime_ns()));
        if let Some((monotonic_ns, realtime_ns)) =
            pairs.min_by_key(|(monotonic, realtime)| realtime - monotonic)
        {
            self.shared.clocks.measure(monotonic_ns, realtime_ns);
        }
    }

    #[cfg(test)]
    pub(super) fn set_realtime_offset_ns(&self, offset_ns: i64) {
        self.shared.clocks.offset_ns.store(offset_ns, Ordering::Relaxed);
    }

    /// Measures like [`Camera::refresh_clocks`], at most once per [`CLOCK_MEASURE_NS_MIN`]. Returns false if nothing was
    /// measured.
    pub(super) fn refresh_clocks_again(&self, now_ns: MonotonicNs) -> bool {
        let is_due = self.shared.clocks_limit.allows(now_ns);
        if is_due {
            self.refresh_clocks();
        }
        is_due
    }

    /// Replaces the state, then raises the generation. The caller holds the lock of the state.
    fn set_state(&self, state: &mut State, new: State) {
        *state = new;
        self.shared.generation.fetch_add(1, Ordering::Release);
    }
}

impl fmt::Debug for Camera {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Camera").field("name", &self.shared.name).field("wake", &self.shared.wake).finish()
    }
}

/// Returns the unit at which cursors begin in a new run, and the oldest unit of that run. If the ring still holds the
/// run's first unit, which is its first IDR, cursors begin there. Otherwise they begin with the next new unit.
pub(super) fn restart_at(mapping: &Mapping) -> (u32, u32) {
    let index = mapping.write_index();
    if let Some(ring) = mapping.leases() {
        let first = ring.epoch_start();
        return if first == index || ring.holds(first) { (first, first) } else { (index, first) };
    }
    if index == 0 || is_in_ring(0, index, mapping.layout().slot_count()) { (0, 0) } else { (index, index) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// CLOCK_REALTIME minus CLOCK_MONOTONIC. All conversions between the clocks use this value, so that all of them follow
/// when the system clock is set.
struct ClockOffset {
    /// Nanoseconds; [`UNMEASURED`] before the first measurement.
    offset_ns: AtomicI64,
}

const UNMEASURED: i64 = i64::MIN; // local bound: marks a missing value

impl ClockOffset {
    fn new() -> ClockOffset {
        ClockOffset { offset_ns: AtomicI64::new(UNMEASURED) }
    }

    fn offset_ns(&self) -> i64 {
        self.offset_ns.load(Ordering::Relaxed)
    }

    /// Stores the difference of two simultaneous clock readings, unless it differs from the stored one by less than
    /// [`CLOCK_NOISE_NS`]: NTP slews both clocks alike, so a small difference is an error of the measurement. A
    /// constant offset makes all consumers agree on the capture time of a unit to the nanosecond. Returns the step in
    /// nanoseconds and logs it if the system clock was set since the last measurement.
    fn measure(&self, monotonic_ns: i64, realtime_ns: i64) -> Option<i64> {
        let offset_ns = realtime_ns - monotonic_ns;
        if offset_ns.saturating_sub(self.offset_ns()).saturating_abs() < CLOCK_NOISE_NS {
            return None;
        }
        // Only one of several concurrent calls gets the old value, so a step is logged once.
        let before_ns = self.offset_ns.swap(offset_ns, Ordering::Relaxed);
        let step_ns = offset_ns.saturating_sub(before_ns);
        if before_ns == UNMEASURED || step_ns.saturating_abs() < CLOCK_STEP_NS_MIN {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "for display")]
        let step_s = step_ns as f64 / 1e9;
        log::warn!(
            "the system clock was set: it stepped by {step_s:+.3} s; capture times and reports follow it"
        );
        Some(step_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_of_the_system_clock_is_reported_once_and_slewing_is_not() {
        const S: i64 = 1_000_000_000;
        let clocks = ClockOffset::new();
        let boot_ns = 3 * S; // a board without a battery starts in 1970
        assert_eq!(clocks.measure(10 * S, boot_ns + 10 * S), None, "the first measurement");
        assert_eq!(clocks.measure(11 * S, boot_ns + 11 * S + 500_000), None, "NTP slews the clock");
        let ntp_ns = 1_764_000_000 * S;
        assert_eq!(clocks.measure(12 * S, ntp_ns), Some(ntp_ns - 12 * S - boot_ns - 500_000));
        assert_eq!(clocks.measure(13 * S, ntp_ns + S), None);
        assert_eq!(clocks.offset_ns(), ntp_ns - 12 * S);
        assert_eq!(clocks.measure(13 * S, ntp_ns + S + 90_000), None);
        assert_eq!(clocks.offset_ns(), ntp_ns - 12 * S, "an error of the measurement changes nothing");
        assert_eq!(clocks.measure(14 * S, ntp_ns - 58 * S), Some(-60 * S), "set back by a minute");
    }

    #[test]
    fn camera_without_a_segment_is_away_and_names_it() {
        let camera = Camera::new("/ss-test-never-there", Wake::Auto);
        let CameraStatus::Away { reason } = camera.status() else { panic!("{:?}", camera.status()) };
        assert!(reason.contains("/ss-test-never-there"), "{reason}");
    }
}
