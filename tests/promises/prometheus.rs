//! A real Prometheus scrapes a real server: every query of the Grafana dashboard returns numbers, every alert can be
//! evaluated, and the alert for drops fires when it should. The tests need Debian's package `prometheus`. Without it
//! they print a message and check nothing.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is the report, and the clock is the real one"
)]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::camera::{CameraSim, steady};
use support::process::Process;
use support::server::Server;
use support::viewer::ViewerSimulator;
use support::{http, unique_shm, wait_for, wait_within};

/// Longest wait for data in every panel. A rate over a minute needs several scrapes, and the recorder and the RTCP
/// reports of the viewers need a few seconds.
const PATIENCE: Duration = Duration::from_secs(90);

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

fn is_installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        eprintln!("{program} is not installed (Debian: apt-get install prometheus): nothing is checked");
    }
    found
}

/// A temporary directory, removed on drop.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = std::env::temp_dir().join(unique_shm().trim_start_matches('/'));
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Prometheus {
    _process: Process,
    address: SocketAddr,
}

impl Prometheus {
    /// Starts Prometheus with the shipped configuration, changed to scrape `target` once a second.
    fn start(directory: &Path, target: SocketAddr) -> Self {
        let shipped = fs::read_to_string(script("prometheus.yml")).unwrap();
        let config = shipped
            .replace("127.0.0.1:6060", &target.to_string())
            .replace("scrape_interval: 5s", "scrape_interval: 1s");
        assert!(config.contains(&target.to_string()) && config.contains(": 1s"), "{config}");
        fs::write(directory.join("prometheus.yml"), config).unwrap();
        fs::copy(script("alerts.yml"), directory.join("alerts.yml")).unwrap();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", directory.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0");
        let process = Process::spawn("prometheus", &mut command);
        let address = wait_for("Prometheus' address in its log", || {
            let rest = process.after("msg=\"Listening on\" address=")?;
            rest.split_whitespace().next()?.parse().ok()
        });
        Prometheus { _process: process, address }
    }

    fn ask(&self, path: &str) -> Value {
        // After its start Prometheus accepts connections before it can answer queries, and returns 503 until then.
        let answer = wait_for("Prometheus ready to answer", || {
            let answer = http::get(self.address, path);
            (answer.status != 503).then_some(answer)
        });
        answer.json()["data"].clone()
    }

    /// Returns the current value of each series that the query selects.
    fn query(&self, expression: &str) -> Vec<f64> {
        let result = self.ask(&format!("/api/v1/query?query={}", percent_encoded(expression)));
        let series = result["result"].as_array().cloned().unwrap_or_default();
        series.iter().filter_map(|one| one["value"][1].as_str()?.parse().ok()).collect()
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Returns each query of the dashboard with the title of its panel: (title, query).
fn dashboard() -> Vec<(String, String)> {
    let text = fs::read_to_string(script("grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = |panel: &Value| {
        let title = panel["title"].as_str().unwrap().to_owned();
        let targets = panel["targets"].as_array().unwrap().clone();
        targets.into_iter().map(move |target| (title.clone(), target["expr"].as_str().unwrap().to_owned()))
    };
    panels.iter().flat_map(queries).collect()
}

#[test]
fn every_panel_of_the_dashboard_has_data() {
    if !is_installed("prometheus") {
        return;
    }
    let (directory, shm) = (Directory::new(), unique_shm());
    let _camera = CameraSim::start(&shm, &steady("v3"));
    let recordings = directory.0.join("recordings");
    let server = Server::start(&shm, &["--record-path", recordings.to_str().unwrap()]);
    server.wait_ready();
    let _viewers = ViewerSimulator::crowd(server.http, 3);
    let started = http::post_json(server.http, "/api/recording/start", &json!({}));
    assert_eq!(started.status, 200, "{}", started.text());
    let prometheus = Prometheus::start(&directory.0, server.http);
    let mut missing = dashboard();
    let panels = missing.len();
    wait_within(PATIENCE, "data for every panel", || {
        missing.retain(|(_, query)| {
            let values = prometheus.query(query);
            values.is_empty() || values.iter().any(|value| !value.is_finite())
        });
        if !missing.is_empty() {
            eprintln!("{} of {panels} queries without data: {:?}", missing.len(), missing.first());
            std::thread::sleep(Duration::from_secs(1));
        }
        missing.is_empty().then_some(())
    });
    let rates = prometheus.query("sum(rate(frames_sent_total[1m]))");
    assert!(rates[0] > 0.0, "{rates:?}");
    rules_are_healthy(&prometheus);
}

fn rules_are_healthy(prometheus: &Prometheus) {
    wait_for("a healthy evaluation of every alert", || {
        let groups = prometheus.ask("/api/v1/rules")["groups"].clone();
        let rules: Vec<Value> =
            groups.as_array()?.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect();
        assert!(rules.iter().all(|rule| rule["state"] == "inactive"), "{rules:?}");
        (rules.len() >= 2 && rules.iter().all(|rule| rule["health"] == "ok")).then_some(())
    });
}

#[test]
fn dashboard_has_the_six_required_panels() {
    let titles: Vec<String> = dashboard().into_iter().map(|(title, _)| title).collect();
    for title in
        ["Frame Throughput", "Drop Rate", "Channel Buffer Usage", "Active Clients", "Latency", "Error Rate"]
    {
        assert!(titles.iter().any(|found| found == title), "{title} of {titles:?}");
    }
}

/// Tests the alert rules with promtool: 10 % of dropped units fire the alert, 1 % does not.
#[test]
fn drop_alert_fires_above_five_percent() {
    if !is_installed("promtool") {
        return;
    }
    let directory = Directory::new();
    fs::copy(script("alerts.yml"), directory.0.join("alerts.yml")).unwrap();
    let series = |name: &str, labels: &str, step: u32| {
        format!("      - {{series: '{name}{{instance=\"a\",{labels}}}', values: '0+{step}x60'}}\n")
    };
    let case = |dropped: u32, expected: &str| {
        let mut text = String::from("  - interval: 5s\n    input_series:\n");
        text += &series("frames_sent_total", "", 150 - dropped);
        text += &series("frames_dropped_total", "component=\"webrtc\"", dropped);
        text + &format!(
            "    alert_rule_test:\n      - {{eval_time: 4m, alertname: ViewersLosePictures, exp_alerts: [{expected}]}}\n"
        )
    };
    let fires = "{exp_labels: {instance: a, severity: warning}, exp_annotations: {summary: \
                 'a drops more than 5 % of the access units for its viewers', description: '@'}}";
    let alerts: String = fs::read_to_string(script("alerts.yml")).unwrap();
    let description = described(&alerts, "ViewersLosePictures");
    let tests = format!(
        "rule_files: [alerts.yml]\nevaluation_interval: 5s\ntests:\n{}{}",
        case(15, &fires.replace('@', &description)),
        case(2, "")
    );
    fs::write(directory.0.join("test.yml"), &tests).unwrap();
    let output = Command::new("promtool")
        .args(["test", "rules", "test.yml"])
        .current_dir(&directory.0)
        .output()
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{tests}");
}

/// Returns the description of an alert as one line. In the file the description is folded YAML text (`>-`).
fn described(alerts: &str, name: &str) -> String {
    let (_, alert) = alerts.split_once(&format!("alert: {name}")).unwrap();
    let (_, text) = alert.split_once("description: >-\n").unwrap();
    let lines: Vec<&str> = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
    lines.join(" ")
}
