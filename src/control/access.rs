//! Who is let in when there is a token: `Authorization: Bearer`, or the cookie of a login. Time is an argument.
//!
//! ```text
//!  POST /api/session {"token"} ─► throttle ─► compare ─► cookie EXPIRES.ID.SEAL
//!  every other request ─► cookie with a true seal, not lapsed, not ended ─► in
//!                      └► Bearer ─► throttle ─► compare ─► in
//! ```
//!
//! A login is not kept anywhere: its seal, keyed by the token, makes it true, so that any number of logins take no
//! memory and outlive a restart. Ending one is what has to be remembered. Another token ends them all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::{hmac, pbkdf2, rand};

use super::backend::ApiError;
use super::credentials::{self, ID_BYTES, Login, SEAL_BYTES};
use super::throttle::Throttle;
use crate::config::Token;
use crate::limits;

/// A moment on both clocks: one that never jumps, one that others know.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For waiting times.
    pub steady: Instant,
    /// Seconds since 1970, for what lapses.
    pub unix_s: u64,
}

/// Lets in who knows the token.
pub struct Access {
    token: Token,
    key: hmac::Key,
    /// Cookie name over plain HTTP, and over TLS.
    cookie_names: [String; 2],
    throttle: Mutex<Throttle>,
    complaints: Mutex<Complaints>,
    /// Logins that were ended, with the time they would have lapsed.
    ended: Mutex<HashMap<[u8; ID_BYTES], u64>>,
}

/// What a request shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shown<'a> {
    /// `Authorization`
    pub authorization: Option<&'a str>,
    /// `Cookie`
    pub cookie: Option<&'a str>,
}

/// How somebody was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// By the token.
    Token,
    /// By a login.
    Login(LoginPass),
}

/// A login that was found true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginPass {
    login: Login,
}

impl Access {
    /// For this token. `port` tells the cookies of several servers on one host apart (a cookie knows no ports).
    ///
    /// Takes some 10 ms: the key that seals logins is stretched.
    #[must_use]
    pub fn new(token: Token, port: u16, now: Instant) -> Access {
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
            complaints: Mutex::default(),
            ended: Mutex::new(HashMap::new()),
        }
    }

    /// Lets a request in, or says why not.
    ///
    /// # Errors
    /// 401 without a token or login or with a wrong one; 429 after too many wrong tokens.
    pub fn check(&self, shown: Shown<'_>, peer: IpAddr, now: Moment) -> Result<Entry, ApiError> {
        if let Some(pass) = self.login_of(shown.cookie, now) {
            return Ok(Entry::Login(pass));
        }
        match shown.authorization.and_then(credentials::bearer) {
            Some(token) => self.attempt(token, peer, now).map(|()| Entry::Token),
            None => Err(ApiError::new(
                401,
                "token_required",
                "this server asks for its token: send `Authorization: Bearer TOKEN`, or log in on the page",
            )),
        }
    }

    /// A login for who sends the right token: the value of a `Set-Cookie` header.
    ///
    /// # Errors
    /// 401 and 429 as [`Access::check`], 500 without random numbers.
    pub fn log_in(&self, token: &str, peer: IpAddr, is_tls: bool, now: Moment) -> Result<String, ApiError> {
        self.attempt(token, peer, now)?;
        let mut id = [0; ID_BYTES];
        rand::fill(&mut id).map_err(|_| ApiError::new(500, "internal", "no random numbers"))?;
        Ok(self.cookie(id, is_tls, now))
    }

    /// The same login for longer: the value of a `Set-Cookie` header, when it is time.
    #[must_use]
    pub fn renew(&self, pass: LoginPass, is_tls: bool, now: Moment) -> Option<String> {
        let left_s = pass.login.expires_s.saturating_sub(now.unix_s);
        (left_s < limits::LOGIN_LIFETIME.as_secs() / 10 * 9).then(|| self.cookie(pass.login.id, is_tls, now))
    }

    /// Ends the login of this request, if it has one: values of `Set-Cookie` headers that remove it.
    #[must_use]
    pub fn log_out(&self, cookie: Option<&str>, now: Moment) -> [String; 2] {
        if let Some(pass) = self.login_of(cookie, now) {
            let mut ended = lock(&self.ended);
            if ended.len() >= limits::LOGOUTS_MAX {
                ended.retain(|_, expires_s| *expires_s > now.unix_s);
            }
            if ended.len() >= limits::LOGOUTS_MAX
                && let Some(oldest) = ended.iter().min_by_key(|(_, expires_s)| **expires_s).map(|(id, _)| *id)
            {
                ended.remove(&oldest);
            }
            // A renewed login lapses later than the cookie that ends it.
            ended.insert(pass.login.id, now.unix_s.saturating_add(limits::LOGIN_LIFETIME.as_secs()));
        }
        let [plain, secure] = &self.cookie_names;
        [
            format!("{plain}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict"),
            format!("{secure}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict; Secure"),
        ]
    }

    fn attempt(&self, token: &str, peer: IpAddr, now: Moment) -> Result<(), ApiError> {
        let mut throttle = lock(&self.throttle);
        // Who has to wait is not even told that a token would have been right.
        if let Err(wait) = throttle.may_attempt(peer, now.steady) {
            let retry_after_s = Some(u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1));
            let message = "too many wrong tokens from this address".to_owned();
            return Err(ApiError { status: 429, code: "too_many_attempts", message, retry_after_s });
        }
        if self.token.is(token.as_bytes()) {
            throttle.succeeded(peer, now.steady);
            return Ok(());
        }
        throttle.failed(peer, now.steady);
        lock(&self.complaints).note(peer, now.steady);
        Err(ApiError::new(401, "wrong_token", "this is not the token of this server"))
    }

    /// The true login among the cookies.
    fn login_of(&self, cookie: Option<&str>, now: Moment) -> Option<LoginPass> {
        let [plain, secure] = &self.cookie_names;
        let mut logins = credentials::cookies(cookie?, [plain, secure]).filter_map(Login::parse);
        let login = logins.find(|login| {
            // In constant time, says its documentation.
            hmac::verify(&self.key, &login.sealed_bytes(), &login.seal).is_ok()
                && login.expires_s > now.unix_s
        })?;
        (!lock(&self.ended).contains_key(&login.id)).then_some(LoginPass { login })
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

/// Wrong tokens are logged, once in a while.
#[derive(Default)]
struct Complaints {
    told_at: Option<Instant>,
    untold: u64,
}

impl Complaints {
    fn note(&mut self, peer: IpAddr, now: Instant) {
        self.untold += 1;
        if self.told_at.is_none_or(|at| now.saturating_duration_since(at) >= COMPLAINT_INTERVAL) {
            log::warn!("http: wrong token from {peer} ({} wrong since this was last said)", self.untold);
            *self = Complaints { told_at: Some(now), untold: 0 };
        }
    }
}

const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
