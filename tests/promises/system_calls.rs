//! Each thread makes only the system calls that the table in ARCHITECTURE.md lists for it, and a worker opens nothing
//! that could make it wait.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use support::camera::{CameraSim, segment_path, words};
use support::process::Process;
use support::server::{Server, loopback};
use support::viewer::ViewerSimulator;
use support::{http, unique_shm, wait_until};

/// Returns the rows of the table, as name of the threads -> allowed system calls. A name may end in `*`; the name `*`
/// alone is every thread.
fn table() -> Vec<(String, BTreeSet<String>)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/ARCHITECTURE.md");
    let text = std::fs::read_to_string(path).unwrap();
    let section = text.split("## What each thread may wait for").nth(1).expect("the section");
    let rows = section
        .lines()
        .skip_while(|line| !line.starts_with("| `"))
        .take_while(|line| line.starts_with("| `"));
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let name = quoted(cells[0]).pop_first().unwrap();
        (name, quoted(cells[1]).into_iter().chain(quoted(cells[2])).collect())
    })
    .collect()
}

/// Returns the names of all threads of a process, by thread id.
fn names(process: u32) -> BTreeMap<String, String> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let name = |task: std::fs::DirEntry| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        Some((task.file_name().into_string().unwrap(), name.trim().to_owned()))
    };
    tasks.filter_map(|task| name(task.ok()?)).collect()
}

/// Returns the thread id, the system call and its arguments of each line that begins a call.
fn calls(trace: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    trace.lines().filter_map(|line| {
        let (thread, rest) = line.split_once(' ')?;
        let (call, arguments) = rest.trim_start().split_once('(')?;
        call.bytes()
            .all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
            .then_some((thread, call, arguments))
    })
}

#[test]
fn each_thread_makes_only_the_listed_system_calls() {
    let shm = unique_shm();
    let directory = std::env::temp_dir().join(format!("ss-calls{}", shm.replace('/', "-")));
    std::fs::create_dir_all(&directory).unwrap();
    let small = |layout: &str| {
        words(&format!("--layout {layout} --pattern 640x480 --fps 30 --bitrate-kbps 1000 --gop 30"))
    };
    let mut camera = CameraSim::start(&shm, &small("v1"));
    let path = directory.to_str().unwrap();
    let mut server = Server::spawn(&mut loopback(&shm, &["--record-path", path, "--workers", "2"]));
    server.wait_ready();
    let trace = directory.join("trace");
    let id = server.process.id().to_string();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o", trace.to_str().unwrap(), "-e", "signal=none", "-p", &id]);
    let mut strace = Process::spawn("strace", &mut strace);
    wait_until("strace is attached", || strace.log().contains("attached"));

    let viewers = ViewerSimulator::crowd(server.http, 3);
    let over_tcp = [(); 2].map(|()| ViewerSimulator::connect_over_tcp(server.http));
    over_tcp.iter().for_each(|viewer| viewer.wait_units(60));
    let [one, _] = over_tcp;
    one.leave();
    let post = |path: &str| http::request(server.http, "POST", path, &[], b"");
    assert_eq!(post("/api/recording/start").status, 200);
    viewers.iter().for_each(|viewer| viewer.wait_more_units(30));
    assert_eq!(post("/api/recording/stop").status, 200);
    // The camera ends, a pipe takes its name, and another camera comes with another layout.
    camera.kill();
    camera.remove_segment();
    assert!(Command::new("mkfifo").arg(segment_path(&shm)).status().unwrap().success());
    wait_until("503 on /ready", || server.get("/ready").status == 503);
    std::thread::sleep(Duration::from_secs(2));
    camera.remove_segment();
    camera.restart(&small("lease"));
    viewers.iter().for_each(|viewer| viewer.wait_more_units(60));
    drop(viewers);
    let names = names(server.process.id());
    strace.signal(Signal::INT);
    strace.wait_exit(Duration::from_secs(60));
    assert_eq!(server.terminate(), Some(0));

    let (table, trace) = (table(), std::fs::read_to_string(&trace).unwrap());
    let (every_thread, table): (Vec<_>, Vec<_>) = table.into_iter().partition(|(row, _)| row == "*");
    let (_, of_every_thread) = every_thread.first().expect("the row of every thread");
    let row = |name: &str| {
        table
            .iter()
            .find(|(row, _)| row.strip_suffix('*').map_or(row == name, |start| name.starts_with(start)))
    };
    let mut unlisted = BTreeSet::new();
    for (thread, call, arguments) in calls(&trace) {
        let Some(name) = names.get(thread) else { continue };
        match row(name) {
            Some((_, allowed)) if !allowed.contains(call) && !of_every_thread.contains(call) => {
                unlisted.insert(format!("{name}: {call}({arguments}"));
            }
            Some(_) if name.starts_with("worker") && call.starts_with("open") => {
                let cannot_wait = ["O_NONBLOCK", "O_NOFOLLOW"].iter().all(|flag| arguments.contains(flag));
                assert!(cannot_wait, "{name}: {call}({arguments}");
            }
            _ => {}
        }
    }
    assert!(unlisted.is_empty(), "system calls that ARCHITECTURE.md does not list: {unlisted:#?}");
    for expected in ["worker-0", "worker-1", "recorder", "recorder-disk", "log"] {
        assert!(
            names.values().any(|name| name == expected) && row(expected).is_some(),
            "{expected}: {names:?}"
        );
    }
    let _ = std::fs::remove_dir_all(&directory);
}
