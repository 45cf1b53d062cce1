//! Recording while ten viewers watch, controlled over HTTP: no unit is missing in the file or at a viewer, and the file
//! has little overhead. The test prints CPU and memory figures but does not check them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use streaming_server::h264::{Assembler, Stamp};
use support::camera::{CameraSim, steady};
use support::http;
use support::metrics::Metrics;
use support::server::Server;
use support::viewer::ViewerSimulator;
use support::{test_seconds, unique_shm};

/// A temporary directory, removed on drop.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new() -> Directory {
        let path = std::env::temp_dir().join(format!("ss-record-{}", unique_shm().replace('/', "")));
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Returns the unit numbers in the file and the total bytes of its access units. Each unit must begin with its access
/// unit delimiter.
pub(crate) fn units_of(file: &PathBuf) -> (Vec<u64>, u64) {
    let mut copy = Command::new("ffmpeg");
    let copy = copy.args(["-v", "error", "-i"]).arg(file);
    let copy = copy.args(["-c", "copy", "-bsf:v", "setts=ts=N*3000", "-f", "h264", "-"]).output().unwrap();
    assert!(copy.stderr.is_empty(), "{}", String::from_utf8_lossy(&copy.stderr));
    let stream = copy.stdout;
    let mut starts: Vec<usize> = memchr::memmem::find_iter(&stream, &[0, 0, 0, 1, 9]).collect();
    starts.push(stream.len());
    let mut assembler = Assembler::default();
    let mut numbers = Vec::new();
    for unit in starts.windows(2) {
        let unit = assembler.assemble(&stream[unit[0]..unit[1]]).unwrap();
        let kinds: Vec<u8> = unit.nals().map(|nal| nal.kind).collect();
        if unit.is_idr() {
            let count = |kind| kinds.iter().filter(|&&other| other == kind).count();
            assert_eq!((count(7), count(8)), (1, 1), "an IDR has each parameter set once");
        }
        numbers.push(Stamp::find(unit.nals().map(|nal| nal.bytes)).unwrap().unit_number);
    }
    (numbers, stream.len() as u64)
}

fn silent(program: &str, arguments: &[&str], file: &PathBuf, rest: &[&str]) {
    let output = Command::new(program).args(arguments).arg(file).args(rest).output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Returns the CPU seconds that the server used so far and its private memory in MB, from its own metrics.
fn cost(metrics: &Metrics) -> (f64, f64) {
    (metrics.expect("process_cpu_seconds_total"), metrics.expect("process_anonymous_memory_bytes") / 1e6)
}

/// Returns the CPU use of the server over `seconds`, in percent of one core.
fn cpu_percent(server: &Server, seconds: u64) -> f64 {
    let before = cost(&server.metrics()).0;
    std::thread::sleep(Duration::from_secs(seconds));
    100.0 * (cost(&server.metrics()).0 - before) / seconds as f64
}

#[test]
fn recording_with_ten_viewers_loses_no_unit() {
    let (shm, directory) = (unique_shm(), Directory::new());
    let _camera = CameraSim::start(&shm, &steady("v1"));
    let mut server = Server::start(&shm, &["--record-path", directory.0.to_str().unwrap()]);
    server.wait_ready();
    let idle = cpu_percent(&server, 2);
    let viewers = ViewerSimulator::crowd(server.http, 10);
    viewers.iter().for_each(|viewer| viewer.wait_units(10));
    let watched = cpu_percent(&server, test_seconds().min(20));
    let before = cost(&server.metrics());
    let started = http::post_json(server.http, "/api/recording/start", &json!({ "filename": "cat" }));
    assert_eq!(started.status, 200, "{}", started.text());
    assert_eq!(started.json()["status"], "recording");
    let recorded = cpu_percent(&server, test_seconds());
    let again = http::request(server.http, "POST", "/api/recording/start", &[], b"");
    assert_eq!(again.status, 409, "{}", again.text());
    let stopped = http::request(server.http, "POST", "/api/recording/stop", &[], b"").json();
    assert_eq!((&stopped["status"], &stopped["dropped_units"]), (&json!("stopped"), &json!(0)));
    let after = cost(&server.metrics());

    for (index, viewer) in viewers.into_iter().enumerate() {
        viewer.leave().assert_perfect(&format!("viewer {index}"));
    }
    let file = directory.0.join("cat.mp4");
    silent("ffprobe", &["-v", "error"], &file, &[]);
    silent("ffmpeg", &["-v", "error", "-i"], &file, &["-f", "null", "-"]);
    let (numbers, payload_bytes) = units_of(&file);
    assert_eq!(numbers.len() as u64, stopped["frame_count"].as_u64().unwrap());
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "units are complete and in order");
    assert!(numbers.len() as u64 >= test_seconds() * 30 - 31, "{} units", numbers.len());
    let file_bytes = std::fs::metadata(&file).unwrap().len();
    assert!(file_bytes * 100 <= payload_bytes * 101, "{file_bytes} bytes for {payload_bytes} of payload");
    eprintln!(
        "{} units, file {file_bytes} bytes = payload + {:.2} %; server's CPU: idle {idle:.2} %, 10 viewers \
         {watched:.1} %, recording and 10 viewers {recorded:.1} %; memory {:.1} MB before, {:.1} MB after (not checked)",
        numbers.len(),
        100.0 * (file_bytes as f64 / payload_bytes as f64 - 1.0),
        before.1,
        after.1,
    );
    let text = server.get("/metrics").text();
    let writes = text.lines().filter(|line| line.starts_with("recording_write_seconds"));
    writes.for_each(|line| eprintln!("{line}"));
    server.assert_healthy();
}

#[test]
fn running_file_can_be_downloaded_and_plays() {
    for layout in ["v3", "lease"] {
        download_while_it_is_written(layout);
    }
}

fn download_while_it_is_written(layout: &str) {
    let (shm, directory) = (unique_shm(), Directory::new());
    let _camera = CameraSim::start(&shm, &steady(layout));
    let server = Server::start(&shm, &["--record-path", directory.0.to_str().unwrap()]);
    server.wait_ready();
    assert_eq!(http::request(server.http, "POST", "/api/recording/start", &[], b"").status, 200);
    support::wait_until("two seconds recorded", || {
        server.get("/api/recording/status").json()["frame_count"].as_u64().unwrap_or(0) >= 60
    });
    let name = server.get("/api/recordings").json()["recordings"][0]["name"].as_str().unwrap().to_owned();
    let download = server.get(&format!("/api/recordings/{name}"));
    assert_eq!(download.status, 200);
    let copy = directory.0.join("copy-of-it.bin.mp4");
    std::fs::write(&copy, &download.body).unwrap();
    silent("ffmpeg", &["-v", "error", "-i"], &copy, &["-f", "null", "-"]);
    let (numbers, _) = units_of(&copy);
    assert!(numbers.len() >= 60 && numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
    let removal = http::request(server.http, "DELETE", &format!("/api/recordings/{name}"), &[], b"");
    removal.assert_error(&[409]);
    assert_eq!(http::request(server.http, "POST", "/api/recording/stop", &[], b"").status, 200);
    let removal = http::request(server.http, "DELETE", &format!("/api/recordings/{name}"), &[], b"");
    assert_eq!(removal.status, 200, "{}", removal.text());
}
