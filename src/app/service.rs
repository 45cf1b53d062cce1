//! Sends messages to the service manager (systemd) over its notify socket: ready, status, watchdog and stopping, see
//! sd_notify(3). This module reads no environment variables and no clock. Without a service manager it sends nothing.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::base::limits;

/// The connection to the service manager. Each message is one datagram, sent without blocking: a manager that does
/// not read must not delay the server.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    last_status: String,
}

impl Notifier {
    /// Connects to the service manager. `address` is the value of `$NOTIFY_SOCKET`: a path, or `@` and a name in the
    /// abstract namespace. Without an address, the notifier sends nothing. With an unusable address it logs a warning
    /// and sends nothing.
    #[must_use]
    pub fn new(address: Option<&OsStr>) -> Notifier {
        let Some(address) = address.filter(|address| !address.is_empty()) else { return Notifier::default() };
        match connect(address) {
            Ok(socket) => Notifier { socket: Some(socket), last_status: String::new() },
            Err(error) => {
                log::warn!("cannot reach the service manager at {}: {error}", address.display());
                Notifier::default()
            }
        }
    }

    /// Returns true if this notifier is connected to a service manager.
    #[must_use]
    fn has_manager(&self) -> bool {
        self.socket.is_some()
    }

    /// Reports that the server listens. systemd then starts the units that are ordered after this service. Returns false
    /// if the manager does not take the message now.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.send("READY=1")
    }

    /// Sends the line that `systemctl status` shows, if it differs from the last one sent.
    pub fn status(&mut self, line: &str) {
        if self.last_status != line && self.send(&format!("STATUS={}", line.replace('\n', " "))) {
            line.clone_into(&mut self.last_status);
        }
    }

    /// Sends a watchdog keep-alive. If none arrives within `WatchdogSec=`, the service manager kills and restarts the
    /// program.
    pub fn alive(&self) {
        // A message that the manager does not take is followed by the next one, before the timeout.
        let _ = self.send("WATCHDOG=1");
    }

    /// Reports that the server is stopping.
    pub fn stopping(&self) {
        let _ = self.send("STOPPING=1\nSTATUS=stopping: finishing the recording, closing the sessions");
    }

    /// Sends a message without blocking. Returns false if the manager does not take it now.
    fn send(&self, message: &str) -> bool {
        let Some(socket) = &self.socket else { return true };
        let sent = socket.send(message.as_bytes());
        if let Err(error) = &sent {
            log::debug!("could not send {message} to the service manager: {error}");
        }
        sent.is_ok()
    }
}

fn connect(address: &OsStr) -> std::io::Result<UnixDatagram> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Returns the time between two heartbeat checks: a fraction of the watchdog timeout. `usec` and `pid` are the values
/// of `$WATCHDOG_USEC` and `$WATCHDOG_PID`. Returns `None` if there is no watchdog, or if it watches another process.
#[must_use]
pub fn watchdog_period(usec: Option<&OsStr>, pid: Option<&OsStr>, own_pid: u32) -> Option<Duration> {
    let number = |text: &OsStr| text.to_str()?.parse::<u64>().ok();
    if pid.is_some_and(|pid| number(pid) != Some(u64::from(own_pid))) {
        return None;
    }
    let usec = usec.and_then(number).filter(|usec| *usec > 0)?;
    Some(Duration::from_micros(usec) / limits::SIGNS_OF_LIFE_PER_WATCHDOG)
}

/// State of the server at one heartbeat check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// One line for `systemctl status`.
    pub summary: String,
    /// One heartbeat for each thread that must not stop.
    pub heartbeats: Vec<Heartbeat>,
}

/// A thread and the number of turns that its loop has made. If the number does not grow, the thread is stuck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Name of the thread, as in the log.
    pub name: String,
    /// Number of turns of the loop since the start.
    pub turns: u64,
    /// True if live video needs the thread: the keep-alives end while it is stuck. Otherwise the status line and the log
    /// say that it is stuck.
    pub is_vital: bool,
}

/// The thread that reports to the service manager. It does not depend on any other thread: a busy HTTP thread must not
/// make the manager restart the program. [`Supervisor::stop`] ends it.
#[derive(Debug, Default)]
pub struct Supervisor {
    thread: Option<(SyncSender<()>, JoinHandle<()>)>,
}

impl Supervisor {
    /// Starts the thread, which reports READY at once. Without a service manager, no thread is started. `watchdog` is the
    /// time between two keep-alives, and `look` returns the state of the server.
    ///
    /// # Errors
    /// The system cannot create the thread.
    pub fn start(
        notifier: Notifier,
        watchdog: Option<Duration>,
        look: impl Fn() -> Health + Send + 'static,
    ) -> std::io::Result<Supervisor> {
        if !notifier.has_manager() {
            return Ok(Supervisor::default());
        }
        let (stop, stopped) = sync_channel(1);
        let body = move || {
            let mut watch = Watch::new(notifier, watchdog);
            let period = watchdog.unwrap_or(limits::STATUS_PERIOD);
            loop {
                watch.check(&look());
                if stopped.recv_timeout(period) != Err(RecvTimeoutError::Timeout) {
                    break watch.notifier.stopping();
                }
            }
        };
        let thread = std::thread::Builder::new().name("service".to_owned());
        let thread = thread.stack_size(limits::HELPER_STACK_BYTES).spawn(body)?;
        Ok(Supervisor { thread: Some((stop, thread)) })
    }

    /// Reports that the server is stopping, and ends the thread.
    pub fn stop(self) {
        if let Some((stop, thread)) = self.thread {
            // Both calls fail only if the thread has panicked, which the panic hook has logged.
            let _ = stop.send(());
            let _ = thread.join();
        }
    }
}

/// The state of the thread of [`Supervisor`]: which threads are alive, and what the service manager has been sent.
struct Watch {
    notifier: Notifier,
    watchdog: Option<Duration>,
    is_ready: bool,
    pulse: Pulse,
    /// Heartbeats of the threads that are not vital.
    other_pulse: Pulse,
}

impl Watch {
    fn new(notifier: Notifier, watchdog: Option<Duration>) -> Watch {
        Watch { notifier, watchdog, is_ready: false, pulse: Pulse::default(), other_pulse: Pulse::default() }
    }

    /// Sends the status line if it has changed, and a watchdog keep-alive as long as the heartbeat of every vital thread
    /// grows.
    fn check(&mut self, health: &Health) {
        self.is_ready = self.is_ready || self.notifier.ready();
        let (vital, others): (Vec<_>, Vec<_>) =
            health.heartbeats.iter().cloned().partition(|beat| beat.is_vital);
        let other = self.other_pulse.missing(&others);
        match self.pulse.missing(&vital) {
            None => {
                if self.watchdog.is_some() {
                    self.notifier.alive();
                }
                match other.filter(|_| self.other_pulse.checks_missed >= STUCK_CHECKS) {
                    None => self.notifier.status(&health.summary),
                    Some(name) => {
                        if self.other_pulse.checks_missed == STUCK_CHECKS {
                            log::error!(
                                "{name} is stuck, perhaps because the disk does not answer; live video goes on"
                            );
                        }
                        self.notifier.status(&format!("{}; {name} is stuck", health.summary));
                    }
                }
            }
            Some(name) => {
                if self.pulse.checks_missed == STUCK_CHECKS {
                    log::error!(
                        "{name} is stuck: keep-alives stop, so that the watchdog of the service manager restarts the program"
                    );
                }
                if self.pulse.checks_missed >= STUCK_CHECKS {
                    self.notifier.status(&format!("{name} is stuck"));
                }
            }
        }
    }
}

/// Number of consecutive checks without a turn after which a thread counts as stuck. One such check is normal, because
/// an idle thread turns only once a second.
const STUCK_CHECKS: u32 = 2; // local bound: only this file uses it

/// The heartbeats of the previous check, and the number of consecutive checks that found a thread without a turn.
#[derive(Debug, Default)]
struct Pulse {
    before: Vec<Heartbeat>,
    checks_missed: u32,
}

impl Pulse {
    /// Returns the name of the first thread that has made no turn since the previous check, or `None` if every thread
    /// has.
    fn missing<'a>(&mut self, now: &'a [Heartbeat]) -> Option<&'a str> {
        let stuck = now.iter().find(|beat| self.before.contains(beat));
        self.checks_missed = if stuck.is_some() { self.checks_missed + 1 } else { 0 };
        self.before = now.to_vec();
        stuck.map(|beat| beat.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn beats(turns: &[u64]) -> Vec<Heartbeat> {
        let named = |(index, turns): (usize, &u64)| Heartbeat {
            name: format!("worker {index}"),
            turns: *turns,
            is_vital: true,
        };
        turns.iter().enumerate().map(named).collect()
    }

    #[test]
    fn stuck_thread_is_named_and_counted_until_it_turns() {
        let mut pulse = Pulse::default();
        assert_eq!(pulse.missing(&beats(&[0, 0])), None, "the first check has nothing to compare");
        assert_eq!(pulse.missing(&beats(&[1, 5])), None);
        for checks in 1..4 {
            assert_eq!(pulse.missing(&beats(&[1 + u64::from(checks), 5])), Some("worker 1"));
            assert_eq!(pulse.checks_missed, checks);
        }
        assert_eq!(pulse.missing(&beats(&[9, 6])), None);
        assert_eq!(pulse.missing(&beats(&[10, 6])), Some("worker 1"));
        assert_eq!(pulse.checks_missed, 1);
    }

    #[test]
    fn watchdog_needs_a_timeout_and_our_process_id() {
        let period = |usec: Option<&str>, pid: Option<&str>| {
            watchdog_period(usec.map(OsStr::new), pid.map(OsStr::new), 42)
        };
        assert_eq!(period(Some("20000000"), None), Some(Duration::from_secs(5)));
        assert_eq!(period(Some("20000000"), Some("42")), Some(Duration::from_secs(5)));
        assert_eq!(period(Some("20000000"), Some("43")), None);
        for none in [None, Some("0"), Some("soon"), Some("")] {
            assert_eq!(period(none, None), None, "{none:?}");
        }
    }

    #[test]
    fn each_message_is_a_datagram_and_an_unchanged_status_is_not_repeated() {
        let name = format!("ss-test-notify-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let mut notifier = Notifier::new(Some(OsStr::new(&format!("@{name}"))));
        assert!(notifier.has_manager());
        assert!(notifier.ready());
        notifier.status("two\nlines");
        notifier.status("two\nlines");
        notifier.alive();
        let mut buffer = [0; 100];
        for expected in ["READY=1", "STATUS=two lines", "WATCHDOG=1"] {
            let bytes = manager.recv(&mut buffer).unwrap();
            assert_eq!(buffer.get(..bytes).unwrap(), expected.as_bytes());
        }
    }

    #[test]
    fn without_a_service_manager_no_message_is_sent() {
        assert!(!Notifier::new(None).has_manager());
        assert!(!Notifier::new(Some(OsStr::new(""))).has_manager());
        assert!(!Notifier::new(Some(OsStr::new("/nonexistent/notify"))).has_manager());
        assert!(Notifier::default().ready());
        assert!(Supervisor::start(Notifier::default(), None, Health::default).unwrap().thread.is_none());
    }

    #[test]
    fn stuck_recorder_is_reported_and_does_not_end_the_keep_alives() {
        let name = format!("ss-test-notify-recorder-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        manager.set_nonblocking(true).unwrap();
        let messages = || {
            let mut buffer = [0; 100];
            let next = || manager.recv(&mut buffer).ok().map(|bytes| buffer.get(..bytes).unwrap().to_vec());
            std::iter::from_fn(next).map(|bytes| String::from_utf8(bytes).unwrap()).collect::<Vec<_>>()
        };
        let notifier = Notifier::new(Some(OsStr::new(&format!("@{name}"))));
        let mut watch = Watch::new(notifier, Some(Duration::from_secs(5)));
        let health = |worker: u64, recorder: u64| Health {
            summary: "live".to_owned(),
            heartbeats: vec![
                Heartbeat { name: "worker 0".to_owned(), turns: worker, is_vital: true },
                Heartbeat { name: "the recorder".to_owned(), turns: recorder, is_vital: false },
            ],
        };
        for (check, expected) in [
            (health(1, 1), &["READY=1", "WATCHDOG=1", "STATUS=live"][..]),
            (health(2, 1), &["WATCHDOG=1"]),
            (health(3, 1), &["WATCHDOG=1", "STATUS=live; the recorder is stuck"]),
            (health(4, 2), &["WATCHDOG=1", "STATUS=live"]),
            (health(4, 3), &[]),
            (health(4, 4), &["STATUS=worker 0 is stuck"]),
        ] {
            watch.check(&check);
            assert_eq!(messages(), expected, "{check:?}");
        }
    }

    #[test]
    fn message_that_the_manager_does_not_take_is_sent_at_the_next_check() {
        let name = format!("ss-test-notify-full-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let notifier = Notifier::new(Some(OsStr::new(&format!("@{name}"))));
        while notifier.send("FILL=1") {}
        let mut watch = Watch::new(notifier, None);
        let health = Health { summary: "live".to_owned(), heartbeats: Vec::new() };
        watch.check(&health); // does not block
        assert!(!watch.is_ready);
        manager.set_nonblocking(true).unwrap();
        let mut buffer = [0; 100];
        while manager.recv(&mut buffer).is_ok() {}
        watch.check(&health);
        for expected in ["READY=1", "STATUS=live"] {
            let bytes = manager.recv(&mut buffer).unwrap();
            assert_eq!(buffer.get(..bytes).unwrap(), expected.as_bytes());
        }
    }
}
