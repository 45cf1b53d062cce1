//! Ends a session when the login that allowed it ends. This code runs on the HTTP thread.
//!
//! ```text
//!   login ends ───► end_with_login ── Command::LogOut ──► worker
//!   session ends ─► end_with_login returns (the SessionGuard was dropped)
//! ```

use std::time::Duration;

use crate::http::BoxFuture;
use crate::worker::commands::{Command, Mailbox, SessionEnd};

/// Time between two attempts to send to a full mailbox. A worker empties its mailbox within one turn of its loop.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Sends the worker the command to close the session `viewer` when `login_end` completes, and then returns. Returns
/// earlier, without a command, if the session ends first.
pub(super) async fn end_with_login(
    viewer: u32,
    login_end: BoxFuture<()>,
    gone: SessionEnd,
    mailbox: Mailbox,
) {
    let log_out = async {
        login_end.await;
        while mailbox.send(Command::LogOut { viewer }).is_err() {
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    };
    tokio::select! {
        biased;
        // The worker drops the SessionGuard when the session ends. `gone` then completes with an error.
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
    fn the_end_of_a_login_reaches_a_worker_whose_mailbox_was_full() {
        let (mailbox, reader) = mailbox().unwrap();
        for _ in 0..limits::COMMANDS_MAX {
            assert!(mailbox.send(Command::Stop).is_ok());
        }
        let (_guard, gone) = session_guard();
        block_on(async {
            let task = tokio::spawn(end_with_login(7, Box::pin(std::future::ready(())), gone, mailbox));
            tokio::time::sleep(2 * RETRY_INTERVAL).await;
            assert!(!task.is_finished());
            let before =
                reader.commands.try_iter().filter(|command| matches!(command, Command::Stop)).count();
            assert_eq!(before, limits::COMMANDS_MAX);
            task.await.unwrap();
        });
        assert!(matches!(reader.commands.try_recv(), Ok(Command::LogOut { viewer: 7 })));
        assert!(reader.commands.try_recv().is_err(), "the command was sent twice");
    }

    #[test]
    fn the_task_ends_with_its_session() {
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
