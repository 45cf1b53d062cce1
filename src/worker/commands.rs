//! How other threads reach a worker: a bounded mailbox and its bell. May not wait, on either side.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, ThreadId};

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::oneshot;

use crate::base::limits;
use crate::camera::Bell;
use crate::session::{Viewer, ViewerStatus};

/// Held by the worker as long as it has the session; dropping it completes the [`SessionEnd`].
#[derive(Debug)]
pub struct SessionGuard {
    _sender: oneshot::Sender<Infallible>,
}

/// Completes, with an error, when the [`SessionGuard`] is dropped.
pub type SessionEnd = oneshot::Receiver<Infallible>;

/// A session guard and the future that completes when it is dropped.
#[must_use]
pub fn session_guard() -> (SessionGuard, SessionEnd) {
    let (sender, end) = oneshot::channel();
    (SessionGuard { _sender: sender }, end)
}

/// What a worker can be asked.
pub enum Command {
    /// Take over a session whose answer is on its way to the browser.
    Adopt {
        /// The session.
        viewer: Box<Viewer>,
        /// GopUnit as long as the session is.
        guard: Option<SessionGuard>,
    },
    /// The login that this session was let in with is over: say goodbye.
    LogOut {
        /// [`Viewer::id`]
        viewer: u32,
    },
    /// Tell the state of every session.
    Statuses(oneshot::Sender<Vec<ViewerStatus>>),
    /// To the receiving worker: STUN for this ufrag belongs to that worker.
    Route {
        /// Local ufrag of the session.
        ufrag: String,
        /// Index of the worker that owns it.
        worker: usize,
    },
    /// To the receiving worker: datagrams from this address belong to the session with this ufrag.
    Learned {
        /// Remote address that passed the session's integrity check.
        remote: SocketAddr,
        /// Local ufrag of the session.
        ufrag: String,
    },
    /// To the receiving worker: the session with this ufrag is gone.
    Forget {
        /// Local ufrag of the session.
        ufrag: String,
    },
    /// Say goodbye to every viewer and end.
    Stop,
}

/// A datagram that arrived at another worker.
#[derive(Debug)]
pub struct Forwarded {
    /// Who sent it.
    pub remote: SocketAddr,
    /// The address it was sent to.
    pub local: Option<IpAddr>,
    /// Its payload.
    pub bytes: Vec<u8>,
}

/// The sending end; cheap to clone.
#[derive(Clone)]
pub struct Mailbox {
    commands: SyncSender<Command>,
    datagrams: SyncSender<Forwarded>,
    bell: Arc<EventBell>,
}

/// The worker's end.
pub struct MailboxReader {
    pub(crate) commands: Receiver<Command>,
    pub(super) datagrams: Receiver<Forwarded>,
    bell: Arc<EventBell>,
    camera_bell: Arc<CameraBell>,
}

/// A bell on an eventfd; ringing it wakes the worker's `io_uring_enter`.
pub struct EventBell(Arc<OwnedFd>);

impl Bell for EventBell {
    fn ring(&self) {
        // The counter can only be full after 2^64 - 2 rings nobody read; the worker is then awake anyway.
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}

/// The same bell for the camera; on the worker's own thread it may be silent.
struct CameraBell {
    bell: Arc<EventBell>,
    silent_on: OnceLock<ThreadId>,
}

impl Bell for CameraBell {
    fn ring(&self) {
        if self.silent_on.get().is_none_or(|thread| *thread != thread::current().id()) {
            self.bell.ring();
        }
    }
}

/// A mailbox and its reader.
///
/// # Errors
/// The eventfd's, usually EMFILE.
pub fn mailbox() -> io::Result<(Mailbox, MailboxReader)> {
    let bell = Arc::new(EventBell(Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?)));
    let (commands, commands_reader) = sync_channel(limits::COMMANDS_MAX);
    let (datagrams, datagrams_reader) = sync_channel(limits::FORWARDED_DATAGRAMS_MAX);
    let mailbox = Mailbox { commands, datagrams, bell: Arc::clone(&bell) };
    let camera_bell = Arc::new(CameraBell { bell: Arc::clone(&bell), silent_on: OnceLock::new() });
    Ok((mailbox, MailboxReader { commands: commands_reader, datagrams: datagrams_reader, bell, camera_bell }))
}

impl Mailbox {
    /// Puts a command in and rings. Gives it back when the mailbox is full or its worker gone.
    ///
    /// # Errors
    /// The command that did not fit.
    pub fn send(&self, command: Command) -> Result<(), Command> {
        match self.commands.try_send(command) {
            Ok(()) => {
                self.bell.ring();
                Ok(())
            }
            Err(TrySendError::Full(command) | TrySendError::Disconnected(command)) => Err(command),
        }
    }

    /// Puts a datagram in without ringing; false when there is no room. Ring once per turn.
    pub(super) fn forward(&self, datagram: Forwarded) -> bool {
        self.datagrams.try_send(datagram).is_ok()
    }

    /// The bell of this mailbox.
    pub fn bell(&self) -> Arc<dyn Bell> {
        Arc::clone(&self.bell) as Arc<dyn Bell>
    }
}

impl MailboxReader {
    /// The eventfd to watch.
    pub(super) fn bell(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.bell.0)
    }

    /// What the camera rings for new units.
    pub(super) fn camera_bell(&self) -> Arc<dyn Bell> {
        Arc::clone(&self.camera_bell) as Arc<dyn Bell>
    }

    /// The calling thread is the worker's and itself rings for the camera: it need not ring itself.
    pub(super) fn be_silent_here(&self) {
        // Told once.
        let _ = self.camera_bell.silent_on.set(thread::current().id());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_full_mailbox_gives_the_command_back() {
        let (mailbox, reader) = mailbox().unwrap();
        for _ in 0..limits::COMMANDS_MAX {
            assert!(mailbox.send(Command::Stop).is_ok());
        }
        assert!(matches!(mailbox.send(Command::Stop), Err(Command::Stop)));
        assert!(reader.commands.try_recv().is_ok());
        assert!(mailbox.send(Command::Stop).is_ok());
    }

    #[test]
    fn a_command_rings_the_bell() {
        let (mailbox, reader) = mailbox().unwrap();
        assert!(mailbox.send(Command::Stop).is_ok());
        let mut count = [0; 8];
        rustix::io::read(&*reader.bell(), &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
    }
}
