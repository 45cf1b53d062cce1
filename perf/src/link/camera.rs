//! The camera of a run, and the log of the units that it publishes. The log is read from the camera's ring, so that the
//! age of a picture does not depend on what a server passes on.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use streaming_server::camera::{Camera as Ring, Cursor, Next, Wake, Wakeup, waiter};
use streaming_server::h264::{STAMP_UUID, Stamp};

use super::stream::Prepared;
use crate::Fallible;
use crate::clock::monotonic_ns;
use crate::process::Process;

const PATIENCE: Duration = Duration::from_secs(40);
/// Bytes at the start of a unit in which its stamp is searched. Only a delimiter and parameter sets precede the stamp.
const STAMP_WITHIN_BYTES: usize = 1_024;
/// Bytes of a stamp before its UUID.
const STAMP_HEADER_BYTES: usize = 3;

/// One unit that the camera published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) number: u64,
    /// CLOCK_MONOTONIC ns.
    pub(crate) at_ns: i64,
    pub(crate) bytes: usize,
}

/// A running camera with a log of its units.
pub(crate) struct Camera {
    _process: Process,
    pub(crate) shm: String,
    log: Arc<Mutex<Vec<Published>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Camera {
    pub(crate) fn start(program: &Path, layout: &str, stream: &Prepared, shielded: bool) -> Fallible<Camera> {
        let shm = format!("/perf-link-{}-{}", std::process::id(), monotonic_ns());
        let mut command = Command::new(program);
        command.args(["--shm", &shm, "--layout", layout]).args(stream.camera_arguments());
        let mut process = Process::spawn("camera-sim", &mut command, shielded)?;
        let deadline = Instant::now() + PATIENCE;
        while !Path::new(&format!("/dev/shm{shm}")).exists() {
            process.check()?;
            if Instant::now() > deadline {
                return Err("camera-sim did not create its ring".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let (log, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (shm, log, stop) = (shm.clone(), Arc::clone(&log), Arc::clone(&stop));
            std::thread::spawn(move || read(&shm, &log, &stop))
        };
        let camera = Camera { _process: process, shm, log, stop, thread: Some(thread) };
        while camera.log().is_empty() {
            if Instant::now() > deadline {
                return Err("the camera published no unit with a stamp".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(camera)
    }

    /// Returns all units published so far.
    pub(crate) fn log(&self) -> Vec<Published> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(format!("/dev/shm{}", self.shm));
    }
}

/// Reads new units at each wake-up, on the thread of the camera wait.
struct Reader {
    cursor: Mutex<Cursor>,
    log: Arc<Mutex<Vec<Published>>>,
}

impl Wakeup for Reader {
    fn wake(&self) {
        let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match cursor.next(monotonic_ns()) {
                Next::Unit(view) => {
                    let stamp = stamp_of(&view.bytes);
                    let bytes = view.bytes.len();
                    if let Some(stamp) = stamp.filter(|_| view.is_intact()) {
                        let Stamp { unit_number: number, published_monotonic_ns: at_ns, .. } = stamp;
                        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
                        log.push(Published { number, at_ns, bytes });
                    }
                }
                Next::Empty | Next::Away => return,
                _ => {}
            }
        }
    }
}

/// Reads the ring until `stop` is set. It polls the ring, because the semaphore belongs to the server under test.
fn read(shm: &str, log: &Arc<Mutex<Vec<Published>>>, stop: &Arc<AtomicBool>) {
    let ring = Ring::new(shm, Wake::Poll);
    let reader = Reader { cursor: Mutex::new(ring.cursor()), log: Arc::clone(log) };
    ring.add_wakeup(Arc::new(reader));
    waiter::run(ring, Arc::clone(stop), false);
}

fn stamp_of(unit: &[u8]) -> Option<Stamp> {
    let head = unit.get(..STAMP_WITHIN_BYTES.min(unit.len()))?;
    let at = head.windows(STAMP_UUID.len()).position(|window| window == STAMP_UUID)?;
    let begin = at.checked_sub(STAMP_HEADER_BYTES)?;
    Stamp::parse(unit.get(begin..begin + Stamp::NAL_BYTES)?)
}
