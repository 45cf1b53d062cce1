//! What goes on under a login: answers that have no end of their own and live pictures end with it. Decides nothing;
//! whether a login holds is [`super::access`]'s to say.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::timeout;

use super::access::{Access, VerifiedLogin};
use crate::base::clock::Moment;
use crate::base::limits;

/// The login an answer was asked for with.
pub(super) struct LoginLifetime {
    access: Arc<Access>,
    pass: VerifiedLogin,
    endings: watch::Receiver<()>,
}

impl LoginLifetime {
    pub(super) fn new(access: Arc<Access>, pass: VerifiedLogin) -> LoginLifetime {
        let endings = access.endings();
        LoginLifetime { access, pass, endings }
    }

    /// Returns when the login was ended or has lapsed.
    pub(super) async fn over(mut self) {
        while self.access.holds(self.pass, Moment::now()) {
            // A login that lapses says nothing: it is looked at now and then.
            let _ = timeout(limits::LOGIN_LOOK, self.endings.changed()).await;
        }
    }
}

/// Returns when the login is over; never where there is none.
pub(super) async fn over(lifetime: Option<LoginLifetime>) {
    match lifetime {
        Some(lifetime) => lifetime.over().await,
        None => std::future::pending().await,
    }
}
