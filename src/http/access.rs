//! Authenticates requests if the server has a token: by the header `Authorization: Bearer`, or by the cookie of a
//! login. The functions take the time as an argument.
//!
//! ```text
//!  POST /api/session {"token"} ─► rate limit ─► compare ─► cookie EXPIRES.ID.SEAL
//!  every other request ─► cookie with a valid seal, not expired, not logged out ─► admitted
//!                      └► Bearer ─► rate limit ─► compare ─► admitted
//! ```
//!
//! The server stores no logins. It recognises a login by the seal in the cookie, an HMAC with a key derived from the
//! token. Logins therefore take no memory and survive a restart, and a new token ends all of them. Only logouts are
//! stored.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use aws_lc_rs::{hmac, pbkdf2, rand};
use tokio::sync::watch;

use super::backend::ApiError;
use super::credentials::{self, ID_BYTES, Login, SEAL_BYTES};
use super::lock;
use super::request::Head;
use super::throttle::Throttle;
use crate::base::clock::{self, Moment};
use crate::base::limits;
use crate::base::log_limit::LogLimit;
use crate::config::Token;
use crate::metrics::LoginCounters;

/// Checks tokens and logins.
pub struct Access {
    token: Token,
    key: hmac::Key,
    /// Names of the login cookie: the first over plain HTTP, the second over TLS.
    cookie_names: [String; 2],
    throttle: Mutex<Throttle>,
    /// Ids of the logins that were logged out, each with the latest time at which one of its cookies can expire, in
    /// seconds since 1970.
    logged_out: Mutex<HashMap<[u8; ID_BYTES], u64>>,
    /// Sends a notification at each logout.
    logouts: watch::Sender<()>,
    log_limit: LogLimit,
    /// Number of wrong tokens since the last log line about wrong tokens.
    unlogged: AtomicU64,
    counters: Arc<LoginCounters>,
}

/// A login whose seal was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedLogin {
    login: Login,
    /// True if the login came in the cookie for TLS.
    is_secure: bool,
}

impl VerifiedLogin {
    /// Returns the id of the login, which no other login has.
    pub(super) fn id(&self) -> [u8; ID_BYTES] {
        self.login.id
    }
}

impl Access {
    /// Creates the checks for this token. `port` becomes part of the cookie names, because a browser sends a cookie to
    /// all ports of a host. `counters` count the refusals.
    ///
    /// This takes about 10 ms, because the key that seals the logins is stretched (PBKDF2).
    #[must_use]
    pub fn new(token: Token, port: u16, counters: Arc<LoginCounters>, now: Instant) -> Access {
        let mut key = [0; SEAL_BYTES];
        let rounds = NonZeroU32::new(limits::LOGIN_KEY_ROUNDS).unwrap_or(NonZeroU32::MIN);
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            rounds,
            b"streaming-server login",
            token.expose(),
            &mut key,
        );
        Access {
            token,
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            cookie_names: [format!("streaming-{port}"), format!("__Host-streaming-{port}")],
            throttle: Mutex::new(Throttle::new(now)),
            logged_out: Mutex::new(HashMap::new()),
            logouts: watch::Sender::new(()),
            log_limit: LogLimit::default(),
            unlogged: AtomicU64::new(0),
            counters,
        }
    }

    /// Checks the credentials of a request from `peer`. Returns the login, or `None` if the request carried the token
    /// itself.
    ///
    /// # Errors
    /// Returns 401 if the request has neither a valid login nor the right token, and 429 after too many wrong tokens.
    pub fn check(
        &self,
        head: &Head<'_>,
        peer: IpAddr,
        now: Moment,
    ) -> Result<Option<VerifiedLogin>, ApiError> {
        if let Some(login) = self.login_of(head.cookie, now) {
            return Ok(Some(login));
        }
        match head.authorization.and_then(credentials::bearer) {
            Some(token) => self.attempt(token, peer, now).map(|()| None),
            None => Err(ApiError::new(
                401,
                "token_required",
                "this server requires its token: send `Authorization: Bearer TOKEN`, or log in on the page",
            )),
        }
    }

    /// Makes a login if `token` is right. Returns the value of a `Set-Cookie` header.
    ///
    /// # Errors
    /// Returns 401 if the token is wrong, 429 after too many wrong tokens, and 500 if the system gives no random
    /// numbers.
    pub fn log_in(&self, token: &str, peer: IpAddr, is_tls: bool, now: Moment) -> Result<String, ApiError> {
        self.attempt(token, peer, now)?;
        let mut id = [0; ID_BYTES];
        rand::fill(&mut id)
            .map_err(|_| ApiError::new(500, "internal", "the system gave no random numbers"))?;
        Ok(self.cookie(id, is_tls, now))
    }

    /// Returns a `Set-Cookie` value that extends the login, or `None` if at least nine tenths of the lifetime are left.
    #[must_use]
    pub fn renew(&self, login: VerifiedLogin, now: Moment) -> Option<String> {
        let left_s = login.login.expires_s.saturating_sub(now.unix_s);
        (left_s < limits::LOGIN_LIFETIME.as_secs() / 10 * 9)
            .then(|| self.cookie(login.login.id, login.is_secure, now))
    }

    /// Ends the login in `cookie`, if there is a valid one. Returns the `Set-Cookie` values that remove both cookies
    /// from the browser.
    #[must_use]
    pub fn log_out(&self, cookie: Option<&str>, now: Moment) -> [String; 2] {
        if let Some(VerifiedLogin { login, .. }) = self.login_of(cookie, now) {
            let mut ended = lock(&self.logged_out);
            if ended.len() >= limits::LOGOUTS_MAX {
                ended.retain(|_, expires_s| *expires_s > now.unix_s);
            }
            if ended.len() >= limits::LOGOUTS_MAX
                && let Some(oldest) = ended.iter().min_by_key(|(_, expires_s)| **expires_s).map(|(id, _)| *id)
            {
                ended.remove(&oldest);
            }
            // A renewed cookie of the same login may expire later than this one. So the logout is kept for a full
            // lifetime from now.
            ended.insert(login.id, now.unix_s.saturating_add(limits::LOGIN_LIFETIME.as_secs()));
            drop(ended);
            self.logouts.send_replace(());
        }
        let [plain, secure] = &self.cookie_names;
        [
            format!("{plain}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict"),
            format!("{secure}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict; Secure"),
        ]
    }

    /// Returns true if the login has neither expired nor been logged out.
    #[must_use]
    pub(super) fn is_valid(&self, verified: VerifiedLogin, now: Moment) -> bool {
        let VerifiedLogin { login, .. } = verified;
        login.expires_s > now.unix_s && !lock(&self.logged_out).contains_key(&login.id)
    }

    /// Returns a receiver that is notified at each logout.
    #[must_use]
    pub(super) fn logouts(&self) -> watch::Receiver<()> {
        self.logouts.subscribe()
    }

    fn attempt(&self, token: &str, peer: IpAddr, now: Moment) -> Result<(), ApiError> {
        let mut throttle = lock(&self.throttle);
        // While the address is throttled, its token is not compared at all, so the answer reveals nothing about a
        // guess.
        if let Err(wait) = throttle.may_attempt(peer, now.steady) {
            self.counters.too_many.add(1);
            let retry_after_s = Some(u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1));
            let message =
                "too many wrong tokens came from this address: wait before the next attempt".to_owned();
            return Err(ApiError { status: 429, code: "too_many_attempts", message, retry_after_s });
        }
        if self.token.is(token.as_bytes()) {
            throttle.on_success(peer, now.steady);
            return Ok(());
        }
        throttle.on_failure(peer, now.steady);
        // The counter allows one writer at a time. The lock of the throttle, which is still held, ensures that.
        self.counters.wrong.add(1);
        self.log_wrong_token(peer);
        Err(ApiError::new(401, "wrong_token", "the token is wrong"))
    }

    fn log_wrong_token(&self, peer: IpAddr) {
        let count = self.unlogged.fetch_add(1, Ordering::Relaxed) + 1;
        if self.log_limit.allows(clock::monotonic_ns()) {
            self.unlogged.store(0, Ordering::Relaxed);
            log::warn!("http: wrong token from {peer} ({count} wrong tokens since the last such line)");
        }
    }

    /// Returns the first login in the cookies that has a valid seal and has not expired. Returns `None` if there is
    /// none or if that login was logged out.
    fn login_of(&self, cookie: Option<&str>, now: Moment) -> Option<VerifiedLogin> {
        let [plain, secure] = &self.cookie_names;
        let found = credentials::cookies(cookie?, [plain, secure]);
        let mut logins = found.filter_map(|(name, value)| Some((name == secure, Login::parse(value)?)));
        let (is_secure, login) = logins.find(|(_, login)| {
            // `hmac::verify` compares in constant time, so the time it takes reveals nothing about the right seal.
            hmac::verify(&self.key, &login.sealed_bytes(), &login.seal).is_ok()
                && login.expires_s > now.unix_s
        })?;
        let verified = VerifiedLogin { login, is_secure };
        self.is_valid(verified, now).then_some(verified)
    }

    fn cookie(&self, id: [u8; ID_BYTES], is_tls: bool, now: Moment) -> String {
        let lifetime_s = limits::LOGIN_LIFETIME.as_secs();
        let mut login = Login { expires_s: now.unix_s.saturating_add(lifetime_s), id, seal: [0; SEAL_BYTES] };
        let seal = hmac::sign(&self.key, &login.sealed_bytes());
        login.seal.copy_from_slice(seal.as_ref());
        let value = login.to_text();
        let [plain, secure] = &self.cookie_names;
        let (name, attribute) = if is_tls { (secure, "; Secure") } else { (plain, "") };
        format!("{name}={value}; Path=/; Max-Age={lifetime_s}; HttpOnly; SameSite=Strict{attribute}")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Config, Parsed};

    const TOKEN: &str = "correct-horse-battery";
    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const DAY_S: u64 = 24 * 3600;

    fn token() -> Token {
        let absent = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
        match Config::from_args(["--token".into(), TOKEN.into()], |_| None, absent).unwrap() {
            Parsed::Run(config) => config.token.unwrap(),
            Parsed::Print(text) => panic!("{text}"),
        }
    }

    fn start() -> (Access, Moment) {
        let steady = tokio::time::Instant::now().into_std();
        (Access::new(token(), 8080, Arc::default(), steady), Moment { steady, unix_s: 1_800_000_000 })
    }

    fn later(now: Moment, seconds: u64) -> Moment {
        Moment { steady: now.steady + Duration::from_secs(seconds), unix_s: now.unix_s + seconds }
    }

    /// Checks a request that sends back the cookie of this `Set-Cookie` header, as a browser does.
    fn enter(access: &Access, set_cookie: &str, now: Moment) -> Result<Option<VerifiedLogin>, ApiError> {
        access.check(&Head { cookie: set_cookie.split(';').next(), ..Head::default() }, HOME, now)
    }

    #[test]
    fn a_login_expires_unless_it_is_used_and_renewed() {
        let (access, now) = start();
        let cookie = access.log_in(TOKEN, HOME, false, now).unwrap();
        assert!(enter(&access, &cookie, later(now, 30 * DAY_S - 1)).is_ok());
        assert_eq!(enter(&access, &cookie, later(now, 30 * DAY_S)).unwrap_err().status, 401);

        let Ok(Some(fresh)) = enter(&access, &cookie, later(now, DAY_S)) else { panic!() };
        assert_eq!(access.renew(fresh, later(now, DAY_S)), None, "too early to extend it");
        let Ok(Some(used)) = enter(&access, &cookie, later(now, 20 * DAY_S)) else { panic!() };
        let renewed = access.renew(used, later(now, 20 * DAY_S)).unwrap();
        assert!(enter(&access, &renewed, later(now, 49 * DAY_S)).is_ok());
        assert!(renewed.starts_with("streaming-8080=") && !renewed.ends_with("; Secure"));
        // One logout ends the login, so the original and the renewed cookie are both refused.
        let _ = access.log_out(cookie.split(';').next(), later(now, 20 * DAY_S));
        assert!(enter(&access, &renewed, later(now, 21 * DAY_S)).is_err());
        assert!(enter(&access, &cookie, later(now, 21 * DAY_S)).is_err());
    }

    #[test]
    fn any_number_of_logins_and_logouts_take_bounded_memory() {
        let (access, now) = start();
        let first = access.log_in(TOKEN, HOME, true, now).unwrap();
        for count in 0..3 * limits::LOGOUTS_MAX as u64 {
            let now = later(now, count);
            let cookie = access.log_in(TOKEN, HOME, true, now).unwrap();
            let _ = access.log_out(cookie.split(';').next(), now);
            assert!(enter(&access, &cookie, now).is_err(), "the newest logout is stored");
        }
        assert!(lock(&access.logged_out).len() <= limits::LOGOUTS_MAX);
        assert!(enter(&access, &first, now).is_ok(), "other logins do not end this one");
    }

    #[test]
    fn a_logout_without_a_valid_login_is_not_stored() {
        let (access, now) = start();
        let forged = Login { expires_s: u64::MAX, id: [7; ID_BYTES], seal: [7; SEAL_BYTES] }.to_text();
        let _ = access.log_out(Some(&format!("streaming-8080={forged}")), now);
        let _ = access.log_out(None, now);
        assert!(lock(&access.logged_out).is_empty());
    }

    #[test]
    fn a_valid_login_is_found_beside_forged_cookies() {
        let (access, now) = start();
        let cookie = access.log_in(TOKEN, HOME, true, now).unwrap();
        let forged = format!("streaming-8080=0.0.0; {}", cookie.split(';').next().unwrap_or_default());
        assert!(enter(&access, &cookie, now).is_ok());
        let head = Head { cookie: Some(&forged), ..Head::default() };
        let Ok(Some(login)) = access.check(&head, HOME, now) else { panic!() };
        let renewed = access.renew(login, later(now, 20 * DAY_S)).unwrap();
        assert!(
            renewed.starts_with("__Host-streaming-8080=") && renewed.ends_with("; Secure"),
            "renewed for TLS, as it was made"
        );
    }
}
