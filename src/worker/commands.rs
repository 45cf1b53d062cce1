//! A worker's mailbox: bounded queues that other threads fill, and the eventfd that wakes the worker. Neither side may
//! wait until the other side has done its work.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::{self, ThreadId};

use rustix::event::{EventfdFlags, eventfd};
use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::base::limits;
use crate::camera::Wakeup;
use crate::metrics::status::ViewerStatus;
use crate::session::{FragmentError, IceFragment, IceRestart, PathChange, Viewer};
use crate::uring::TcpHandover;

/// Guard that the worker holds as long as it has the session. Dropping the guard completes the [`SessionEnd`] and frees
/// the [`SessionPlace`].
pub struct SessionGuard {
    _end: oneshot::Sender<Infallible>,
    /// The requester that waits for the end of a deleted session.
    deleted_by: Option<oneshot::Sender<Infallible>>,
    has_stun: Arc<AtomicBool>,
}

impl SessionGuard {
    /// Returns the place of this session.
    #[must_use]
    pub fn place(&self) -> SessionPlace {
        SessionPlace(Arc::downgrade(&self.has_stun))
    }

    /// Notes that an authenticated STUN request has arrived in the session.
    pub fn note_stun(&self) {
        self.has_stun.store(true, Ordering::Relaxed);
    }

    /// Keeps the sender until the session ends. Dropping the guard drops it.
    pub(super) fn note_deletion(&mut self, done: oneshot::Sender<Infallible>) {
        self.deleted_by = Some(done);
    }
}

/// State of a session, readable by other threads.
pub struct SessionPlace(Weak<AtomicBool>);

impl SessionPlace {
    /// Returns true if the session is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }

    /// Returns true if an authenticated STUN request has arrived in the session.
    #[must_use]
    pub fn has_stun(&self) -> bool {
        self.0.upgrade().is_some_and(|has_stun| has_stun.load(Ordering::Relaxed))
    }
}

/// Future that completes, with an error, when the [`SessionGuard`] is dropped.
pub type SessionEnd = oneshot::Receiver<Infallible>;

/// Returns a session guard and the future that completes when that guard is dropped.
#[must_use]
pub fn session_guard() -> (SessionGuard, SessionEnd) {
    let (end, gone) = oneshot::channel();
    (SessionGuard { _end: end, deleted_by: None, has_stun: Arc::default() }, gone)
}

/// A command to a worker.
pub enum Command {
    /// Take over a session, whose SDP answer is being sent to the browser.
    Adopt {
        /// The session, which has answered its offer and sent nothing yet.
        viewer: Box<Viewer>,
        /// Dropped when the session ends.
        guard: Option<SessionGuard>,
    },
    /// Close a session whose login has ended.
    LogOut {
        /// Number of the viewer, see [`Viewer::id`].
        viewer: u32,
    },
    /// Close a session without STUN, because another viewer needs its place.
    GiveWay {
        /// Number of the viewer, see [`Viewer::id`].
        viewer: u32,
    },
    /// Close a session after a DELETE request for its URL (WHEP).
    Delete {
        /// Number of the viewer, see [`Viewer::id`].
        viewer: u32,
        /// Dropped when the session has ended.
        done: oneshot::Sender<Infallible>,
    },
    /// Pass a fragment of SDP to a session, see [`Viewer::handle_fragment`].
    Fragment {
        /// Number of the viewer, see [`Viewer::id`].
        viewer: u32,
        /// The fragment.
        fragment: Box<IceFragment>,
        /// Tags of the generations of ICE that the fragment may be for; `None` if the viewer did not say.
        if_match: Option<Vec<String>>,
        /// Gets the result.
        reply: oneshot::Sender<Result<Option<IceRestart>, FragmentError>>,
    },
    /// Reply with the status of every session.
    Statuses(oneshot::Sender<Vec<ViewerStatus>>),
    /// Command to the receiving worker: forward STUN for this ufrag to the worker that owns the session.
    Route {
        /// Local ufrag of the session.
        ufrag: String,
        /// Index of the worker that owns the session.
        worker: usize,
    },
    /// Command to the receiving worker: the session with this ufrag has restarted ICE.
    Aliases {
        /// Local ufrag of the session's answer.
        ufrag: String,
        /// Local ufrags that STUN for the session carries besides.
        aliases: SmallVec<[String; 2]>,
    },
    /// Command to the receiving worker: the addresses of the session with this ufrag have changed.
    PathChanged {
        /// Local ufrag of the session.
        ufrag: String,
        /// What has changed.
        change: PathChange,
    },
    /// Command to the receiving worker: remove the routes of the session with this ufrag.
    Forget {
        /// Local ufrag of the session.
        ufrag: String,
    },
    /// Take over a TCP connection whose first frame is for a session of this worker.
    Connection(Box<TcpHandover>),
    /// Close every session, then end the worker.
    Stop,
}

/// A datagram that the receiving worker forwards to the session's worker.
#[derive(Debug)]
pub struct Forwarded {
    /// Sender's address.
    pub remote: SocketAddr,
    /// Our address that the datagram was sent to.
    pub local: Option<IpAddr>,
    /// UDP payload.
    pub bytes: Vec<u8>,
}

/// Error of a send to a worker's mailbox that has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the worker has too many commands pending: try again")]
pub struct MailboxFull;

/// Hands a new session to worker `owner` of `mailboxes`, and its route to worker 0, which receives for all workers.
///
/// # Errors
/// Returns [`MailboxFull`] if a mailbox has no room. The session is then dropped and its route is removed.
pub fn hand_over(
    mailboxes: &[Mailbox],
    owner: usize,
    viewer: Box<Viewer>,
    guard: Option<SessionGuard>,
) -> Result<(), MailboxFull> {
    let mailbox = mailboxes.get(owner).ok_or(MailboxFull)?;
    let receiver = mailboxes.first().filter(|_| owner != 0);
    let ufrag = viewer.local_ufrag().to_owned();
    if let Some(receiver) = receiver {
        let route = Command::Route { ufrag: ufrag.clone(), worker: owner };
        receiver.send(route).map_err(|_| MailboxFull)?;
    }
    if mailbox.send(Command::Adopt { viewer, guard }).is_ok() {
        return Ok(());
    }
    if let Some(receiver) = receiver {
        receiver.update_routes(Command::Forget { ufrag });
    }
    Err(MailboxFull)
}

/// The sending end of a worker's mailbox. Clones share the mailbox.
#[derive(Clone)]
pub struct Mailbox {
    commands: SyncSender<Command>,
    datagrams: SyncSender<Forwarded>,
    wakeup: Arc<OwnedFd>,
    /// Route updates that did not fit into `commands`, in order. Other threads lock the list only to add updates; the
    /// worker locks it only in a turn in which it has taken commands.
    unsent: Arc<Mutex<VecDeque<Command>>>,
}

/// The worker's end of its mailbox.
pub struct MailboxReader {
    pub(crate) commands: Receiver<Command>,
    pub(super) datagrams: Receiver<Forwarded>,
    wakeup: Arc<OwnedFd>,
    camera_wakeup: Arc<CameraWakeup>,
}

/// Wakes the worker from `io_uring_enter` through its eventfd.
fn wake(eventfd: &OwnedFd) {
    // The result is ignored: the write fails only if 2^64 - 2 earlier wake-ups are unread, and then the worker wakes
    // anyway.
    let _ = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
}

/// Wakes the worker when the camera has a new unit. Does nothing on the thread of a worker that runs the camera wait.
///
/// Such a worker polls the camera in its own turn and reads its cursor later in the same turn. An eventfd write to
/// itself would only cost a system call and an empty turn.
struct CameraWakeup {
    wakeup: Arc<OwnedFd>,
    /// Thread on which the wake-up does nothing. Set when the worker runs the camera wait.
    skipped_on: OnceLock<ThreadId>,
}

impl Wakeup for CameraWakeup {
    fn wake(&self) {
        if self.skipped_on.get().is_none_or(|thread| *thread != thread::current().id()) {
            wake(&self.wakeup);
        }
    }
}

/// Creates a mailbox and its reader.
///
/// # Errors
/// Returns an error if the kernel refuses the eventfd, usually with EMFILE.
pub fn mailbox() -> io::Result<(Mailbox, MailboxReader)> {
    let wakeup = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
    let (commands, commands_reader) = sync_channel(limits::COMMANDS_MAX);
    let (datagrams, datagrams_reader) = sync_channel(limits::FORWARDED_DATAGRAMS_MAX);
    let mailbox = Mailbox { commands, datagrams, wakeup: Arc::clone(&wakeup), unsent: Arc::default() };
    let camera_wakeup = Arc::new(CameraWakeup { wakeup: Arc::clone(&wakeup), skipped_on: OnceLock::new() });
    let reader =
        MailboxReader { commands: commands_reader, datagrams: datagrams_reader, wakeup, camera_wakeup };
    Ok((mailbox, reader))
}

impl Mailbox {
    /// Queues a command and wakes the worker.
    ///
    /// # Errors
    /// Returns the command if the mailbox is full or its worker has ended.
    pub fn send(&self, command: Command) -> Result<(), Command> {
        match self.commands.try_send(command) {
            Ok(()) => {
                self.wake();
                Ok(())
            }
            Err(TrySendError::Full(command) | TrySendError::Disconnected(command)) => Err(command),
        }
    }

    /// Queues a change of the receiving worker's routes and wakes that worker. Updates that do not fit into the mailbox
    /// wait until the worker has taken commands. At most [`limits::ROUTE_UPDATES_MAX`] wait; above that the oldest is
    /// dropped.
    pub(super) fn update_routes(&self, command: Command) {
        let mut unsent = self.unsent();
        if unsent.len() >= limits::ROUTE_UPDATES_MAX {
            unsent.pop_front();
            log::debug!("the receiving worker's mailbox is full: one route update is dropped");
        }
        unsent.push_back(command);
        self.send_all(unsent);
    }

    /// Queues the route updates that did not fit before. The worker calls this after it has taken commands.
    pub(super) fn retry_updates(&self) {
        self.send_all(self.unsent());
    }

    fn send_all(&self, mut unsent: MutexGuard<'_, VecDeque<Command>>) {
        while let Some(command) = unsent.pop_front() {
            if let Err(command) = self.send(command) {
                unsent.push_front(command);
                return;
            }
        }
    }

    fn unsent(&self) -> MutexGuard<'_, VecDeque<Command>> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a datagram. Returns false if the queue is full. Does not wake the worker: the caller must call
    /// [`Mailbox::wake`] once per turn.
    pub(super) fn forward(&self, datagram: Forwarded) -> bool {
        self.datagrams.try_send(datagram).is_ok()
    }

    /// Wakes the worker.
    pub(super) fn wake(&self) {
        wake(&self.wakeup);
    }
}

impl MailboxReader {
    /// Returns the eventfd that every wake-up writes to.
    pub(super) fn eventfd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.wakeup)
    }

    /// Returns the wake-up to register with the camera.
    pub(super) fn camera_wakeup(&self) -> Arc<dyn Wakeup> {
        Arc::clone(&self.camera_wakeup) as Arc<dyn Wakeup>
    }

    /// Makes the camera's wake-up do nothing on the calling thread. The worker that runs the camera wait calls this.
    pub(super) fn skip_camera_wakeup_here(&self) {
        // The result is ignored: only a second call could fail, and a worker calls this once.
        let _ = self.camera_wakeup.skipped_on.set(thread::current().id());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn full_mailbox_returns_the_command() {
        let (mailbox, reader) = mailbox().unwrap();
        for _ in 0..limits::COMMANDS_MAX {
            assert!(mailbox.send(Command::Stop).is_ok());
        }
        assert!(matches!(mailbox.send(Command::Stop), Err(Command::Stop)));
        assert!(reader.commands.try_recv().is_ok());
        assert!(mailbox.send(Command::Stop).is_ok());
    }

    #[test]
    fn command_wakes_the_worker() {
        let (mailbox, reader) = mailbox().unwrap();
        assert!(mailbox.send(Command::Stop).is_ok());
        let mut count = [0; 8];
        rustix::io::read(&*reader.eventfd(), &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
    }

    fn forget(number: usize) -> Command {
        Command::Forget { ufrag: number.to_string() }
    }

    #[test]
    fn updates_that_do_not_fit_the_mailbox_are_sent_later_in_order() {
        let (mailbox, reader) = mailbox().unwrap();
        let count = limits::COMMANDS_MAX + 2;
        (0..count).for_each(|number| mailbox.update_routes(forget(number)));
        let mut received: Vec<Command> = reader.commands.try_iter().collect();
        assert_eq!(received.len(), limits::COMMANDS_MAX);
        mailbox.retry_updates();
        received.extend(reader.commands.try_iter());
        let numbers: Vec<usize> = received
            .iter()
            .map(|command| match command {
                Command::Forget { ufrag } => ufrag.parse().unwrap(),
                _ => panic!("another command"),
            })
            .collect();
        assert_eq!(numbers, (0..count).collect::<Vec<_>>());
    }

    #[test]
    fn unsent_updates_are_bounded() {
        let (mailbox, _reader) = mailbox().unwrap();
        while mailbox.send(Command::Stop).is_ok() {}
        (0..limits::ROUTE_UPDATES_MAX + 5).for_each(|number| mailbox.update_routes(forget(number)));
        let unsent = mailbox.unsent();
        assert_eq!(unsent.len(), limits::ROUTE_UPDATES_MAX);
        assert!(matches!(unsent.front(), Some(Command::Forget { ufrag }) if ufrag == "5"));
    }
}
