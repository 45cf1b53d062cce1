//! [`UdpDriver`]: builds batches, submits operations at the end of each turn and handles completions. Only `buffers.rs`
//! and `ring.rs` touch memory that the kernel holds.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::buffers::{BufferRing, ReceiveSlab, Receiver, SendSlab, Slot};
use super::futex_wait::FutexWait;
use super::message::{ReceiveFault, encode_address};
use super::operation::{Batch, Route, SendOutcome, Token};
use super::ring::{Cqe, Ring};
use super::tcp::Connections;
use super::udp::{self, PlainRoutes};
use super::{
    Completion, Driver, Features, FutexWord, Received, UdpCounters, UdpDriverConfig, UdpDriverError,
};
use crate::base::limits::{
    EVENTFDS_MAX, RECEIVE_BUFFERS, RECEIVE_ERRORS_MAX, RESENDS_MAX, SENDS_MAX, SUBMIT_DATAGRAMS,
    TCP_CONNECTIONS_MAX,
};

/// Number of waits for completions when a driver is dropped, and the longest time of each wait.
const DROP_WAITS: (usize, Duration) = (40, Duration::from_millis(50));

/// An eventfd and its read operation.
struct Eventfd {
    fd: Arc<OwnedFd>,
    /// The eight bytes that the read fills (eventfd(2)).
    memory: Slot<u64>,
    /// True after the read has failed with a permanent error. The read is then not queued again.
    is_broken: bool,
}

/// A worker's io_uring, with its UDP socket and all memory that the kernel holds for its operations. Only one thread
/// may use a driver.
pub struct UdpDriver {
    ring: Ring,
    sends: SendSlab,
    receiver: Receiver,
    eventfds: Vec<Eventfd>,
    futex_wait: FutexWait,
    features: Features,
    identity: u32,
    /// Index of a send operation, and the batch in that operation that the next datagram may join.
    open: Option<(u32, Batch)>,
    /// Datagrams of refused GSO sends, which are sent again one by one. Each has its viewer, route and bytes.
    resends: VecDeque<(u32, Route, Vec<u8>)>,
    plain_routes: PlainRoutes,
    in_flight: HashMap<u32, u32>,
    ready: VecDeque<Completion>,
    tcp: Connections,
    receive_errors_in_a_row: u32,
    /// Number of datagrams queued since the last submission.
    queued_datagrams: u32,
    /// True if no send operation was free even after an extra `io_uring_enter`. No other extra call is made in this
    /// turn.
    is_starved: bool,
}

impl UdpDriver {
    /// Sets up a driver with every feature of [`Features`] that the kernel has, and starts to receive and to read the
    /// eventfds. The thread that calls this must be the one that uses the driver.
    ///
    /// # Errors
    /// [`UdpDriverError`], which says what failed and, if io_uring is forbidden, what the operator can do.
    pub fn new(config: UdpDriverConfig) -> Result<UdpDriver, UdpDriverError> {
        UdpDriver::with_features(config, Features::all())
    }

    /// Sets up a driver like [`UdpDriver::new`], but with at most the given features. Benchmarks and tests of the
    /// fallbacks use this.
    ///
    /// # Errors
    /// The same as [`UdpDriver::new`].
    pub fn with_features(
        config: UdpDriverConfig,
        mut features: Features,
    ) -> Result<UdpDriver, UdpDriverError> {
        static IDENTITIES: AtomicU32 = AtomicU32::new(0);
        let UdpDriverConfig { socket, receives, eventfds, sends_max } = config;
        if eventfds.len() > EVENTFDS_MAX {
            return Err(UdpDriverError::Eventfds(eventfds.len()));
        }
        let unusable = |what| move |source| UdpDriverError::Descriptor { what, source };
        let family = udp::family_of(socket.as_fd()).map_err(unusable("UDP socket"))?;
        udp::make_blocking(socket.as_fd()).map_err(unusable("UDP socket"))?;
        for eventfd in &eventfds {
            udp::make_blocking(eventfd.as_fd()).map_err(unusable("eventfd"))?;
        }
        let sends_max = sends_max.clamp(1, SENDS_MAX);
        let sizes = queue_sizes(sends_max + eventfds.len());
        let mut ring = Ring::new(socket, &mut features, sizes)?;
        let receiver = if receives { receiver(&mut ring, &mut features)? } else { Receiver::None };
        let eventfd =
            |(index, fd)| Eventfd { fd, memory: Slot::new(0, Token::Eventfd(index)), is_broken: false };
        let mut driver = UdpDriver {
            ring,
            sends: SendSlab::new(sends_max, family),
            receiver,
            eventfds: (0u16..).zip(eventfds).map(eventfd).collect(),
            futex_wait: FutexWait::default(),
            features,
            identity: IDENTITIES.fetch_add(1, Ordering::Relaxed),
            open: None,
            resends: VecDeque::with_capacity(RESENDS_MAX),
            plain_routes: PlainRoutes::default(),
            in_flight: HashMap::with_capacity(2 * sends_max),
            ready: VecDeque::with_capacity(usize::try_from(sizes.1).unwrap_or_default()),
            tcp: Connections::default(),
            receive_errors_in_a_row: 0,
            queued_datagrams: 0,
            is_starved: false,
        };
        driver.submit_and_wait(Duration::ZERO)?; // a kernel without multishot receive already refuses the receive here
        Ok(driver)
    }

    /// Accepts TCP connections from now on. `listener` is a socket from [`open_listener`](super::open_listener).
    pub fn listen(&mut self, listener: OwnedFd) {
        self.tcp.listen(listener);
    }

    /// Submits before the turn ends if at least [`SUBMIT_DATAGRAMS`] datagrams are queued. This has three advantages:
    /// - The kernel copies datagrams that are still in the CPU's cache.
    /// - The send buffers become free for the next viewer.
    /// - No viewer waits until the datagrams of all viewers are encrypted.
    fn submit_early(&mut self) {
        if self.queued_datagrams < SUBMIT_DATAGRAMS {
            return;
        }
        self.queued_datagrams = 0;
        if let Err(error) = self.ring.enter(Duration::ZERO) {
            // The submission at the end of the turn reports a lasting error, so this one is only logged.
            log::debug!("cannot submit before the end of the turn: {error}");
        }
        self.reap();
    }

    /// Returns the kernel features in use.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Returns the index of a free send operation. If none is free, makes an extra `io_uring_enter` call and handles
    /// the completions. If such a call frees no operation, it is not repeated in this turn.
    fn acquire(&mut self) -> Option<u32> {
        let free = self.sends.acquire();
        if free.is_some() || self.is_starved {
            return free;
        }
        if let Err(error) = self.ring.enter(Duration::ZERO) {
            log::debug!("cannot get completions although no send operation is free: {error}");
        }
        self.reap();
        let free = self.sends.acquire();
        self.is_starved = free.is_none();
        free
    }

    /// Returns a batch of one datagram. The batch is already closed if the kernel or the route does not support GSO
    /// sends.
    fn start(&self, viewer: u32, route: Route, bytes: usize) -> Batch {
        let mut batch = Batch::of_first(viewer, route, bytes);
        batch.is_closed |= !self.features.contains(Features::GSO) || self.plain_routes.contains(route.remote);
        batch
    }

    /// Returns the room for a datagram in the send buffer. The datagram joins the open batch or starts one. Counts the
    /// datagram as dropped and returns `None` if no send operation is free.
    fn datagram_room(&mut self, viewer: u32, route: Route, bytes: usize) -> Option<&mut [u8]> {
        let (index, at) = match &mut self.open {
            Some((index, batch)) if batch.accepts(viewer, &route, bytes) => {
                let at = batch.bytes;
                batch.push(bytes);
                (*index, at)
            }
            _ => {
                self.flush();
                self.resend();
                let Some(index) = self.acquire() else {
                    self.ring.counters.datagrams_dropped += 1;
                    return None;
                };
                self.open = Some((index, self.start(viewer, route, bytes)));
                (index, 0)
            }
        };
        self.sends.room(index, at, bytes)
    }

    /// Queues the send of a batch in operation `index`. If that is impossible, frees the operation and counts the loss.
    fn submit(&mut self, index: u32, batch: &Batch) {
        let datagrams = count(batch.segment_count);
        if self.ring.push_send(&mut self.sends, index, batch) {
            self.ring.counters.sends += 1;
            self.ring.counters.gso_batches += u64::from(datagrams > 1);
            *self.in_flight.entry(batch.viewer).or_insert(0) += datagrams;
            self.queued_datagrams += datagrams;
            return;
        }
        self.sends.free(index);
        if encode_address(batch.route.remote, self.sends.family).is_none() {
            self.ring.counters.send_errors += u64::from(datagrams);
        } else {
            self.ring.counters.datagrams_dropped += u64::from(datagrams);
        }
    }

    /// Queues the datagrams of refused GSO sends again, each as its own send.
    fn resend(&mut self) {
        while let Some((viewer, route, bytes)) = self.resends.pop_front() {
            match self.acquire() {
                Some(index) => {
                    let batch = self.start(viewer, route, bytes.len());
                    if let Some(room) = self.sends.room(index, 0, bytes.len()) {
                        room.copy_from_slice(&bytes);
                    }
                    self.submit(index, &batch);
                }
                None => self.ring.counters.datagrams_dropped += 1,
            }
        }
    }

    /// Queues every receive, eventfd read and futex wait that the kernel does not hold.
    fn arm(&mut self) {
        let may_receive = self.receive_errors_in_a_row <= RECEIVE_ERRORS_MAX;
        match &mut self.receiver {
            Receiver::Multishot(buffers) if may_receive && !buffers.is_armed() && buffers.has_buffers() => {
                self.ring.push_receive(buffers);
            }
            Receiver::OneShot(slab) if may_receive => self.ring.push_receives(slab),
            _ => {}
        }
        for eventfd in
            self.eventfds.iter_mut().filter(|eventfd| !eventfd.memory.is_held() && !eventfd.is_broken)
        {
            self.ring.push_eventfd(&eventfd.fd, &mut eventfd.memory);
        }
        self.futex_wait.arm(&mut self.ring);
        self.tcp.arm(&mut self.ring);
        self.ready.extend(self.tcp.events.drain(..));
        self.ring.counters.tcp = self.tcp.counters;
    }

    /// Handles all completions, including those that overflowed the completion queue.
    fn reap(&mut self) {
        loop {
            while let Some(cqe) = self.ring.pop() {
                self.ring.counters.completions += 1;
                self.complete(cqe);
            }
            if !self.ring.is_overflown() {
                return;
            }
            self.ring.counters.cq_overflows += 1;
            if self.ring.enter(Duration::ZERO).is_err() {
                return;
            }
        }
    }

    fn complete(&mut self, cqe: Cqe) {
        match cqe.token() {
            Token::Send(index) => self.complete_send(index, &cqe),
            Token::Receive | Token::ReceiveOne(_) => self.complete_receive(&cqe),
            Token::Eventfd(index) => self.complete_eventfd(usize::from(index), &cqe),
            Token::Futex => self.ready.extend(self.futex_wait.complete(&cqe).map(Completion::Futex)),
            Token::Accept => self.tcp.complete_accept(cqe),
            Token::TcpReceive(id) => self.ready.extend(self.tcp.complete_receive(id, &cqe)),
            Token::TcpSend(id) => self.ready.extend(self.tcp.complete_send(id, &cqe)),
            Token::Cancel => {}
        }
    }

    fn complete_eventfd(&mut self, index: usize, cqe: &Cqe) {
        let Some(eventfd) = self.eventfds.get_mut(index) else { return };
        eventfd.memory.release(cqe);
        match cqe.result().saturating_neg() {
            ..0 => self.ready.push_back(Completion::Eventfd(index)),
            libc::EINTR | libc::ECANCELED => {}
            // Another process has set O_NONBLOCK. The flag is cleared again; otherwise every read would end at once.
            libc::EAGAIN if udp::make_blocking(eventfd.fd.as_fd()).is_ok() => {}
            errno => {
                eventfd.is_broken = true;
                log::error!("eventfd {index} is no longer read: {}", io::Error::from_raw_os_error(errno));
            }
        }
    }

    fn complete_send(&mut self, index: u32, cqe: &Cqe) {
        let Some(batch) = self.sends.complete(index, cqe) else { return };
        let datagrams = count(batch.segment_count);
        if let Some(in_flight) = self.in_flight.get_mut(&batch.viewer) {
            *in_flight = in_flight.saturating_sub(datagrams);
            if *in_flight == 0 {
                self.in_flight.remove(&batch.viewer);
            }
        }
        let errno = cqe.result().saturating_neg();
        let counters = &mut self.ring.counters;
        let (counter, result) = match SendOutcome::of(cqe.result(), &batch) {
            SendOutcome::Refused => return self.refuse(index, &batch, errno),
            SendOutcome::Sent(bytes) => {
                counters.bytes_sent += u64::from(bytes);
                (&mut counters.datagrams_sent, Ok(bytes))
            }
            SendOutcome::Dropped => (&mut counters.datagrams_dropped, Err(errno)),
            SendOutcome::Failed => (&mut counters.send_errors, Err(errno)),
        };
        *counter += u64::from(datagrams);
        self.sends.free(index);
        self.ready.push_back(Completion::Sent { viewer: batch.viewer, datagrams, result });
    }

    /// Handles a refused GSO send. The datagrams of `batch` and all later datagrams to the same address are sent one by
    /// one.
    fn refuse(&mut self, index: u32, batch: &Batch, errno: i32) {
        self.ring.counters.gso_fallbacks += 1;
        if self.plain_routes.insert(batch.route.remote) && self.ring.counters.gso_fallbacks == 1 {
            let reason = io::Error::from_raw_os_error(errno);
            let remote = batch.route.remote.ip();
            log::info!(
                "the route to {remote} refused a GSO send ({reason}); its datagrams are sent one by one"
            );
        }
        for bytes in self.sends.datagrams(index, batch) {
            if self.resends.len() < RESENDS_MAX {
                self.resends.push_back((batch.viewer, batch.route, bytes.to_vec()));
            } else {
                self.ring.counters.datagrams_dropped += 1;
            }
        }
        self.sends.free(index);
    }

    fn complete_receive(&mut self, cqe: &Cqe) {
        match self.receiver.take(cqe) {
            Some((buffer, Ok(parts))) => {
                self.ring.counters.received += 1;
                self.receive_errors_in_a_row = 0;
                self.ready.push_back(Completion::Datagram(Received {
                    remote: parts.remote,
                    local: parts.local,
                    driver: self.identity,
                    buffer,
                    start: parts.start,
                    length: parts.length,
                }));
            }
            Some((buffer, Err(fault))) => {
                match fault {
                    ReceiveFault::Truncated => self.ring.counters.recv_truncated += 1,
                    ReceiveFault::Malformed => self.ring.counters.recv_errors += 1,
                }
                self.receiver.recycle(buffer);
            }
            None if cqe.result() < 0 => self.fail_receive(cqe),
            None => {}
        }
    }

    fn fail_receive(&mut self, cqe: &Cqe) {
        match cqe.result().saturating_neg() {
            libc::ENOBUFS => self.ring.counters.recv_no_buffers += 1,
            libc::ECANCELED => {}
            libc::EINVAL if cqe.token() == Token::Receive && self.ring.counters.received == 0 => {
                // Linux 5.19 has the buffer ring but no multishot receive, so the driver changes to one-shot receives.
                self.features.remove(Features::MULTISHOT_RECEIVE);
                if let Err(error) = self.ring.unregister_buffers() {
                    log::debug!("cannot unregister the buffer ring: {error}");
                }
                self.receiver = Receiver::OneShot(ReceiveSlab::new());
            }
            errno => {
                self.ring.counters.recv_errors += 1;
                self.receive_errors_in_a_row += 1;
                if self.receive_errors_in_a_row == RECEIVE_ERRORS_MAX + 1 {
                    let error = io::Error::from_raw_os_error(errno);
                    log::error!(
                        "receiving stopped after {RECEIVE_ERRORS_MAX} errors in a row; the last one: {error}"
                    );
                }
            }
        }
    }

    /// Submits everything queued, cancels all operations and waits for their last completions, for at most
    /// [`DROP_WAITS`]. Returns true if all operations have completed.
    fn end(&mut self) -> bool {
        self.flush();
        self.tcp.arm(&mut self.ring); // the goodbyes
        let mut is_usable = self.ring.enter(Duration::ZERO).is_ok();
        self.ring.cancel_all();
        let (tries, patience) = DROP_WAITS;
        for _ in 0..tries {
            self.reap();
            if self.is_idle() || !is_usable {
                break;
            }
            is_usable = self.ring.enter(patience).is_ok();
        }
        self.is_idle()
    }

    /// Returns true if the kernel holds no memory of this driver.
    fn is_idle(&self) -> bool {
        self.sends.is_idle()
            && self.receiver.is_idle()
            && self.eventfds.iter().all(|eventfd| !eventfd.memory.is_held())
            && !self.futex_wait.is_armed()
            && self.tcp.is_idle()
    }
}

impl Driver for UdpDriver {
    fn submit_and_wait(&mut self, timeout: Duration) -> Result<(), UdpDriverError> {
        self.is_starved = false;
        self.resend();
        self.flush();
        self.arm();
        let wait = if self.ready.is_empty() { timeout } else { Duration::ZERO };
        if self.ready.is_empty() {
            self.ready.clear(); // the deque starts at its first page again instead of cycling through all its pages
        }
        self.queued_datagrams = 0;
        self.ring.enter(wait)?;
        self.reap();
        Ok(())
    }

    fn next_completion(&mut self) -> Option<Completion> {
        self.ready.pop_front()
    }

    fn datagram(&self, received: &Received) -> &[u8] {
        if received.driver != self.identity {
            return &[];
        }
        self.receiver.bytes(received.buffer, received.start, received.length)
    }

    fn recycle(&mut self, received: Received) {
        if received.driver == self.identity {
            self.receiver.recycle(received.buffer);
        }
    }

    fn send_over(
        &mut self,
        connection: Option<NonZeroU32>,
        viewer: u32,
        local: Option<IpAddr>,
        remote: SocketAddr,
        bytes: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        let room = match connection {
            None => self.datagram_room(viewer, Route { local, remote }, bytes),
            Some(connection) => self.tcp.room(viewer, connection, bytes),
        };
        if let Some(room) = room {
            write(room);
        }
        if self.open.as_ref().is_some_and(|(_, batch)| batch.is_closed) {
            self.flush();
        }
    }

    fn connections(&mut self) -> Option<&mut Connections> {
        Some(&mut self.tcp)
    }

    fn flush(&mut self) {
        if let Some((index, batch)) = self.open.take() {
            self.submit(index, &batch);
            self.submit_early();
        }
    }

    fn counters(&self) -> &UdpCounters {
        &self.ring.counters
    }

    fn in_flight(&self, viewer: u32) -> u32 {
        self.in_flight.get(&viewer).copied().unwrap_or(0) + self.tcp.in_flight(viewer)
    }

    fn set_futex_wait(&mut self, word: Option<(&FutexWord, u32)>) {
        self.futex_wait.set(word.filter(|_| self.features.contains(Features::FUTEX)));
    }
}

/// Ends all operations. Then the kernel holds no memory, and the fields may be dropped in any order. If the kernel does
/// not answer, the owners in `buffers.rs` leak the memory that the kernel still holds.
impl Drop for UdpDriver {
    fn drop(&mut self) {
        if !self.end() {
            log::warn!("the kernel did not end all operations in time; their memory is leaked");
        }
    }
}

/// Returns the sizes of the submission queue and of the completion queue for `operations` sends and eventfd reads. The
/// completion queue has room for the completions of all operations at the same time.
fn queue_sizes(operations: usize) -> (u32, u32) {
    let receives = usize::from(RECEIVE_BUFFERS);
    let submissions = (operations + 64).next_power_of_two();
    let of_tcp = 2 * TCP_CONNECTIONS_MAX + 1;
    let completions = (operations + receives + of_tcp + 64).next_power_of_two().max(2 * submissions);
    let entries = |count| u32::try_from(count).unwrap_or(u32::MAX);
    (entries(submissions), entries(completions))
}

/// Prepares the multishot receive. If the kernel has no buffer ring, prepares one-shot receives instead.
fn receiver(ring: &mut Ring, features: &mut Features) -> Result<Receiver, UdpDriverError> {
    if features.contains(Features::MULTISHOT_RECEIVE) {
        let buffers = BufferRing::new().map_err(UdpDriverError::Setup)?;
        match ring.register_buffers(&buffers) {
            Ok(()) => return Ok(Receiver::Multishot(buffers)),
            Err(error) => log::debug!("no buffer ring, so one-shot receives are used: {error}"),
        }
    }
    features.remove(Features::MULTISHOT_RECEIVE);
    Ok(Receiver::OneShot(ReceiveSlab::new()))
}

/// Converts a number of datagrams to `u32`. A batch has at most 52 datagrams, so the number always fits.
fn count(datagrams: usize) -> u32 {
    u32::try_from(datagrams).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_hold_all_operations_at_once() {
        for operations in [1, 64, 1_000, SENDS_MAX + EVENTFDS_MAX] {
            let (submissions, completions) = queue_sizes(operations);
            assert!(submissions as usize >= operations);
            assert!(completions as usize >= operations + usize::from(RECEIVE_BUFFERS));
        }
    }

    #[test]
    fn dropping_the_driver_gets_all_memory_back_from_the_kernel() {
        for features in [Features::all(), Features::all() - Features::MULTISHOT_RECEIVE] {
            let (socket, _) = udp::open_socket("127.0.0.1:0".parse().unwrap()).unwrap();
            let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
            let config = UdpDriverConfig {
                socket: Arc::new(socket),
                receives: true,
                eventfds: vec![Arc::new(eventfd)],
                sends_max: 4,
            };
            let mut driver = UdpDriver::with_features(config, features).unwrap();
            driver.submit_and_wait(Duration::from_millis(1)).unwrap();
            assert!(!driver.is_idle(), "the kernel holds the receive and the eventfd read");
            assert!(driver.end(), "both completed");
        }
    }
}
