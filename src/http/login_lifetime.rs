//! Ends what a login allows: event streams, followed recordings and sessions stop when their login ends.
//! [`super::access`] decides whether a login is valid.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::timeout;

use super::access::{Access, VerifiedLogin};
use crate::base::clock::Moment;
use crate::base::limits;

/// Watches one login until it ends.
pub(super) struct LoginLifetime {
    access: Arc<Access>,
    login: VerifiedLogin,
    logouts: watch::Receiver<()>,
}

impl LoginLifetime {
    pub(super) fn new(access: Arc<Access>, login: VerifiedLogin) -> LoginLifetime {
        let logouts = access.logouts();
        LoginLifetime { access, login, logouts }
    }

    /// Completes when the login has expired or its owner has logged out.
    pub(super) async fn ended(mut self) {
        while self.access.is_valid(self.login, Moment::now()) {
            // A logout sends a notification. Expiry does not, so it is polled.
            let _ = timeout(limits::LOGIN_LOOK, self.logouts.changed()).await;
        }
    }
}

/// As [`LoginLifetime::ended`]; never completes without a login.
pub(super) async fn ended(login: Option<LoginLifetime>) {
    match login {
        Some(login) => login.ended().await,
        None => std::future::pending().await,
    }
}
