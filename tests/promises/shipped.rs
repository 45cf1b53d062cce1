//! The server as it is shipped, under the limits of its service unit, while everything around it misbehaves at once: a
//! pipe and links under the ring's name, a log that is not read, a full disk, signals, garbage on the UDP port, silent
//! and slow HTTP callers. Ten viewers and a recording must not notice.
//!
//! `SS_BIN=DIRECTORY` runs this test on the release binary.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::camera::{CameraSim, segment_path, words};
use support::limits::UnitLimits;
use support::random::Random;
use support::server::{Server, command};
use support::stuck::StuckLog;
use support::viewer::ViewerSimulator;
use support::{http, test_seconds, unique_shm, wait_until};

use super::recording::rig::Mounted;

/// `MemoryMax=` and `TasksMax=` of scripts/systemd/streaming-server.service.
const MEMORY_MAX: u64 = 272 << 20;
const TASKS_MAX: u64 = 512;

/// Threads that disturb the server until this value is dropped.
#[derive(Default)]
struct Trouble {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Trouble {
    /// Repeats `act` every `pause`.
    fn add(&mut self, pause: Duration, mut act: impl FnMut() + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        self.threads.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                act();
                std::thread::sleep(pause);
            }
        }));
    }
}

impl Drop for Trouble {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Puts a pipe, a link, a directory and a large sparse file in turn under the name of the ring. The camera goes on
/// writing to its segment, which no longer has a name.
fn squat(name: &str) -> impl FnMut() + Send + use<> {
    let path = segment_path(name);
    let mut turn = 0;
    move || {
        let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
        turn += 1;
        let made = match turn % 4 {
            0 => Command::new("mkfifo").arg(&path).status().map(drop),
            1 => std::os::unix::fs::symlink("/dev/zero", &path),
            2 => std::fs::create_dir(&path),
            _ => std::fs::File::create(&path).and_then(|file| file.set_len(1 << 40)),
        };
        made.unwrap();
    }
}

/// Opens connections that send nothing, half a request, or a request for the recording without reading the answer.
fn silent_callers(http: SocketAddr, recording: &str) -> Vec<TcpStream> {
    let requests =
        ["", "GET / HT", &format!("GET /api/recordings/{recording} HTTP/1.1\r\nHost: {http}\r\n\r\n")];
    let open = |number: usize| {
        let mut stream = TcpStream::connect(http).unwrap();
        stream.write_all(requests[number % requests.len()].as_bytes()).unwrap();
        stream
    };
    (0..30).map(open).collect()
}

/// Starts what goes wrong around the server: a directory takes the place of the ring, signals arrive, strangers send
/// random datagrams, and requests are refused.
fn start_trouble(server: &Server, shm: &str) -> Trouble {
    let mut trouble = Trouble::default();
    trouble.add(Duration::from_millis(300), squat(shm));
    let pid = Pid::from_raw(server.process.id().try_into().unwrap()).unwrap();
    trouble.add(Duration::from_millis(5), move || {
        for signal in [Signal::HUP, Signal::PIPE, Signal::CONT, Signal::WINCH, Signal::URG, Signal::CHILD] {
            let _ = kill_process(pid, signal);
        }
    });
    let (udp, socket, mut random) = (server.udp, UdpSocket::bind("127.0.0.1:0").unwrap(), Random::new(7));
    trouble.add(Duration::from_millis(2), move || {
        let bytes = usize::try_from(random.below(1_400)).unwrap();
        let _ = socket.send_to(&random.bytes(bytes), udp);
    });
    // Each of these refusals is logged, so they also fill the queue of the log.
    let http = server.http;
    trouble.add(Duration::from_millis(10), move || {
        http::request(http, "POST", "/api/recording/start", &[], b"").assert_error(&[409]);
    });
    trouble
}

#[test]
fn viewers_and_recording_do_not_notice_what_goes_wrong_around_them() {
    let Some(disk) = Mounted::tmpfs(160 << 20) else {
        eprintln!("skipped: this process may not mount file systems");
        return;
    };
    let shm = unique_shm();
    // The ring holds 3 s, so that a busy machine does not make the recorder too slow.
    let mut camera =
        CameraSim::start(&shm, &words("--layout v1 --pattern 640x480 --fps 10 --bitrate-kbps 1000 --gop 10"));
    let ports = ["--http", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--control", "127.0.0.1:0"];
    let mut server = command(&shm, &[&ports[..], &["--record-path", disk.path.to_str().unwrap()]].concat());
    let limits = UnitLimits::new();
    if let Some(limits) = &limits {
        limits.set_memory_max(MEMORY_MAX);
        limits.set_tasks_max(TASKS_MAX);
        server = limits.command(&server);
    }
    let (mut server, mut log) = StuckLog::spawn(&mut server);
    server.wait_ready();
    let viewers = ViewerSimulator::crowd(server.http, 10);
    let started = http::request(server.http, "POST", "/api/recording/start", &[], b"");
    assert_eq!(started.status, 200, "{}", started.text());
    let name = started.json()["name"].as_str().unwrap().to_owned();
    viewers.iter().for_each(|viewer| viewer.wait_more_units(10));

    log.fill();
    let trouble = start_trouble(&server, &shm);
    let callers = silent_callers(server.http, &name);
    // Another program fills the disk, except for the 64 MiB that the recording has reserved, and some more.
    let ballast = disk.path.join("ballast");
    std::fs::write(&ballast, vec![1; 80 << 20]).unwrap();
    let units = 10 * test_seconds().max(4);
    viewers.iter().for_each(|viewer| viewer.wait_more_units(units));
    drop(trouble);
    drop(callers);

    let stopped = http::request(server.http, "POST", "/api/recording/stop", &[], b"");
    assert_eq!(stopped.status, 200, "{}", stopped.text());
    let stopped = stopped.json();
    assert_eq!(
        (&stopped["kept"], &stopped["dropped_units"], &stopped["gaps"]),
        (&true.into(), &0.into(), &0.into())
    );
    for viewer in viewers {
        viewer.leave().assert_perfect("a viewer amid trouble");
    }

    // Now the disk is full: a recording is refused or ends, video goes on, and a new camera is followed.
    let full = std::fs::File::create(disk.path.join("rest")).and_then(|mut file| {
        loop {
            file.write_all(&[1; 1 << 16])?;
        }
    });
    let full: std::io::Result<()> = full;
    assert!(full.is_err());
    http::request(server.http, "POST", "/api/recording/start", &[], b"").assert_error(&[507]);
    camera.remove_segment();
    let _ = std::fs::remove_dir(segment_path(&shm));
    camera.restart(&words("--layout lease --pattern 640x480 --fps 30 --bitrate-kbps 2000 --gop 30"));
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|refused| panic!("{}", refused.text()));
    viewer.wait_units(30);
    wait_until("a small backlog of HTTP connections", || server.get("/health").status == 200);
    assert_eq!(server.terminate(), Some(0));
}
