//! Headless Chromium, controlled over the DevTools protocol through two FIFOs. The control does not use the network, so
//! it does not disturb the measured link.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::{Value, json};

use crate::Fallible;
use crate::process::Process;

const PATIENCE: Duration = Duration::from_secs(60);
const GROUP_PATIENCE: Duration = Duration::from_secs(2);

/// Chromium reads commands from descriptor 3 and writes answers to descriptor 4.
const LAUNCH: &str =
    r#"[ -z "$GROUP" ] || echo $$ >"$GROUP/cgroup.procs"; exec "$0" "$@" 3<"$COMMANDS" 4>"$ANSWERS""#;

/// Control groups of the CPU, by version: directory, file of the weight, and a weight of about 50 usual processes.
const GROUPS: [(&str, &str, &str); 2] =
    [("/sys/fs/cgroup/cpu", "cpu.shares", "51200"), ("/sys/fs/cgroup", "cpu.weight", "5000")];

const ARGUMENTS: &[&str] = &[
    "--remote-debugging-pipe",
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-background-timer-throttling",
    "--autoplay-policy=no-user-gesture-required",
    "--window-size=640,480",
];

/// A running browser with one page. Dropping it ends the browser and removes its profile.
pub(crate) struct Browser {
    process: Option<Process>,
    group: Option<Group>,
    profile: PathBuf,
    commands: File,
    answers: Receiver<Value>,
    next_id: u64,
    session: Option<String>,
}

impl Browser {
    /// Starts the browser in the network namespace of this thread, with a page that runs `script` first. If `shielded` is
    /// true, other processes of the machine delay it less.
    pub(crate) fn start(program: &Path, script: &str, shielded: bool) -> Fallible<Browser> {
        let profile = std::env::temp_dir().join(format!("perf-link-browser-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&profile);
        std::fs::create_dir_all(&profile)?;
        let (to, from) = (profile.join("commands"), profile.join("answers"));
        for path in [&to, &from] {
            mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR)?;
        }
        // Opened for reading and writing, a FIFO opens at once, even without a process at its other end.
        let open = |path| File::options().read(true).write(true).open(path);
        let (commands, answers) = (open(&to)?, open(&from)?);
        let mut command = Command::new("sh");
        command.args(["-c", LAUNCH]).arg(program).args(ARGUMENTS);
        command.arg(format!("--user-data-dir={}", profile.join("data").display())).arg("about:blank");
        let group = if shielded { Group::new() } else { None };
        let directory = group.as_ref().map_or(Path::new(""), |group| group.0.as_path());
        command.env("COMMANDS", &to).env("ANSWERS", &from).env("GROUP", directory);
        let process = Process::spawn("chromium", &mut command, false)?;
        let mut browser = Browser {
            process: Some(process),
            group,
            profile,
            commands,
            answers: read(answers),
            next_id: 0,
            session: None,
        };
        browser.open_page(script)?;
        Ok(browser)
    }

    fn open_page(&mut self, script: &str) -> Fallible<()> {
        let target = self.call("Target.createTarget", json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = self.call("Target.attachToTarget", attach)?;
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        self.call("Page.enable", json!({}))?;
        // The plain player runs in documents of the servers, some of which forbid scripts.
        self.call("Page.setBypassCSP", json!({"enabled": true}))?;
        self.call("Page.addScriptToEvaluateOnNewDocument", json!({"source": script}))?;
        Ok(())
    }

    /// Loads `url`, and waits until the page has a body.
    pub(crate) fn open(&mut self, url: &str) -> Fallible<()> {
        let answer = self.call("Page.navigate", json!({"url": url}))?;
        if let Some(error) = answer["errorText"].as_str() {
            return Err(format!("{url}: {error}").into());
        }
        let deadline = Instant::now() + PATIENCE;
        while self.evaluate("document.body !== null && location.href !== 'about:blank'")? != Value::Bool(true)
        {
            if Instant::now() > deadline {
                return Err(format!("{url} was not loaded").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Returns the value of an expression in the page. If it is a promise, waits for its result.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Fallible<Value> {
        let parameters = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut answer = self.call("Runtime.evaluate", parameters)?;
        if let Some(details) = answer.get("exceptionDetails") {
            let text = details["exception"]["description"].as_str().unwrap_or("an exception");
            return Err(format!("in the page: {text}").into());
        }
        Ok(answer["result"]["value"].take())
    }

    fn call(&mut self, method: &str, parameters: Value) -> Fallible<Value> {
        self.next_id += 1;
        let mut message = json!({"id": self.next_id, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut answer = match self.answers.recv_timeout(left) {
                Ok(answer) => answer,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("{method}: the browser does not answer").into());
                }
                Err(RecvTimeoutError::Disconnected) => return Err("the browser has ended".into()),
            };
            if answer["id"] != json!(self.next_id) {
                continue;
            }
            if let Some(error) = answer.get("error") {
                return Err(format!("{method}: {error}").into());
            }
            return Ok(answer["result"].take());
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.session = None;
        let _ = self.call("Browser.close", json!({}));
        self.process = None;
        self.group = None;
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

/// A control group with a high share of the CPU. A busy machine then looks less like a bad link. The priority of a process
/// would not do, because Chromium sets those of its children itself.
struct Group(PathBuf);

impl Group {
    /// Returns `None` if this process may not make control groups on this machine.
    fn new() -> Option<Group> {
        GROUPS.into_iter().find_map(|(root, weight_file, weight)| {
            let path = Path::new(root).join(format!("perf-link-{}", std::process::id()));
            let _ = std::fs::create_dir(&path);
            let group = Group(path);
            let file = File::options().write(true).open(group.0.join(weight_file));
            file.and_then(|mut file| file.write_all(weight.as_bytes())).ok().map(|()| group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group can be removed once its last process has ended.
        let deadline = Instant::now() + GROUP_PATIENCE;
        while self.0.exists() && std::fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Starts a thread that reads messages, which end with a zero byte.
fn read(from: File) -> Receiver<Value> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(from);
        let mut bytes = Vec::new();
        while matches!(reader.read_until(0, &mut bytes), Ok(count) if count > 0) {
            bytes.pop();
            let Ok(message) = serde_json::from_slice(&bytes) else { return };
            if send.send(message).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    receive
}
