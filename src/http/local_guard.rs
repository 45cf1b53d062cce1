//! What may_minihttp does not guard: how long a connection may take, how many there are, how much is answered on
//! one, and requests whose length cannot be trusted. Knows no routes.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::lock;
use super::response::Response;
use crate::base::limits;

/// A connection as the guard sees it.
pub(super) struct Connection {
    /// A second descriptor of its socket; `None` where the kernel does not give one (seccomp).
    socket: Option<TcpStream>,
    state: Mutex<State>,
}

struct State {
    /// Since when the next request is waited for; `None` while one is answered.
    waiting_since: Option<Instant>,
    answered_bytes: usize,
}

impl Connection {
    /// A request is complete and about to be answered.
    pub(super) fn begin(&self) {
        lock(&self.state).waiting_since = None;
    }

    /// It is answered with so many bytes; the next one is waited for. True when it should be the last.
    pub(super) fn end(&self, bytes: usize, now: Instant) -> bool {
        let mut state = lock(&self.state);
        state.waiting_since = Some(now);
        state.answered_bytes = state.answered_bytes.saturating_add(bytes);
        state.answered_bytes > limits::LOCAL_CONNECTION_BYTES_MAX
    }

    /// Whether so much is answered that the next request is not.
    pub(super) fn is_spent(&self) -> bool {
        lock(&self.state).answered_bytes > limits::LOCAL_CONNECTION_BYTES_MAX
    }

    /// Says why and closes, past the library: what follows a request that cannot be framed is no request.
    /// False when there is no descriptor to do it with.
    pub(super) fn refuse(&self, response: &Response) -> bool {
        let Some(mut socket) = self.socket.as_ref() else { return false };
        let head = format!(
            "HTTP/1.1 {} Refused\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            response.status,
            response.body.len(),
        );
        let answer = [head.as_bytes(), &response.body].concat();
        // It fits the socket's buffer or the caller does not read.
        let _ = socket.write(&answer);
        self.close();
        true
    }

    /// The library notices at its next read.
    pub(super) fn close(&self) {
        if let Some(socket) = &self.socket {
            // An error means it is closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Closes so that a caller who goes on sending learns it at once and not at its next look at a full window.
    fn abort(&self) {
        if let Some(socket) = &self.socket {
            // Without it the caller just learns later.
            let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
        }
        self.close();
    }

    fn is_waiting(&self) -> bool {
        lock(&self.state).waiting_since.is_some()
    }

    fn is_late(&self, now: Instant) -> bool {
        let since = lock(&self.state).waiting_since;
        since.is_some_and(|since| now.saturating_duration_since(since) > limits::LOCAL_REQUEST_TIMEOUT)
    }
}

/// All connections.
#[derive(Clone, Default)]
pub(super) struct Guard {
    connections: Arc<Mutex<Vec<Arc<Connection>>>>,
}

impl Guard {
    /// Takes note of a connection by its descriptor. Above the bound it is closed at once.
    pub(super) fn admit(&self, descriptor: RawFd, now: Instant) -> Arc<Connection> {
        let state = State { waiting_since: Some(now), answered_bytes: 0 };
        let connection = Arc::new(Connection { socket: second(descriptor), state: Mutex::new(state) });
        let mut connections = lock(&self.connections);
        connections.push(Arc::clone(&connection));
        if connections.len() > limits::LOCAL_CONNECTIONS_MAX {
            connection.close();
        }
        connection
    }

    /// The connection has ended.
    pub(super) fn forget(&self, connection: &Arc<Connection>) {
        lock(&self.connections).retain(|other| !Arc::ptr_eq(other, connection));
    }

    /// Closes what is late. Says whether a request is waited for.
    pub(super) fn close_late(&self, now: Instant) -> bool {
        let connections = lock(&self.connections);
        connections.iter().filter(|connection| connection.is_late(now)).for_each(|it| it.abort());
        connections.iter().any(|connection| connection.is_waiting())
    }

    /// Closes all whose request is not complete.
    pub(super) fn close_waiting(&self) {
        lock(&self.connections).iter().filter(|connection| connection.is_waiting()).for_each(|it| it.abort());
    }
}

/// Sees to it that callers without end do not take the memory. How much the library holds for one cannot be asked, nor
/// does a small receive buffer bound how fast it reads; so the whole program's growth is looked at. Connections that
/// are closed without need were idle, and their callers connect anew.
#[derive(Default)]
pub(super) struct MemoryWatch {
    before_bytes: Option<usize>,
}

impl MemoryWatch {
    /// `bytes` of memory are in use while requests are waited for: whether these are to be given up.
    pub(super) fn is_too_much(&mut self, bytes: usize) -> bool {
        let before = self.before_bytes.map_or(bytes, |before| before.min(bytes));
        let has_grown = bytes - before > limits::LOCAL_GROWTH_BYTES_MAX;
        self.before_bytes = Some(if has_grown { bytes } else { before });
        has_grown
    }

    /// Nobody is waited for: growth is anybody's.
    pub(super) fn rest(&mut self) {
        self.before_bytes = None;
    }
}

/// Memory of this process that is not shared (the camera's ring is): proc_pid_statm(5).
pub(super) fn private_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split_whitespace().skip(1).map_while(|field| field.parse::<usize>().ok());
    let (resident, shared) = (pages.next()?, pages.next()?);
    Some(resident.saturating_sub(shared) * rustix::param::page_size())
}

/// A second descriptor for a socket known by number only: the library tells no more (pidfd_getfd(2), Linux 5.6).
fn second(descriptor: RawFd) -> Option<TcpStream> {
    let myself = pidfd_open(getpid(), PidfdFlags::empty()).ok()?;
    let copy = pidfd_getfd(&myself, descriptor, PidfdGetfdFlags::empty()).ok()?;
    let socket = TcpStream::from(copy);
    // The library reads all there is and keeps it until a request is complete: the less is there the better. On an
    // idle machine 16 kB let 0.2 MB/s through; on a busy one hundreds, for which there is the MemoryWatch.
    if let Err(error) = sockopt::set_socket_recv_buffer_size(&socket, limits::LOCAL_RECEIVE_BYTES) {
        log::warn!("control: SO_RCVBUF: {error}");
    }
    Some(socket)
}

/// Whether connections can be guarded here at all.
pub(super) fn is_possible() -> bool {
    use std::os::fd::AsRawFd;
    let Ok(myself) = pidfd_open(getpid(), PidfdFlags::empty()) else { return false };
    pidfd_getfd(&myself, myself.as_raw_fd(), PidfdGetfdFlags::empty()).is_ok()
}

/// The length of the body that follows, as RFC 9112 section 6 has it.
///
/// # Errors
/// The response to a request without a length that can be trusted, or with too long a body.
pub(super) fn body_bytes<'a>(
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
    bytes_max: usize,
) -> Result<usize, Response> {
    let bad = |message: &str| Err(Response::error(400, "bad_length", message));
    let mut length = None;
    for (name, value) in headers {
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(Response::error(411, "length_required", "send a Content-Length, not chunks"));
        }
        if !name.eq_ignore_ascii_case("content-length") {
            continue;
        }
        // Digits only: `parse` would take a sign.
        if value.is_empty() || value.len() > 15 || !value.iter().all(u8::is_ascii_digit) {
            return bad("Content-Length is not a number");
        }
        if length.is_some() {
            return bad("Content-Length came twice");
        }
        length = std::str::from_utf8(value).ok().and_then(|text| text.parse::<usize>().ok());
    }
    let length = length.unwrap_or(0);
    if length > bytes_max {
        let message = format!("the body may have {bytes_max} bytes at most");
        return Err(Response::error(413, "body_too_large", &message));
    }
    Ok(length)
}

/// Whether `Host` names this machine: a page of another name that resolves to loopback is kept out.
pub(super) fn is_this_machine(host: Option<&str>) -> bool {
    let Some(host) = host else { return true };
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inside, _)) => inside,
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_digits_once_and_bounded() {
        let with = |lengths: &[&[u8]]| {
            let headers = lengths.iter().map(|value| ("Content-LENGTH", *value));
            body_bytes(headers, 100).map_err(|response| response.status)
        };
        assert_eq!(with(&[]), Ok(0));
        assert_eq!(with(&[b"100"]), Ok(100));
        assert_eq!(with(&[b"101"]), Err(413));
        let bad: [&[u8]; 8] = [b"", b"-1", b"+1", b"1 ", b"0x1", b"\xff", b"1,1", b"99999999999999999999"];
        for bad in bad {
            assert_eq!(with(&[bad]), Err(400), "{bad:?}");
        }
        assert_eq!(with(&[b"1", b"1"]), Err(400));
        let chunked: (&str, &[u8]) = ("transfer-encoding", b"chunked");
        assert_eq!(body_bytes([chunked].into_iter(), 9).map_err(|response| response.status), Err(411));
    }

    #[test]
    fn growth_is_judged_from_the_least_that_was_in_use_while_somebody_was_waited_for() {
        const MORE: usize = limits::LOCAL_GROWTH_BYTES_MAX;
        let mut watch = MemoryWatch::default();
        assert!(!watch.is_too_much(5 * MORE));
        assert!(!watch.is_too_much(2 * MORE), "given back");
        assert!(!watch.is_too_much(3 * MORE));
        assert!(watch.is_too_much(3 * MORE + 1));
        assert!(!watch.is_too_much(4 * MORE), "told once");
        watch.rest();
        assert!(!watch.is_too_much(9 * MORE));
        assert!(private_bytes().unwrap() > 100_000);
    }

    #[test]
    fn only_names_of_this_machine_are_hosts() {
        for good in ["localhost", "localhost:6060", "127.0.0.1:6060", "[::1]:6060", "127.1.2.3"] {
            assert!(is_this_machine(Some(good)), "{good}");
        }
        for bad in ["evil.example", "192.0.2.2:6060", "localhost.evil.example", "", "[fe80::1]"] {
            assert!(!is_this_machine(Some(bad)), "{bad}");
        }
    }
}
