//! A camera, a recorder and file checks for the recorder tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use streaming_server::camera::{Camera, FORMAT_H264, Layout, RingWriter, SlotMetadata, Wake, waiter};
use streaming_server::h264::{self, Stamp, crc32_of_slices};
use streaming_server::recorder::names::Format;
use streaming_server::recorder::retention::Retention;
use streaming_server::recorder::{
    RecorderConfig, RecorderError, RecorderHandle, RecorderState, StartRequest, StopReply, spawn,
};
use streaming_server::simulator::{ParameterSetPolicy, TestCard, TestCardConfig, Unit};

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub(crate) fn unique(what: &str) -> String {
    format!("ss-test-{}-{what}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// A directory that is removed with its contents on drop.
pub(crate) struct TemporaryDirectory(pub(crate) PathBuf);

impl TemporaryDirectory {
    pub(crate) fn new() -> TemporaryDirectory {
        let path = std::env::temp_dir().join(unique("recordings"));
        std::fs::create_dir_all(&path).unwrap();
        TemporaryDirectory(path)
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Picture settings of a [`TestCamera`]. A test can change them while the camera runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Picture {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) bitrate_kbps: Option<u32>,
    pub(crate) fps: u32,
}

pub(crate) const SMALL: Picture = Picture { width: 320, height: 192, bitrate_kbps: None, fps: 60 };

/// A simulated camera in a thread of its own. It publishes the test card in real time until it is dropped.
pub(crate) struct TestCamera {
    pub(crate) name: String,
    stop: Arc<AtomicBool>,
    pub(crate) published: Arc<AtomicU64>,
    pub(crate) paused: Arc<AtomicBool>,
    picture: Arc<Mutex<Picture>>,
    thread: Option<JoinHandle<()>>,
}

impl TestCamera {
    pub(crate) fn new(layout: Layout, picture: Picture) -> TestCamera {
        let name = format!("/{}", unique("ring"));
        let writer = RingWriter::create(&name, layout, 1_000 / picture.fps).unwrap();
        let (stop, paused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let published = Arc::new(AtomicU64::new(0));
        let picture = Arc::new(Mutex::new(picture));
        let publisher = PublishLoop {
            writer,
            stop: Arc::clone(&stop),
            paused: Arc::clone(&paused),
            published: Arc::clone(&published),
            picture: Arc::clone(&picture),
        };
        let thread = Some(std::thread::spawn(move || publisher.run()));
        TestCamera { name, stop, published, paused, picture, thread }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Picture)) {
        change(&mut self.picture.lock().unwrap());
    }

    pub(crate) fn count(&self) -> u64 {
        self.published.load(Ordering::SeqCst)
    }

    /// Waits until `count` more units are published.
    pub(crate) fn wait_units(&self, count: u64) {
        let target = self.count() + count;
        while self.count() < target {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for TestCamera {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Returns the metadata of a unit of this size in pixels that is captured now.
pub(crate) fn taken_now(frame_number: u64, (width, height): (u32, u32), unit: &[u8]) -> SlotMetadata {
    let now = clock_gettime(ClockId::Realtime);
    SlotMetadata {
        frame_number,
        timestamp_s: now.tv_sec,
        timestamp_ns: now.tv_nsec,
        camera_id: 0,
        width: i32::try_from(width).unwrap(),
        height: i32::try_from(height).unwrap(),
        format: FORMAT_H264,
        data_bytes: unit.len() as u64,
    }
}

struct PublishLoop {
    writer: RingWriter,
    stop: Arc<AtomicBool>,
    paused: Arc<AtomicBool>,
    published: Arc<AtomicU64>,
    picture: Arc<Mutex<Picture>>,
}

impl PublishLoop {
    fn run(mut self) {
        let (mut card, mut shown) = (None, None);
        let mut unit = Unit::default();
        let mut due_ns = monotonic_ns();
        while !self.stop.load(Ordering::SeqCst) {
            let picture = *self.picture.lock().unwrap();
            let size = (picture.width, picture.height, picture.bitrate_kbps);
            if shown != Some(size) {
                card = Some(TestCard::new(config(picture)).unwrap());
                shown = Some(size);
            }
            due_ns += 1_000_000_000 / i64::from(picture.fps);
            let early = u64::try_from(due_ns - monotonic_ns()).unwrap_or(0);
            std::thread::sleep(Duration::from_nanos(early));
            if self.paused.load(Ordering::SeqCst) {
                continue;
            }
            let number = self.published.load(Ordering::SeqCst);
            card.as_mut().unwrap().encode(number, number, &mut unit);
            let metadata = taken_now(number, (picture.width, picture.height), unit.bytes());
            self.writer.publish(&metadata, unit.bytes());
            self.published.store(number + 1, Ordering::SeqCst);
        }
        self.writer.unlink();
    }
}

fn config(picture: Picture) -> TestCardConfig {
    TestCardConfig {
        width: picture.width,
        height: picture.height,
        fps: f64::from(picture.fps),
        bitrate_kbps: picture.bitrate_kbps,
        gop: 20,
        slices: 1,
        parameter_sets: ParameterSetPolicy::Every,
        delimiters: true,
        square: false,
    }
}

pub(crate) fn monotonic_ns() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// A recorder that reads a ring, and the thread that waits for new units of the camera.
pub(crate) struct Rig {
    pub(crate) handle: RecorderHandle,
    runtime: tokio::runtime::Runtime,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Rig {
    pub(crate) fn new(ring: &str, directory: &Path, format: Format) -> Rig {
        Rig::with(ring, directory, format, Retention::default())
    }

    pub(crate) fn with(ring: &str, directory: &Path, format: Format, retention: Retention) -> Rig {
        let camera = Camera::new(ring, Wake::Auto);
        let stop = Arc::new(AtomicBool::new(false));
        let config = RecorderConfig { directory: directory.to_owned(), format, retention };
        let (handle, recorder) = spawn(&camera, config).unwrap();
        let bell_stop = Arc::clone(&stop);
        let bell = std::thread::spawn(move || waiter::run(camera, bell_stop, false));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Rig { handle, runtime, stop, threads: vec![recorder, bell] }
    }

    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub(crate) fn start(&self, request: StartRequest) -> Result<String, RecorderError> {
        self.wait(self.handle.start(request)).map(|reply| reply.name)
    }

    pub(crate) fn stop(&self) -> Result<StopReply, RecorderError> {
        self.wait(self.handle.stop())
    }

    pub(crate) fn status(&self) -> streaming_server::recorder::Status {
        self.wait(self.handle.status()).unwrap()
    }

    /// Waits until the recorder is in `state`.
    pub(crate) fn wait_state(&self, state: RecorderState) {
        while self.status().state != state {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the recording has at least `units` units.
    pub(crate) fn wait_recorded(&self, units: u64) {
        while self.status().report.is_none_or(|report| report.frame_count < units) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.handle.shutdown();
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

pub(crate) fn named(name: &str) -> StartRequest {
    StartRequest { filename: Some(name.to_owned()), ..StartRequest::default() }
}

/// Asserts that ffprobe and ffmpeg read the file without any error message. Returns the number of decoded pictures.
pub(crate) fn assert_plays(path: &Path) -> usize {
    let probe = Command::new("ffprobe").args(["-v", "error", "-show_streams"]).arg(path).output().unwrap();
    assert!(probe.status.success(), "{}", String::from_utf8_lossy(&probe.stderr));
    assert!(probe.stderr.is_empty(), "{}: {}", path.display(), String::from_utf8_lossy(&probe.stderr));
    let decode = Command::new("ffmpeg")
        .args(["-v", "error", "-err_detect", "explode", "-i"])
        .arg(path)
        .args(["-fps_mode", "passthrough", "-f", "framecrc", "-"])
        .output()
        .unwrap();
    assert!(decode.stderr.is_empty(), "{}: {}", path.display(), String::from_utf8_lossy(&decode.stderr));
    String::from_utf8_lossy(&decode.stdout).lines().filter(|line| !line.starts_with('#')).count()
}

/// Returns the unit numbers in a file, in order. Asserts that every unit matches its checksum and every IDR has its
/// parameter sets exactly once.
pub(crate) fn unit_numbers(path: &Path) -> Vec<u64> {
    let stream = byte_stream(path);
    numbers_of_stream(&stream)
}

/// Returns the units of the file as an Annex B byte stream.
pub(crate) fn byte_stream(path: &Path) -> Vec<u8> {
    if path.extension().is_some_and(|extension| extension == "h264") {
        return std::fs::read(path).unwrap();
    }
    let mut copy = Command::new("ffmpeg");
    // The raw H.264 muxer of ffmpeg rounds each timestamp to a multiple of the picture interval. On a busy machine two
    // units can get the same timestamp, and ffmpeg would merge them. So `setts` first gives the units evenly spaced
    // timestamps.
    let renumbered = ["-c", "copy", "-bsf:v", "setts=ts=N*3000", "-f", "h264", "-"];
    let copy = copy.args(["-v", "error", "-i"]).arg(path).args(renumbered);
    let copy = copy.output().unwrap();
    assert!(copy.stderr.is_empty(), "{}: {}", path.display(), String::from_utf8_lossy(&copy.stderr));
    copy.stdout
}

/// Does the same as [`unit_numbers`] for a byte stream. Each unit in it must begin with its access unit delimiter.
fn numbers_of_stream(stream: &[u8]) -> Vec<u64> {
    let starts: Vec<usize> = memchr::memmem::find_iter(stream, &[0, 0, 0, 1, 9]).collect();
    let ends = starts.iter().skip(1).copied().chain([stream.len()]);
    let mut nal_units = smallvec::SmallVec::new();
    let number = |(start, end): (&usize, usize)| {
        let unit = &stream[*start..end];
        h264::scan(unit, &mut nal_units).unwrap();
        let bytes = |nal: &h264::NalUnit| &unit[nal.start as usize..nal.end as usize];
        let stamp = Stamp::find(nal_units.iter().map(bytes)).unwrap();
        let slices = nal_units.iter().filter(|nal| matches!(nal.kind, 1 | 5)).map(bytes);
        assert_eq!(stamp.slices_crc32, crc32_of_slices(slices), "unit {} is torn", stamp.unit_number);
        let count = |kind| nal_units.iter().filter(|nal| nal.kind == kind).count();
        let sets = usize::from(count(5) > 0);
        assert_eq!((count(7), count(8)), (sets, sets), "parameter sets of unit {}", stamp.unit_number);
        stamp.unit_number
    };
    starts.iter().zip(ends).map(number).collect()
}

/// Asserts that there is at least one number and that all numbers are consecutive.
pub(crate) fn assert_complete(numbers: &[u64]) {
    assert!(!numbers.is_empty());
    for pair in numbers.windows(2) {
        assert_eq!(pair[1], pair[0] + 1, "units are missing, repeated or out of order");
    }
}

/// A small file system that is mounted for a test and unmounted on drop. The constructors return `None` if this process
/// may not mount file systems.
pub(crate) struct Mounted {
    pub(crate) path: PathBuf,
    image: Option<PathBuf>,
}

impl Mounted {
    pub(crate) fn tmpfs(bytes: u64) -> Option<Mounted> {
        let path = std::env::temp_dir().join(unique("tmpfs"));
        std::fs::create_dir_all(&path).unwrap();
        let options = format!("size={bytes}");
        let mounted = run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", path.to_str().unwrap()]);
        let mount = Mounted { path, image: None };
        mounted.then_some(mount)
    }

    pub(crate) fn ext4(bytes: u64) -> Option<Mounted> {
        let path = std::env::temp_dir().join(unique("ext4"));
        std::fs::create_dir_all(&path).unwrap();
        let image = path.with_extension("image");
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        let made = run("mkfs.ext4", &["-q", "-F", "-m", "0", image.to_str().unwrap()]);
        let mounted = made && run("mount", &["-o", "loop", image.to_str().unwrap(), path.to_str().unwrap()]);
        let mount = Mounted { path, image: Some(image) };
        mounted.then_some(mount)
    }

    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> bool {
        let path = self.path.to_str().unwrap();
        run(program, &[arguments, &[path]].concat())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.run("umount", &["-l"]);
        let _ = std::fs::remove_dir(&self.path);
        self.image.iter().for_each(|image| drop(std::fs::remove_file(image)));
    }
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).output();
    let done = output.as_ref().is_ok_and(|output| output.status.success());
    if !done {
        eprintln!("{program} {arguments:?}: {output:?}");
    }
    done
}
