//! Token and TLS of a real server process, with curl as the client: start, SIGHUP, healthcheck, doctor and the control
//! endpoint. Unusable options and files must give clear errors.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test: a panic is the report")]

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use support::http;
use support::server::{self, Server};
use support::viewer::ViewerSimulator;
use support::{unique_shm, wait_for, wait_until};

const TOKEN: &str = "correct-horse-battery";

/// A temporary directory, removed at the end of the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Directory {
        let path = std::env::temp_dir().join(format!("security{}", unique_shm().replace('/', "-")));
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Starts a server that generates a self-signed certificate in the directory `name`, and stops it. Returns the
    /// paths of the certificate and of its authority.
    fn certificate(&self, name: &str) -> (String, String) {
        let state = self.path(name);
        let mut server = Server::start(&unique_shm(), &["--tls-self-signed", "--state-path", &state]);
        assert_eq!(server.terminate(), Some(0));
        (format!("{state}/self-signed.pem"), format!("{state}/self-signed-ca.pem"))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs curl with these arguments and returns the status and the body of the answer. The status is 0 if no answer
/// arrived.
fn curl(arguments: &[&str]) -> (u16, String) {
    let common = ["--silent", "--max-time", "60", "--write-out", "\n%{http_code}"];
    let output = Command::new("curl").args(common).args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

/// Runs the server program with these arguments, without `STREAMING_*` variables. Returns its exit code and its output.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(support::program("streaming-server"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("STREAMING_")) {
        command.env_remove(name);
    }
    let output = command.args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_token_file_protects_the_server_and_stays_secret() {
    let directory = Directory::new();
    let file = directory.write("token", &format!("{TOKEN}\nsecond line\n"));
    let control = ["--control", "127.0.0.1:0"];
    let mut server =
        Server::start(&unique_shm(), &[&["--demo", "--token-file", &file], &control[..]].concat());
    let url = format!("http://{}/api/status", server.http);
    assert_eq!(curl(&[&url]).0, 401);
    assert_eq!(curl(&["-H", "Authorization: Bearer wrong-wrong-wrong-wrong", &url]).0, 401);
    assert_eq!(curl(&["-H", &format!("Authorization: Bearer {TOKEN}"), &url]).0, 200);
    let jar = directory.path("cookies");
    let session = format!("http://{}/api/session", server.http);
    assert_eq!(
        curl(&["--cookie-jar", &jar, "--json", &format!("{{\"token\":\"{TOKEN}\"}}"), &session]).0,
        200
    );
    assert_eq!(curl(&["--cookie", &jar, &url]).0, 200);
    assert_eq!(http::get(server.http, "/health").status, 200);
    assert!(!server.process.log().contains(TOKEN), "{}", server.process.log());
    assert!(server.process.log().contains("token = given, not shown"));

    // The control endpoint requires no token and serves this machine only.
    let control = wait_for("the control address", || server.process.after("control: http://"));
    let control = control.split('/').next().unwrap().to_owned();
    let status = format!("http://{control}/api/status");
    assert_eq!(curl(&[&status]).0, 200);
    assert_eq!(curl(&["-H", "Host: rebound.evil.example", &status]).0, 403);
    for (site, expected) in [("cross-site", 403), ("same-site", 403), ("none", 200), ("same-origin", 200)] {
        let header = format!("Sec-Fetch-Site: {site}");
        assert_eq!(curl(&["-H", &header, &format!("http://{control}/debug/pprof/")]).0, expected, "{site}");
    }
    let start = format!("http://{control}/api/recording/stop");
    assert_eq!(curl(&["-X", "POST", "-H", "Origin: http://evil.example", &start]).0, 403);
    assert_eq!(curl(&["-X", "POST", "-H", "Origin: http://127.0.0.1:8080", &start]).0, 403);
    assert_eq!(
        curl(&[&format!("http://{control}/api/session")]),
        (200, "{\"token_required\":false}".to_owned())
    );

    assert_eq!(run(&["healthcheck", "--http", &server.http.to_string(), "--token-file", &file]).0, Some(0));
    assert_eq!(run(&["healthcheck", "--http", &server.http.to_string()]).0, Some(0));
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_logout_ends_the_live_pictures_of_that_login() {
    // With two workers the sessions of one login can be on different workers. The logout must end all of them.
    let mut server = Server::start(&unique_shm(), &["--demo", "--token", TOKEN, "--workers", "2"]);
    let session = |method, headers: &[(&str, &str)], body: &str| {
        http::request(server.http, method, "/api/session", headers, body.as_bytes())
    };
    let log_in = || {
        let answer = session("POST", &[], &format!("{{\"token\":\"{TOKEN}\"}}"));
        answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned()
    };
    let (mine, other) = (log_in(), log_in());
    let bearer = format!("Bearer {TOKEN}");
    let join = |name, value: &str| ViewerSimulator::connect_with(server.http, &[(name, value)]).unwrap();
    assert!(ViewerSimulator::connect(server.http).is_err(), "an offer without token and login");
    let (first, second) = (join("Cookie", &mine), join("Cookie", &mine));
    let (of_other, of_token) = (join("Cookie", &other), join("Authorization", &bearer));
    for viewer in [&first, &second, &of_other, &of_token] {
        viewer.wait_units(1);
    }

    assert_eq!(session("DELETE", &[("Cookie", &mine)], "").status, 200);
    for viewer in [&first, &second] {
        wait_until("the close_notify", || viewer.report().got_close_notify);
    }
    let refused = ViewerSimulator::connect_with(server.http, &[("Cookie", &mine)]);
    assert_eq!(refused.err().map(|answer| answer.status), Some(401));
    for viewer in [&of_other, &of_token] {
        viewer.wait_more_units(30);
        assert!(!viewer.report().got_close_notify);
    }
    let logged_out = || server.process.log().matches("session ended: the login has ended").count();
    wait_until("both closed sessions in the log", || logged_out() >= 2);
    assert_eq!(logged_out(), 2);

    // The viewer of the other login leaves before the logout. So that logout must end no session, and the count stays
    // 2.
    of_other.leave();
    wait_until("the viewer has left", || {
        server.process.log().contains("session ended: the viewer closed the session")
    });
    assert_eq!(session("DELETE", &[("Cookie", &other)], "").status, 200);
    of_token.wait_more_units(30);
    assert_eq!(logged_out(), 2);
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn refused_tokens_are_counted_by_reason() {
    let mut server = Server::start(&unique_shm(), &["--token", TOKEN, "--control", "127.0.0.1:0"]);
    let control = wait_for("the control address", || server.process.after("control: http://"));
    let metrics = format!("http://{}/metrics", control.split('/').next().unwrap());
    let refused = |reason: &str| {
        let (status, text) = curl(&[&metrics]);
        assert_eq!(status, 200);
        let name = format!("logins_refused_total{{reason=\"{reason}\"}} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&name)).map(str::parse::<u64>);
        value.unwrap_or_else(|| panic!("no {name} in {text}")).unwrap()
    };
    assert_eq!((refused("wrong_token"), refused("too_many_attempts")), (0, 0));
    let status = format!("http://{}/api/status", server.http);
    let session = format!("http://{}/api/session", server.http);
    let wrong = "Authorization: Bearer wrong-wrong-wrong-wrong";
    assert_eq!(curl(&[&status]).0, 401);
    assert_eq!(curl(&["-H", &format!("Authorization: Bearer {TOKEN}"), &status]).0, 200);
    assert_eq!(refused("wrong_token"), 0, "a request without a token counts as no wrong token");
    assert_eq!(curl(&["-H", wrong, &status]).0, 401);
    assert_eq!(curl(&["--json", "{\"token\":\"wrong-wrong-wrong-wrong\"}", &session]).0, 401);
    assert_eq!((refused("wrong_token"), refused("too_many_attempts")), (2, 0));
    wait_until("429 after many wrong tokens", || curl(&["-H", wrong, &status]).0 == 429);
    assert_eq!(refused("too_many_attempts"), 1);
    assert!(refused("wrong_token") >= 10);
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_self_signed_server_answers_over_tls_and_keeps_its_certificate() {
    let directory = Directory::new();
    let state = directory.path("state");
    let arguments =
        ["--tls-self-signed", "--state-path", &state, "--token", TOKEN, "--http-plain", "127.0.0.1:0"];
    let mut server = Server::start(&unique_shm(), &arguments);
    let ca = format!("{state}/self-signed-ca.pem");
    let https = format!("https://{}", server.http);
    let bearer = format!("Authorization: Bearer {TOKEN}");
    assert_eq!(curl(&["--cacert", &ca, &format!("{https}/health")]).0, 200);
    assert_eq!(curl(&["--cacert", &ca, &format!("{https}/api/status")]).0, 401);
    assert_eq!(curl(&["--cacert", &ca, "-H", &bearer, &format!("{https}/api/status")]).0, 200);
    assert_eq!(curl(&[&format!("{https}/health")]).0, 0, "curl must not trust an unknown authority");
    assert_eq!(
        curl(&["--tls-max", "1.1", "--cacert", &ca, &format!("{https}/health")]).0,
        0,
        "TLS 1.1 is too old"
    );
    assert_eq!(curl(&["--tls-max", "1.2", "--cacert", &ca, &format!("{https}/health")]).0, 200);
    let plain = format!("http://{}", server.http);
    assert_eq!(curl(&[&format!("{plain}/")]).0, 307);
    assert_eq!(curl(&["--location", "--cacert", &ca, &format!("{plain}/health")]).0, 200);
    assert_eq!(curl(&["-X", "POST", &format!("{plain}/api/recording/start")]).0, 400);

    let beside = wait_for("the plain address", || server.process.after("without TLS: http-plain="));
    assert_eq!(curl(&[&format!("http://{beside}/api/status")]).0, 401);
    assert_eq!(curl(&["-H", &bearer, &format!("http://{beside}/api/status")]).0, 200);

    let at = server.http.to_string();
    let tls = ["--tls-self-signed", "--state-path", &state];
    assert_eq!(run(&[&["healthcheck", "--http", &at], &tls[..]].concat()), (Some(0), String::new()));
    let (code, text) = run(&["healthcheck", "--http", &at]);
    assert_eq!(code, Some(1), "healthcheck uses TLS only with the TLS options: {text}");
    let before = fs::read(&ca).unwrap();
    assert_eq!(server.terminate(), Some(0));
    let again = Server::start(&unique_shm(), &arguments);
    assert_eq!(fs::read(&ca).unwrap(), before);
    assert_eq!(curl(&["--cacert", &ca, &format!("https://{}/health", again.http)]).0, 200);
}

#[test]
fn sighup_loads_a_new_certificate_and_ignores_a_malformed_one() {
    let directory = Directory::new();
    let (first, first_ca) = directory.certificate("first");
    let (second, second_ca) = directory.certificate("second");
    let pem = directory.write("now.pem", &fs::read_to_string(&first).unwrap());
    let mut server = Server::start(&unique_shm(), &["--tls-cert", &pem, "--tls-key", &pem]);
    let url = format!("https://{}/health", server.http);
    assert_eq!(curl(&["--cacert", &first_ca, &url]).0, 200);

    // curl makes two requests on one connection, 3 s apart. The certificate changes between them, and the connection
    // must stay open.
    let mut slow = Command::new("curl")
        .args([
            "--silent",
            "--no-buffer",
            "--cacert",
            &first_ca,
            "--max-time",
            "60",
            "--rate",
            "20/m",
            &url,
            &url,
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    slow.stdout.as_mut().unwrap().read_exact(&mut [0; 15]).unwrap();

    directory.write("now.pem", "-----BEGIN CERTIFICATE-----\nnonsense\n");
    server.process.signal(Signal::HUP);
    wait_until("the error in the log", || {
        server.process.log().contains("the old TLS certificate stays in use")
    });
    assert_eq!(curl(&["--cacert", &first_ca, &url]).0, 200);

    directory.write("now.pem", &fs::read_to_string(&second).unwrap());
    server.process.signal(Signal::HUP);
    wait_until("the new certificate", || curl(&["--cacert", &second_ca, &url]).0 == 200);
    assert_eq!(curl(&["--cacert", &first_ca, &url]).0, 0);
    assert!(slow.wait().unwrap().success(), "the open connection was closed");
    server.process.signal(Signal::HUP);
    server.process.signal(Signal::HUP);
    assert_eq!(curl(&["--cacert", &second_ca, &url]).0, 200);
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn without_tls_sighup_changes_nothing() {
    let mut server = Server::start(&unique_shm(), &[]);
    assert_eq!(server.get("/health").status, 200);
    server.process.signal(Signal::HUP);
    wait_until("the line in the log", || server.process.log().contains("SIGHUP: nothing to reload"));
    server.assert_healthy();
}

#[test]
fn unusable_options_and_files_end_the_start_with_a_reason() {
    let directory = Directory::new();
    let (good, ca) = directory.certificate("good");
    let (other, _) = directory.certificate("other");
    let short = directory.write("short", "secret\n");
    let missing = directory.path("missing");
    let nowhere = directory.write("file", "not a directory");
    let common = ["--http", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--control", "off"];
    let pipe = directory.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let cases: [(&[&str], i32, &str); 18] = [
        (&["--token", "short"], 2, "--token: not valid: expected 16 to 256"),
        (&["--token", "with spaces in the token"], 2, "openssl rand -hex 16"),
        (&["--token-file", &short], 2, "--token-file: not valid"),
        (&["--token-file", &missing], 2, "--token-file: cannot read"),
        (&["--token", TOKEN, "--token-file", &short], 2, "--token and --token-file exclude each other"),
        (&["--tls-cert", &good], 2, "--tls-cert needs --tls-key"),
        (&["--tls-key", &good], 2, "--tls-key needs --tls-cert"),
        (&["--tls-self-signed", "--tls-cert", &good, "--tls-key", &good], 2, "exclude each other"),
        (&["--http-plain", "127.0.0.1:0"], 2, "--http-plain needs TLS"),
        (&["--allow-host", "http://cam"], 2, "a host name without scheme"),
        (&["--token-file", &pipe], 2, "it is a pipe, not a regular file"),
        (&["--config", &pipe], 2, "it is a pipe, not a regular file"),
        (&["--config", "/dev/zero"], 2, "it is a device, not a regular file"),
        (&["--tls-cert", &pipe, "--tls-key", &good], 1, "it is a pipe, not a regular file"),
        (&["--tls-cert", &missing, "--tls-key", &good], 1, "TLS: cannot read"),
        (&["--tls-cert", &good, "--tls-key", &ca], 1, "contains no private key"),
        (&["--tls-cert", &good, "--tls-key", &other], 1, "good/self-signed.pem: "),
        (
            &["--tls-self-signed", "--state-path", &nowhere],
            1,
            "Choose a writable directory with --state-path",
        ),
    ];
    for (arguments, code, message) in cases {
        let (ended, text) = run(&[&common[..], arguments].concat());
        assert_eq!(ended, Some(code), "{arguments:?}: {text}");
        assert!(text.contains(message), "{arguments:?}: {text}");
        assert!(
            !text.contains("secret\"") && !text.contains("with spaces in"),
            "the output contains the secret: {text}"
        );
    }
}

#[test]
fn doctor_checks_token_and_certificate() {
    let directory = Directory::new();
    let (good, ca) = directory.certificate("good");
    let records = directory.path("records");
    let free = ["doctor", "--udp", "127.0.0.1:0", "--control", "off", "--record-path", &records];
    let doctor = |arguments: &[&str]| run(&[&free[..], arguments].concat());
    let tls = ["--tls-cert", &good, "--tls-key", &good];
    let (code, text) = doctor(&[&["--http", "0.0.0.0:0", "--token", TOKEN], &tls[..]].concat());
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("ok    tls") && text.contains("days") && text.contains("ok    token"), "{text}");
    let (_, text) = doctor(&["--http", "0.0.0.0:0"]);
    assert!(text.contains("warn  token") && text.contains("--token-file"), "{text}");
    let (_, text) = doctor(&["--http", "0.0.0.0:0", "--token", TOKEN]);
    assert!(text.contains("warn  token") && text.contains("unencrypted"), "{text}");
    let (_, text) = doctor(&["--http", "127.0.0.1:0"]);
    assert!(text.contains("ok    token"), "{text}");
    let (code, text) = doctor(&["--http", "127.0.0.1:0", "--tls-cert", &good, "--tls-key", &ca]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("fail  tls"), "{text}");
    let fresh = directory.path("fresh");
    let (code, text) = doctor(&["--http", "127.0.0.1:0", "--tls-self-signed", "--state-path", &fresh]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("will generate") && !fs::exists(&fresh).unwrap(), "doctor changes nothing: {text}");
}

#[test]
fn an_open_port_without_a_token_causes_a_warning() {
    let warned = |arguments: &[&str], message: &str| {
        let mut command = server::command(&unique_shm(), arguments);
        let mut process = support::process::Process::spawn(
            "streaming-server",
            command.args(["--udp", "127.0.0.1:0", "--control", "off"]),
        );
        wait_until("the first line", || process.after("open http").is_some());
        let log = process.log();
        process.signal(Signal::TERM);
        process.wait_exit(Duration::from_secs(30));
        log.contains(message)
    };
    assert!(warned(&["--http", "0.0.0.0:0"], "no token is set"));
    assert!(warned(&["--http", "0.0.0.0:0", "--token", TOKEN], "crosses the network unencrypted"));
    assert!(!warned(&["--http", "127.0.0.1:0"], "no token is set"));
    assert!(!warned(&["--http", "127.0.0.1:0", "--token", TOKEN], "WARN"));
}
