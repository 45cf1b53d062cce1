//! Enforces limits that may_minihttp lacks: the number of connections, the time to wait for a request and the bytes
//! answered on a connection. Also checks `Content-Length` and `Host`.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::lock;
use super::response::Response;
use super::routes;
use crate::base::{limits, tcp_info};

/// A connection whose limits the [`Guard`] enforces.
pub(super) struct Connection {
    /// A second descriptor of the socket; `None` if the kernel refuses one (for example by seccomp).
    socket: Option<TcpStream>,
    state: Mutex<State>,
}

struct State {
    /// When the wait for the next request began; `None` while a request is answered.
    waiting_since: Option<Instant>,
    answered_bytes: usize,
    /// Number of bytes that had arrived when the last request was answered.
    received_bytes: u64,
    /// When the guard noticed that the next request had begun to arrive.
    begun_at: Option<Instant>,
    /// True after the guard has closed the connection. The library removes it later.
    is_closed: bool,
}

impl Connection {
    /// Records that a complete request has arrived and is being answered.
    pub(super) fn begin(&self) {
        lock(&self.state).waiting_since = None;
    }

    /// Records that the request was answered with `bytes` bytes. Returns true if the connection must be closed after
    /// this answer.
    pub(super) fn end(&self, bytes: usize, now: Instant) -> bool {
        let received_bytes = self.received_bytes();
        let mut state = lock(&self.state);
        state.waiting_since = Some(now);
        state.received_bytes = received_bytes;
        state.begun_at = None;
        state.answered_bytes = state.answered_bytes.saturating_add(bytes);
        state.answered_bytes > limits::LOCAL_CONNECTION_BYTES_MAX
    }

    /// Returns true if more bytes were answered on the connection than its limit allows.
    pub(super) fn is_spent(&self) -> bool {
        lock(&self.state).answered_bytes > limits::LOCAL_CONNECTION_BYTES_MAX
    }

    /// Sends `response` and closes the connection, without the library. This is needed after a malformed length,
    /// because the start of the next request is unknown. Returns false and does nothing if there is no second
    /// descriptor.
    pub(super) fn refuse(&self, response: &Response) -> bool {
        let Some(mut socket) = self.socket.as_ref() else { return false };
        let head = format!(
            "HTTP/1.1 {} Refused\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            response.status,
            response.body.len(),
        );
        let answer = [head.as_bytes(), &response.body].concat();
        // The result is ignored: the answer fits into the socket buffer, unless the caller does not read.
        let _ = socket.write(&answer);
        self.close();
        true
    }

    /// Shuts the socket down. The library notices that at its next read.
    pub(super) fn close(&self) {
        lock(&self.state).is_closed = true;
        if let Some(socket) = &self.socket {
            // This fails if the socket is already closed, so the error is ignored.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Closes the connection with a TCP reset, so that a caller who is still sending gets an error at once.
    fn abort(&self) {
        if let Some(socket) = &self.socket {
            // A linger time of zero causes the reset. If it cannot be set, the caller only gets the error later.
            let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
        }
        self.close();
    }

    /// Returns the number of bytes that have arrived, or 0 if it is unknown. The library does not report when a request
    /// begins, but the kernel counts the bytes that the library has read.
    fn received_bytes(&self) -> u64 {
        self.socket.as_ref().and_then(tcp_info::received_bytes).unwrap_or(0)
    }

    /// Returns the time since which a part of the next request has arrived, or `None` if nothing has.
    fn begun_at(&self, now: Instant) -> Option<Instant> {
        let received_bytes = self.received_bytes();
        let mut state = lock(&self.state);
        if received_bytes > state.received_bytes {
            state.begun_at.get_or_insert(now);
        }
        state.begun_at
    }

    fn is_waiting(&self) -> bool {
        self.open_since().is_some()
    }

    /// Returns the time since which an open connection waits for a request or for the rest of one. Returns `None` while
    /// a request is answered.
    fn open_since(&self) -> Option<Instant> {
        let state = lock(&self.state);
        state.waiting_since.filter(|_| !state.is_closed)
    }

    /// Closes the connection if its next request takes too long to arrive. A caller that is still reading the last
    /// answer has more time, and receives the whole answer.
    fn close_if_late(&self, now: Instant) {
        let Some(since) = self.open_since() else { return };
        let answered_bytes = lock(&self.state).answered_bytes;
        let waited = now.saturating_duration_since(since);
        let begun_at = self.begun_at(now);
        let is_begun_late =
            begun_at.is_some_and(|at| now.saturating_duration_since(at) > limits::LOCAL_BEGUN_TIMEOUT);
        if waited <= limits::LOCAL_REQUEST_TIMEOUT && !is_begun_late {
            return;
        }
        if answered_bytes == 0 || is_begun_late && !self.is_send_buffer_full() {
            self.abort();
        } else if waited > limits::ANSWER_TIMEOUT || !self.is_send_buffer_full() {
            self.close();
        }
    }

    /// Returns true if the caller has not read enough of the last answer for the rest to be written.
    fn is_send_buffer_full(&self) -> bool {
        let Some(socket) = &self.socket else { return false };
        let mut writable = [PollFd::new(socket, PollFlags::OUT)];
        matches!(poll(&mut writable, Some(&Timespec::default())), Ok(0))
    }
}

/// Holds the open connections of the control endpoint, and closes those that exceed their limits.
#[derive(Clone, Default)]
pub(super) struct Guard {
    connections: Arc<Mutex<Vec<Arc<Connection>>>>,
}

impl Guard {
    /// Adds the connection with this descriptor. If there are more than `limits::LOCAL_CONNECTIONS_MAX` open
    /// connections, closes the one that has waited longest for a request. If none waits, closes the new one.
    pub(super) fn admit(&self, descriptor: RawFd, now: Instant) -> Arc<Connection> {
        self.add(duplicate(descriptor), now)
    }

    fn add(&self, socket: Option<TcpStream>, now: Instant) -> Arc<Connection> {
        let state = State {
            waiting_since: Some(now),
            answered_bytes: 0,
            received_bytes: 0,
            begun_at: None,
            is_closed: false,
        };
        let connection = Arc::new(Connection { socket, state: Mutex::new(state) });
        let mut connections = lock(&self.connections);
        let open_count = connections.iter().filter(|other| !lock(&other.state).is_closed).count();
        if open_count >= limits::LOCAL_CONNECTIONS_MAX {
            let waiting = connections.iter().filter_map(|other| Some((other.open_since()?, other)));
            match waiting.min_by_key(|(since, _)| *since) {
                Some((_, oldest)) => oldest.abort(),
                None => connection.close(),
            }
        }
        connections.push(Arc::clone(&connection));
        connection
    }

    /// Removes a connection that has ended.
    pub(super) fn remove(&self, connection: &Arc<Connection>) {
        lock(&self.connections).retain(|other| !Arc::ptr_eq(other, connection));
    }

    /// Closes connections whose next request takes too long to arrive. Returns true if any connection waits for a
    /// request.
    pub(super) fn close_late(&self, now: Instant) -> bool {
        let connections = lock(&self.connections);
        connections.iter().for_each(|connection| connection.close_if_late(now));
        connections.iter().any(|connection| connection.is_waiting())
    }

    /// Closes all connections that wait for a request or for the rest of one.
    pub(super) fn close_waiting(&self) {
        lock(&self.connections).iter().filter(|connection| connection.is_waiting()).for_each(|it| it.abort());
    }
}

/// Detects memory growth caused by endless requests. The library does not report how much it buffers per connection,
/// and a small receive buffer does not bound how fast it reads. So the memory of the whole program is measured. A false
/// alarm closes only idle connections, whose callers can reconnect.
#[derive(Default)]
pub(super) struct GrowthLimit {
    before_bytes: Option<usize>,
}

impl GrowthLimit {
    /// Takes a new measurement of the memory in use, made while a request is awaited. Returns true if the memory has
    /// grown by more than the limit since the lowest measurement.
    pub(super) fn is_exceeded(&mut self, bytes: usize) -> bool {
        let before = self.before_bytes.map_or(bytes, |before| before.min(bytes));
        let has_grown = bytes - before > limits::LOCAL_GROWTH_BYTES_MAX;
        self.before_bytes = Some(if has_grown { bytes } else { before });
        has_grown
    }

    /// Forgets the measurements. Called while no request is awaited, because growth then has other causes.
    pub(super) fn reset(&mut self) {
        self.before_bytes = None;
    }
}

/// Returns the resident memory of this process in bytes, without shared memory such as the camera's ring (see
/// proc_pid_statm(5)). Returns `None` if the kernel does not report it.
pub(super) fn private_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split_whitespace().skip(1).map_while(|field| field.parse::<usize>().ok());
    let (resident, shared) = (pages.next()?, pages.next()?);
    Some(resident.saturating_sub(shared) * rustix::param::page_size())
}

/// Returns a second descriptor of a socket and gives the socket a small receive buffer. Of the first descriptor, the
/// library gives us only the number.
fn duplicate(descriptor: RawFd) -> Option<TcpStream> {
    let socket = TcpStream::from(copy(descriptor).ok()?);
    // The library reads all available bytes and keeps them until the request is complete. A small receive buffer slows
    // that down: 16 kB let 0.2 MB/s through on an idle machine. On a busy machine hundreds of MB/s come through, so
    // GrowthLimit is also needed.
    if let Err(error) = sockopt::set_socket_recv_buffer_size(&socket, limits::LOCAL_RECEIVE_BYTES) {
        log::warn!(
            "control: cannot set SO_RCVBUF, so endless requests take more memory before they are closed: {error}"
        );
    }
    Some(socket)
}

/// Duplicates a descriptor of this process (pidfd_getfd(2), Linux 5.6).
fn copy(descriptor: RawFd) -> rustix::io::Result<OwnedFd> {
    pidfd_getfd(pidfd_open(getpid(), PidfdFlags::empty())?, descriptor, PidfdGetfdFlags::empty())
}

/// Returns true if the kernel permits duplicating descriptors. Without that, the guard cannot close connections.
pub(super) fn is_possible() -> bool {
    copy(std::io::stderr().as_raw_fd()).is_ok()
}

/// Returns the length of the body in bytes, which is 0 without a `Content-Length` (RFC 9112 section 6).
///
/// # Errors
/// Returns the response to a request whose body is chunked, or whose length is malformed or above `bytes_max`.
pub(super) fn body_bytes<'a>(
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
    bytes_max: usize,
) -> Result<usize, Response> {
    let bad = |message: &str| Err(Response::error(400, "bad_length", message));
    let mut length = None;
    for (name, value) in headers {
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(Response::error(
                411,
                "length_required",
                "this endpoint reads no chunked bodies: send a Content-Length",
            ));
        }
        if !name.eq_ignore_ascii_case("content-length") {
            continue;
        }
        // Only digits are accepted here, because `parse` would also accept a sign.
        if value.is_empty() || value.len() > 15 || !value.iter().all(u8::is_ascii_digit) {
            return bad("Content-Length is not a number");
        }
        if length.is_some() {
            return bad("Content-Length was sent twice");
        }
        length = std::str::from_utf8(value).ok().and_then(|text| text.parse::<usize>().ok());
    }
    let length = length.unwrap_or(0);
    if length > bytes_max {
        return Err(routes::body_too_large(bytes_max));
    }
    Ok(length)
}

/// Returns true if `Host` is missing, `localhost` or a loopback address. This refuses foreign pages whose own domain
/// name resolves to a loopback address.
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
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_length_is_bounded_and_consists_of_digits() {
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
    fn a_caller_that_reads_slowly_gets_the_whole_answer() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut socket, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        let guard = Guard::default();
        let start = tokio::time::Instant::now().into_std();
        let connection = guard.admit(socket.as_raw_fd(), start);
        connection.begin();
        let mut sent = 0;
        while let Ok(bytes) = socket.write(&[7; 65_536]) {
            sent += bytes;
        }
        connection.end(sent, start);
        guard.close_late(start + 3 * limits::LOCAL_REQUEST_TIMEOUT);
        caller.set_nonblocking(true).unwrap();
        let mut received = 0;
        let mut bytes = vec![0; 65_536];
        // The caller reads a part. Then there is room for the rest of the answer, which the library writes.
        while received < sent / 2 {
            received += caller.read(&mut bytes).unwrap_or(0);
        }
        sent += (0..3).map(|_| socket.write(&[7; 1_000]).unwrap()).sum::<usize>();
        caller.set_nonblocking(false).unwrap();
        guard.close_late(start + 4 * limits::LOCAL_REQUEST_TIMEOUT);
        drop(socket);
        while received < sent {
            let count = caller.read(&mut bytes).unwrap();
            assert!(count > 0, "{received} of {sent} bytes");
            received += count;
        }
        guard.remove(&connection);
    }

    /// Returns a connection that the guard has admitted, and the socket of its caller.
    fn admitted(guard: &Guard, now: Instant) -> (Arc<Connection>, TcpStream, TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        (guard.admit(socket.as_raw_fd(), now), socket, caller)
    }

    #[test]
    fn a_request_that_has_begun_has_less_time_than_an_idle_connection() {
        let guard = Guard::default();
        let start = tokio::time::Instant::now().into_std();
        let after = |time: Duration| start + time;
        let (_idle, _idle_socket, mut idle_caller) = admitted(&guard, start);
        let (answered, mut socket, mut caller) = admitted(&guard, start);
        let mut bytes = [0; 100];
        caller.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let _ = socket.read(&mut bytes).unwrap();
        answered.begin();
        answered.end(0, start);
        guard.close_late(after(3 * limits::LOCAL_BEGUN_TIMEOUT));
        // The first half of the next request arrives, and the library reads it.
        caller.write_all(b"GET /").unwrap();
        let _ = socket.read(&mut bytes).unwrap();
        guard.close_late(after(4 * limits::LOCAL_BEGUN_TIMEOUT));
        guard.close_late(after(5 * limits::LOCAL_BEGUN_TIMEOUT));
        assert!(answered.is_waiting(), "ten seconds have not passed since the first byte");
        guard.close_late(after(5 * limits::LOCAL_BEGUN_TIMEOUT) + Duration::from_millis(1));
        assert!(!answered.is_waiting());
        assert!(matches!(caller.read(&mut bytes), Ok(0) | Err(_)), "the connection has ended");
        idle_caller.set_nonblocking(true).unwrap();
        assert_eq!(idle_caller.read(&mut bytes).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }

    #[test]
    fn the_connection_that_has_waited_longest_gives_way() {
        let guard = Guard::default();
        let start = tokio::time::Instant::now().into_std();
        let after = |seconds| start + Duration::from_secs(seconds);
        let is_closed = |connection: &Connection| lock(&connection.state).is_closed;
        let held: Vec<_> =
            (0..limits::LOCAL_CONNECTIONS_MAX as u64).map(|at| guard.add(None, after(at))).collect();
        held[0].begin();
        let new = guard.add(None, after(99));
        assert!(!is_closed(&new) && !is_closed(&held[0]), "a request in progress stays");
        assert_eq!(held.iter().filter(|connection| is_closed(connection)).count(), 1);
        assert!(is_closed(&held[1]));
        for connection in held.iter().chain([&new]) {
            connection.begin();
        }
        assert!(is_closed(&guard.add(None, after(100))), "all others are being answered");
    }

    #[test]
    fn growth_is_measured_from_the_lowest_memory_during_a_wait() {
        const MORE: usize = limits::LOCAL_GROWTH_BYTES_MAX;
        let mut limit = GrowthLimit::default();
        assert!(!limit.is_exceeded(5 * MORE));
        assert!(!limit.is_exceeded(2 * MORE), "memory was freed");
        assert!(!limit.is_exceeded(3 * MORE));
        assert!(limit.is_exceeded(3 * MORE + 1));
        assert!(!limit.is_exceeded(4 * MORE), "reported once");
        limit.reset();
        assert!(!limit.is_exceeded(9 * MORE));
        assert!(private_bytes().unwrap() > 100_000);
    }

    #[test]
    fn only_loopback_names_are_accepted_as_host() {
        for good in ["localhost", "localhost:6060", "127.0.0.1:6060", "[::1]:6060", "127.1.2.3"] {
            assert!(is_this_machine(Some(good)), "{good}");
        }
        for bad in ["evil.example", "192.0.2.2:6060", "localhost.evil.example", "", "[fe80::1]"] {
            assert!(!is_this_machine(Some(bad)), "{bad}");
        }
    }
}
