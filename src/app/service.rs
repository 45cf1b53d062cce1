//! What the service manager (systemd) is told over its notify socket: ready, how it goes, still alive, stopping;
//! see sd_notify(3). Reads no environment and no clock. Without a manager nothing is sent and nothing waits.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::base::limits;

/// The way to the service manager. Every message is one datagram, sent without waiting: a manager that does not
/// read must not hold the server up.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    last_status: String,
}

impl Notifier {
    /// `address` is `$NOTIFY_SOCKET`: a path, or a name in the abstract namespace after `@`. Without one there is
    /// nobody to tell; one that cannot be used is a warning.
    #[must_use]
    pub fn new(address: Option<&OsStr>) -> Notifier {
        let Some(address) = address.filter(|address| !address.is_empty()) else { return Notifier::default() };
        match connect(address) {
            Ok(socket) => Notifier { socket: Some(socket), last_status: String::new() },
            Err(error) => {
                log::warn!("the service manager cannot be told at {}: {error}", address.display());
                Notifier::default()
            }
        }
    }

    /// Whether anybody listens.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.socket.is_some()
    }

    /// The server listens: units that come after it may start.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// One line for `systemctl status`; sent only when it changed.
    pub fn status(&mut self, line: &str) {
        if self.last_status != line {
            line.clone_into(&mut self.last_status);
            self.send(&format!("STATUS={}", line.replace('\n', " ")));
        }
    }

    /// A sign of life. Without one for `WatchdogSec=` the manager kills and restarts the program.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// The server is on its way out.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=stopping: the recording is finished, viewers are told");
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(message.as_bytes())
        {
            log::debug!("the service manager was not told {message}: {error}");
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

/// Time between two looks at the heartbeats, from `$WATCHDOG_USEC` and `$WATCHDOG_PID`: a fraction of what the
/// manager waits for; `None` where it does not wait for signs of life, or waits for those of another process.
#[must_use]
pub fn watchdog_period(usec: Option<&OsStr>, pid: Option<&OsStr>, own_pid: u32) -> Option<Duration> {
    let number = |text: &OsStr| text.to_str()?.parse::<u64>().ok();
    if pid.is_some_and(|pid| number(pid) != Some(u64::from(own_pid))) {
        return None;
    }
    let usec = usec.and_then(number).filter(|usec| *usec > 0)?;
    Some(Duration::from_micros(usec) / limits::SIGNS_OF_LIFE_PER_WATCHDOG)
}

/// What the server tells of itself at each look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// One line for people.
    pub summary: String,
    /// A count per thread that must not stop; each grows as long as its thread turns.
    pub heartbeats: Vec<Heartbeat>,
}

/// A thread and how often it has turned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Its name, as in the log.
    pub name: String,
    /// Its turns.
    pub turns: u64,
}

/// Looks at the server again and again and tells the manager: the status when it changed and, while every thread
/// turns, a sign of life. Runs on the thread that serves HTTP, which is thereby watched too. Never ends.
pub async fn supervise(notifier: &mut Notifier, watchdog: Option<Duration>, look: impl Fn() -> Health) {
    if !notifier.is_heard() {
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
            Some(missing) => {
                if missing.looks == STUCK_LOOKS {
                    log::error!(
                        "{} does not turn any more: the service manager gets no sign of life",
                        missing.name
                    );
                }
                if missing.looks >= STUCK_LOOKS {
                    notifier.status(&format!("{} does not turn any more", missing.name));
                }
            }
        }
    }
}

/// Looks in a row without a turn after which a thread is called stuck. One alone is nothing: a thread without work
/// turns once a second.
const STUCK_LOOKS: u32 = 2;

/// Who did not turn since the look before.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Missing {
    name: String,
    looks: u32,
}

/// The heartbeats of the look before.
#[derive(Debug, Default)]
struct Pulse {
    before: Vec<Heartbeat>,
    looks_missed: u32,
}

impl Pulse {
    /// The first thread that has not turned since the last look; `None` where all have.
    fn missing(&mut self, now: &[Heartbeat]) -> Option<Missing> {
        let stands = now.iter().find(|beat| self.before.contains(beat));
        self.looks_missed = if stands.is_some() { self.looks_missed + 1 } else { 0 };
        let missing = stands.map(|beat| Missing { name: beat.name.clone(), looks: self.looks_missed });
        // The count of one that stands is kept by equality; the others move on.
        self.before = now.to_vec();
        missing
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
    fn a_thread_that_stands_is_named_and_counted_until_it_turns() {
        let mut pulse = Pulse::default();
        assert_eq!(pulse.missing(&beats(&[0, 0])), None, "nothing is known yet");
        assert_eq!(pulse.missing(&beats(&[1, 5])), None);
        for looks in 1..4 {
            let missing = pulse.missing(&beats(&[1 + u64::from(looks), 5])).unwrap();
            assert_eq!((missing.name.as_str(), missing.looks), ("worker 1", looks));
        }
        assert_eq!(pulse.missing(&beats(&[9, 6])), None);
        assert_eq!(pulse.missing(&beats(&[10, 6])).unwrap().looks, 1);
    }

    #[test]
    fn the_watchdog_is_ours_only_with_a_time_and_our_own_number() {
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
    fn messages_are_datagrams_and_a_status_is_told_once() {
        let name = format!("ss-test-notify-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let mut notifier = Notifier::new(Some(OsStr::new(&format!("@{name}"))));
        assert!(notifier.is_heard());
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
    fn without_a_manager_nothing_is_sent() {
        assert!(!Notifier::new(None).is_heard());
        assert!(!Notifier::new(Some(OsStr::new(""))).is_heard());
        assert!(!Notifier::new(Some(OsStr::new("/nonexistent/notify"))).is_heard());
        Notifier::default().ready();
    }
}
