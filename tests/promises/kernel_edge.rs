//! io_uring on older or restricted kernels: each missing feature has a fallback, and a forbidden system call is an
//! error that says what to do. The tests use real seccomp filters, and strace(1) to simulate older kernels.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::process::Command;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use support::camera::{CameraSim, words};
use support::process::Process;
use support::server::{self, Server, loopback, meddled};
use support::viewer::ViewerSimulator;
use support::{PATIENCE, unique_shm};

/// Starts a program for which `call` fails with `errno`, as in a restricted service or container. The seccomp filter is
/// set in a thread of its own, and the program inherits it.
fn spawn_without(call: i64, errno: i32, mut command: Command) -> Process {
    let thread = std::thread::spawn(move || {
        let errno = SeccompAction::Errno(errno.try_into().unwrap());
        let machine = std::env::consts::ARCH.try_into().unwrap();
        let filter =
            SeccompFilter::new([(call, Vec::new())].into(), SeccompAction::Allow, errno, machine).unwrap();
        let program: BpfProgram = filter.try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
        Process::spawn("streaming-server", &mut command)
    });
    thread.join().unwrap()
}

/// Waits for the program to end. Asserts that its exit code is 1 and that its log contains all `parts`.
fn gives_up(mut process: Process, parts: &[&str]) {
    let status = process.wait_exit(PATIENCE);
    let log = process.log();
    eprintln!("{log}\n");
    assert_eq!(status.code(), Some(1), "{log}");
    for part in parts {
        assert!(log.contains(part), "no `{part}` in\n{log}");
    }
    assert!(!log.contains("panicked"), "{log}");
}

fn doctor(shm: &str) -> Command {
    let server = loopback(shm, &[]);
    let mut command = Command::new(server.get_program());
    command.arg("doctor").args(server.get_args());
    command
}

#[test]
fn io_uring_forbidden_by_a_filter_is_an_error_with_the_calls_to_allow() {
    let advice = ["seccomp", "io_uring_setup", "io_uring_enter", "io_uring_register", "SystemCallFilter="];
    for errno in [libc::EPERM, libc::ENOSYS] {
        let shm = unique_shm();
        let advice = if errno == libc::EPERM { &advice[..] } else { &advice[..4] };
        gives_up(spawn_without(libc::SYS_io_uring_setup, errno, loopback(&shm, &[])), advice);
    }
    let shm = unique_shm();
    let doctor = spawn_without(libc::SYS_io_uring_setup, libc::EPERM, doctor(&shm));
    gives_up(doctor, &[&advice[..], &["fail  io_uring"]].concat());
}

#[test]
fn filter_that_forbids_a_part_of_io_uring_gives_the_same_error() {
    for call in [libc::SYS_io_uring_enter, libc::SYS_io_uring_register] {
        let shm = unique_shm();
        gives_up(
            spawn_without(call, libc::EPERM, loopback(&shm, &[])),
            &["io_uring is not allowed here", "seccomp"],
        );
    }
}

#[test]
fn error_for_lack_of_ring_memory_names_the_limit() {
    let shm = unique_shm();
    let mut command = meddled(&loopback(&shm, &[]), "io_uring_setup:error=ENOMEM");
    gives_up(Process::spawn("streaming-server", &mut command), &["LimitMEMLOCK", "ulimit -l"]);
}

/// Runs a server while strace makes system calls fail as `inject` says. Returns the io_uring features that the server
/// uses, according to its metrics. Asserts that `doctor` warns about each feature that is not used.
fn features_used(inject: &str) -> Vec<String> {
    let shm = unique_shm();
    let _camera =
        CameraSim::start(&shm, &words("--layout v1 --pattern 640x480 --fps 30 --bitrate-kbps 2000 --gop 30"));
    // The server runs without a recorder, because `inject` would affect the io_uring instance of the recorder too.
    let mut server = Server::spawn(&mut meddled(&loopback(&shm, &["--no-recorder"]), inject));
    let viewer = ViewerSimulator::connect(server.http).unwrap_or_else(|r| panic!("{}", r.text()));
    viewer.wait_units(30);
    viewer.leave().assert_perfect(inject);
    let text = server.get("/metrics").text();
    let used = text.lines().filter_map(|line| {
        let (name, value) = line.strip_prefix("io_uring_feature{feature=\"")?.split_once("\"} ")?;
        (value == "1").then(|| name.to_owned())
    });
    let used: Vec<String> = used.collect();
    assert_eq!(server.terminate(), Some(0), "{}", server.process.log());
    let mut report = Process::spawn("doctor", &mut meddled(&doctor(&shm), inject));
    assert_eq!(report.wait_exit(PATIENCE).code(), Some(0), "{}", report.log());
    let all = ["SINGLE_ISSUER", "DEFER_TASKRUN", "COOP_TASKRUN", "SUBMIT_ALL", "multishot receive"];
    for name in all.iter().filter(|name| !used.iter().any(|other| other == *name)) {
        assert!(
            report.after("warn  io_uring").is_some_and(|line| line.contains(name)),
            "{name}: {}",
            report.log()
        );
    }
    used
}

#[test]
fn refused_set_up_flags_are_dropped_one_by_one_without_effect_on_viewers() {
    // At each refusal the server drops its newest set-up flag and tries again. The kernel may lack some features
    // anyway, so the test does not expect an exact number of them.
    let mut before = usize::MAX;
    for refusals in [1, 4] {
        let used = features_used(&format!("io_uring_setup:error=EINVAL:when=1..{refusals}"));
        eprintln!("{refusals} refusals: {used:?}");
        assert!(!used.iter().any(|name| name == "DEFER_TASKRUN"), "{used:?}");
        assert!(used.len() < before, "{used:?}");
        before = used.len();
    }
}

#[test]
fn one_shot_receives_replace_a_missing_buffer_ring() {
    // The server calls io_uring_register first for the probe and then for the buffer ring, so `when=2` refuses the
    // buffer ring.
    let used = features_used("io_uring_register:error=EINVAL:when=2");
    assert!(!used.iter().any(|name| name == "multishot receive"), "{used:?}");
}

#[test]
fn refused_ring_set_up_is_an_error_and_version_still_works() {
    let shm = unique_shm();
    let mut command = meddled(&loopback(&shm, &[]), "io_uring_setup:error=EINVAL");
    gives_up(Process::spawn("streaming-server", &mut command), &["io_uring", "Invalid argument"]);
    let version =
        Process::spawn("streaming-server", &mut server::command(&shm, &["--version"])).wait_exit(PATIENCE);
    assert!(version.success(), "--version needs no ring");
}
