//! The control endpoint of a real server process, tested with raw HTTP: every route, profiles read by `go tool pprof`,
//! a second instance on the same address, connections to other addresses of the machine, and malformed requests.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use support::http::{self, Response};
use support::process::Process;
use support::server::{self, Server};
use support::{PATIENCE, unique_shm, wait_until, wait_within};

/// Starts a server with `--demo` and returns it with its control address.
fn demo() -> (Server, SocketAddr) {
    start(&["--demo", "--control", "127.0.0.1:0"])
}

fn start(arguments: &[&str]) -> (Server, SocketAddr) {
    let directory = std::env::temp_dir().join(format!("local{}", unique_shm().replace('/', "-")));
    let directory = directory.to_str().unwrap().to_owned();
    let server = Server::start(&unique_shm(), &[arguments, &["--record-path", &directory]].concat());
    let line =
        wait_within(PATIENCE, "the line `control: http://...`", || server.process.after("control: http://"));
    let address = line.split('/').next().unwrap().parse().unwrap();
    (server, address)
}

fn get(control: SocketAddr, path: &str) -> Response {
    http::get(control, path)
}

/// Requests a profile in another thread. Returns as soon as the server is taking a profile.
fn start_profile(control: SocketAddr, seconds: u32) -> thread::JoinHandle<Response> {
    let path = format!("/debug/pprof/profile?seconds={seconds}");
    let profile = thread::spawn(move || {
        // The requests below take profiles too, so the server may refuse this request with 503 at first.
        wait_within(PATIENCE, "a profile", || Some(get(control, &path)).filter(|answer| answer.status != 503))
    });
    wait_until("the profile is being taken", || get(control, "/debug/pprof/profile?seconds=1").status == 503);
    profile
}

#[test]
fn every_public_route_answers() {
    let (mut server, control) = demo();
    wait_until("200 on /ready", || get(control, "/ready").status == 200);
    assert_eq!(get(control, "/health").json()["status"], "ok");
    assert_eq!(get(control, "/api/status").json()["camera"]["state"], "live");
    assert!(get(control, "/api/viewers").json().is_array());
    let metrics = get(control, "/metrics");
    assert!(metrics.text().contains("frames_read_total"), "{}", metrics.text());
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    assert!(get(control, "/").text().contains("<html"));
    http::post_json(control, "/api/webrtc/offer", &json!({"type": "offer", "sdp": "x"})).assert_error(&[400]);
    get(control, "/nothing").assert_error(&[404]);
    let refused = http::post_json(control, "/health", &json!({}));
    refused.assert_error(&[405, 413]);
    assert_eq!(http::request(control, "OPTIONS", "/health", &[], b"").status, 200);
    server.assert_healthy();
}

#[test]
fn recording_commands_work() {
    let (server, control) = demo();
    wait_until("200 on /ready", || get(control, "/ready").status == 200);
    let started = http::post_json(control, "/api/recording/start", &json!({"filename": "a.mp4"}));
    assert_eq!(started.status, 200, "{}", started.text());
    wait_until("recorded units", || {
        get(control, "/api/recording/status").json()["frame_count"].as_u64().unwrap_or(0) > 5
    });
    assert_eq!(http::request(control, "POST", "/api/recording/heartbeat", &[], b"").status, 200);
    assert_eq!(http::request(control, "POST", "/api/recording/stop", &[], b"").status, 200);
    let recordings = get(control, "/api/recordings").json();
    assert_eq!(recordings["recordings"][0]["name"], "a.mp4", "{recordings}");
    get(control, "/api/recordings/a.mp4").assert_error(&[404]);
    assert_eq!(server.get("/api/recordings/a.mp4").status, 200, "the public endpoint has the file");
    assert_eq!(http::request(control, "DELETE", "/api/recordings/a.mp4", &[], b"").status, 200);
}

#[test]
fn profiles_and_traces_have_their_formats() {
    let (mut server, control) = demo();
    wait_until("200 on /ready", || get(control, "/ready").status == 200);
    assert!(get(control, "/debug/pprof/").text().contains("goroutine"));
    for path in ["heap", "allocs", "goroutine", "mutex", "block", "profile?seconds=1"] {
        let profile = get(control, &format!("/debug/pprof/{path}"));
        assert_eq!(profile.status, 200, "{path}: {}", profile.text());
        assert_eq!(profile.body[..2], [0x1f, 0x8b], "{path} is gzip'd");
    }
    let threads = get(control, "/debug/pprof/goroutine?debug=2").text();
    for name in ["camera-wait", "control-watch"] {
        assert!(threads.contains(name), "no {name} in {threads}");
    }
    let line = get(control, "/debug/pprof/cmdline").text();
    assert!(line.contains("--demo\0"), "{line:?}");
    let trace = get(control, "/debug/trace?seconds=60").json();
    assert!(!trace["traceEvents"].as_array().unwrap().is_empty());
    get(control, "/debug/pprof/profile?seconds=0").assert_error(&[400]);
    get(control, "/debug/nothing").assert_error(&[404]);
    server.assert_healthy();
}

#[test]
fn requests_are_answered_during_a_profile_and_a_second_profile_is_refused() {
    let (mut server, control) = demo();
    let profile = start_profile(control, 5);
    wait_until("the profile is being taken", || get(control, "/debug/pprof/profile?seconds=1").status == 503);
    for _ in 0..10 {
        assert_eq!(get(control, "/health").status, 200);
        assert_eq!(get(control, "/metrics").status, 200);
    }
    assert!(!profile.is_finished(), "all answers arrived before the profile");
    assert_eq!(profile.join().unwrap().status, 200);
    server.assert_healthy();
}

#[test]
fn go_tool_pprof_shows_our_functions() {
    let (mut server, control) = demo();
    let url = format!("http://{control}/debug/pprof/profile?seconds=2");
    let home = std::env::temp_dir().join(format!("pprof{}", unique_shm().replace('/', "-")));
    // The requests keep the server busy during the profile, because a server with `--demo` alone is idle most of the
    // time.
    let done = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&done);
    let busy = thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            get(control, "/metrics");
        }
    });
    let top = Command::new("go").args(["tool", "pprof", "-top", &url]).env("PPROF_TMPDIR", &home).output();
    done.store(true, Ordering::Relaxed);
    busy.join().unwrap();
    let Ok(top) = top else {
        println!("skipped: `go` is not installed");
        return;
    };
    let _ = std::fs::remove_dir_all(&home);
    let text = String::from_utf8_lossy(&top.stdout);
    assert!(top.status.success(), "{text}{}", String::from_utf8_lossy(&top.stderr));
    assert!(text.contains("Type: cpu") && text.contains("flat%"), "{text}");
    assert!(text.contains("streaming_server::"), "{text}");
    server.assert_healthy();
}

#[test]
fn a_second_instance_fails_with_a_clear_error() {
    let (mut server, control) = demo();
    let address = control.to_string();
    let arguments = ["--http", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--control", &address];
    let mut command = server::command(&unique_shm(), &arguments);
    let mut second = Process::spawn("second server", &mut command);
    let status = second.wait_exit(PATIENCE);
    let log = second.log();
    assert_eq!(status.code(), Some(1), "{log}");
    for word in [address.as_str(), "in use", "--control"] {
        assert!(log.contains(word), "no `{word}` in:\n{log}");
    }
    server.assert_healthy();
    assert_eq!(get(control, "/health").status, 200);
}

#[test]
fn other_addresses_and_host_names_are_refused() {
    let (_server, control) = demo();
    let hosts = ["evil.example", "192.0.2.2:6060", "127.0.0.1.evil.example"];
    for host in hosts {
        let request = format!("GET /api/status HTTP/1.1\r\nHost: {host}\r\n\r\n");
        http::raw(control, &[request.as_bytes()]).assert_error(&[403]);
    }
    let page = [("Origin", "http://evil.example")];
    http::request(control, "POST", "/api/recording/start", &page, b"{}").assert_error(&[403]);
    let others = if_addrs::get_if_addrs().unwrap().into_iter().map(|interface| interface.ip());
    let others: Vec<IpAddr> = others.filter(|ip| !ip.is_loopback() && matches!(ip, IpAddr::V4(_))).collect();
    if others.is_empty() {
        println!("skipped: this machine has only loopback addresses");
    }
    for other in others {
        let address = SocketAddr::new(other, control.port());
        assert!(TcpStream::connect_timeout(&address, PATIENCE).is_err(), "{address} answers");
    }
}

#[test]
fn sigterm_ends_the_process_cleanly_with_open_connections() {
    let (mut server, control) = demo();
    let profile = start_profile(control, 20);
    let idle = TcpStream::connect(control).unwrap();
    wait_until("the profile is being taken", || get(control, "/debug/pprof/profile?seconds=1").status == 503);
    assert_eq!(server.terminate(), Some(0));
    drop(idle);
    let _ = profile.join();
}

/// Returns requests with a malformed Content-Length, each with the statuses that the server may answer. Status 0 means
/// that the connection is closed without an answer.
fn malformed_lengths() -> Vec<(Vec<u8>, &'static [u16])> {
    let mut list: Vec<(Vec<u8>, &'static [u16])> = Vec::new();
    let lengths: [&[u8]; 16] = [
        b"-1",
        b"+5",
        b"abc",
        b"",
        b" ",
        b"0x10",
        b"5.0",
        b"1e3",
        b"5 5",
        b"5,5",
        b"\xff\xfe",
        b"\x80",
        b"99999999999999999999999999",
        b"18446744073709551615",
        b"9223372036854775808",
        b"4294967296",
    ];
    for length in lengths {
        for target in ["POST /api/webrtc/offer", "GET /health"] {
            let head = format!("{target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: ");
            list.push(([head.as_bytes(), length, b"\r\n\r\nhello"].concat(), &[0, 400, 413]));
        }
    }
    list
}

/// Returns malformed requests, each with the statuses that the server may answer. Status 0 means that the connection is
/// closed without an answer.
fn malformed() -> Vec<(Vec<u8>, &'static [u16])> {
    let mut list = malformed_lengths();
    let mut add = |text: &str, statuses: &'static [u16]| list.push((text.as_bytes().to_vec(), statuses));
    let post = "POST /api/recording/start HTTP/1.1\r\nHost: localhost\r\n";
    add(&format!("{post}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}x"), &[400]);
    add(&format!("{post}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), &[411]);
    add(&format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{{}}"), &[411]);
    add(&format!("{post}Content-Length: 9000000\r\n\r\n"), &[413]);
    add(&format!("{post}Origin: a\r\nOrigin: b\r\nContent-Length: 0\r\n\r\n"), &[400]);
    add("GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", &[400]);
    add(&format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a".repeat(10_000)), &[414]);
    add(&format!("GET /health?{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "%".repeat(10_000)), &[414]);
    add("GET /api/recordings/%zz HTTP/1.1\r\nHost: localhost\r\n\r\n", &[400, 404]);
    add("GET /api/recordings/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: localhost\r\n\r\n", &[400, 404]);
    add("GET /debug/pprof/profile?seconds=-1 HTTP/1.1\r\nHost: localhost\r\n\r\n", &[400]);
    add("GET /debug/trace?seconds=1e9 HTTP/1.1\r\nHost: localhost\r\n\r\n", &[400]);
    add("BREW /health HTTP/1.1\r\nHost: localhost\r\n\r\n", &[405]);
    add("HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n", &[405]);
    add("* * HTTP/1.1\r\n\r\n", &[0, 400, 404, 405]);
    add("OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", &[404]);
    add("GET http://evil.example/health HTTP/1.1\r\nHost: evil.example\r\n\r\n", &[403]);
    add("GET /health HTTP/1.1\r\nHost:\r\n\r\n", &[403]);
    add("GET /health HTTP/9.9\r\n\r\n", &[0]);
    add("GET /health\r\n\r\n", &[0]);
    add("GET  /health HTTP/1.1\r\n\r\n", &[0]);
    add("\r\n\r\n\r\n\0\r\n\r\n", &[0]);
    add("GET /health HTTP/1.1\r\nNo colon here\r\n\r\n", &[0]);
    add("GET /health HTTP/1.1\r\n: no name\r\n\r\n", &[0]);
    add("GET /health HTTP/1.1\r\nHost: local\0host\r\n\r\n", &[0]);
    add("GET /health HTTP/1.1\nHost: localhost\n\n", &[200]);
    for count in [16, 17, 100, 5_000] {
        let headers: String = (0..count).map(|i| format!("X-{i}: y\r\n")).collect();
        add(&format!("GET /health HTTP/1.1\r\n{headers}\r\n"), if count > 16 { &[0] } else { &[200] });
    }
    for body in [
        "[]",
        "7",
        "\"name\"",
        "{\"filename\":7}",
        "{\"filename\":\"a/b\"}",
        "{\"pre_roll_s\":-1}",
        "{\"max_duration_s\":1e99}",
        "{",
    ] {
        add(&format!("{post}Content-Length: {}\r\n\r\n{body}", body.len()), &[400]);
    }
    let deep = "[".repeat(4_000);
    add(&format!("{post}Content-Length: 4000\r\n\r\n{deep}"), &[400, 413]);
    list.push((b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(9), &[0])); // a TLS ClientHello
    list.push(((0..=255).cycle().take(5_000).collect(), &[0]));
    list.push((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), &[0, 404, 403, 405]));
    list
}

#[test]
fn malformed_requests_are_refused_without_harm() {
    let (mut server, control) = demo();
    let list = malformed();
    assert!(list.len() >= 70, "{}", list.len());
    for (request, statuses) in &list {
        let shown = String::from_utf8_lossy(&request[..request.len().min(120)]).into_owned();
        let answer = answer_to(control, request, false);
        assert!(statuses.contains(&answer), "{answer} is none of {statuses:?} for {shown:?}");
        assert_eq!(get(control, "/health").status, 200, "after {shown:?}");
    }
    server.assert_healthy();
}

#[test]
fn the_public_endpoint_refuses_the_same_malformed_requests() {
    let (mut server, _) = demo();
    let public = server.http;
    for (request, statuses) in malformed() {
        let shown = String::from_utf8_lossy(&request[..request.len().min(120)]).into_owned();
        let answer = answer_to(public, &request, true);
        // Unlike the control endpoint, the public endpoint accepts HEAD, more headers and longer queries, so these
        // requests may get a 200. It refuses all other requests, as the control endpoint does.
        let may_pass = statuses.contains(&200)
            || request.starts_with(b"HEAD /health")
            || request.starts_with(b"GET /health?")
            || request.starts_with(b"GET http://")
            || request.ends_with(b"Host:\r\n\r\n")
            || request.starts_with(b"GET /health HTTP/1.1\r\nX-");
        let is_refused = answer == 0 || (400..500).contains(&answer) || answer == 505;
        assert!(is_refused || (may_pass && answer == 200), "{answer} for {shown:?}");
        assert_eq!(get(public, "/health").status, 200, "after {shown:?}");
    }
    server.assert_healthy();
}

/// Sends `request` on a new connection and returns the status of the answer. If `is_all` is set, closes the sending
/// side after the request.
fn answer_to(address: SocketAddr, request: &[u8], is_all: bool) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // The server may refuse the request and close the connection during the write, so a failed write is no fault.
    let _ = stream.write_all(request);
    if is_all {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    read_answer(&mut stream)
}

/// Returns the status of the first answer, or 0 if the connection is closed without an answer.
fn read_answer(stream: &mut TcpStream) -> u16 {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    while !bytes.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("neither answered nor closed")
            }
            Err(_) => break,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// Returns the peak resident memory of the process in kB.
fn peak_kb(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

/// Writes `beginning` and then `more` again and again until the server closes the connection. Panics after 60 s.
fn flood(control: SocketAddr, beginning: &str, more: &[u8]) {
    let mut stream = TcpStream::connect(control).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(beginning.as_bytes()).unwrap();
    let since = Instant::now();
    while stream.write_all(more).is_ok() {
        assert!(since.elapsed() < Duration::from_secs(60), "the connection stays open after {beginning:?}");
    }
}

#[test]
fn endless_requests_are_closed_and_memory_stays_bounded() {
    let (mut server, control) = demo();
    wait_until("200 on /ready", || get(control, "/ready").status == 200);
    let before_kb = peak_kb(server.process.id());
    let endless =
        [0, 1].map(|_| thread::spawn(move || flood(control, "GET /health HTTP/1.1\r\nX: ", &[b'a'; 8192])));
    endless.into_iter().for_each(|thread| thread.join().unwrap());
    let pipeline = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(200);
    flood(control, "", &pipeline);
    // The server must also close connections with incomplete requests: no byte at all, a part of the head, or a part of
    // the body.
    let beginnings: [&[u8]; 4] = [
        b"",
        b"GET /hea",
        b"POST /api/recording/stop HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
        b"GET / HTTP/1.1\r\n",
    ];
    let slow = beginnings.map(|beginning| {
        let mut stream = TcpStream::connect(control).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(180))).unwrap();
        stream.write_all(beginning).unwrap();
        stream
    });
    assert_eq!(get(control, "/health").status, 200);
    for mut stream in slow {
        let status = read_answer(&mut stream);
        assert!([0, 400].contains(&status), "{status}");
    }
    // Open many more connections than the control endpoint serves at once. The server must still answer afterwards.
    let crowd: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(control).unwrap()).collect();
    drop(crowd);
    wait_until("200 on /health", || get(control, "/health").status == 200);
    let grown_kb = peak_kb(server.process.id()).saturating_sub(before_kb);
    assert!(grown_kb < 64 * 1024, "grown by {grown_kb} kB");
    eprintln!("memory grew by {grown_kb} kB at most");
    server.assert_healthy();
}

#[test]
fn control_off_opens_no_port() {
    let spare = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = spare.local_addr().unwrap();
    let mut server = Server::start(&unique_shm(), &["--control", "off"]);
    server.assert_healthy();
    assert!(server.process.after("control: http").is_none());
    drop(spare);
    assert!(TcpStream::connect(address).is_err());
}

/// Runs a subcommand of the server program and returns its exit code and its output.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(support::program("streaming-server")).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn healthcheck_fails_without_a_server() {
    let (mut server, _) = demo();
    let http = server.http.to_string();
    assert_eq!(run(&["healthcheck", "--http", &http]), (Some(0), String::new()));
    assert_eq!(server.terminate(), Some(0));
    let (code, text) = run(&["healthcheck", "--http", &http]);
    assert_eq!(code, Some(1));
    assert!(text.contains(&http), "{text}");
}

#[test]
fn doctor_lists_its_checks_and_fails_on_a_port_in_use() {
    let directory = std::env::temp_dir();
    let free = ["--http", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--control", "off"];
    let common =
        ["doctor", "--shm", &unique_shm(), "--record-path", directory.to_str().unwrap()].map(str::to_owned);
    let common: Vec<&str> = common.iter().map(String::as_str).collect();
    let (code, text) = run(&[&common[..], &free].concat());
    assert_eq!(code, Some(0), "{text}");
    for line in ["warn  ring", "io_uring", "gso", "ok    http", "ok    udp", "recordings"] {
        assert!(text.contains(line), "no `{line}` in:\n{text}");
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, text) = run(&[&common[..], &["--http", &address, "--udp", "127.0.0.1:0"]].concat());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("fail  http") && text.contains("--http"), "{text}");
}
