//! [`UdpDriver`]: the turn. Builds batches, submits once, takes completions apart. May not look into a datagram, and
//! touches no memory the kernel holds: `buffers.rs` and `ring.rs` do.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::buffers::{BufferRing, EventfdMemory, ReceiveSlab, Receiver, SendSlab};
use super::futex_wait::FutexWait;
use super::message::{Family, ReceiveFault, encode_address};
use super::operation::{Batch, BatchShape, Route, SendOutcome, Token};
use super::ring::{Cqe, Ring};
use super::udp::{self, PlainRoutes};
use super::{
    Completion, Driver, Features, FutexWord, Received, UdpCounters, UdpDriverConfig, UdpDriverError,
};
use crate::base::limits::{
    EVENTFDS_MAX, RECEIVE_BUFFERS, RECEIVE_ERRORS_MAX, RESENDS_MAX, SENDS_MAX, SUBMIT_DATAGRAMS,
};

/// Waits for completions when a driver ends, and how long each takes at most.
const FAREWELL: (usize, Duration) = (40, Duration::from_millis(50));

/// An eventfd and the read that watches it.
struct Eventfd {
    eventfd: Arc<OwnedFd>,
    memory: EventfdMemory,
    /// Its read failed for good: it is not watched any more.
    is_broken: bool,
}

/// A worker's io_uring with its UDP socket and all memory the kernel holds for it. Stays on its thread.
pub struct UdpDriver {
    ring: Ring,
    sends: SendSlab,
    receiver: Receiver,
    eventfds: Vec<Eventfd>,
    futex_wait: FutexWait,
    socket: Arc<OwnedFd>,
    family: Family,
    features: Features,
    counters: UdpCounters,
    identity: u32,
    /// The batch that takes the next datagram, with its operation.
    open: Option<(u32, Batch)>,
    /// Datagrams of refused batches.
    resends: VecDeque<(u32, Route, Vec<u8>)>,
    plain_routes: PlainRoutes,
    in_flight: HashMap<u32, u32>,
    ready: VecDeque<Completion>,
    receive_errors_in_a_row: u32,
    /// Datagrams queued since the kernel was last entered.
    queued_datagrams: u32,
    /// No operation was free although the kernel was asked: drop without asking again this turn.
    is_starved: bool,
}

impl UdpDriver {
    /// Sets up the ring on the calling thread, which must be the one that uses it, and starts receiving and
    /// watching the eventfds. Uses what the kernel has of [`Features::ALL`].
    ///
    /// # Errors
    /// [`UdpDriverError`]: which rule forbids io_uring and what to do, or what failed.
    pub fn new(config: UdpDriverConfig) -> Result<UdpDriver, UdpDriverError> {
        UdpDriver::with_features(config, Features::ALL)
    }

    /// [`UdpDriver::new`] with at most the given features: for comparison and for testing the way of old kernels.
    ///
    /// # Errors
    /// As [`UdpDriver::new`].
    pub fn with_features(
        config: UdpDriverConfig,
        mut features: Features,
    ) -> Result<UdpDriver, UdpDriverError> {
        static IDENTITIES: AtomicU32 = AtomicU32::new(0);
        let UdpDriverConfig { socket, receives, eventfds, sends_max } = config;
        if eventfds.len() > EVENTFDS_MAX {
            return Err(UdpDriverError::Eventfds { count: eventfds.len() });
        }
        let unusable = |what| move |source| UdpDriverError::Descriptor { what, source };
        let family = udp::family_of(socket.as_fd()).map_err(unusable("UDP socket"))?;
        udp::let_ring_wait(socket.as_fd()).map_err(unusable("UDP socket"))?;
        for bell in &eventfds {
            udp::let_ring_wait(bell.as_fd()).map_err(unusable("eventfd"))?;
        }
        let sends_max = sends_max.clamp(1, SENDS_MAX);
        let (submissions, completions) = queue_sizes(sends_max + eventfds.len());
        let mut ring = Ring::new(&mut features, submissions, completions)?;
        let receiver = if receives { receiver(&mut ring, &mut features)? } else { Receiver::None };
        let bell =
            |(index, eventfd)| Eventfd { eventfd, memory: EventfdMemory::new(index), is_broken: false };
        let mut driver = UdpDriver {
            ring,
            sends: SendSlab::new(sends_max),
            receiver,
            eventfds: (0u16..).zip(eventfds).map(bell).collect(),
            futex_wait: FutexWait::default(),
            socket,
            family,
            features,
            counters: UdpCounters::default(),
            identity: IDENTITIES.fetch_add(1, Ordering::Relaxed),
            open: None,
            resends: VecDeque::with_capacity(RESENDS_MAX),
            plain_routes: PlainRoutes::default(),
            in_flight: HashMap::with_capacity(2 * sends_max),
            ready: VecDeque::with_capacity(usize::try_from(completions).unwrap_or_default()),
            receive_errors_in_a_row: 0,
            queued_datagrams: 0,
            is_starved: false,
        };
        driver.submit_and_wait(Duration::ZERO)?; // tells whether the kernel has the multishot receive
        Ok(driver)
    }

    /// Enters the kernel early once enough is queued: it copies what was just encrypted out of the processor's
    /// cache, the buffers come back for the next viewer, and no viewer waits until all others are encrypted.
    fn submit_early(&mut self) {
        if self.queued_datagrams < SUBMIT_DATAGRAMS {
            return;
        }
        self.queued_datagrams = 0;
        if let Err(error) = self.ring.enter(Duration::ZERO, &mut self.counters) {
            log::debug!("submitting early: {error}"); // told again, and handled, at the end of the turn
        }
        self.reap();
    }

    /// What it uses of the kernel.
    pub fn features(&self) -> Features {
        self.features
    }

    /// An operation for a batch, asking the kernel once a turn for those that ended where all are in use.
    fn acquire(&mut self) -> Option<u32> {
        let free = self.sends.acquire();
        if free.is_some() || self.is_starved {
            return free;
        }
        if let Err(error) = self.ring.enter(Duration::ZERO, &mut self.counters) {
            log::debug!("no operation free: {error}");
        }
        self.reap();
        let free = self.sends.acquire();
        self.is_starved = free.is_none();
        free
    }

    /// A batch of one datagram; closed where its route takes no GSO send.
    fn start(&self, viewer: u32, route: Route, bytes: usize) -> Batch {
        let shape = BatchShape::of_first(bytes);
        let takes_more = self.features.gso && !self.plain_routes.contains(route.remote);
        Batch { viewer, route, shape: if takes_more { shape } else { shape.closed() } }
    }

    /// Queues the send of a batch.
    fn submit(&mut self, index: u32, batch: &Batch) {
        let datagrams = count(batch.shape.segment_count);
        let operation = (index, batch);
        if self.ring.push_send(&self.socket, self.family, &mut self.sends, operation, &mut self.counters) {
            self.counters.sends += 1;
            self.counters.gso_batches += u64::from(datagrams > 1);
            *self.in_flight.entry(batch.viewer).or_insert(0) += datagrams;
            self.queued_datagrams += datagrams;
            return;
        }
        self.sends.free(index);
        if encode_address(batch.route.remote, self.family).is_none() {
            self.counters.send_errors += u64::from(datagrams);
        } else {
            self.counters.datagrams_dropped += u64::from(datagrams);
        }
    }

    /// Sends the datagrams of refused batches one by one.
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
                None => self.counters.datagrams_dropped += 1,
            }
        }
    }

    /// Queues the receives and bell reads that are not with the kernel.
    fn arm(&mut self) {
        let (socket, counters) = (&self.socket, &mut self.counters);
        let may_receive = self.receive_errors_in_a_row <= RECEIVE_ERRORS_MAX;
        match &mut self.receiver {
            Receiver::Multishot(buffers) if may_receive && !buffers.is_armed() && buffers.has_buffers() => {
                self.ring.push_receive(socket, buffers, counters);
            }
            Receiver::OneShot(slab) if may_receive => self.ring.push_receives(socket, slab, counters),
            _ => {}
        }
        for bell in self.eventfds.iter_mut().filter(|bell| !bell.memory.is_armed() && !bell.is_broken) {
            self.ring.push_eventfd(&bell.eventfd, &mut bell.memory, counters);
        }
        self.futex_wait.arm(&mut self.ring, counters);
    }

    /// Takes all completions, also those that overflowed.
    fn reap(&mut self) {
        loop {
            while let Some(cqe) = self.ring.pop() {
                self.counters.completions += 1;
                self.complete(&cqe);
            }
            if !self.ring.is_overflown() {
                return;
            }
            self.counters.cq_overflows += 1;
            if self.ring.enter(Duration::ZERO, &mut self.counters).is_err() {
                return;
            }
        }
    }

    fn complete(&mut self, cqe: &Cqe) {
        match cqe.token() {
            Token::Send(index) => self.complete_send(index, cqe),
            Token::Receive | Token::ReceiveOne(_) => self.complete_receive(cqe),
            Token::Eventfd(index) => self.complete_eventfd(usize::from(index), cqe),
            Token::Futex => self.ready.extend(self.futex_wait.complete(cqe).map(Completion::Futex)),
            Token::Cancel => {}
        }
    }

    fn complete_eventfd(&mut self, index: usize, cqe: &Cqe) {
        let Some(bell) = self.eventfds.get_mut(index) else { return };
        bell.memory.complete(cqe);
        match cqe.result().saturating_neg() {
            ..0 => self.ready.push_back(Completion::Eventfd(index)),
            libc::EINTR | libc::ECANCELED => {}
            // Somebody set O_NONBLOCK since: clear it, or every turn would end at once.
            libc::EAGAIN if udp::let_ring_wait(bell.eventfd.as_fd()).is_ok() => {}
            errno => {
                bell.is_broken = true;
                log::error!("bell {index} is not watched any more: {}", io::Error::from_raw_os_error(errno));
            }
        }
    }

    fn complete_send(&mut self, index: u32, cqe: &Cqe) {
        let Some(batch) = self.sends.complete(index, cqe) else { return };
        let datagrams = count(batch.shape.segment_count);
        if let Some(in_flight) = self.in_flight.get_mut(&batch.viewer) {
            *in_flight = in_flight.saturating_sub(datagrams);
            if *in_flight == 0 {
                self.in_flight.remove(&batch.viewer);
            }
        }
        let result = match SendOutcome::of(cqe.result(), &batch.shape) {
            SendOutcome::Refused => return self.refuse(index, &batch, cqe.result()),
            SendOutcome::Sent(bytes) => {
                self.counters.datagrams_sent += u64::from(datagrams);
                self.counters.bytes_sent += u64::from(bytes);
                Ok(bytes)
            }
            SendOutcome::Dropped => {
                self.counters.datagrams_dropped += u64::from(datagrams);
                Err(cqe.result().saturating_neg())
            }
            SendOutcome::Failed => {
                self.counters.send_errors += u64::from(datagrams);
                Err(cqe.result().saturating_neg())
            }
        };
        self.sends.free(index);
        self.ready.push_back(Completion::Sent { viewer: batch.viewer, datagrams, result });
    }

    /// A route takes no GSO send: its datagrams go out one by one, these and all further.
    fn refuse(&mut self, index: u32, batch: &Batch, result: i32) {
        self.counters.gso_fallbacks += 1;
        if self.plain_routes.insert(batch.route.remote) && self.counters.gso_fallbacks == 1 {
            let reason = io::Error::from_raw_os_error(result.saturating_neg());
            let remote = batch.route.remote.ip();
            log::info!("the route to {remote} takes no GSO sends ({reason}): single datagrams from now on");
        }
        for bytes in self.sends.datagrams(index, batch) {
            if self.resends.len() < RESENDS_MAX {
                self.resends.push_back((batch.viewer, batch.route, bytes.to_vec()));
            } else {
                self.counters.datagrams_dropped += 1;
            }
        }
        self.sends.free(index);
    }

    fn complete_receive(&mut self, cqe: &Cqe) {
        match self.receiver.take(cqe) {
            Some((buffer, Ok(parts))) => {
                self.counters.received += 1;
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
                    ReceiveFault::Truncated => self.counters.recv_truncated += 1,
                    ReceiveFault::Malformed => self.counters.recv_errors += 1,
                }
                self.receiver.recycle(buffer);
            }
            None if cqe.result() < 0 => self.fail_receive(cqe),
            None => {}
        }
    }

    fn fail_receive(&mut self, cqe: &Cqe) {
        match cqe.result().saturating_neg() {
            libc::ENOBUFS => self.counters.recv_no_buffers += 1,
            libc::ECANCELED => {}
            libc::EINVAL if cqe.token() == Token::Receive && self.counters.received == 0 => {
                self.features.multishot_receive = false; // Linux 5.19 has the buffer ring but not the receive
                if let Err(error) = self.ring.unregister_buffers() {
                    log::debug!("buffer ring: {error}");
                }
                self.receiver = Receiver::OneShot(ReceiveSlab::new());
            }
            errno => {
                self.counters.recv_errors += 1;
                self.receive_errors_in_a_row += 1;
                if self.receive_errors_in_a_row == RECEIVE_ERRORS_MAX + 1 {
                    let error = io::Error::from_raw_os_error(errno);
                    log::error!("receiving stops after {RECEIVE_ERRORS_MAX} failures in a row: {error}");
                }
            }
        }
    }

    /// Sends what is queued, cancels the rest and waits for every last completion, a bounded while. Whether
    /// all have come.
    fn end(&mut self) -> bool {
        self.flush();
        let mut is_usable = self.ring.enter(Duration::ZERO, &mut self.counters).is_ok();
        self.ring.cancel_all(&mut self.counters);
        let (tries, patience) = FAREWELL;
        for _ in 0..tries {
            self.reap();
            if self.is_idle() || !is_usable {
                break;
            }
            is_usable = self.ring.enter(patience, &mut self.counters).is_ok();
        }
        self.is_idle()
    }

    /// Whether the kernel holds no memory of ours.
    fn is_idle(&self) -> bool {
        self.sends.is_idle()
            && self.receiver.is_idle()
            && self.eventfds.iter().all(|bell| !bell.memory.is_armed())
            && !self.futex_wait.is_armed()
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
            self.ready.clear(); // starts again at its first page instead of walking through all of them
        }
        self.queued_datagrams = 0;
        self.ring.enter(wait, &mut self.counters)?;
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

    fn send_with(
        &mut self,
        viewer: u32,
        local: Option<IpAddr>,
        remote: SocketAddr,
        bytes: usize,
        write: impl FnOnce(&mut [u8]),
    ) {
        let route = Route { local, remote };
        let (index, at) = match &mut self.open {
            Some((index, batch)) if batch.accepts(viewer, &route, bytes) => {
                let at = batch.shape.bytes;
                batch.shape.push(bytes);
                (*index, at)
            }
            _ => {
                self.flush();
                self.resend();
                let Some(index) = self.acquire() else {
                    self.counters.datagrams_dropped += 1;
                    return;
                };
                self.open = Some((index, self.start(viewer, route, bytes)));
                (index, 0)
            }
        };
        if let Some(room) = self.sends.room(index, at, bytes) {
            write(room);
        }
        if self.open.as_ref().is_some_and(|(_, batch)| batch.shape.is_closed()) {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if let Some((index, batch)) = self.open.take() {
            self.submit(index, &batch);
            self.submit_early();
        }
    }

    fn counters(&self) -> &UdpCounters {
        &self.counters
    }

    fn in_flight(&self, viewer: u32) -> u32 {
        self.in_flight.get(&viewer).copied().unwrap_or(0)
    }

    fn set_futex_wait(&mut self, word: Option<(&FutexWord, u32)>) {
        self.futex_wait.set(word.filter(|_| self.features.futex));
    }
}

/// Ends all operations. After that nothing is held, so the fields may be dropped in any order. Should the
/// kernel not answer, the memory it still holds is leaked by its owners in `buffers.rs`, whatever happens to
/// the ring.
impl Drop for UdpDriver {
    fn drop(&mut self) {
        if !self.end() {
            log::warn!("the kernel did not end all operations: their memory is left to it");
        }
    }
}

/// Sizes of the submission and completion queue for so many sends and eventfds: a turn's submissions fit, and so
/// do the completions of all operations at once.
fn queue_sizes(operations: usize) -> (u32, u32) {
    let receives = usize::from(RECEIVE_BUFFERS);
    let submissions = (operations + 64).next_power_of_two();
    let completions = (operations + receives + 64).next_power_of_two().max(2 * submissions);
    let entries = |count| u32::try_from(count).unwrap_or(u32::MAX);
    (entries(submissions), entries(completions))
}

/// The best way of receiving the kernel lets us prepare.
fn receiver(ring: &mut Ring, features: &mut Features) -> Result<Receiver, UdpDriverError> {
    if features.multishot_receive {
        let buffers = BufferRing::new().map_err(|source| UdpDriverError::Setup { source })?;
        match ring.register_buffers(&buffers) {
            Ok(()) => return Ok(Receiver::Multishot(buffers)),
            Err(error) => log::debug!("no buffer ring: {error}"),
        }
    }
    features.multishot_receive = false;
    Ok(Receiver::OneShot(ReceiveSlab::new()))
}

/// A count of datagrams, bounded by the segments of a batch.
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
    fn the_end_takes_all_memory_back() {
        for multishot_receive in [true, false] {
            let (socket, _) = udp::open_socket("127.0.0.1:0".parse().unwrap()).unwrap();
            let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
            let config = UdpDriverConfig {
                socket: Arc::new(socket),
                receives: true,
                eventfds: vec![Arc::new(bell)],
                sends_max: 4,
            };
            let features = Features { multishot_receive, ..Features::ALL };
            let mut driver = UdpDriver::with_features(config, features).unwrap();
            driver.submit_and_wait(Duration::from_millis(1)).unwrap();
            assert!(!driver.is_idle(), "receive and bell are with the kernel");
            assert!(driver.end(), "and come back");
        }
    }
}
