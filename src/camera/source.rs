//! The camera as all consumers share it: which segment is mapped now, its state, its counters, its bells.
//! May not wait for units nor read them.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cursor::{Cursor, MonotonicNs, Rejection, is_safe};
use super::layout::Layout;
use super::mapping::{Access, Mapping, MappingError};
use crate::base::clock;
use crate::base::counters::Counter;
use crate::base::limits::{IDR_REQUEST_INTERVAL_NS, LOG_INTERVAL_NS};
use crate::base::log_limit::LogLimit;

/// Something that is rung when there may be a new unit or the camera's state changed. Rings carry nothing,
/// may be spurious and may be merged; the rung one looks at its cursor.
pub trait Wakeup: Send + Sync {
    /// Called on the doorbell's thread (or on that of a cursor that notices a restart): must be quick and
    /// may not call [`Camera::add_wakeup`].
    fn wake(&self);
}

/// How the doorbell learns of new units.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The semaphore where the layout has one and the segment may be written (a lease ring has a futex), else
    /// polling.
    Auto,
    /// The semaphore or futex; polls, with a warning, where it cannot be used.
    Semaphore,
    /// Polling, read-only: the polite choice beside another server on the same ring.
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

/// What is known of the camera.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CameraStatus {
    /// No segment is mapped.
    Away {
        /// Why, for people.
        reason: String,
    },
    /// A segment is mapped; whether units come is told by `last_unit_at_ns`.
    Attached {
        /// The layout found.
        layout: Layout,
        /// Width of the newest unit in pixels, 0 before the first.
        width: u32,
        /// Height of the newest unit in pixels, 0 before the first.
        height: u32,
        /// When the doorbell saw the newest unit, CLOCK_MONOTONIC; `None` before the first.
        last_unit_at_ns: Option<MonotonicNs>,
        /// Units seen since the program started.
        units_seen: u64,
        /// +1 for every attach and restart.
        epoch: u32,
    },
}

/// Counts over the camera's life in this process. Relaxed: each is true by itself.
#[derive(Debug, Default)]
pub struct CameraCounters {
    /// Segments attached.
    pub attached: Counter,
    /// Restarts of the camera: another segment, or an index that jumped back.
    pub restarted: Counter,
    /// Turns of the doorbell: semaphore wakes, time-outs and looks.
    pub wakes: Counter,
    /// Turns of the doorbell that found a new unit.
    pub wakes_with_unit: Counter,
    /// Units the doorbell saw published.
    pub units_seen: Counter,
    /// Units that cursors missed because they were lapped.
    pub lapped_units: Counter,
    /// Views found overwritten by [`super::cursor::UnitView::is_intact`]; never on a lease ring.
    pub torn: Counter,
    /// Units not read at once because this program held as many slots of a lease ring as it may.
    pub leases_refused: Counter,
    /// IDRs asked of the camera.
    pub idrs_requested: Counter,
    /// Slots skipped because they do not hold H.264.
    pub rejected_format: Counter,
    /// Slots skipped because of their size.
    pub rejected_data_bytes: Counter,
    /// Slots skipped because of their dimensions.
    pub rejected_dimensions: Counter,
}

impl CameraCounters {
    fn count_rejection(&self, rejection: Rejection) {
        let counter = match rejection {
            Rejection::NotH264 { .. } => &self.rejected_format,
            Rejection::DataBytes { .. } => &self.rejected_data_bytes,
            Rejection::Dimensions { .. } => &self.rejected_dimensions,
        };
        counter.add_shared(1);
    }
}

/// One run of the camera on one mapped segment.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) mapping: Arc<Mapping>,
    /// +1 for every attach and restart.
    pub(super) epoch: u32,
    /// The unit at which a cursor of this run begins.
    pub(super) start: u32,
    /// The oldest unit that belongs to this run.
    pub(super) floor: u32,
    /// Which writer of a lease ring it is.
    ring_epoch: u64,
    pub(super) counters: Arc<CameraCounters>,
    /// Index-first layouts: units before this one are whole. Written by the doorbell.
    whole: AtomicU32,
    /// The camera began again in the same segment.
    is_superseded: AtomicBool,
}

impl Attachment {
    /// Units before the returned number may be read.
    pub(super) fn available(&self) -> u32 {
        let whole = self.whole.load(Ordering::Acquire);
        let index = self.mapping.write_index();
        if !self.mapping.layout().publishes_index_first() {
            return index;
        }
        // The copy of a unit is over when the next one is begun.
        if whole == index { index } else { index.wrapping_sub(1) }
    }

    /// The doorbell saw that units before `whole` are whole.
    pub(super) fn set_whole(&self, whole: u32) {
        self.whole.store(whole, Ordering::Release);
    }

    /// Whether the slots still belong to this run.
    pub(super) fn is_current(&self) -> bool {
        !self.is_superseded.load(Ordering::Acquire) && !self.mapping.is_lost() && self.has_its_writer()
    }

    /// Whether the camera of this run is still the one that writes a lease ring; legacy rings don't tell.
    pub(super) fn has_its_writer(&self) -> bool {
        self.mapping.leases().is_none_or(|ring| ring.epoch() == self.ring_epoch)
    }
}

#[derive(Debug)]
enum Place {
    Away { reason: String },
    Attached(Arc<Attachment>),
}

struct Shared {
    name: String,
    wake: Wake,
    /// +1 whenever `place` changes: tells cursors to look there.
    generation: AtomicU64,
    place: Mutex<Place>,
    epoch: AtomicU32,
    bells: Mutex<Vec<Arc<dyn Wakeup>>>,
    counters: Arc<CameraCounters>,
    last_unit_at_ns: AtomicI64,
    /// Width and height of the newest unit, one in each half.
    picture: AtomicU64,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC.
    realtime_offset_ns: AtomicI64,
    rejection_log: LogLimit,
    restart_log: LogLimit,
    keyframe_limit: LogLimit,
}

/// Handle to the camera; clones share it.
#[derive(Clone)]
pub struct Camera {
    shared: Arc<Shared>,
}

impl Camera {
    /// A camera whose segment is called `name`, attached when it is there already. [`super::waiter::run`]
    /// keeps it up to date from then on.
    #[must_use]
    pub fn new(name: &str, wake: Wake) -> Camera {
        let camera = Camera {
            shared: Arc::new(Shared {
                name: name.to_owned(),
                wake,
                generation: AtomicU64::new(0),
                place: Mutex::new(Place::Away { reason: "not looked for yet".to_owned() }),
                epoch: AtomicU32::new(0),
                bells: Mutex::default(),
                counters: Arc::default(),
                last_unit_at_ns: AtomicI64::new(i64::MIN),
                picture: AtomicU64::new(0),
                realtime_offset_ns: AtomicI64::new(0),
                rejection_log: LogLimit::default(),
                restart_log: LogLimit::new(LOG_INTERVAL_NS / 60),
                keyframe_limit: LogLimit::new(IDR_REQUEST_INTERVAL_NS),
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

    /// A cursor whose first unit is the next one published; earlier ones by [`Cursor::units_back`].
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor::new(self.clone())
    }

    /// Adds a bell that is rung from now on.
    pub fn add_wakeup(&self, bell: Arc<dyn Wakeup>) {
        lock(&self.shared.bells).push(bell);
    }

    /// What is known of the camera now.
    #[must_use]
    pub fn status(&self) -> CameraStatus {
        let attachment = match &*lock(&self.shared.place) {
            Place::Away { reason } => return CameraStatus::Away { reason: reason.clone() },
            Place::Attached(attachment) => Arc::clone(attachment),
        };
        let picture = self.shared.picture.load(Ordering::Relaxed);
        let last_unit_at_ns = self.shared.last_unit_at_ns.load(Ordering::Relaxed);
        CameraStatus::Attached {
            layout: attachment.mapping.layout(),
            width: u32::try_from(picture >> 32).unwrap_or(0),
            height: u32::try_from(picture & u64::from(u32::MAX)).unwrap_or(0),
            last_unit_at_ns: (last_unit_at_ns != i64::MIN).then_some(last_unit_at_ns),
            units_seen: self.shared.counters.units_seen.get(),
            epoch: attachment.epoch,
        }
    }

    /// The counters of the camera and of all its cursors.
    #[must_use]
    pub fn counters(&self) -> &CameraCounters {
        &self.shared.counters
    }

    /// Asks the camera for an IDR, at most once in [`IDR_REQUEST_INTERVAL_NS`] however often it is called.
    /// `false` where that cannot be asked: on the legacy rings, and while the camera is away.
    pub fn request_idr(&self, now_ns: MonotonicNs) -> bool {
        let (_, attachment) = self.place();
        let Some(ring) = attachment.as_ref().and_then(|attachment| attachment.mapping.leases()) else {
            return false;
        };
        if self.shared.keyframe_limit.allows(now_ns) {
            self.shared.counters.idrs_requested.add_shared(1);
            ring.request_idr();
        }
        true
    }

    /// Units the camera had no free slot for, as its lease ring tells; 0 on the legacy rings.
    #[must_use]
    pub fn units_dropped(&self) -> u64 {
        let (_, attachment) = self.place();
        attachment.and_then(|attachment| Some(attachment.mapping.leases()?.dropped())).unwrap_or(0)
    }

    /// The name of the segment.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// How the doorbell is to learn of new units.
    #[must_use]
    pub fn wake(&self) -> Wake {
        self.shared.wake
    }

    pub(super) fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// The current run, if any, and the generation it belongs to.
    pub(super) fn place(&self) -> (u64, Option<Arc<Attachment>>) {
        let place = lock(&self.shared.place);
        let attachment = match &*place {
            Place::Away { .. } => None,
            Place::Attached(attachment) => Some(Arc::clone(attachment)),
        };
        (self.shared.generation.load(Ordering::Acquire), attachment)
    }

    /// Maps the segment as `--wake` allows it.
    pub(super) fn open_mapping(&self) -> Result<Arc<Mapping>, MappingError> {
        let access = match self.shared.wake {
            Wake::Poll => Access::ReadOnly,
            Wake::Auto | Wake::Semaphore => Access::Semaphore,
        };
        match Mapping::open(&self.shared.name, access) {
            Err(error) if access == Access::Semaphore && error.is_permission() => {
                Mapping::open(&self.shared.name, Access::ReadOnly)
            }
            result => result,
        }
    }

    /// Everything from now on comes from `mapping`; cursors begin at unit `start`.
    pub(super) fn attach(&self, mapping: Arc<Mapping>, start: u32) {
        let layout = mapping.layout();
        let first = mapping.write_index();
        let wakes = if self.shared.wake == Wake::Poll { "by polling" } else { mapping.wakes() };
        if self.shared.wake == Wake::Semaphore && mapping.semaphore().is_none() && mapping.leases().is_none()
        {
            log::warn!("camera {}: no semaphore that may be used, polling instead", self.shared.name);
        }
        log::info!(
            "camera attached: {}, layout {layout} ({} bytes, {} slots), unit {first}, woken {wakes}",
            self.shared.name,
            layout.segment_bytes(),
            layout.slot_count()
        );
        self.shared.counters.attached.add_shared(1);
        let floor = mapping.leases().map_or(0, |ring| ring.epoch_start());
        let attachment = self.new_attachment(mapping, start, floor);
        self.move_to(&mut lock(&self.shared.place), Place::Attached(attachment));
        self.wake_consumers();
    }

    /// Nothing is mapped from now on.
    pub(super) fn detach(&self, reason: &str) {
        let mut place = lock(&self.shared.place);
        if let Place::Away { reason: known } = &mut *place {
            reason.clone_into(known);
            return;
        }
        self.move_to(&mut place, Place::Away { reason: reason.to_owned() });
        drop(place);
        log::warn!("camera away: {reason}");
        self.wake_consumers();
    }

    /// The camera of run `old` began again in the same segment. Whoever notices says so; told once.
    pub(super) fn restart(&self, old: &Arc<Attachment>, now_ns: MonotonicNs) {
        let mut place = lock(&self.shared.place);
        if !matches!(&*place, Place::Attached(current) if Arc::ptr_eq(current, old)) {
            return;
        }
        old.is_superseded.store(true, Ordering::Release);
        let (start, floor) = restart_at(&old.mapping);
        let attachment = self.new_attachment(Arc::clone(&old.mapping), start, floor);
        self.move_to(&mut place, Place::Attached(attachment));
        drop(place);
        self.count_restart(now_ns, "in the same segment");
        self.wake_consumers();
    }

    /// Counts a restart of the camera and says so.
    pub(super) fn count_restart(&self, now_ns: MonotonicNs, how: &str) {
        self.shared.counters.restarted.add_shared(1);
        if self.shared.restart_log.allows(now_ns) {
            log::info!("camera restarted {how}: {}", self.shared.name);
        }
    }

    /// The doorbell saw `units` new ones, the newest of `width` x `height` pixels.
    pub(super) fn note_units(&self, units: u32, width: i32, height: i32, now_ns: MonotonicNs) {
        self.shared.counters.units_seen.add_shared(u64::from(units));
        self.shared.last_unit_at_ns.store(now_ns, Ordering::Relaxed);
        let width = u64::from(u32::try_from(width).unwrap_or(0));
        let height = u64::from(u32::try_from(height).unwrap_or(0));
        self.shared.picture.store(width << 32 | height, Ordering::Relaxed);
    }

    /// A cursor skips a slot.
    pub(super) fn note_rejection(&self, rejection: Rejection, now_ns: MonotonicNs) {
        self.shared.counters.count_rejection(rejection);
        if self.shared.rejection_log.allows(now_ns) {
            log::warn!("camera {}: slots are skipped: {rejection}", self.shared.name);
        }
    }

    /// Rings every bell.
    pub(super) fn wake_consumers(&self) {
        for bell in lock(&self.shared.bells).iter() {
            bell.wake();
        }
    }

    /// CLOCK_REALTIME minus CLOCK_MONOTONIC, as of the doorbell's last look.
    pub(super) fn realtime_offset_ns(&self) -> i64 {
        self.shared.realtime_offset_ns.load(Ordering::Relaxed)
    }

    /// Reads both clocks; the doorbell calls this about once a second.
    pub(super) fn refresh_clocks(&self) {
        let offset_ns = clock::realtime_ns() - clock::monotonic_ns();
        self.shared.realtime_offset_ns.store(offset_ns, Ordering::Relaxed);
    }

    fn new_attachment(&self, mapping: Arc<Mapping>, start: u32, floor: u32) -> Arc<Attachment> {
        let whole = AtomicU32::new(mapping.write_index().wrapping_sub(1));
        let ring_epoch = mapping.leases().map_or(0, |ring| ring.epoch());
        Arc::new(Attachment {
            mapping,
            epoch: self.shared.epoch.fetch_add(1, Ordering::Relaxed).wrapping_add(1),
            start,
            floor,
            ring_epoch,
            counters: Arc::clone(&self.shared.counters),
            whole,
            is_superseded: AtomicBool::new(false),
        })
    }

    /// Changes the place under its lock and tells the cursors.
    fn move_to(&self, place: &mut Place, to: Place) {
        *place = to;
        self.shared.generation.fetch_add(1, Ordering::Release);
    }
}

impl fmt::Debug for Camera {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Camera").field("name", &self.shared.name).field("wake", &self.shared.wake).finish()
    }
}

/// Where a cursor begins in a run that has just begun, and the oldest unit of that run: with unit 0, its
/// first IDR, while that is still in the ring.
pub(super) fn restart_at(mapping: &Mapping) -> (u32, u32) {
    let index = mapping.write_index();
    if let Some(ring) = mapping.leases() {
        let first = ring.epoch_start();
        return if first == index || ring.holds(first) { (first, first) } else { (index, first) };
    }
    if index == 0 || is_safe(0, index, mapping.layout().slot_count()) { (0, 0) } else { (index, index) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_camera_without_segment_is_away_and_says_why() {
        let camera = Camera::new("/ss-test-never-there", Wake::Auto);
        let CameraStatus::Away { reason } = camera.status() else { panic!("{:?}", camera.status()) };
        assert!(reason.contains("/ss-test-never-there"), "{reason}");
    }
}
