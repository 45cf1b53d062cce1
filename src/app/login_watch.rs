//! A session that was let in with a login ends with it. Decides nothing about logins: it waits, on the control
//! thread, for the end of one and tells the worker.
//!
//! ```text
//!   login ends ──────► end_with_login ── Command::LogOut ──► worker
//!   session is gone ─► end_with_login ends (its SessionGuard was dropped)
//! ```

use std::time::Duration;

use crate::http::BoxFuture;
use crate::worker::commands::{Command, Mailbox, SessionEnd};

/// A mailbox that is full empties within a turn.
const AGAIN: Duration = Duration::from_millis(10);

/// Tells the worker when `login_end`, the login of its session `viewer`, is over. Returns when the session is gone.
pub(super) async fn end_with_login(
    viewer: u32,
    login_end: BoxFuture<()>,
    gone: SessionEnd,
    mailbox: Mailbox,
) {
    let log_out = async {
        login_end.await;
        while mailbox.send(Command::LogOut { viewer }).is_err() {
            tokio::time::sleep(AGAIN).await;
        }
    };
    tokio::select! {
        biased;
        // Only ever an error: the other end is gone.
        _ = gone => {}
        () = log_out => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::base::limits;
    use crate::worker::commands::{mailbox, session_guard};

    fn block_on(future: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(future);
    }

    #[test]
    fn the_worker_is_told_when_the_login_is_over_even_if_its_mailbox_was_full() {
        let (mailbox, reader) = mailbox().unwrap();
        for _ in 0..limits::COMMANDS_MAX {
            assert!(mailbox.send(Command::Stop).is_ok());
        }
        let (_guard, gone) = session_guard();
        block_on(async {
            let told = tokio::spawn(end_with_login(7, Box::pin(std::future::ready(())), gone, mailbox));
            tokio::time::sleep(2 * AGAIN).await;
            assert!(!told.is_finished());
            let before =
                reader.commands.try_iter().filter(|command| matches!(command, Command::Stop)).count();
            assert_eq!(before, limits::COMMANDS_MAX);
            told.await.unwrap();
        });
        assert!(matches!(reader.commands.try_recv(), Ok(Command::LogOut { viewer: 7 })));
        assert!(reader.commands.try_recv().is_err(), "once");
    }

    #[test]
    fn nobody_waits_for_the_login_of_a_session_that_is_gone() {
        let (mailbox, reader) = mailbox().unwrap();
        let (guard, gone) = session_guard();
        block_on(async {
            let watching = tokio::spawn(end_with_login(7, Box::pin(std::future::pending()), gone, mailbox));
            tokio::task::yield_now().await;
            assert!(!watching.is_finished());
            drop(guard);
            watching.await.unwrap();
        });
        assert!(reader.commands.try_recv().is_err());
    }
}
