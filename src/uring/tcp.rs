//! TCP connections of viewers (ICE-TCP, RFC 6544): accepts them, and receives and sends frames (RFC 4571). A worker has
//! no thread and no system call per frame for them: all frames of a turn leave with one send per connection.
//!
//! ```text
//!  accepted ─► unclaimed ── first frame names a session ─► claimed by a viewer ─► finishing ─► closed
//!                  └─ anything else, too slow, too many ─► closed
//! ```
//!
//! A connection has two buffers for sending: the kernel holds one, and frames are written to the other. Both together
//! are bounded, and a frame that does not fit is left out as a whole. The memory that the kernel holds is in [`Slot`]s.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{Shutdown, getpeername, shutdown};

use super::buffers::Slot;
use super::framing::{FRAME_HEADER_BYTES, first_frame, frame_header};
use super::operation::Token;
use super::ring::{Cqe, Ring};
use super::{Completion, TcpCounters};
use crate::base::limits::{
    DATAGRAM_BYTES_MAX, TCP_CONNECTIONS_MAX, TCP_FINISH_TIMEOUT, TCP_FIRST_FRAME_TIMEOUT,
    TCP_FRAME_BYTES_MAX, TCP_KEPT_BYTES, TCP_MEDIA_BYTES_MIN, TCP_PER_VIEWER_MAX, TCP_SEND_BYTES,
    TCP_UNCLAIMED_MAX, TCP_UNCLAIMED_PER_ADDRESS_MAX, UNSENT_BYTES_MAX,
};

/// Time for which no connection is accepted after an error such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// A frame that has arrived.
pub struct Frame<'a> {
    /// Address of the sender.
    pub remote: SocketAddr,
    /// Number of the viewer that has claimed the connection.
    pub viewer: Option<u32>,
    /// The datagram in the frame.
    pub bytes: &'a [u8],
}

/// A connection on its way to the driver of another worker.
#[derive(Debug)]
pub struct TcpHandover {
    descriptor: OwnedFd,
    remote: SocketAddr,
    /// Everything that was received.
    received: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The session has ended. What is queued is sent, then the end of the stream.
    Finishing,
    /// Same as `Finishing`, and the end of the stream is sent. The end of the other side is awaited.
    Finished,
    /// Both directions are shut down. The connection is removed when the kernel holds no operation of it.
    Closed,
}

struct Connection {
    id: NonZeroU32,
    descriptor: OwnedFd,
    remote: SocketAddr,
    /// Number of the viewer that has claimed the connection.
    viewer: Option<u32>,
    state: State,
    received: Slot<Vec<u8>>,
    /// End of the received bytes.
    filled: usize,
    /// End of the frames that were returned.
    taken: usize,
    /// What the kernel sends.
    sending: Slot<Vec<u8>>,
    sending_bytes: usize,
    /// Bytes of `sending` that are sent.
    sent: usize,
    /// Frames that follow.
    pending: Vec<u8>,
    /// When an unclaimed or finishing connection is closed.
    deadline: Option<Instant>,
    /// Value of `Connections::received` at the latest receive.
    heard: u64,
    /// True if the connection has had more to send than STUN and DTLS need. A viewer has one such connection.
    has_media: bool,
}

struct Listener {
    descriptor: OwnedFd,
    is_armed: bool,
    has_failed: bool,
    paused_until: Option<Instant>,
}

/// All TCP connections of a driver, and the listener if this driver accepts.
#[derive(Default)]
pub struct Connections {
    listener: Option<Listener>,
    /// In ascending order of their ids.
    all: Vec<Connection>,
    last_id: u32,
    received: u64,
    /// What has happened without a completion of the kernel.
    pub(super) events: VecDeque<Completion>,
    pub(super) counters: TcpCounters,
}

impl Connection {
    fn new(id: NonZeroU32, descriptor: OwnedFd, remote: SocketAddr, received: &[u8]) -> Connection {
        let mut buffer = vec![0; FRAME_HEADER_BYTES + TCP_FRAME_BYTES_MAX];
        let filled = received.len().min(buffer.len());
        if let (Some(room), Some(received)) = (buffer.get_mut(..filled), received.get(..filled)) {
            room.copy_from_slice(received);
        }
        Connection {
            id,
            descriptor,
            remote,
            viewer: None,
            state: State::Open,
            received: Slot::new(buffer, Token::TcpReceive(id.get())),
            filled,
            taken: 0,
            sending: Slot::new(Vec::new(), Token::TcpSend(id.get())),
            sending_bytes: 0,
            sent: 0,
            pending: Vec::new(),
            deadline: None,
            heard: 0,
            has_media: false,
        }
    }

    fn unsent_bytes(&self) -> usize {
        self.sending_bytes - self.sent + self.pending.len()
    }

    fn is_held(&self) -> bool {
        self.received.is_held() || self.sending.is_held()
    }

    /// Ends both directions. The kernel then ends the operations that it holds.
    fn close(&mut self) {
        if self.state != State::Closed {
            self.state = State::Closed;
            self.pending = Vec::new();
            if self.is_held() {
                // An error means that the connection is already closed.
                let _ = shutdown(&self.descriptor, Shutdown::Both);
            }
        }
    }

    /// Queues the operations that the kernel does not hold.
    fn arm(&mut self, ring: &mut Ring) {
        if self.state == State::Closed {
            return;
        }
        if !self.received.is_held() && !self.has_frame() {
            self.remove_taken();
            ring.push_tcp_receive(&self.descriptor, &mut self.received, self.filled);
        }
        if !self.sending.is_held() && self.unsent_bytes() > 0 {
            if self.sent == self.sending_bytes {
                self.swap();
            }
            ring.push_tcp_send(&self.descriptor, &mut self.sending, self.sent);
        }
        if self.state == State::Finishing && self.unsent_bytes() == 0 {
            self.state = State::Finished;
            // An error means that the connection is already closed.
            let _ = shutdown(&self.descriptor, Shutdown::Write);
        }
    }

    /// Makes the frames that wait the next ones to send.
    fn swap(&mut self) {
        let Some(sending) = self.sending.get_mut() else { return };
        sending.clear();
        if sending.capacity() > TCP_KEPT_BYTES {
            *sending = Vec::new();
        }
        std::mem::swap(sending, &mut self.pending);
        (self.sending_bytes, self.sent) = (sending.len(), 0);
    }

    /// Returns true if a received frame waits to be taken. Its bytes must not move before that.
    fn has_frame(&self) -> bool {
        let waiting = self.received.get().and_then(|received| received.get(self.taken..self.filled));
        waiting.is_some_and(|waiting| first_frame(waiting) != Ok(None))
    }

    /// Moves the received bytes that are not taken to the start of the buffer.
    fn remove_taken(&mut self) {
        if let Some(received) = self.received.get_mut()
            && self.taken > 0
        {
            received.copy_within(self.taken..self.filled, 0);
            self.filled -= self.taken;
            self.taken = 0;
        }
    }
}

impl Connections {
    /// Starts to accept connections.
    pub(super) fn listen(&mut self, descriptor: OwnedFd) {
        self.listener = Some(Listener { descriptor, is_armed: false, has_failed: false, paused_until: None });
    }

    fn index(&self, id: u32) -> Option<usize> {
        self.all.binary_search_by_key(&id, |connection| connection.id.get()).ok()
    }

    fn get(&mut self, id: u32) -> Option<&mut Connection> {
        let index = self.index(id)?;
        self.all.get_mut(index)
    }

    // ---- the side of the worker --------------------------------------------------------------------

    /// Returns the next frame that has arrived on a connection. A frame that is too long closes the connection.
    pub fn next_frame(&mut self, id: NonZeroU32) -> Option<Frame<'_>> {
        let index = self.index(id.get())?;
        let connection = self.all.get(index).filter(|connection| connection.state == State::Open)?;
        let waiting = connection.received.get()?.get(connection.taken..connection.filled)?;
        match first_frame(waiting).map(|frame| frame.map(<[u8]>::len)) {
            Ok(None) => None,
            Ok(Some(bytes)) => {
                let connection = self.all.get_mut(index)?;
                connection.taken += FRAME_HEADER_BYTES + bytes;
                let Connection { received, taken, remote, viewer, .. } = connection;
                let bytes = received.get()?.get(*taken - bytes..*taken)?;
                self.counters.frames_received += 1;
                Some(Frame { remote: *remote, viewer: *viewer, bytes })
            }
            Err(_) => {
                self.refuse(id);
                None
            }
        }
    }

    /// Gives a connection to the viewer whose session has authenticated the first frame. At the limit of a viewer's
    /// connections, the one that was silent for the longest time is closed.
    pub fn claim(&mut self, id: NonZeroU32, viewer: u32) {
        let of_viewer = |connection: &&mut Connection| {
            connection.viewer == Some(viewer) && connection.state == State::Open
        };
        if self.all.iter_mut().filter(of_viewer).count() >= TCP_PER_VIEWER_MAX
            && let Some(silent) = self.all.iter_mut().filter(of_viewer).min_by_key(|other| other.heard)
        {
            silent.close();
        }
        if let Some(connection) = self.get(id.get()) {
            connection.viewer = Some(viewer);
            connection.deadline = None;
        }
    }

    /// Closes a connection that does not belong to a session.
    pub fn refuse(&mut self, id: NonZeroU32) {
        if let Some(connection) = self.get(id.get()) {
            connection.close();
            self.counters.refused += 1;
        }
    }

    /// Closes the connections of a viewer whose session has ended, after what is queued was sent.
    pub fn finish(&mut self, viewer: u32) {
        for connection in &mut self.all {
            if connection.viewer == Some(viewer) && connection.state == State::Open {
                connection.state = State::Finishing;
                connection.viewer = None;
                connection.taken = connection.filled; // frames that are left are ignored
            }
        }
    }

    /// Removes a connection, so that the driver of another worker can adopt it with everything that it has received.
    /// Returns `None` if the kernel still uses the connection.
    pub fn hand_over(&mut self, id: NonZeroU32) -> Option<TcpHandover> {
        let index = self.index(id.get())?;
        let connection = self.all.get(index)?;
        let received = connection.received.get()?.get(..connection.filled)?.to_vec();
        if connection.is_held() || connection.state != State::Open {
            return None;
        }
        let Connection { descriptor, remote, .. } = self.all.remove(index);
        Some(TcpHandover { descriptor, remote, received })
    }

    /// Takes over a connection from the driver of another worker.
    pub fn adopt(&mut self, handover: TcpHandover) {
        let TcpHandover { descriptor, remote, received } = handover;
        self.add(descriptor, remote, &received);
    }

    /// Closes connections that have no valid first frame in time, and those that do not finish.
    pub fn tend(&mut self, now: Instant) {
        if let Some(listener) = &mut self.listener
            && listener.has_failed
        {
            let until = *listener.paused_until.get_or_insert(now + ACCEPT_PAUSE);
            if now >= until {
                (listener.has_failed, listener.paused_until) = (false, None);
            }
        }
        for connection in &mut self.all {
            let timeout = match connection.state {
                State::Open if connection.viewer.is_none() => TCP_FIRST_FRAME_TIMEOUT,
                State::Finishing | State::Finished => TCP_FINISH_TIMEOUT,
                State::Open | State::Closed => continue,
            };
            if now >= *connection.deadline.get_or_insert(now + timeout) {
                self.counters.refused += u64::from(connection.state == State::Open);
                connection.close();
            }
        }
        self.remove_closed();
        self.counters.open = self.all.len() as u64;
    }

    // ---- the side of the driver --------------------------------------------------------------------

    /// Returns the room for a frame of `bytes` bytes to a viewer, or `None` if the connection is closed or full.
    pub(super) fn room(&mut self, viewer: u32, id: NonZeroU32, bytes: usize) -> Option<&mut [u8]> {
        let index = self.index(id.get())?;
        let connection = self.all.get(index)?;
        let queued = connection.sending_bytes + connection.pending.len() + FRAME_HEADER_BYTES + bytes;
        let is_open = connection.state == State::Open && connection.viewer == Some(viewer);
        let Some(header) = frame_header(bytes).filter(|_| is_open && queued <= UNSENT_BYTES_MAX) else {
            self.counters.frames_dropped += 1;
            return None;
        };
        if queued > TCP_MEDIA_BYTES_MIN && !connection.has_media {
            self.carry_media(index, viewer);
        }
        self.counters.frames_sent += 1;
        let pending = &mut self.all.get_mut(index)?.pending;
        pending.extend_from_slice(&header);
        let start = pending.len();
        pending.resize(start + bytes, 0);
        pending.get_mut(start..)
    }

    /// Makes a connection the one that carries the viewer's media: it gets a larger socket buffer, and the connection
    /// that carried media before is closed. Only one connection of each viewer can therefore fill large buffers.
    fn carry_media(&mut self, index: usize, viewer: u32) {
        for connection in &mut self.all {
            if connection.viewer == Some(viewer) && connection.has_media {
                connection.close();
            }
        }
        if let Some(connection) = self.all.get_mut(index) {
            connection.has_media = true;
            if let Err(error) = set_socket_send_buffer_size(&connection.descriptor, TCP_SEND_BYTES) {
                log::debug!("a TCP connection keeps its small send buffer: {error}");
            }
        }
    }

    /// Returns the number of full datagrams that the unsent bytes of a viewer's connections amount to.
    pub(super) fn in_flight(&self, viewer: u32) -> u32 {
        let of_viewer = self.all.iter().filter(|connection| connection.viewer == Some(viewer));
        let bytes: usize = of_viewer.map(Connection::unsent_bytes).sum();
        u32::try_from(bytes.div_ceil(DATAGRAM_BYTES_MAX)).unwrap_or(u32::MAX)
    }

    /// Queues everything that the kernel does not hold.
    pub(super) fn arm(&mut self, ring: &mut Ring) {
        if let Some(listener) = &mut self.listener
            && !listener.is_armed
            && !listener.has_failed
        {
            listener.is_armed = ring.push_accept(&listener.descriptor);
        }
        for connection in &mut self.all {
            connection.arm(ring);
        }
        self.remove_closed();
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.listener.as_ref().is_some_and(|listener| listener.is_armed)
            && !self.all.iter().any(Connection::is_held)
    }

    pub(super) fn complete_accept(&mut self, cqe: Cqe) {
        let Some(listener) = &mut self.listener else { return };
        listener.is_armed = false;
        match cqe.into_descriptor() {
            Ok(descriptor) => self.admit(descriptor),
            Err(libc::ECANCELED | libc::EINTR | libc::ECONNABORTED | libc::EPROTO) => {}
            Err(errno) => {
                listener.has_failed = true;
                let error = io::Error::from_raw_os_error(errno);
                log::debug!("no TCP connection is accepted for a second: {error}");
            }
        }
    }

    /// Adds an accepted connection. At a limit, the oldest unclaimed connection is closed instead.
    fn admit(&mut self, descriptor: OwnedFd) {
        let remote =
            getpeername(&descriptor).ok().flatten().and_then(|remote| SocketAddr::try_from(remote).ok());
        let Some(remote) = remote else { return };
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        let place = place_of(remote.ip());
        let is_unclaimed =
            |connection: &&mut Connection| connection.viewer.is_none() && connection.state == State::Open;
        let is_near = |connection: &&mut Connection| place_of(connection.remote.ip()) == place;
        let total = self.all.iter_mut().filter(is_unclaimed).count();
        let near = self.all.iter_mut().filter(is_unclaimed).filter(is_near).count();
        let oldest = if near >= TCP_UNCLAIMED_PER_ADDRESS_MAX {
            self.all.iter_mut().filter(is_unclaimed).find(is_near)
        } else if total >= TCP_UNCLAIMED_MAX || self.all.len() >= TCP_CONNECTIONS_MAX {
            self.all.iter_mut().find(is_unclaimed)
        } else {
            None
        };
        if let Some(oldest) = oldest {
            oldest.close();
            self.counters.refused += 1;
        }
        self.counters.accepted += 1;
        self.add(descriptor, remote, &[]);
    }

    fn add(&mut self, descriptor: OwnedFd, remote: SocketAddr, received: &[u8]) {
        self.remove_closed();
        let id = self.last_id.checked_add(1).and_then(NonZeroU32::new);
        let Some(id) = id.filter(|_| self.all.len() < TCP_CONNECTIONS_MAX) else {
            self.counters.refused += 1;
            return;
        };
        self.last_id = id.get();
        self.all.push(Connection::new(id, descriptor, remote, received));
        if !received.is_empty() {
            self.events.push_back(Completion::Frames(id));
        }
    }

    pub(super) fn complete_receive(&mut self, id: u32, cqe: &Cqe) -> Option<Completion> {
        self.received += 1;
        let heard = self.received;
        let connection = self.get(id)?;
        connection.received.release(cqe);
        connection.heard = heard;
        match cqe.result() {
            0 => connection.close(),
            result => match usize::try_from(result) {
                Ok(bytes) if connection.state == State::Open => {
                    connection.filled += bytes;
                    return Some(Completion::Frames(connection.id));
                }
                Ok(_) => {}
                Err(_) if result == -libc::EINTR => {}
                Err(_) => connection.close(),
            },
        }
        None
    }

    pub(super) fn complete_send(&mut self, id: u32, cqe: &Cqe) -> Option<Completion> {
        let connection = self.get(id)?;
        connection.sending.release(cqe);
        let viewer = connection.viewer.unwrap_or_default();
        let errno = cqe.result().saturating_neg();
        let Ok(bytes) = u32::try_from(cqe.result()) else {
            if errno != libc::EINTR {
                connection.close();
            }
            return None;
        };
        connection.sent = connection.sending_bytes.min(connection.sent + bytes as usize);
        self.counters.bytes_sent += u64::from(bytes);
        Some(Completion::Sent { viewer, datagrams: 0, result: Ok(bytes) })
    }

    /// Removes the connections that are closed and of which the kernel holds nothing.
    fn remove_closed(&mut self) {
        let events = &mut self.events;
        self.all.retain(|connection| {
            let is_over = connection.state == State::Closed && !connection.is_held();
            if is_over && let Some(viewer) = connection.viewer {
                events.push_back(Completion::Disconnected { connection: connection.id, viewer });
            }
            !is_over
        });
    }
}

/// Returns the address to which the bound of unclaimed connections applies: one of IPv4, or a /64 of IPv6.
fn place_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
    }
}
