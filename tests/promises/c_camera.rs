//! The C side of the lease ring: `pet_camera_ring.h` has the same numbers as the Rust side and compiles without
//! warnings with every installed compiler. Viewers can watch the example camera in the comment of the header.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use streaming_server::base::limits::{LEASE_SLOT_BYTES_MAX, LEASE_SLOTS_MIN};
use streaming_server::camera::Geometry;
use streaming_server::camera::lease::{
    LATEST_SHIFT, READERS, READERS_MAX, SEQUENCE_MAX, SEQUENCE_SHIFT, SLOTS_MAX, WRITING,
};
use streaming_server::camera::lease_header::{
    BITRATE_REQUEST_S, CONTROL_BYTES, FLAG_IDR, FLAG_OBEYS_BITRATE, FOURCC_H264, HEADER_BYTES, MAGIC,
    NAL_OFFSETS_MAX, READER_LOCKS, STATE_CLOSED, STATE_OPEN, VERSION, WRITER_LOCK, control, header,
};
use streaming_server::simulator::{ParameterSetPolicy, TestCard, TestCardConfig, Unit};
use support::c::{COMPILERS, Workshop};
use support::process::Process;
use support::server::Server;
use support::viewer::ViewerSimulator;
use support::{camera, unique_shm, wait_until};

/// Names of the fields as `layout.c` prints them, each with its offset in bytes on the Rust side.
const FIELDS: [(&str, usize); 33] = [
    ("header.magic", header::MAGIC),
    ("header.version", header::VERSION),
    ("header.header_size", header::HEADER_SIZE),
    ("header.slot_count", header::SLOT_COUNT),
    ("header.max_readers", header::MAX_READERS),
    ("header.slot_size", header::SLOT_SIZE),
    ("header.ctl_offset", header::CTL_OFFSET),
    ("header.data_offset", header::DATA_OFFSET),
    ("header.total_size", header::TOTAL_SIZE),
    ("header.fourcc", header::FOURCC),
    ("header.flags", header::FLAGS),
    ("header.width", header::WIDTH),
    ("header.height", header::HEIGHT),
    ("header.fps_num", header::FPS_NUM),
    ("header.fps_den", header::FPS_DEN),
    ("header.epoch", header::EPOCH),
    ("header.epoch_sequence", header::EPOCH_SEQUENCE),
    ("header.latest", header::LATEST),
    ("header.futex", header::FUTEX),
    ("header.keyframe_request", header::KEYFRAME_REQUEST),
    ("header.dropped", header::DROPPED),
    ("header.state", header::STATE),
    ("header.bitrate_request", header::BITRATE_REQUEST),
    ("header.bitrate_requested_s", header::BITRATE_REQUESTED_S),
    ("control.word", control::WORD),
    ("control.captured_ns", control::CAPTURED_NS),
    ("control.frame_number", control::FRAME_NUMBER),
    ("control.len", control::LEN),
    ("control.flags", control::FLAGS),
    ("control.nal_count", control::NAL_COUNT),
    ("control.nal_offset", control::NAL_OFFSET),
    ("control.width", control::WIDTH),
    ("control.height", control::HEIGHT),
];

#[test]
fn c_and_rust_have_the_same_numbers() {
    let workshop = Workshop::create();
    let output = Command::new(workshop.compile("cc", "layout.c", &[])).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let in_c: HashMap<&str, u64> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, v)| (name, v.parse().unwrap()))
        .collect();
    let data_offset = |slots| Geometry::new(slots, 64).unwrap().data_offset() as u64;
    let known: Vec<(&str, u64)> = vec![
        ("PCR_MAGIC", MAGIC),
        ("PCR_VERSION", VERSION.into()),
        ("PCR_HEADER_BYTES", HEADER_BYTES as u64),
        ("PCR_READERS_MAX", READERS_MAX.into()),
        ("PCR_SLOTS_MIN", LEASE_SLOTS_MIN.into()),
        ("PCR_SLOTS_MAX", SLOTS_MAX.into()),
        ("PCR_SLOT_BYTES_MAX", LEASE_SLOT_BYTES_MAX.into()),
        ("PCR_FOURCC_H264", FOURCC_H264.into()),
        ("PCR_WRITER_LOCK", WRITER_LOCK.unsigned_abs()),
        ("PCR_READER_LOCKS", READER_LOCKS.unsigned_abs()),
        ("PCR_STATE_OPEN", STATE_OPEN.into()),
        ("PCR_STATE_CLOSED", STATE_CLOSED.into()),
        ("PCR_NAL_OFFSETS_MAX", NAL_OFFSETS_MAX as u64),
        ("PCR_WRITING", WRITING),
        ("PCR_READERS", READERS),
        ("PCR_SEQUENCE_SHIFT", SEQUENCE_SHIFT.into()),
        ("PCR_SEQUENCE_MAX", SEQUENCE_MAX),
        ("PCR_LATEST_SHIFT", LATEST_SHIFT.into()),
        ("PCR_IDR", FLAG_IDR.into()),
        ("PCR_OBEYS_BITRATE", FLAG_OBEYS_BITRATE.into()),
        ("PCR_BITRATE_REQUEST_S", BITRATE_REQUEST_S.into()),
        ("control_bytes", CONTROL_BYTES as u64),
        ("data_offset_8", data_offset(8)),
        ("data_offset_256", data_offset(256)),
    ];
    let known = known.into_iter().chain(FIELDS.map(|(name, offset)| (name, offset as u64)));
    let mut compared = 0;
    for (name, value) in known {
        assert_eq!(in_c.get(name), Some(&value), "{name}");
        compared += 1;
    }
    assert_eq!(compared, in_c.len(), "every number of the C program is compared");
}

#[test]
fn header_compiles_without_warnings_with_every_compiler() {
    let workshop = Workshop::create();
    for compiler in COMPILERS {
        workshop.compile(compiler, "layout.c", &["-O2"]);
        workshop.compile(compiler, "stress_camera.c", &["-O0"]);
        // A camera may include the header in further source files, without its implementation. Such a file must compile
        // too.
        let user =
            "#include <stdio.h>\n#include \"pet_camera_ring.h\"\nint main(void) { return PCR_IDR != 1; }\n";
        workshop.compile_text(compiler, "user", user, &[]);
    }
}

/// Returns the C source of the example camera in the comment of the header.
fn example() -> String {
    let text = include_str!("../../src/camera/pet_camera_ring.h");
    let (_, after) = text.split_once(" * EXAMPLE\n").unwrap();
    let (example, _) = after.split_once(" * The numbers below").unwrap();
    let lines = example.lines().filter_map(|line| line.strip_prefix(" *     ")).skip(1);
    let source = lines.map(|line| format!("{line}\n")).collect::<String>();
    assert!(source.lines().count() <= 42, "the example stays short");
    source
}

/// Writes a file of `units` access units, each with a delimiter, its number and a checksum. Returns the path of the
/// file.
fn film(workshop: &Workshop, units: u64) -> PathBuf {
    let mut card = TestCard::new(TestCardConfig {
        width: 320,
        height: 240,
        fps: 30.0,
        bitrate_kbps: Some(500),
        gop: 30,
        slices: 1,
        parameter_sets: ParameterSetPolicy::Every,
        delimiters: true,
        square: false,
    })
    .unwrap();
    let (mut unit, mut stream) = (Unit::default(), Vec::new());
    for number in 0..units {
        card.encode(number, 0, &mut unit);
        stream.extend_from_slice(unit.bytes());
    }
    let path = workshop.path("film.h264");
    std::fs::write(&path, stream).unwrap();
    path
}

#[test]
fn viewers_can_watch_the_example_camera() {
    let workshop = Workshop::create();
    let film = film(&workshop, 30 * 120);
    for compiler in COMPILERS {
        let shm = unique_shm();
        let source = example().replace("/pet_camera_stream", &shm);
        let program = workshop.compile_text(compiler, "example", &source, &["-O2"]);
        let start = || Process::spawn("the example", Command::new(&program).env("CAMERA_FILE", &film));
        let mut example = start();
        let mut server = Server::start(&shm, &[]);
        server.wait_ready();
        assert_eq!(server.get("/api/status").json()["camera"]["layout"], "lease");
        let viewers = ViewerSimulator::crowd(server.http, 2);
        viewers.iter().for_each(|viewer| viewer.wait_units(60));
        for viewer in viewers {
            viewer.leave().assert_perfect(&format!("a viewer of the example, {compiler}"));
        }
        // Kill the camera and start it again. The new process continues on the ring that the killed one left, and the
        // viewer sees more units.
        let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
        viewer.wait_units(10);
        example.kill();
        wait_until("the camera is away", || server.get("/ready").status == 503);
        let again = start();
        viewer.wait_more_units(40);
        assert_eq!(viewer.leave().torn, 0);
        again.signal(Signal::TERM);
        wait_until("the segment is gone", || !std::path::Path::new(&camera::segment_path(&shm)).exists());
        server.assert_healthy();
    }
}

/// A camera that obeys. It prints each new request.
const OBEYING: &str = r#"
#define PET_CAMERA_RING_IMPLEMENTATION
#include "pet_camera_ring.h"
int main(int count, char **arguments)
{
    struct pcr ring;
    struct pcr_config config = { .name = arguments[count - 1], .obeys_bitrate = 1 };
    struct timespec pause = { 0, 10000000 };
    uint32_t before = UINT32_MAX;
    if (pcr_create(&ring, &config) != 0) {
        return 1;
    }
    for (;;) {
        uint32_t kbps = pcr_bitrate_request(&ring);
        if (kbps != before) {
            printf("request %u\n", (unsigned)kbps);
            fflush(stdout);
        }
        before = kbps;
        nanosleep(&pause, NULL);
    }
}
"#;

#[test]
fn c_camera_reads_the_requested_rate_until_it_is_no_longer_renewed() {
    let workshop = Workshop::create();
    let program = workshop.compile_text("cc", "obeying", OBEYING, &["-O2"]);
    let shm = unique_shm();
    let running = Process::spawn("the camera", Command::new(program).arg(&shm));
    wait_until("the first line", || running.log().contains("request 0"));
    let now_ns = streaming_server::base::clock::monotonic_ns;
    let ring = streaming_server::camera::Camera::new(&shm, streaming_server::camera::Wake::Auto);
    assert!(ring.request_bitrate(1_234, now_ns()));
    wait_until("the request", || running.log().contains("request 1234"));
    wait_until("the end of the request", || running.log().ends_with("request 1234\nrequest 0"));
    drop(running);
    let _ = std::fs::remove_file(camera::segment_path(&shm));
}
