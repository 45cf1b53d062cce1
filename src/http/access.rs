//! Authenticates requests if the server has a token: by the header `Authorization`, or by the cookie of a
//! login. The functions take the time as an argument.
//!
//! ```text
//!  POST /api/session {"token"} ─► rate limit ─► compare ─► cookie EXPIRES.ID.SEAL
//!  every other request ─► cookie with a valid seal, not expired, not logged out ─► admitted
//!                      └► Bearer, or Basic with the token as password ─► rate limit ─► compare ─► admitted
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

use aws_lc_rs::{hmac, pbkdf2, rand};
use tokio::sync::watch;

use super::address::Exempt;
use super::backend::ApiError;
use super::credentials::{self, ID_BYTES, Login, SEAL_BYTES};
use super::lock;
use super::request::Head;
use super::throttle::{Attempt, Throttle};
use crate::base::clock::{self, Moment};
use crate::base::limits;
use crate::base::log_limit::LogLimit;
use crate::config::Token;
use crate::metrics::LoginCounters;

/// Checks tokens and logins.
pub struct Access {
    token: Token,
    key: hmac::Key,
    /// Names of the login cookies, one for each kind, in the order of [`CookieKind::ALL`].
    cookie_names: [String; 3],
    /// The addresses that the limit for wrong tokens does not stop, because many users share them.
    exempt: Exempt,
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
    /// The cookie in which the login came.
    kind: CookieKind,
}

impl VerifiedLogin {
    /// Returns the id of the login, which no other login has.
    pub(super) fn id(&self) -> [u8; ID_BYTES] {
        self.login.id
    }
}

/// The cookies in which a login can be stored. They differ in the requests with which the browser sends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CookieKind {
    /// Over plain HTTP, with requests of pages of this site.
    Plain,
    /// Over TLS, with requests of pages of this site.
    Secure,
    /// Over TLS, with requests of all pages, but only below the site in whose window it was set (`Partitioned`). An
    /// allow-listed site that frames the page needs it.
    Framed,
}

impl CookieKind {
    const ALL: [CookieKind; 3] = [CookieKind::Plain, CookieKind::Secure, CookieKind::Framed];

    /// Returns the end of the `Set-Cookie` value.
    fn attributes(self) -> &'static str {
        match self {
            CookieKind::Plain => "HttpOnly; SameSite=Strict",
            CookieKind::Secure => "HttpOnly; SameSite=Strict; Secure",
            CookieKind::Framed => "HttpOnly; SameSite=None; Secure; Partitioned",
        }
    }
}

impl Access {
    /// Creates the checks for this token. The names of the cookies contain `port` and a part of a hash of the token,
    /// because a browser sends a cookie to all ports and all paths of a host, where other cameras can be. `counters`
    /// count the refusals.
    ///
    /// This takes about 10 ms, because the key that seals the logins is stretched (PBKDF2).
    #[must_use]
    pub fn new(token: Token, port: u16, counters: Arc<LoginCounters>) -> Access {
        let mut key = [0; SEAL_BYTES];
        let rounds = NonZeroU32::new(limits::LOGIN_KEY_ROUNDS).unwrap_or(NonZeroU32::MIN);
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            rounds,
            b"streaming-server login",
            token.expose(),
            &mut key,
        );
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let name = cookie_name(&key, port);
        Access {
            token,
            key,
            cookie_names: [name.clone(), format!("__Host-{name}"), format!("__Host-{name}-framed")],
            exempt: Exempt::default(),
            throttle: Mutex::default(),
            logged_out: Mutex::new(HashMap::new()),
            logouts: watch::Sender::new(()),
            log_limit: LogLimit::default(),
            unlogged: AtomicU64::new(0),
            counters,
        }
    }

    /// Returns the same checks, but wrong tokens from these addresses never cause that the right one is refused.
    #[must_use]
    pub fn exempting(self, exempt: Exempt) -> Access {
        Access { exempt, ..self }
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
        match head.authorization.and_then(credentials::token) {
            Some(token) => self.attempt(&token, peer, now).map(|()| None),
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
    pub fn log_in(
        &self,
        token: &str,
        peer: IpAddr,
        kind: CookieKind,
        now: Moment,
    ) -> Result<String, ApiError> {
        self.attempt(token, peer, now)?;
        let mut id = [0; ID_BYTES];
        rand::fill(&mut id)
            .map_err(|_| ApiError::new(500, "internal", "the system gave no random numbers"))?;
        Ok(self.cookie(id, kind, now))
    }

    /// Returns a `Set-Cookie` value that extends the login, or `None` if at least nine tenths of the lifetime are left.
    #[must_use]
    pub fn renew(&self, login: VerifiedLogin, now: Moment) -> Option<String> {
        let left_s = login.login.expires_s.saturating_sub(now.unix_s);
        (left_s < limits::LOGIN_LIFETIME.as_secs() / 10 * 9)
            .then(|| self.cookie(login.login.id, login.kind, now))
    }

    /// Ends the login in `cookie`, if there is a valid one. Returns the `Set-Cookie` values that remove all
    /// cookies from the browser.
    #[must_use]
    pub fn log_out(&self, cookie: Option<&str>, now: Moment) -> [String; 3] {
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
        CookieKind::ALL
            .map(|kind| format!("{}=; Path=/; Max-Age=0; {}", self.cookie_name(kind), kind.attributes()))
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
        let attempt = match throttle.attempt(peer, now.steady) {
            Attempt::Refused(wait) if self.exempt.contains(peer) => Attempt::OnlyTheRightToken(wait),
            attempt => attempt,
        };
        // While the address is refused, its token is not compared at all, so the answer reveals nothing about a guess.
        if !matches!(attempt, Attempt::Refused(_)) && self.token.is(token.as_bytes()) {
            throttle.on_success(peer, now.steady);
            return Ok(());
        }
        if let Attempt::Refused(wait) | Attempt::OnlyTheRightToken(wait) = attempt {
            self.counters.too_many.add(1);
            let retry_after_s = Some(u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1));
            let message =
                "too many wrong tokens came from this address: wait before the next attempt".to_owned();
            return Err(ApiError { status: 429, code: "too_many_attempts", message, retry_after_s });
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
        let found = credentials::cookies(cookie?, self.cookie_names.each_ref().map(String::as_str));
        let kind_of = |name| CookieKind::ALL.into_iter().find(|kind| self.cookie_name(*kind) == name);
        let mut logins = found.filter_map(|(name, value)| Some((kind_of(name)?, Login::parse(value)?)));
        let (kind, login) = logins.find(|(_, login)| {
            // `hmac::verify` compares in constant time, so the time it takes reveals nothing about the right seal.
            hmac::verify(&self.key, &login.sealed_bytes(), &login.seal).is_ok()
                && login.expires_s > now.unix_s
        })?;
        let verified = VerifiedLogin { login, kind };
        self.is_valid(verified, now).then_some(verified)
    }

    fn cookie_name(&self, kind: CookieKind) -> &str {
        let [plain, secure, framed] = &self.cookie_names;
        match kind {
            CookieKind::Plain => plain,
            CookieKind::Secure => secure,
            CookieKind::Framed => framed,
        }
    }

    fn cookie(&self, id: [u8; ID_BYTES], kind: CookieKind, now: Moment) -> String {
        let lifetime_s = limits::LOGIN_LIFETIME.as_secs();
        let mut login = Login { expires_s: now.unix_s.saturating_add(lifetime_s), id, seal: [0; SEAL_BYTES] };
        let seal = hmac::sign(&self.key, &login.sealed_bytes());
        login.seal.copy_from_slice(seal.as_ref());
        let (name, value) = (self.cookie_name(kind), login.to_text());
        format!("{name}={value}; Path=/; Max-Age={lifetime_s}; {}", kind.attributes())
    }
}

/// Returns the name of the cookie for plain HTTP. Its last part tells cameras with different tokens apart. Only a
/// browser that holds a login knows it, and it reveals no more about the token than the seal of the login does.
fn cookie_name(key: &hmac::Key, port: u16) -> String {
    let hash = hmac::sign(key, b"cookie name");
    let digits: String = hash.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("streaming-{port}-{digits}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Config, Parsed};

    const TOKEN: &str = "correct-horse-battery";
    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const DAY_S: u64 = 24 * 3600;

    fn token(text: &str) -> Token {
        let absent = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
        match Config::from_args(["--token".into(), text.into()], |_| None, absent).unwrap() {
            Parsed::Run(config) => config.token.unwrap(),
            Parsed::Print(text) => panic!("{text}"),
        }
    }

    fn start() -> (Access, Moment) {
        let steady = tokio::time::Instant::now().into_std();
        (Access::new(token(TOKEN), 8080, Arc::default()), Moment { steady, unix_s: 1_800_000_000 })
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
        let cookie = access.log_in(TOKEN, HOME, CookieKind::Plain, now).unwrap();
        assert!(enter(&access, &cookie, later(now, 30 * DAY_S - 1)).is_ok());
        assert_eq!(enter(&access, &cookie, later(now, 30 * DAY_S)).unwrap_err().status, 401);

        let Ok(Some(fresh)) = enter(&access, &cookie, later(now, DAY_S)) else { panic!() };
        assert_eq!(access.renew(fresh, later(now, DAY_S)), None, "too early to extend it");
        let Ok(Some(used)) = enter(&access, &cookie, later(now, 20 * DAY_S)) else { panic!() };
        let renewed = access.renew(used, later(now, 20 * DAY_S)).unwrap();
        assert!(enter(&access, &renewed, later(now, 49 * DAY_S)).is_ok());
        assert!(renewed.starts_with("streaming-8080-") && !renewed.ends_with("; Secure"));
        // One logout ends the login, so the original and the renewed cookie are both refused.
        let _ = access.log_out(cookie.split(';').next(), later(now, 20 * DAY_S));
        assert!(enter(&access, &renewed, later(now, 21 * DAY_S)).is_err());
        assert!(enter(&access, &cookie, later(now, 21 * DAY_S)).is_err());
    }

    #[test]
    fn any_number_of_logins_and_logouts_take_bounded_memory() {
        let (access, now) = start();
        let first = access.log_in(TOKEN, HOME, CookieKind::Secure, now).unwrap();
        for count in 0..3 * limits::LOGOUTS_MAX as u64 {
            let now = later(now, count);
            let cookie = access.log_in(TOKEN, HOME, CookieKind::Secure, now).unwrap();
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
        let _ = access.log_out(Some(&format!("{}={forged}", access.cookie_names[0])), now);
        let _ = access.log_out(None, now);
        assert!(lock(&access.logged_out).is_empty());
    }

    #[test]
    fn a_valid_login_is_found_beside_forged_cookies() {
        let (access, now) = start();
        let cookie = access.log_in(TOKEN, HOME, CookieKind::Secure, now).unwrap();
        let forged =
            format!("{}=0.0.0; {}", access.cookie_names[0], cookie.split(';').next().unwrap_or_default());
        assert!(enter(&access, &cookie, now).is_ok());
        let head = Head { cookie: Some(&forged), ..Head::default() };
        let Ok(Some(login)) = access.check(&head, HOME, now) else { panic!() };
        let renewed = access.renew(login, later(now, 20 * DAY_S)).unwrap();
        assert!(
            renewed.starts_with("__Host-streaming-8080-") && renewed.ends_with("; Secure"),
            "renewed for TLS, as it was made"
        );
    }

    #[test]
    fn cameras_behind_one_host_name_keep_their_own_logins() {
        let (one, now) = start();
        // A reverse proxy can serve several cameras under one host name, each at its own path. Here both cameras have
        // the same port, but different tokens.
        let other = Access::new(token("another-token-than-that"), 8080, Arc::default());
        let mut jar = HashMap::new();
        for (access, token) in [(&one, TOKEN), (&other, "another-token-than-that")] {
            for kind in CookieKind::ALL {
                let cookie = access.log_in(token, HOME, kind, now).unwrap();
                let (name, value) = cookie.split(';').next().and_then(|pair| pair.split_once('=')).unwrap();
                jar.insert(name.to_owned(), value.to_owned());
            }
        }
        assert_eq!(jar.len(), 6, "a login replaced another one: {jar:?}");
        let sent: Vec<String> = jar.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let head = Head { cookie: Some(&sent.join("; ")), ..Head::default() };
        assert!(one.check(&head, HOME, now).is_ok() && other.check(&head, HOME, now).is_ok());
        // A logout of one camera removes none of the other's cookies.
        for removed in one.log_out(head.cookie, now) {
            jar.remove(removed.split('=').next().unwrap());
        }
        assert_eq!(jar.len(), 3);
        assert!(other.check(&head, HOME, now).is_ok() && one.check(&head, HOME, now).is_err());
    }

    #[test]
    fn a_framed_login_is_sent_to_other_sites_pages_and_stays_framed() {
        let (access, now) = start();
        let cookie = access.log_in(TOKEN, HOME, CookieKind::Framed, now).unwrap();
        assert!(cookie.starts_with("__Host-"), "{cookie}");
        assert!(cookie.ends_with("; HttpOnly; SameSite=None; Secure; Partitioned"), "{cookie}");
        let Ok(Some(login)) = enter(&access, &cookie, now) else { panic!() };
        let renewed = access.renew(login, later(now, 20 * DAY_S)).unwrap();
        assert!(renewed.ends_with("; Secure; Partitioned"), "{renewed}");
    }

    #[test]
    fn the_right_token_is_never_refused_because_others_were_wrong() {
        let (access, now) = start();
        for host in 0..1000_u32 {
            let stranger = IpAddr::from((0x0a00_0000 + host).to_be_bytes());
            for _ in 0..10 {
                assert!(access.attempt("wrong", stranger, now).is_err());
            }
        }
        assert!(access.attempt(TOKEN, HOME, now).is_ok(), "from another address");
        // Other users with the same address, for example behind the same router, send wrong tokens.
        let mut statuses = (0..20).map(|_| access.attempt("wrong", HOME, now).unwrap_err().status);
        assert!(statuses.any(|status| status == 429));
        assert!(access.attempt(TOKEN, HOME, now).is_ok(), "from an address that was right before");
    }

    #[test]
    fn wrong_tokens_through_a_proxy_do_not_refuse_the_right_one() {
        let (access, now) = start();
        let access = access.exempting(Exempt::loopback_and([]));
        let refused = |peer: IpAddr| {
            let statuses: Vec<u16> =
                (0..20).map(|_| access.attempt("wrong", peer, now).unwrap_err().status).collect();
            assert!(statuses.contains(&429), "wrong tokens are still limited");
            access.attempt(TOKEN, peer, now).is_err()
        };
        assert!(!refused(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)));
        assert!(refused(HOME), "an address that only guessed");
    }
}
