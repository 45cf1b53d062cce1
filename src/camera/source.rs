//! The camera as its consumers share it: the attached segment, its state, counters and wake-ups.
//! This module neither waits for units nor reads them.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::layout::{Layout, MetadataError};
use super::mapping::{Access, Mapping};
use super::segment::MappingError;
use super::sequence::is_in_ring;
use crate::base::clock;
use crate::base::counters::Counter;
use crate::base::limits::IDR_REQUEST_INTERVAL_NS;
use crate::base::log_limit::LogLimit;

/// Nanoseconds of CLOCK_MONOTONIC.
pub type MonotonicNs = i64;

/// Wakes one consumer when there may be a new unit or when the camera's state changed.
///
/// A wake-up carries no data. It may be spurious, and several may merge into one. The consumer then polls its cursor.
pub trait Wakeup: Send + Sync {
    /// Called on the thread of the camera wait, or of a cursor that finds a restart. It must be quick and must not
    /// call [`Camera::add_wakeup`].
    fn wake(&self);
}

/// How the camera wait learns of new units.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The semaphore or the lease ring's futex if the layout has one and the segment is writable, otherwise polling.
    Auto,
    /// The semaphore or futex; if it cannot be used, polling with a warning.
    Semaphore,
    /// Polling, read-only. It leaves the semaphore to another server on the same ring.
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
        /// Why, as text for the user.
        reason: String,
    },
    /// A segment is mapped. Units may or may not arrive.
    Attached {
        /// The layout of the segment.
        layout: Layout,
    },
}

/// Counts since this process started.
#[derive(Debug, Default)]
pub struct CameraCounters {
    /// Segments attached.
    pub attached: Counter,
    /// Polls of the camera wait: after wake-ups, time-outs and sleeps.
    pub wakes: Counter,
    /// Units not read at once because this process leased as many slots as it may.
    pub leases_refused: Counter,
    /// IDRs requested from the camera.
    pub idrs_requested: Counter,
}

/// One run of the camera on one mapped segment. A restart of the camera begins a new run.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) mapping: Arc<Mapping>,
    /// The unit at which a cursor of this run begins.
    pub(super) start: u32,
    /// The oldest unit that belongs to this run.
    pub(super) floor: u32,
    /// The writer's epoch on a lease ring.
    ring_epoch: u64,
    /// Index-first layouts: units before this one are completely written. Set by the camera wait.
    committed: AtomicU32,
    /// The camera restarted in the same segment.
    is_superseded: AtomicBool,
}

impl Attachment {
    fn new(mapping: Arc<Mapping>, start: u32, floor: u32) -> Arc<Attachment> {
        let committed = AtomicU32::new(mapping.write_index().wrapping_sub(1));
        let ring_epoch = mapping.leases().map_or(0, |ring| ring.epoch());
        let is_superseded = AtomicBool::new(false);
        Arc::new(Attachment { mapping, start, floor, ring_epoch, committed, is_superseded })
    }

    /// Units before the returned number may be read.
    pub(super) fn available(&self) -> u32 {
        let committed = self.committed.load(Ordering::Acquire);
        let index = self.mapping.write_index();
        if !self.mapping.layout().publishes_index_first() {
            return index;
        }
        // The camera begins a unit only after it has copied the one before.
        if committed == index { index } else { index.wrapping_sub(1) }
    }

    /// Index-first layouts: records that units before `committed` are completely written.
    pub(super) fn set_committed(&self, committed: u32) {
        self.committed.store(committed, Ordering::Release);
    }

    /// Returns true if the slots still belong to this run.
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
    /// Grows with every change of `state`. Cursors compare it instead of taking the lock.
    generation: AtomicU64,
    state: Mutex<State>,
    wakeups: Mutex<Vec<Arc<dyn Wakeup>>>,
    counters: CameraCounters,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC.
    realtime_offset_ns: AtomicI64,
    rejection_log: LogLimit,
    restart_log: LogLimit,
    idr_limit: LogLimit,
}

/// Between two log lines about restarts.
const RESTART_LOG_NS: i64 = 1_000_000_000; // local bound: a restart is rare and worth a line

/// Handle to the camera. Clones share its state.
#[derive(Clone)]
pub struct Camera {
    shared: Arc<Shared>,
}

impl Camera {
    /// A camera whose segment is called `name`. It is attached at once if the segment exists.
    /// [`super::waiter::run`] keeps it up to date from then on.
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
                realtime_offset_ns: AtomicI64::new(0),
                rejection_log: LogLimit::default(),
                restart_log: LogLimit::new(RESTART_LOG_NS),
                idr_limit: LogLimit::new(IDR_REQUEST_INTERVAL_NS),
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

    /// Registers a wake-up for all later events.
    pub fn add_wakeup(&self, wakeup: Arc<dyn Wakeup>) {
        lock(&self.shared.wakeups).push(wakeup);
    }

    /// Returns the current state.
    #[must_use]
    pub fn status(&self) -> CameraStatus {
        match &*lock(&self.shared.state) {
            State::Away { reason } => CameraStatus::Away { reason: reason.clone() },
            State::Attached(attachment) => CameraStatus::Attached { layout: attachment.mapping.layout() },
        }
    }

    /// The counters of the camera wait and of all cursors.
    #[must_use]
    pub fn counters(&self) -> &CameraCounters {
        &self.shared.counters
    }

    /// Requests an IDR from the camera, at most once per [`IDR_REQUEST_INTERVAL_NS`]. Returns false if the camera
    /// cannot be asked: on legacy rings, and while it is away.
    pub fn request_idr(&self, now_ns: MonotonicNs) -> bool {
        let (_, attachment) = self.current();
        let Some(ring) = attachment.as_ref().and_then(|attachment| attachment.mapping.leases()) else {
            return false;
        };
        if self.shared.idr_limit.allows(now_ns) {
            self.shared.counters.idrs_requested.add_shared(1);
            ring.request_idr();
        }
        true
    }

    /// Returns the count of units that found no free slot in the lease ring; 0 on legacy rings.
    #[must_use]
    pub fn units_dropped(&self) -> u64 {
        let (_, attachment) = self.current();
        attachment.and_then(|attachment| Some(attachment.mapping.leases()?.dropped())).unwrap_or(0)
    }

    /// Name of the segment.
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

    /// Returns the generation and the current run; `None` while the camera is away.
    pub(super) fn current(&self) -> (u64, Option<Arc<Attachment>>) {
        let state = lock(&self.shared.state);
        let attachment = match &*state {
            State::Away { .. } => None,
            State::Attached(attachment) => Some(Arc::clone(attachment)),
        };
        (self.shared.generation.load(Ordering::Acquire), attachment)
    }

    /// Maps the segment with the access that `--wake` allows.
    pub(super) fn open_mapping(&self) -> Result<Arc<Mapping>, MappingError> {
        if self.shared.wake != Wake::Poll {
            match Mapping::open(&self.shared.name, Access::Semaphore) {
                Err(error) if error.is_permission() => {}
                result => return result,
            }
        }
        Mapping::open(&self.shared.name, Access::ReadOnly)
    }

    /// Begins a run on `mapping`. Cursors begin at unit `start`.
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

    /// Unmaps the segment: the camera is away.
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

    /// Begins a new run on the segment of `old`, because the camera restarted in it. Only the first caller does so.
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

    /// CLOCK_REALTIME minus CLOCK_MONOTONIC, as of the last [`Camera::refresh_clocks`].
    pub(super) fn realtime_offset_ns(&self) -> i64 {
        self.shared.realtime_offset_ns.load(Ordering::Relaxed)
    }

    /// Reads both clocks. The camera wait calls this about once a second.
    pub(super) fn refresh_clocks(&self) {
        let monotonic_ns = clock::monotonic_ns();
        let offset_ns = clock::realtime_ns() - monotonic_ns;
        self.shared.realtime_offset_ns.store(offset_ns, Ordering::Relaxed);
    }

    /// Replaces the state under its lock, then raises the generation.
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

/// Returns the unit at which cursors begin in a new run, and the oldest unit of that run. Cursors begin with the
/// run's first unit, which is its first IDR, if the ring still holds it.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn camera_without_a_segment_is_away_and_names_it() {
        let camera = Camera::new("/ss-test-never-there", Wake::Auto);
        let CameraStatus::Away { reason } = camera.status() else { panic!("{:?}", camera.status()) };
        assert!(reason.contains("/ss-test-never-there"), "{reason}");
    }
}
