//! Runs commands on sessions that are found by the key in their URL. This code runs on the HTTP thread; the worker that
//! has the session does the work.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::base::limits;
use crate::http::{ApiError, SessionReply};
use crate::session::{FragmentError, IceFragment, IceRestart};
use crate::worker::commands::{Command, Mailbox};

/// Longest time to wait for a worker.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// A command that a worker has got and has not answered yet.
pub(super) enum Pending {
    /// The receiver fails when the session has ended.
    Delete(oneshot::Receiver<Infallible>),
    Fragment(oneshot::Receiver<Result<Option<IceRestart>, FragmentError>>),
}

/// Returns the error for a key that belongs to no session.
pub(super) fn unknown() -> ApiError {
    ApiError::new(404, "no_session", "there is no such session: it has ended, or never existed")
}

/// Returns the error for a report that comes too soon after the one before.
pub(super) fn reported_too_soon() -> ApiError {
    let retry_after_s = u32::try_from(limits::GLASS_REPORT_INTERVAL.as_secs()).ok();
    let message = "this session has reported less than a second ago";
    ApiError { retry_after_s, ..ApiError::new(429, "too_soon", message) }
}

fn busy() -> ApiError {
    ApiError::busy("the worker has too many commands pending: try again", 1)
}

/// Sends the command to end the session.
pub(super) fn delete(viewer: u32, mailbox: &Mailbox) -> Result<Pending, ApiError> {
    let (done, ended) = oneshot::channel();
    mailbox.send(Command::Delete { viewer, done }).map_err(|_| busy())?;
    Ok(Pending::Delete(ended))
}

/// Parses the fragment and sends it to the session.
pub(super) fn send_fragment(
    viewer: u32,
    mailbox: &Mailbox,
    text: &str,
    if_match: Option<Vec<String>>,
) -> Result<Pending, ApiError> {
    let fragment = Box::new(IceFragment::parse(text).map_err(|error| refused(&error))?);
    let (reply, answer) = oneshot::channel();
    mailbox.send(Command::Fragment { viewer, fragment, if_match, reply }).map_err(|_| busy())?;
    Ok(Pending::Fragment(answer))
}

/// Waits for the worker.
pub(super) async fn finish(pending: Pending) -> Result<SessionReply, ApiError> {
    match pending {
        Pending::Delete(ended) => {
            // A session whose goodbye takes longer is over for the viewer all the same.
            let _ = timeout(REPLY_TIMEOUT, ended).await;
            Ok(SessionReply::Deleted)
        }
        Pending::Fragment(answer) => match timeout(REPLY_TIMEOUT, answer).await {
            Ok(Ok(Ok(None))) => Ok(SessionReply::Accepted),
            Ok(Ok(Ok(Some(restart)))) => {
                Ok(SessionReply::Restarted { fragment: restart.fragment, tag: restart.tag })
            }
            Ok(Ok(Err(error))) => Err(refused(&error)),
            Ok(Err(_)) => Err(unknown()),
            Err(_) => Err(ApiError::busy("the worker did not answer in time: try again", 1)),
        },
    }
}

fn refused(error: &FragmentError) -> ApiError {
    let (status, code) = error.status_and_code();
    let retry_s = u32::try_from(limits::ICE_RESTART_INTERVAL.as_secs()).ok();
    let retry_after_s = retry_s.filter(|_| *error == FragmentError::TooSoon);
    ApiError { retry_after_s, ..ApiError::new(status, code, error.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_restart_that_comes_too_soon_says_when_to_try_again() {
        let too_soon = refused(&FragmentError::TooSoon);
        assert_eq!((too_soon.status, too_soon.code, too_soon.retry_after_s), (503, "busy", Some(1)));
        assert_eq!(refused(&FragmentError::OtherTag).retry_after_s, None);
    }
}
