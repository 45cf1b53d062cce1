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
use std::sync::{Arc, Mutex};
use std::time::Instant;

use aws_lc_rs::{hmac, pbkdf2, rand};
use tokio::sync::watch;

use super::backend::ApiError;
use super::credentials::{self, ID_BYTES, Login, SEAL_BYTES};
use super::lock;
use super::throttle::Throttle;
use crate::base::clock::{Moment, monotonic_ns};
use crate::base::limits;
use crate::base::log_limit::LogLimit;
use crate::config::Token;
use crate::metrics::LoginCounters;

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
    /// Rings when another one is.
    endings: watch::Sender<()>,
    counters: Arc<LoginCounters>,
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
    Login(VerifiedLogin),
}

/// A login that was found true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedLogin {
    login: Login,
    /// Its cookie is one for TLS.
    is_secure: bool,
}

impl Access {
    /// For this token. `port` tells the cookies of several servers on one host apart (a cookie knows no ports);
    /// `counters` learn who was refused.
    ///
    /// Takes some 10 ms: the key that seals logins is stretched.
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
            complaints: Mutex::default(),
            ended: Mutex::new(HashMap::new()),
            endings: watch::Sender::new(()),
            counters,
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
    pub fn renew(&self, pass: VerifiedLogin, now: Moment) -> Option<String> {
        let left_s = pass.login.expires_s.saturating_sub(now.unix_s);
        (left_s < limits::LOGIN_LIFETIME.as_secs() / 10 * 9)
            .then(|| self.cookie(pass.login.id, pass.is_secure, now))
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
            drop(ended);
            self.endings.send_replace(());
        }
        let [plain, secure] = &self.cookie_names;
        [
            format!("{plain}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict"),
            format!("{secure}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict; Secure"),
        ]
    }

    /// Whether a login that was let in still would be.
    #[must_use]
    pub fn holds(&self, pass: VerifiedLogin, now: Moment) -> bool {
        pass.login.expires_s > now.unix_s && !lock(&self.ended).contains_key(&pass.login.id)
    }

    /// Changes whenever a login is ended.
    #[must_use]
    pub fn endings(&self) -> watch::Receiver<()> {
        self.endings.subscribe()
    }

    fn attempt(&self, token: &str, peer: IpAddr, now: Moment) -> Result<(), ApiError> {
        let mut throttle = lock(&self.throttle);
        // Who has to wait is not even told that a token would have been right.
        if let Err(wait) = throttle.may_attempt(peer, now.steady) {
            self.counters.too_many.add(1);
            let retry_after_s = Some(u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1));
            let message = "too many wrong tokens from this address".to_owned();
            return Err(ApiError { status: 429, code: "too_many_attempts", message, retry_after_s });
        }
        if self.token.is(token.as_bytes()) {
            throttle.succeeded(peer, now.steady);
            return Ok(());
        }
        throttle.failed(peer, now.steady);
        // Still under the throttle's lock: one thread at a time adds.
        self.counters.wrong.add(1);
        lock(&self.complaints).note(peer);
        Err(ApiError::new(401, "wrong_token", "this is not the token of this server"))
    }

    /// The true login among the cookies.
    fn login_of(&self, cookie: Option<&str>, now: Moment) -> Option<VerifiedLogin> {
        let [plain, secure] = &self.cookie_names;
        let found = credentials::cookies(cookie?, [plain, secure]);
        let mut logins = found.filter_map(|(name, value)| Some((name == secure, Login::parse(value)?)));
        let (is_secure, login) = logins.find(|(_, login)| {
            // In constant time, says its documentation.
            hmac::verify(&self.key, &login.sealed_bytes(), &login.seal).is_ok()
                && login.expires_s > now.unix_s
        })?;
        let pass = VerifiedLogin { login, is_secure };
        self.holds(pass, now).then_some(pass)
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
    limit: LogLimit,
    untold: u64,
}

impl Complaints {
    fn note(&mut self, peer: IpAddr) {
        self.untold += 1;
        if self.limit.allows(monotonic_ns()) {
            log::warn!("http: wrong token from {peer} ({} wrong since this was last said)", self.untold);
            self.untold = 0;
        }
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

    /// Checks the value of a `Set-Cookie` header, as a browser would send it back.
    fn enter(access: &Access, set_cookie: &str, now: Moment) -> Result<Entry, ApiError> {
        access.check(Shown { cookie: set_cookie.split(';').next(), authorization: None }, HOME, now)
    }

    #[test]
    fn a_login_lapses_unless_it_is_used_and_thus_renewed() {
        let (access, now) = start();
        let cookie = access.log_in(TOKEN, HOME, false, now).unwrap();
        assert!(enter(&access, &cookie, later(now, 30 * DAY_S - 1)).is_ok());
        assert_eq!(enter(&access, &cookie, later(now, 30 * DAY_S)).unwrap_err().status, 401);

        let Ok(Entry::Login(fresh)) = enter(&access, &cookie, later(now, DAY_S)) else { panic!() };
        assert_eq!(access.renew(fresh, later(now, DAY_S)), None, "not at every look");
        let Ok(Entry::Login(used)) = enter(&access, &cookie, later(now, 20 * DAY_S)) else { panic!() };
        let renewed = access.renew(used, later(now, 20 * DAY_S)).unwrap();
        assert!(enter(&access, &renewed, later(now, 49 * DAY_S)).is_ok());
        assert!(renewed.starts_with("streaming-8080=") && !renewed.ends_with("; Secure"));
        // Ending it ends both cookies of it.
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
            assert!(enter(&access, &cookie, now).is_err(), "the newest logout counts");
        }
        assert!(lock(&access.ended).len() <= limits::LOGOUTS_MAX);
        assert!(enter(&access, &first, now).is_ok(), "nobody is thrown out by others' logins");
    }

    #[test]
    fn a_logout_without_a_true_login_is_not_remembered() {
        let (access, now) = start();
        let forged = Login { expires_s: u64::MAX, id: [7; ID_BYTES], seal: [7; SEAL_BYTES] }.to_text();
        let _ = access.log_out(Some(&format!("streaming-8080={forged}")), now);
        let _ = access.log_out(None, now);
        assert!(lock(&access.ended).is_empty());
    }

    #[test]
    fn a_true_login_is_found_beside_planted_ones() {
        let (access, now) = start();
        let cookie = access.log_in(TOKEN, HOME, true, now).unwrap();
        let planted = format!("streaming-8080=0.0.0; {}", cookie.split(';').next().unwrap_or_default());
        assert!(enter(&access, &cookie, now).is_ok());
        let shown = Shown { cookie: Some(&planted), authorization: None };
        let Ok(Entry::Login(pass)) = access.check(shown, HOME, now) else { panic!() };
        let renewed = access.renew(pass, later(now, 20 * DAY_S)).unwrap();
        assert!(renewed.starts_with("__Host-streaming-8080=") && renewed.ends_with("; Secure"), "as it came");
    }
}
