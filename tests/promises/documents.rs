//! Runs the commands of the documentation: the code blocks of README.md about security, operation and recordings, the
//! Prometheus configurations, and the table of metrics.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test: a panic is the report")]

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::process::Process;
use support::server::{self, Server};
use support::{PATIENCE, http, unique_shm, wait_for, wait_within};

fn document(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Returns the code blocks of a document that are written in this language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let parts = text.split("\n```").skip(1).step_by(2);
    parts.filter_map(|part| part.strip_prefix(language)?.strip_prefix('\n').map(str::to_owned)).collect()
}

/// Returns the only block of README.md that contains this text.
fn block_with(part: &str) -> String {
    let found: Vec<String> =
        blocks(&document("README.md"), "sh").into_iter().filter(|block| block.contains(part)).collect();
    assert_eq!(found.len(), 1, "blocks with {part}: {found:?}");
    found[0].clone()
}

/// A directory that is the home and the working directory of the commands.
struct Home(PathBuf);

impl Home {
    fn new() -> Home {
        let path = std::env::temp_dir().join(format!("documents{}", unique_shm().replace('/', "-")));
        fs::create_dir_all(&path).unwrap();
        Home(path)
    }

    fn bash(&self, script: &str) -> Output {
        let program = support::program("streaming-server");
        let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("STREAMING_")) {
            command.env_remove(name);
        }
        command.args(["-e", "-o", "pipefail", "-c", script]).current_dir(&self.0);
        command
            .env("HOME", &self.0)
            .env("PATH", path)
            .env_remove("XDG_STATE_HOME")
            .env_remove("STATE_DIRECTORY");
        command.output().unwrap()
    }

    /// Runs a script that must succeed, and returns what it prints.
    fn run(&self, script: &str) -> String {
        let output = self.bash(script);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{script}\n{out}\n{err}");
        out.into_owned()
    }

    /// Starts a server with its home in this directory, and returns it with the address of its control endpoint.
    fn serve(&self, arguments: &[&str]) -> (Server, String) {
        let mut command = server::command(&unique_shm(), &["--demo", "--udp", "127.0.0.1:0"]);
        command.args(["--http", "127.0.0.1:0", "--control", "127.0.0.1:0"]).args(arguments);
        command.current_dir(&self.0).env("HOME", &self.0);
        command.env_remove("XDG_STATE_HOME").env_remove("STATE_DIRECTORY");
        let server = Server::spawn(&mut command);
        let control = wait_for("the control address", || server.process.after("control: http://"));
        (server, control.split('/').next().unwrap().to_owned())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Replaces the default ports in a block by those of this server.
fn at(block: &str, http: SocketAddr, control: &str) -> String {
    block.replace("localhost:8080", &format!("localhost:{}", http.port())).replace("127.0.0.1:6060", control)
}

#[test]
fn security_commands_of_the_readme_work() {
    let home = Home::new();
    let start = block_with("openssl rand");
    let (make_token, run_server) = start.trim().split_once('\n').unwrap();
    home.run(make_token);
    let arguments: Vec<&str> = run_server.strip_prefix("streaming-server ").unwrap().split(' ').collect();
    let (server, control) = home.serve(&arguments);
    wait_for("pictures of the demo", || {
        (http::get(control.parse().unwrap(), "/ready").status == 200).then_some(())
    });
    let said = home.run(&at(&block_with("curl --cacert $CA"), server.http, &control));
    assert!(said.contains("\"version\"") && said.contains("\"status\":\"recording\""), "{said}");
    // The Prometheus snippet of the operator's guide: with the token, over TLS.
    let snippets = blocks(&document("scripts/README.md"), "yaml");
    let snippet = snippets.iter().find(|snippet| snippet.contains("credentials_file")).unwrap();
    assert!(snippet.contains("scheme: https"), "the token would be sent in clear: {snippet}");
    fs::copy(
        home.0.join(".local/state/streaming-server/self-signed-ca.pem"),
        home.0.join("self-signed-ca.pem"),
    )
    .unwrap();
    let target = format!("localhost:{}", server.http.port());
    scrape(&home, &snippet.replace("camera.local:8080", &target), &target);
    // The shipped configuration is for the same machine. It must also work while the server has a token.
    let shipped = document("scripts/prometheus.yml").replace("rule_files:\n  - alerts.yml\n", "");
    assert!(shipped.contains("127.0.0.1:6060"), "{shipped}");
    scrape(&home, &shipped.replace("127.0.0.1:6060", &control), &control);
}

/// Starts Prometheus with this configuration and waits until it has scraped the target. Without Prometheus, prints a
/// message and checks nothing.
fn scrape(home: &Home, config: &str, target: &str) {
    assert!(config.contains(target), "{config}");
    if Command::new("prometheus").arg("--version").output().is_err() {
        eprintln!("prometheus is not installed (Debian: apt-get install prometheus): nothing is scraped");
        return;
    }
    let config = config.replace("scrape_interval: 5s", "scrape_interval: 1s");
    let config = if config.contains("scrape_interval") {
        config
    } else {
        format!("global: {{scrape_interval: 1s}}\n{config}")
    };
    fs::write(home.0.join("prometheus.yml"), config).unwrap();
    let mut command = Command::new("prometheus");
    command.current_dir(&home.0).args(["--config.file=prometheus.yml", "--web.listen-address=127.0.0.1:0"]);
    command.arg(format!("--storage.tsdb.path={}", home.0.join(unique_shm().replace('/', "data")).display()));
    let process = Process::spawn("prometheus", &mut command);
    let address: SocketAddr = wait_for("Prometheus' address in its log", || {
        let rest = process.after("msg=\"Listening on\" address=")?;
        rest.split_whitespace().next()?.parse().ok()
    });
    wait_within(PATIENCE, "a successful scrape", || {
        let answer = http::get(address, "/api/v1/query?query=up");
        let is_up = answer.status == 200 && answer.text().contains(",\"1\"]");
        is_up.then_some(())
    });
}

#[test]
fn recording_and_operation_commands_of_the_readme_work() {
    let home = Home::new();
    let (server, control) = home.serve(&[]);
    wait_for("pictures of the demo", || (server.get("/ready").status == 200).then_some(()));
    let operation = block_with("streaming-server healthcheck");
    let lines = operation.lines().filter(|line| !line.starts_with("streaming-server doctor"));
    let health = format!("healthcheck --http {}", server.http);
    for line in lines {
        home.run(&at(line, server.http, &control).replace("healthcheck ", &format!("{health} ")));
    }

    let block = at(&block_with("/api/recording/start  "), server.http, &control);
    let mut saved = None;
    for line in block.lines() {
        let name = recording_names(&server).pop();
        let line = match (line.split_once("recordings/"), name) {
            (Some((before, _)), Some(name)) => {
                saved = Some(name.clone());
                format!("{before}recordings/{name}")
            }
            _ => line.to_owned(),
        };
        let said = home.run(&line);
        assert!(!said.contains("\"error\""), "{line}: {said}");
    }
    let saved = saved.expect("the block downloads a recording");
    assert!(fs::read(home.0.join(&saved)).unwrap()[4..].starts_with(b"ftyp"), "{saved}");
    // The same command for a recording that does not exist must not save the error as a video.
    let download = block.lines().find(|line| line.contains("recordings/")).unwrap();
    let output = home.bash(download);
    assert!(!output.status.success(), "{download}");
    let videos = fs::read_dir(&home.0).unwrap().flatten();
    let videos: Vec<String> = videos.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(videos.iter().filter(|name| name.ends_with(".mp4")).count(), 1, "{videos:?}");
}

fn recording_names(server: &Server) -> Vec<String> {
    let list = server.get("/api/recordings").json();
    let recordings = list["recordings"].as_array().unwrap().clone();
    recordings.iter().map(|recording| recording["name"].as_str().unwrap().to_owned()).collect()
}

/// Each command of the documentation that saves an answer must fail if the answer is an error.
#[test]
fn commands_that_save_an_answer_save_no_error() {
    for path in ["README.md", "scripts/README.md", "CONTRIBUTING.md", "perf/README.md"] {
        for line in document(path).lines().filter(|line| line.contains("curl ")) {
            // The comment after a command may name options too.
            let command = line.split(" #").next().unwrap_or(line);
            let options =
                command.split_whitespace().filter(|word| word.starts_with('-') && !word.starts_with("--"));
            let (saves, fails) = options.fold((false, false), |(saves, fails), word| {
                (saves || word.contains(['o', 'O']), fails || word.contains('f'))
            });
            assert!(!saves || fails, "{path}: {line}");
        }
    }
}

#[test]
fn the_table_of_metrics_is_complete() {
    let home = Home::new();
    // This WHIP server never answers. The metrics of publishing are there nevertheless.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let whip = format!("http://{}/whip", silent.local_addr().unwrap());
    let (server, _control) = home.serve(&["--whip", &whip]);
    wait_for("pictures of the demo", || (server.get("/ready").status == 200).then_some(()));
    let page = server.get("/metrics").text();
    let exposed: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let guide = document("scripts/README.md");
    let (_, section) = guide.split_once("\n## Metrics\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let names: BTreeSet<&str> = rows
        .flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2))
        .map(|name| name.split('{').next().unwrap())
        .collect();
    let is_listed = |family: &&&str| {
        names.iter().any(|name| match name.strip_suffix('*') {
            Some(prefix) => family.starts_with(prefix),
            None => *name == **family,
        })
    };
    let missing: Vec<&&str> = exposed.iter().filter(|family| !is_listed(family)).collect();
    assert!(missing.is_empty(), "not in the table: {missing:?}");
    let gone = names.iter().filter(|name| !name.ends_with('*') && !exposed.contains(*name));
    let gone: Vec<&&str> = gone.collect();
    assert!(gone.is_empty(), "in the table, but not in /metrics: {gone:?}");
}
