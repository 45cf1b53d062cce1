//! The task that reads the ring for all viewers over HTTP, and the viewers' handles. Both run on the caller's tokio
//! runtime. No lock is held while a unit is read.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::backlog::{Backlog, Format, Taken, ViewerOrigin, ViewerState};
use super::reader::{Polled, RingReader};
use crate::base::clock::monotonic_ns;
use crate::base::counters::Counter;
use crate::base::limits;
use crate::camera::{Camera, Wakeup};
use crate::recorder::RecorderHandle;
use crate::recorder::endless::EndlessMuxer;
use crate::recorder::format::annexb::START_CODE;

/// The stream for viewers over HTTP.
pub struct Live {
    camera: Camera,
    recorder: Option<RecorderHandle>,
    shared: Mutex<Shared>,
    wake: Arc<UnitWakeup>,
    counters: LiveCounters,
}

#[derive(Default)]
struct Shared {
    backlog: Backlog,
    is_running: bool,
}

/// Counters of all viewers over HTTP.
#[derive(Debug, Default)]
pub struct LiveCounters {
    /// Access units that viewers took, counted once per viewer.
    pub units_sent: Counter,
    /// Access units that viewers skipped, because they read too slowly or because the server held too many units.
    pub units_dropped: Counter,
}

/// Wakes the task, but only while it runs, so that a unit costs nothing without viewers.
#[derive(Default)]
struct UnitWakeup {
    is_active: AtomicBool,
    unit_published: Notify,
}

impl Wakeup for UnitWakeup {
    fn wake(&self) {
        if self.is_active.load(Ordering::Relaxed) {
            self.unit_published.notify_one();
        }
    }
}

impl Live {
    /// Returns the stream of this camera. Nothing runs before the first viewer. The recorder, if there is one, has read
    /// the stream from its start, and knows parameter sets that the camera sent only once.
    #[must_use]
    pub fn new(camera: &Camera, recorder: Option<RecorderHandle>) -> Arc<Live> {
        let wake = Arc::new(UnitWakeup::default());
        camera.add_wakeup(Arc::clone(&wake) as Arc<dyn Wakeup>);
        let (camera, shared, counters) = (camera.clone(), Mutex::default(), LiveCounters::default());
        Arc::new(Live { camera, recorder, shared, wake, counters })
    }

    /// Adds a viewer, and starts the task if it does not run. Must be called on a tokio runtime. `must_close` is
    /// notified if the viewer's connection must be closed although it does not read.
    #[must_use]
    pub fn open(
        self: &Arc<Self>,
        origin: ViewerOrigin,
        format: Format,
        must_close: Arc<Notify>,
    ) -> LiveViewer {
        let mut shared = self.shared();
        let id = shared.backlog.add_viewer(origin, format, must_close);
        if !mem::replace(&mut shared.is_running, true) {
            self.wake.is_active.store(true, Ordering::Relaxed);
            tokio::spawn(run(Arc::clone(self)));
        }
        drop(shared);
        LiveViewer { live: Arc::clone(self), id, format, rest: Bytes::new(), is_code_sent: false }
    }

    /// Returns the number of viewers.
    #[must_use]
    pub fn viewer_count(&self) -> usize {
        self.shared().backlog.viewer_count()
    }

    /// Returns the state of each viewer.
    #[must_use]
    pub fn viewer_states(&self) -> Vec<ViewerState> {
        self.shared().backlog.viewer_states()
    }

    /// Returns the bytes of all access units that viewers make the program hold.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.shared().backlog.held_bytes()
    }

    /// Returns the counters.
    #[must_use]
    pub fn counters(&self) -> &LiveCounters {
        &self.counters
    }

    /// Returns a muxer that knows the parameter sets which the recorder knows.
    async fn muxer(&self) -> EndlessMuxer {
        let known = async { self.recorder.as_ref()?.known_sets().await.ok() };
        // A recorder that does not answer in time is stuck, usually because the disk hangs.
        let known = timeout(limits::EVENTS_RECORDER_TIMEOUT, known).await.ok().flatten();
        EndlessMuxer::new(known.unwrap_or_default())
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes units from the ring to the backlog. Returns the number of units, at most [`limits::LIVE_UNITS_PER_TURN`].
    fn read_units(&self, reader: &mut RingReader, now_ns: i64) -> usize {
        let mut count = 0;
        while count < limits::LIVE_UNITS_PER_TURN {
            match reader.poll(now_ns) {
                Polled::Unit(unit) => {
                    count += 1;
                    let mut shared = self.shared();
                    if !shared.backlog.push(unit) {
                        self.counters.units_dropped.add_shared(shared.backlog.viewer_count() as u64);
                        reader.handle_gap();
                    }
                }
                Polled::Again => {}
                Polled::Empty => break,
            }
        }
        count
    }

    /// Ends what lasted too long: the task after its last viewer, and the viewers in a pause. Returns true if the task
    /// ends.
    fn end_what_is_over(&self, times: &mut Times, now_ns: i64) -> bool {
        let mut shared = self.shared();
        if shared.backlog.viewer_count() > 0 {
            times.had_viewer_ns = now_ns;
            if now_ns - times.had_unit_ns > limits::LIVE_PAUSE_NS_MAX {
                shared.backlog.end_viewers();
            }
            return false;
        }
        let is_over = now_ns - times.had_viewer_ns > limits::LIVE_LINGER_NS;
        if is_over {
            shared.backlog.clear();
            shared.is_running = false;
            self.wake.is_active.store(false, Ordering::Relaxed);
        }
        is_over
    }
}

/// When the task last had a viewer and a unit.
struct Times {
    had_viewer_ns: i64,
    had_unit_ns: i64,
}

/// Reads the ring until there have been no viewers for [`limits::LIVE_LINGER_NS`].
async fn run(live: Arc<Live>) {
    let muxer = live.muxer().await;
    let began_ns = monotonic_ns();
    let mut reader = RingReader::new(&live.camera, muxer, began_ns);
    let mut times = Times { had_viewer_ns: began_ns, had_unit_ns: began_ns };
    loop {
        let now_ns = monotonic_ns();
        let count = live.read_units(&mut reader, now_ns);
        if count > 0 {
            times.had_unit_ns = now_ns;
        }
        if live.end_what_is_over(&mut times, now_ns) {
            return;
        }
        if count < limits::LIVE_UNITS_PER_TURN {
            // The result is ignored: after a timeout the ring is polled as after a wake-up.
            let _ = timeout(limits::LIVE_POLL, live.wake.unit_published.notified()).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}

/// The stream of one viewer.
pub struct LiveViewer {
    live: Arc<Live>,
    id: u64,
    format: Format,
    /// What is left of the last unit: of an MP4 all bytes, of a byte stream the NAL units with their lengths.
    rest: Bytes,
    /// True if the start code of the next NAL unit in `rest` was returned.
    is_code_sent: bool,
}

impl LiveViewer {
    /// Returns the next bytes of the stream, or `None` at its end. The bytes are shared between all viewers.
    pub fn poll_next(&mut self, context: &Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(part) = self.next_part() {
            return Poll::Ready(Some(part));
        }
        let taken = self.live.shared().backlog.take(self.id, context.waker());
        match taken {
            Taken::Wait => Poll::Pending,
            Taken::End => Poll::Ready(None),
            Taken::Unit { file_header, mut bytes, header_bytes, skipped } => {
                let counters = self.live.counters();
                counters.units_sent.add_shared(1);
                counters.units_dropped.add_shared(skipped);
                if self.format == Format::AnnexB {
                    bytes.advance(header_bytes.min(bytes.len()));
                }
                self.rest = bytes;
                Poll::Ready(file_header.or_else(|| self.next_part()))
            }
        }
    }

    fn next_part(&mut self) -> Option<Bytes> {
        if self.rest.is_empty() {
            return None;
        }
        if self.format == Format::Mp4 {
            return Some(mem::take(&mut self.rest));
        }
        self.is_code_sent = !self.is_code_sent;
        if self.is_code_sent {
            return Some(Bytes::from_static(START_CODE));
        }
        let length = usize::try_from(self.rest.try_get_u32().ok()?).unwrap_or(usize::MAX);
        let nal = self.rest.split_to(length.min(self.rest.len()));
        if self.rest.is_empty() {
            self.rest = Bytes::new();
        }
        Some(nal)
    }
}

impl Drop for LiveViewer {
    fn drop(&mut self) {
        self.live.shared().backlog.remove_viewer(self.id);
    }
}
