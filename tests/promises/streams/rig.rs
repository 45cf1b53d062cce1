//! Plays a script through the real server to a viewer and to two recordings, and compares the result with ffmpeg's
//! decode of the source.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::account::KeptUnit;
use support::camera::{CameraSim, words};
use support::http;
use support::server::Server;
use support::viewer::ViewerSimulator;
use support::{unique_shm, wait_for, wait_until};

use crate::recording::rig::TemporaryDirectory;

/// Timeout for the end of a stream. A unit that is lost makes the test wait this long before it fails.
const STREAM_PATIENCE: Duration = Duration::from_secs(60);

/// Kinds of NAL units, H.264 table 7-1.
const IDR: u8 = 5;
const SPS: u8 = 7;
const PPS: u8 = 8;
const FILLER: u8 = 12;

/// Returns the path of a stream of the corpus.
pub(crate) fn stream(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/streams").join(format!("{name}.h264"))
}

/// What a viewer and two recordings received of a played script.
pub(crate) struct Played {
    pub(crate) live: Vec<KeptUnit>,
    directory: TemporaryDirectory,
    /// Responses to the two stop requests, first that of the MP4.
    pub(crate) stopped: [Value; 2],
    /// Sum of the metric `errors_total` of both servers.
    errors: f64,
}

/// Plays the lines of `script` on a ring of `layout` until the viewer and both recordings have received `pictures`
/// pictures. Two servers read the ring: one has the viewer and records an MP4, the other records a byte stream.
pub(crate) fn play(script: &str, layout: &str, pictures: usize) -> Played {
    let directory = TemporaryDirectory::new();
    let (script_path, go) = (directory.0.join("script.txt"), directory.0.join("go"));
    std::fs::write(&script_path, format!("wait file:go\n{script}\nwait stop\n")).unwrap();
    let shm = unique_shm();
    let mut arguments = words(&format!("--layout {layout} --script"));
    arguments.push(script_path.to_str().unwrap().to_owned());
    let camera = CameraSim::start(&shm, &arguments);
    let recordings = directory.0.to_str().unwrap();
    let live = Server::start(&shm, &["--record-path", recordings]);
    let other = Server::start(&shm, &["--record-path", recordings, "--wake", "poll"]);
    for (server, name) in [(&live, "play.mp4"), (&other, "play.h264")] {
        let body = json!({ "filename": name });
        wait_for("the recording starts", || {
            let started = http::post_json(server.http, "/api/recording/start", &body);
            assert!(matches!(started.status, 200 | 503), "{}", started.text());
            (started.status == 200).then_some(())
        });
    }
    let viewer = ViewerSimulator::connect_keeping(live.http).unwrap_or_else(|r| panic!("{}", r.text()));
    wait_until("the viewer is connected", || viewer.report().connected);
    std::fs::write(go, []).unwrap();
    wait_for_pictures(&viewer, [&live, &other], pictures as u64);
    let stopped = [&live, &other].map(|server| {
        let stopped = http::request(server.http, "POST", "/api/recording/stop", &[], b"");
        assert_eq!(stopped.status, 200, "{}", stopped.text());
        stopped.json()
    });
    assert_eq!(viewer.report().lost_packets, 0);
    let units = viewer.kept();
    viewer.leave();
    drop(camera);
    let errors = [&live, &other].map(|server| server.metrics().expect("errors_total")).iter().sum();
    Played { live: units, directory, stopped, errors }
}

/// Waits until the viewer and the recordings of both servers have received `pictures` pictures.
fn wait_for_pictures(viewer: &ViewerSimulator, servers: [&Server; 2], pictures: u64) {
    let recorded =
        |server: &Server| server.get("/api/recording/status").json()["frame_count"].as_u64().unwrap_or(0);
    let deadline = Instant::now() + STREAM_PATIENCE;
    loop {
        let report = viewer.report();
        let counts = [report.units + report.unstamped, recorded(servers[0]), recorded(servers[1])];
        if counts.iter().all(|count| *count >= pictures) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "pictures live, in the MP4 and in the byte stream: {counts:?} of {pictures}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Played {
    /// Asserts that no consumer counted a loss.
    pub(crate) fn assert_nothing_lost(&self) {
        for stopped in &self.stopped {
            let losses = [&stopped["dropped_units"], &stopped["gaps"]];
            assert_eq!(losses, [&json!(0), &json!(0)], "{stopped}");
        }
        assert_eq!(self.errors, 0.0, "errors_total");
    }

    /// Asserts that the RTP time follows the capture clock: it never runs backwards, and takes neither a step of the
    /// camera's clock nor the order of its stamps for time that has passed. `gap_ns` is the shortest time between two
    /// units.
    pub(crate) fn assert_rtp_time_follows_the_units(&self, gap_ns: i64) {
        let (first, last) = (self.live.first().unwrap(), self.live.last().unwrap());
        let times: Vec<u32> =
            self.live.iter().map(|unit| unit.rtp_time.wrapping_sub(first.rtp_time)).collect();
        assert!(times.is_sorted(), "RTP times: {times:?}");
        let passed_ns = i64::from(*times.last().unwrap()) * 100_000 / 9;
        let arrived_ns = last.at_ns - first.at_ns;
        let published_ns = gap_ns * (self.live.len() as i64 - 1);
        // A stamp in presentation order may be a few intervals before or after the time of its unit.
        assert!(passed_ns > published_ns - 10 * gap_ns, "RTP time is slow: {passed_ns} of {published_ns} ns");
        assert!(passed_ns < arrived_ns + 2_000_000_000, "RTP time is fast: {passed_ns} in {arrived_ns} ns");
    }

    /// Asserts that the viewer received exactly the NAL units of `source`, unit by unit, without filler data. Each IDR
    /// must have parameter sets before its first slice; all other NAL units must be those of the source.
    pub(crate) fn assert_live_is(&self, source: &Source) {
        self.assert_units_are(&access_units(&source.bytes));
        let received: Vec<u8> = self.live.iter().flat_map(|unit| join(&unit.nal_units)).collect();
        let path = self.directory.0.join("live.bin");
        std::fs::write(&path, received).unwrap();
        source.assert_decoded_from("live", &[path]);
    }

    /// Asserts that the viewer received these units, apart from the place of the parameter sets.
    pub(crate) fn assert_units_are(&self, expected: &[Vec<&[u8]>]) {
        assert_eq!(self.live.len(), expected.len(), "units received");
        for (index, (unit, expected)) in self.live.iter().zip(expected).enumerate() {
            let received: Vec<&[u8]> = unit.nal_units.iter().map(Vec::as_slice).collect();
            assert_eq!(kinds(&without_sets(&received)), kinds(&without_sets(expected)), "unit {index}");
            assert!(without_sets(&received) == without_sets(expected), "bytes of unit {index}");
            let slice = received.iter().position(|nal| kind(nal) == IDR).unwrap_or(0);
            let sets = kinds(&received[..slice]).iter().filter(|kind| matches!(**kind, SPS | PPS)).count();
            assert!(slice == 0 || sets >= 2, "IDR {index} without parameter sets: {:?}", kinds(&received));
        }
    }

    /// Asserts that the recorded byte stream has exactly the NAL units of `source`, without filler data and zero bytes.
    pub(crate) fn assert_byte_stream_is(&self, source: &Source) {
        let files = self.files("h264");
        let recorded = read_all(&files);
        let (received, expected) = (nal_units(&recorded), delivered(&source.bytes));
        assert_eq!(kinds(&without_sets(&received)), kinds(&without_sets(&expected)), "NAL units in the file");
        assert!(without_sets(&received) == without_sets(&expected), "bytes of the NAL units in the file");
        source.assert_decoded_from("byte stream", &files);
    }

    /// Asserts that the MP4 shows exactly the pictures of `source` in order, and that their times of presentation grow.
    pub(crate) fn assert_mp4_is(&self, source: &Source) {
        let files = self.files("mp4");
        let decoded: Vec<Picture> = files.iter().flat_map(|file| pictures(file, None)).collect();
        source.assert_pictures("MP4", &decoded);
        for file in &files {
            let shown = presentation_times(file);
            assert!(shown.is_sorted_by(|a, b| a < b), "times in the order of the pictures: {shown:?}");
        }
    }

    /// Returns the files of a recording in the order in which they were written.
    pub(crate) fn files(&self, extension: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.directory.0).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<PathBuf> =
            entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
        files.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
        files
    }
}

/// One decoded picture: its size in bytes and its MD5.
type Picture = (String, String);

/// A byte stream and the pictures that ffmpeg decodes from it.
pub(crate) struct Source {
    pub(crate) bytes: Vec<u8>,
    pictures: Vec<Picture>,
}

impl Source {
    pub(crate) fn new(path: &Path) -> Source {
        Source { bytes: std::fs::read(path).unwrap(), pictures: pictures(path, Some("h264")) }
    }

    /// Asserts that byte streams decode to the pictures of this source. If their NAL units are those of this source
    /// except for filler data, nothing needs to be decoded.
    fn assert_decoded_from(&self, what: &str, files: &[PathBuf]) {
        let bytes = read_all(files);
        if nal_units(&bytes) == delivered(&self.bytes) {
            return;
        }
        let decoded: Vec<Picture> = files.iter().flat_map(|file| pictures(file, Some("h264"))).collect();
        self.assert_pictures(what, &decoded);
    }

    fn assert_pictures(&self, what: &str, decoded: &[Picture]) {
        let first_wrong = decoded.iter().zip(&self.pictures).position(|(ours, source)| ours != source);
        let expected = (self.pictures.len(), None);
        assert_eq!((decoded.len(), first_wrong), expected, "{what}: pictures, and the first wrong one");
    }
}

fn read_all(files: &[PathBuf]) -> Vec<u8> {
    files.iter().flat_map(|file| std::fs::read(file).unwrap()).collect()
}

/// Decodes a file and returns its pictures in the order of presentation. The decoder must report no error.
fn pictures(path: &Path, format: Option<&str>) -> Vec<Picture> {
    let mut command = Command::new("ffmpeg");
    command
        .args(["-v", "error", "-threads", "1"])
        .args(format.map(|name| ["-f", name]).into_iter().flatten());
    let command = command.arg("-i").arg(path).args(["-noautoscale", "-fps_mode", "passthrough"]);
    let decoded = run(command.args(["-f", "framemd5", "-"]));
    let fields = |line: &str| line.split(',').map(|field| field.trim().to_owned()).collect::<Vec<_>>();
    let lines = decoded.lines().filter(|line| !line.starts_with('#')).map(fields);
    lines.map(|fields| (fields[4].clone(), fields[5].clone())).collect()
}

/// Returns the presentation times of the decoded pictures, in the order in which the decoder returns them.
fn presentation_times(path: &Path) -> Vec<i64> {
    let mut command = Command::new("ffprobe");
    let shown = [
        "-v",
        "error",
        "-threads",
        "1",
        "-select_streams",
        "v",
        "-show_entries",
        "frame=pts",
        "-of",
        "default=nw=1:nk=1",
    ];
    let times = run(command.args(shown).arg(path));
    times
        .lines()
        .map(|line| line.parse().unwrap_or_else(|_| panic!("no time of a picture: {line}")))
        .collect()
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn kind(nal: &[u8]) -> u8 {
    nal[0] & 0x1F
}

fn kinds(nals: &[&[u8]]) -> Vec<u8> {
    nals.iter().map(|nal| kind(nal)).collect()
}

/// Leaves out parameter sets, which the server moves and repeats.
fn without_sets<'a>(nals: &[&'a [u8]]) -> Vec<&'a [u8]> {
    nals.iter().copied().filter(|nal| !matches!(kind(nal), SPS | PPS)).collect()
}

/// Returns the NAL units of a source that the server must deliver: all but filler data. The words of zero bytes that an
/// encoder adds to the end of a slice (`cabac_zero_words`, H.264 7.3.2.8) are filler too.
fn delivered(stream: &[u8]) -> Vec<&[u8]> {
    fn without_zero_words(mut nal: &[u8]) -> &[u8] {
        while let Some(rest) = nal.strip_suffix(&[0, 0, 3]) {
            nal = rest;
        }
        nal
    }

    let nals = nal_units(stream).into_iter().filter(|nal| kind(nal) != FILLER);
    nals.map(without_zero_words).collect()
}

fn join(nals: &[Vec<u8>]) -> Vec<u8> {
    nals.iter().flat_map(|nal| [&[0, 0, 0, 1], nal.as_slice()].concat()).collect()
}

/// Returns the line of a script that publishes these NAL units as one unit.
pub(crate) fn unit_line(nals: &[&[u8]]) -> String {
    let digits = |nal: &&[u8]| nal.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let units: String = nals.iter().map(|nal| format!("00000001{}", digits(nal))).collect();
    format!("unit hex:{units}")
}

/// Plays `script`, which must contain all pictures of the stream `name`. Asserts that nothing is lost, live or recorded.
pub(crate) fn assert_arrives(script: &str, name: &str, layout: &str) -> Played {
    let source = Source::new(&stream(name));
    let played = play(script, layout, access_units(&source.bytes).len());
    played.assert_nothing_lost();
    played.assert_live_is(&source);
    played.assert_byte_stream_is(&source);
    played.assert_mp4_is(&source);
    played
}

/// Splits a byte stream into its NAL units, without start codes and zero bytes around them.
pub(crate) fn nal_units(stream: &[u8]) -> Vec<&[u8]> {
    let mut codes: Vec<usize> =
        (0..stream.len().saturating_sub(2)).filter(|at| stream[*at..*at + 3] == [0, 0, 1]).collect();
    codes.push(stream.len());
    let body = |pair: &[usize]| {
        let mut nal = &stream[pair[0] + 3..pair[1]];
        while let [rest @ .., 0] = nal {
            nal = rest;
        }
        nal
    };
    codes.windows(2).map(body).filter(|nal| !nal.is_empty()).collect()
}

/// Splits a byte stream without its filler data into its pictures: each begins with its first slice or with the NAL units in front of it.
pub(crate) fn access_units(stream: &[u8]) -> Vec<Vec<&[u8]>> {
    let mut units: Vec<Vec<&[u8]>> = Vec::new();
    let mut has_slice = true;
    for nal in delivered(stream) {
        let is_slice = matches!(kind(nal), 1 | 5);
        let begins = match kind(nal) {
            1 | 5 => nal[1] & 0x80 != 0,
            6..=9 | 14 => true,
            _ => false,
        };
        if has_slice && begins {
            units.push(Vec::new());
            has_slice = false;
        }
        units.last_mut().unwrap().push(nal);
        has_slice |= is_slice;
    }
    units
}
