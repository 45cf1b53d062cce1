//! The HTTP endpoint that browsers and the network reach: hyper, HTTP/1.1, on the caller's tokio
//! current_thread runtime. Bounds everything a connection can hold or take; decides nothing about
//! requests (that is [`routes`]) nor who is let in (that is [`super::access`]).

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request;
use hyper::http::uri::Authority;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::access::{Access, Entry, Shown};
use super::backend::{ApiError, Backend, BoxFuture};
use super::download;
use super::events::{self, Feed, Listener};
use super::host::Hosts;
use super::login;
use super::login_lifetime::LoginLifetime;
use super::routes::{self, Action, Endpoint, Head, Policy, Response};
use super::stream::Stream;
use super::tls::{Handshakes, TlsKeys};
use crate::base::clock::{Moment, monotonic_ns};
use crate::base::limits;
use crate::base::log_limit::LogLimit;

/// What the endpoint needs to know.
#[derive(Clone)]
pub struct HttpConfig {
    /// Address the listener is bound to, for log lines.
    pub address: SocketAddr,
    /// Origins beside our own whose pages may use the API.
    pub allow_origin: Vec<String>,
    /// Names we answer to; `None`: any.
    pub hosts: Option<Hosts>,
    /// Who is let in; `None`: everybody.
    pub access: Option<Arc<Access>>,
    /// With these the endpoint speaks TLS.
    pub tls: Option<Arc<TlsKeys>>,
}

impl HttpConfig {
    /// Without TLS and open to everybody.
    #[must_use]
    pub fn open(address: SocketAddr) -> HttpConfig {
        HttpConfig { address, allow_origin: Vec::new(), hosts: None, access: None, tls: None }
    }
}

/// Times a connection is given. The defaults are the program's; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct HttpTimeouts {
    /// From accept until TLS is agreed upon.
    pub handshake: Duration,
    /// From accept, a handshake or the last answer until a request's head is complete.
    pub header: Duration,
    /// For a request's body.
    pub body: Duration,
    /// For the backend's part of the answer.
    pub backend: Duration,
}

impl Default for HttpTimeouts {
    fn default() -> HttpTimeouts {
        HttpTimeouts {
            handshake: limits::TLS_HANDSHAKE_TIMEOUT,
            header: limits::HEADER_TIMEOUT,
            body: limits::BODY_TIMEOUT,
            backend: limits::BACKEND_TIMEOUT,
        }
    }
}

/// Serves until `stop` becomes true (or its sender is gone), then lets answers in progress finish for
/// `limits::CLOSE_TIMEOUT` and returns. `listener` must be nonblocking.
pub async fn serve(
    config: HttpConfig,
    listener: std::net::TcpListener,
    backend: Arc<dyn Backend>,
    stop: watch::Receiver<bool>,
) {
    serve_with(config, HttpTimeouts::default(), listener, backend, stop).await;
}

/// [`serve`] with other timeouts.
pub async fn serve_with(
    config: HttpConfig,
    timeouts: HttpTimeouts,
    listener: std::net::TcpListener,
    backend: Arc<dyn Backend>,
    mut stop: watch::Receiver<bool>,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            log::error!("http {}: the listener does not fit the runtime: {error}", config.address);
            return;
        }
    };
    let policy = Policy { allow_origin: config.allow_origin, hosts: config.hosts };
    let (access, tls, handshakes) = (config.access, config.tls, Handshakes::default());
    let feed = Feed::new(backend.clone(), stop.clone());
    let endpoint = Arc::new(Shared { policy, access, tls, handshakes, timeouts, backend, feed });
    let mut feeding = JoinSet::new();
    let fed = endpoint.clone();
    feeding.spawn(async move { fed.feed.run().await });
    let mut doorman = Doorman::new(endpoint, stop.clone());
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|&stopped| stopped) => break,
            Some(_) = doorman.connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => doorman.admit(stream, peer.ip()),
                Err(error) => doorman.back_off(&config.address, &error).await,
            },
        }
    }
    drop(listener);
    doorman.close().await;
}

/// What all connections share.
struct Shared {
    policy: Policy,
    access: Option<Arc<Access>>,
    tls: Option<Arc<TlsKeys>>,
    handshakes: Handshakes,
    timeouts: HttpTimeouts,
    backend: Arc<dyn Backend>,
    feed: Feed,
}

/// Lets connections in, or not.
struct Doorman {
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
    connections: JoinSet<()>,
    places: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    warnings: LogLimit,
}

impl Doorman {
    fn new(shared: Arc<Shared>, stop: watch::Receiver<bool>) -> Doorman {
        Doorman {
            shared,
            stop,
            connections: JoinSet::new(),
            places: Arc::new(Semaphore::new(limits::CONNECTIONS_MAX)),
            refusals: Arc::new(Semaphore::new(limits::REFUSALS_MAX)),
            warnings: LogLimit::default(),
        }
    }

    fn admit(&mut self, stream: TcpStream, peer: IpAddr) {
        prepare(&stream);
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            let (shared, mut stop) = (self.shared.clone(), self.stop.clone());
            self.connections.spawn(async move {
                if let Some((stream, caller)) = shared.open(stream, peer, &mut stop).await {
                    run_connection(shared, stream, caller, stop).await;
                }
                drop(place);
            });
        } else if let Ok(place) = self.refusals.clone().try_acquire_owned() {
            self.complain("http: all connections are taken, refusing more");
            self.connections.spawn(async move {
                refuse(stream).await;
                drop(place);
            });
        }
    }

    /// After a failed accept. One lost connection is nothing; no descriptors or memory left (EMFILE,
    /// ENFILE, ENOBUFS, ENOMEM) would make this loop spin.
    async fn back_off(&mut self, address: &SocketAddr, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
        if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
            self.complain(&format!("http {address}: accepting failed, trying again: {error}"));
            sleep(ACCEPT_PAUSE).await;
        }
    }

    /// Logs a warning, at most once a minute.
    fn complain(&self, message: &str) {
        if self.warnings.allows(monotonic_ns()) {
            log::warn!("{message}");
        }
    }

    /// Connections see `stop` themselves; those that don't end in time are dropped.
    async fn close(mut self) {
        let all_ended = async { while self.connections.join_next().await.is_some() {} };
        if timeout(limits::CLOSE_TIMEOUT, all_ended).await.is_err() {
            self.connections.shutdown().await;
        }
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Socket options; a kernel that refuses one costs nothing but the nicety.
fn prepare(stream: &TcpStream) {
    let answer_timeout_ms = u32::try_from(limits::ANSWER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(stream, answer_timeout_ms) {
        log::debug!("http: TCP_USER_TIMEOUT: {error}");
    }
    if let Err(error) = stream.set_nodelay(true) {
        log::debug!("http: TCP_NODELAY: {error}");
    }
}

/// One connection from its first request to its last.
async fn run_connection(
    shared: Arc<Shared>,
    stream: Stream,
    caller: Caller,
    mut stop: watch::Receiver<bool>,
) {
    let header_timeout = shared.timeouts.header;
    let service = service_fn(move |request| {
        let shared = shared.clone();
        Box::pin(async move { Ok::<_, Infallible>(shared.answer(request, caller).await) })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        // A caller that has said all it wants (`nc -N`) still gets its answers.
        .half_close(true)
        .max_header_size(limits::HEADER_BYTES_MAX)
        .max_buf_size(limits::CONNECTION_BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let is_stopping = tokio::select! {
        ended = poll_fn(|context| connection.poll_without_shutdown(context)) => {
            note_end(ended);
            false
        }
        _ = stop.wait_for(|&stopped| stopped) => true,
    };
    if is_stopping {
        Pin::new(&mut connection).graceful_shutdown();
        note_end(poll_fn(|context| connection.poll_without_shutdown(context)).await);
    }
    connection.into_parts().io.into_inner().linger().await;
}

/// A connection that ends badly is the other side's doing and no news.
fn note_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        log::debug!("http: connection ended: {error}");
    }
}

/// Tells a connection beyond the bound so. The answer fits any socket buffer. One that expects TLS sees an end.
async fn refuse(stream: TcpStream) {
    if matches!(stream.try_write(REFUSAL), Ok(bytes) if bytes == REFUSAL.len()) {
        Stream::Plain(stream).linger().await;
    }
}

const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
content-type: application/json\r\n\
content-length: 62\r\n\
cache-control: no-store\r\n\
retry-after: 1\r\n\
connection: close\r\n\r\n\
{\"error\":\"too many connections\",\"code\":\"too_many_connections\"}";

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
struct Caller {
    peer: IpAddr,
    is_tls: bool,
    /// Speaks plain HTTP where TLS is expected.
    is_misled: bool,
}

impl Shared {
    /// Does what comes before HTTP. `None`: nothing to go on with.
    async fn open(
        &self,
        socket: TcpStream,
        peer: IpAddr,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<(Stream, Caller)> {
        let Some(keys) = &self.tls else {
            return Some((Stream::Plain(socket), Caller { peer, is_tls: false, is_misled: false }));
        };
        tokio::select! {
            stream = self.handshakes.open(keys, socket, self.timeouts.handshake) => {
                let stream = stream?;
                let is_tls = stream.is_tls();
                Some((stream, Caller { peer, is_tls, is_misled: !is_tls }))
            }
            _ = stop.wait_for(|&stopped| stopped) => None,
        }
    }

    /// One request to one response.
    async fn answer(&self, request: Request<Incoming>, caller: Caller) -> hyper::Response<AnswerBody> {
        let (parts, body) = request.into_parts();
        let (response, stream) = match head_of(&parts) {
            Ok(head) => {
                let (response, stream) = self.respond(&head, caller, body).await;
                (routes::finish(&self.policy, &head, response), stream)
            }
            Err(response) => (routes::finish(&self.policy, &Head::default(), response), None),
        };
        into_hyper(response, stream)
    }

    /// What ends the matter before a body is read, or the endpoint and how the caller was let in.
    fn admit(&self, head: &Head<'_>, caller: Caller) -> Result<(Endpoint, Option<Entry>), Response> {
        if caller.is_misled {
            routes::admit_host(&self.policy, head)?;
            return Err(login::send_to_tls(head));
        }
        let endpoint = routes::admit(&self.policy, head)?;
        let entry = match &self.access {
            Some(access) if !endpoint.is_open() => {
                let shown = Shown { authorization: head.authorization, cookie: head.cookie };
                Some(access.check(shown, caller.peer, Moment::now()).map_err(login::refusal)?)
            }
            _ => None,
        };
        Ok((endpoint, entry))
    }

    async fn respond(&self, head: &Head<'_>, caller: Caller, body: Incoming) -> (Response, Option<Follow>) {
        let (endpoint, entry) = match self.admit(head, caller) {
            Ok(admitted) => admitted,
            Err(response) => return (response, None),
        };
        let body = match self.read_body(endpoint, body).await {
            Ok(body) => body,
            Err(response) => return (response, None),
        };
        let action = routes::act(endpoint, head, &body);
        drop(body);
        if let Some(response) = self.session(&action, head, caller, entry) {
            return (response, None);
        }
        match timeout(self.timeouts.backend, self.perform(head, action, self.lifetime(entry))).await {
            Ok(answer) => answer,
            Err(_) => {
                let error = ApiError {
                    status: 503,
                    code: "busy",
                    message: "the server did not get to it in time".into(),
                    retry_after_s: Some(1),
                };
                (error.into(), None)
            }
        }
    }

    /// The whole body, bounded in bytes and time. A length that is too long is refused unread.
    async fn read_body(&self, endpoint: Endpoint, body: Incoming) -> Result<Bytes, Response> {
        let bytes_max = endpoint.body_bytes_max();
        if body.size_hint().lower() > bytes_max as u64 {
            return Err(routes::body_too_large(endpoint));
        }
        match timeout(self.timeouts.body, Limited::new(body, bytes_max).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(routes::body_too_large(endpoint)),
            Ok(Err(_)) => {
                Err(Response::error(400, "bad_body", "the body is broken off or malformed").closing())
            }
            Err(_) => Err(Response::error(408, "timeout", "the body did not arrive in time").closing()),
        }
    }

    /// The answer below `/api/session`; `None` for everything else.
    fn session(
        &self,
        action: &Action,
        head: &Head<'_>,
        caller: Caller,
        entry: Option<Entry>,
    ) -> Option<Response> {
        let Some(access) = &self.access else {
            let is_session = matches!(action, Action::Session | Action::LogIn { .. } | Action::LogOut);
            return is_session.then(|| login::answer(false));
        };
        // A proxy may end TLS before us: what the browser says of its page is what counts for the cookie.
        let is_tls = caller.is_tls || head.origin.is_some_and(|origin| origin.starts_with("https://"));
        let cookies = match (action, entry) {
            (Action::Session, Some(Entry::Login(pass))) => {
                access.renew(pass, Moment::now()).into_iter().collect()
            }
            (Action::Session, _) => Vec::new(),
            (Action::LogOut, _) => access.log_out(head.cookie, Moment::now()).to_vec(),
            (Action::LogIn { token }, _) => match access.log_in(token, caller.peer, is_tls, Moment::now()) {
                Ok(cookie) => vec![cookie],
                Err(error) => return Some(login::refusal(error)),
            },
            _ => return None,
        };
        Some(
            cookies
                .into_iter()
                .fold(login::answer(true), |answer, cookie| answer.header("set-cookie", cookie)),
        )
    }

    /// The login that an answer without end and a live picture end with; who shows the token itself has none.
    fn lifetime(&self, entry: Option<Entry>) -> Option<LoginLifetime> {
        match (&self.access, entry) {
            (Some(access), Some(Entry::Login(pass))) => Some(LoginLifetime::new(Arc::clone(access), pass)),
            _ => None,
        }
    }

    async fn perform(
        &self,
        head: &Head<'_>,
        action: Action,
        lifetime: Option<LoginLifetime>,
    ) -> (Response, Option<Follow>) {
        let response = match action {
            Action::Respond(response) => response,
            Action::Recording(command) => routes::answer_recording(self.backend.recording(command).await),
            Action::Download { name, follow } => match self.backend.open_recording(name).await {
                Ok(file) => {
                    let (response, stream) = download::answer(head, file, follow, lifetime);
                    return (response, stream.map(Follow::File));
                }
                Err(error) => error.into(),
            },
            Action::Offer { sdp } => {
                let lifetime = lifetime.map(|lifetime| Box::pin(lifetime.over()) as BoxFuture<()>);
                routes::answer_offer(self.backend.offer(&sdp, lifetime).await)
            }
            Action::Viewers => routes::answer_viewers(&self.backend.viewers().await),
            Action::Status => Response::json(200, &events::status(self.backend.as_ref()).await),
            Action::Events => match self.feed.listen(lifetime).await {
                Ok((response, listener)) => {
                    let follows = head.method != "HEAD";
                    return (response, follows.then_some(Follow::Events(listener)));
                }
                Err(error) => error.into(),
            },
            Action::Ready => routes::answer_ready(self.backend.ready()),
            Action::Metrics => routes::answer_metrics(self.backend.metrics()),
            // Answered by `session` before.
            Action::Session | Action::LogIn { .. } | Action::LogOut => login::answer(self.access.is_some()),
        };
        (response, None)
    }
}

/// What follows a response's head.
enum Follow {
    File(download::Stream),
    Events(Listener),
}

/// Bytes at hand, or what comes piece by piece.
type AnswerBody = Either<Full<Bytes>, Channel<Bytes, io::Error>>;

/// What [`routes`] wants to know of a request. HTTP/1.1 needs exactly one Host (RFC 9112 section 3.2); a
/// second Origin is nothing a browser sends.
fn head_of(parts: &request::Parts) -> Result<Head<'_>, Response> {
    let host = single(&parts.headers, &header::HOST)?;
    if host.is_none() && parts.version == Version::HTTP_11 {
        return Err(bad_header(&header::HOST));
    }
    Ok(Head {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: parts.uri.query(),
        host: parts.uri.authority().map(Authority::as_str).or(host),
        origin: single(&parts.headers, &header::ORIGIN)?,
        authorization: single(&parts.headers, &header::AUTHORIZATION)?,
        cookie: text(&parts.headers, &header::COOKIE),
        if_none_match: text(&parts.headers, &header::IF_NONE_MATCH),
        range: text(&parts.headers, &header::RANGE),
        if_range: text(&parts.headers, &header::IF_RANGE),
        requested_method: single(&parts.headers, &header::ACCESS_CONTROL_REQUEST_METHOD)?,
    })
}

/// A header that only helps: ignored when it is not text.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// A header that may come once, as text.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Response> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(HeaderValue::to_str).transpose().map_err(|_| bad_header(name))?;
    if values.next().is_some() { Err(bad_header(name)) } else { Ok(first) }
}

fn bad_header(name: &HeaderName) -> Response {
    let message = format!("header {name}: missing, twice, or not text");
    Response::error(400, "bad_header", &message).closing()
}

fn into_hyper(response: Response, stream: Option<Follow>) -> hyper::Response<AnswerBody> {
    let body = match stream {
        Some(Follow::File(stream)) => Either::Right(stream.into_body()),
        Some(Follow::Events(listener)) => Either::Right(listener.into_body()),
        None => Either::Left(Full::new(response.body)),
    };
    let mut answer = hyper::Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(response.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let content_type = response.content_type.map(|kind| ("content-type", kind.to_owned()));
    for (name, value) in content_type.into_iter().chain(response.headers) {
        match HeaderValue::try_from(value) {
            Ok(value) => {
                answer.headers_mut().append(HeaderName::from_static(name), value);
            }
            Err(error) => log::error!("http: header {name} left out: {error}"),
        }
    }
    answer
}
