//! Reports the end of a login. Event streams, downloads that follow a recording, and sessions stop when their login
//! ends. [`super::access`] decides whether a login is valid.

use std::sync::Arc;

use tokio::time::timeout;

use super::access::{Access, VerifiedLogin};
use super::backend::BoxFuture;
use crate::base::clock::Moment;
use crate::base::limits;

/// Returns a future that completes when the login has expired or its owner has logged out.
pub(super) fn login_end(access: Arc<Access>, login: VerifiedLogin) -> BoxFuture<()> {
    let mut logouts = access.logouts();
    Box::pin(async move {
        while access.is_valid(login, Moment::now()) {
            // A logout sends a notification, which ends this wait. An expiry sends none, so the timeout limits the wait
            // and the login is then checked again.
            let _ = timeout(limits::LOGIN_LOOK, logouts.changed()).await;
        }
    })
}

/// Waits until the login has ended. Waits forever if there is no login.
pub(super) async fn ended(login_end: Option<BoxFuture<()>>) {
    match login_end {
        Some(login_end) => login_end.await,
        None => std::future::pending().await,
    }
}
