//! Sends messages to the service manager (systemd) over its notify socket: ready, status, watchdog and stopping, see
//! sd_notify(3). This module reads no environment variables and no clock. Without a service manager it sends nothing.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
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

    /// Reports that the server listens. systemd then starts the units that are ordered after this service.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// Sends the line that `systemctl status` shows, if it differs from the last one sent.
    pub fn status(&mut self, line: &str) {
        if self.last_status != line {
            line.clone_into(&mut self.last_status);
            self.send(&format!("STATUS={}", line.replace('\n', " ")));
        }
    }

    /// Sends a watchdog keep-alive. If none arrives within `WatchdogSec=`, the service manager kills and restarts the
    /// program.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// Reports that the server is stopping.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=stopping: finishing the recording, closing the sessions");
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(message.as_bytes())
        {
            log::debug!("could not send {message} to the service manager: {error}");
        }
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
}

/// Checks the server periodically. Sends the status line if it has changed, and a watchdog keep-alive as long as the
/// heartbeat of every thread grows. This runs on the HTTP thread, so the watchdog covers that thread too. Never
/// returns.
pub async fn supervise(notifier: &mut Notifier, watchdog: Option<Duration>, look: impl Fn() -> Health) {
    if !notifier.has_manager() {
        return std::future::pending().await;
    }
    let mut timer = tokio::time::interval(watchdog.unwrap_or(limits::STATUS_PERIOD));
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut pulse = Pulse::default();
    loop {
        timer.tick().await;
        let health = look();
        match pulse.missing(&health.heartbeats) {
            None => {
                if watchdog.is_some() {
                    notifier.alive();
                }
                notifier.status(&health.summary);
            }
            Some(name) => {
                if pulse.checks_missed == STUCK_CHECKS {
                    log::error!(
                        "{name} is stuck: keep-alives stop, so that the watchdog of the service manager restarts the program"
                    );
                }
                if pulse.checks_missed >= STUCK_CHECKS {
                    notifier.status(&format!("{name} is stuck"));
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
        let named =
            |(index, turns): (usize, &u64)| Heartbeat { name: format!("worker {index}"), turns: *turns };
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
        notifier.ready();
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
        Notifier::default().ready();
    }
}
