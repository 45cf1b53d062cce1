//! The HTTP endpoint for browsers and the network: hyper, HTTP/1.1, on the caller's tokio current_thread runtime.
//! Limits the time and memory of connections. [`routes`] decides about requests, [`super::access`] about credentials.

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

use super::access::{Access, Admission, Credentials};
use super::backend::{ApiError, Backend, BoxFuture};
use super::download::{self, FileStream};
use super::events::{self, Feed, Subscription};
use super::host::Hosts;
use super::login;
use super::login_lifetime::LoginLifetime;
use super::request::Head;
use super::response::Response;
use super::routes::{self, Action, Endpoint, Policy};
use super::stream::Stream;
use super::tls::{Handshakes, TlsKeys};
use crate::base::clock::{self, Moment};
use crate::base::limits;
use crate::base::log_limit::LogLimit;

/// Settings of one endpoint.
#[derive(Clone)]
pub struct HttpConfig {
    /// Address the listener is bound to, for log lines.
    pub address: SocketAddr,
    /// Foreign origins whose pages may use the API.
    pub allow_origin: Vec<String>,
    /// Accepted values of `Host`; `None`: all.
    pub hosts: Option<Hosts>,
    /// Checks tokens and logins; `None`: the endpoint is open.
    pub access: Option<Arc<Access>>,
    /// Certificate and key; `None`: plain HTTP.
    pub tls: Option<Arc<TlsKeys>>,
}

impl HttpConfig {
    /// Plain HTTP without a token.
    #[must_use]
    pub fn open(address: SocketAddr) -> HttpConfig {
        HttpConfig { address, allow_origin: Vec::new(), hosts: None, access: None, tls: None }
    }
}

/// Time limits of a connection. Tests shorten the defaults.
#[derive(Clone, Copy, Debug)]
pub struct HttpTimeouts {
    /// From accept until the TLS handshake is complete.
    pub handshake: Duration,
    /// From accept, the handshake or the last answer until the head of a request is complete.
    pub header: Duration,
    /// For the body of a request.
    pub body: Duration,
    /// For the backend.
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

/// Serves until `stop` becomes true or its sender is dropped. Then answers in progress have `limits::CLOSE_TIMEOUT` to
/// finish. `listener` must be nonblocking.
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
            log::error!(
                "http {}: the runtime cannot use the listener, so this endpoint is closed: {error}",
                config.address
            );
            return;
        }
    };
    let policy = Policy { allow_origin: config.allow_origin, hosts: config.hosts };
    let (access, tls, handshakes) = (config.access, config.tls, Handshakes::default());
    let feed = Feed::new(backend.clone(), stop.clone());
    let endpoint = Arc::new(Shared { policy, access, tls, handshakes, timeouts, backend, feed });
    // Dropping the set at the end cancels the task.
    let mut feed_task = JoinSet::new();
    let feeding = endpoint.clone();
    feed_task.spawn(async move { feeding.feed.run().await });
    let mut acceptor = Acceptor::new(endpoint, stop.clone());
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|&stopped| stopped) => break,
            Some(_) = acceptor.connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => acceptor.admit(stream, peer.ip()),
                Err(error) => acceptor.back_off(&config.address, &error).await,
            },
        }
    }
    drop(listener);
    acceptor.close().await;
}

/// State that all connections share.
struct Shared {
    policy: Policy,
    access: Option<Arc<Access>>,
    tls: Option<Arc<TlsKeys>>,
    handshakes: Handshakes,
    timeouts: HttpTimeouts,
    backend: Arc<dyn Backend>,
    feed: Feed,
}

/// Accepts connections up to a limit.
struct Acceptor {
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
    connections: JoinSet<()>,
    permits: Arc<Semaphore>,
    refusal_permits: Arc<Semaphore>,
    log_limit: LogLimit,
}

impl Acceptor {
    fn new(shared: Arc<Shared>, stop: watch::Receiver<bool>) -> Acceptor {
        Acceptor {
            shared,
            stop,
            connections: JoinSet::new(),
            permits: Arc::new(Semaphore::new(limits::CONNECTIONS_MAX)),
            refusal_permits: Arc::new(Semaphore::new(limits::REFUSALS_MAX)),
            log_limit: LogLimit::default(),
        }
    }

    fn admit(&mut self, stream: TcpStream, peer: IpAddr) {
        prepare(&stream);
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            let (shared, mut stop) = (self.shared.clone(), self.stop.clone());
            self.connections.spawn(async move {
                if let Some((stream, caller)) = shared.open(stream, peer, &mut stop).await {
                    run_connection(shared, stream, caller, stop).await;
                }
                drop(permit);
            });
        } else if let Ok(permit) = self.refusal_permits.clone().try_acquire_owned() {
            self.warn(&format!(
                "http: all {} connections are in use: further ones are refused",
                limits::CONNECTIONS_MAX
            ));
            self.connections.spawn(async move {
                refuse(stream).await;
                drop(permit);
            });
        }
    }

    /// Handles a failed accept. A lost connection needs nothing. Without descriptors or memory (EMFILE, ENFILE, ENOBUFS,
    /// ENOMEM) the loop pauses, because it would spin.
    async fn back_off(&mut self, address: &SocketAddr, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
        if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
            self.warn(&format!("http {address}: cannot accept a connection, trying again: {error}"));
            sleep(ACCEPT_PAUSE).await;
        }
    }

    fn warn(&self, message: &str) {
        if self.log_limit.allows(clock::monotonic_ns()) {
            log::warn!("{message}");
        }
    }

    /// Waits until all connections have ended after `stop`; the remaining ones are dropped.
    async fn close(mut self) {
        let all_ended = async { while self.connections.join_next().await.is_some() {} };
        if timeout(limits::CLOSE_TIMEOUT, all_ended).await.is_err() {
            self.connections.shutdown().await;
        }
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Sets socket options. The connection works without them too.
fn prepare(stream: &TcpStream) {
    let answer_timeout_ms = u32::try_from(limits::ANSWER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(stream, answer_timeout_ms) {
        log::debug!("http: TCP_USER_TIMEOUT: {error}");
    }
    if let Err(error) = stream.set_nodelay(true) {
        log::debug!("http: TCP_NODELAY: {error}");
    }
}

/// Serves one connection until it ends.
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
        // A caller that has closed its sending side (`nc -N`) still gets its answers.
        .half_close(true)
        .max_header_size(limits::HEADER_BYTES_MAX)
        .max_buf_size(limits::CONNECTION_BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let is_stopping = tokio::select! {
        ended = poll_fn(|context| connection.poll_without_shutdown(context)) => {
            log_end(ended);
            false
        }
        _ = stop.wait_for(|&stopped| stopped) => true,
    };
    if is_stopping {
        Pin::new(&mut connection).graceful_shutdown();
        log_end(poll_fn(|context| connection.poll_without_shutdown(context)).await);
    }
    connection.into_parts().io.into_inner().linger().await;
}

/// Logs a connection error for debugging only: it is the caller's fault.
fn log_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        log::debug!("http: connection ended: {error}");
    }
}

/// Answers a connection above the limit with 503. The answer fits any socket buffer. A TLS caller gets an error.
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

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
struct Caller {
    peer: IpAddr,
    is_tls: bool,
    /// Sends plain HTTP to a TLS port.
    is_plain_on_tls: bool,
}

impl Shared {
    /// Runs the TLS handshake, if this endpoint has TLS. Returns `None` if the connection has ended.
    async fn open(
        &self,
        socket: TcpStream,
        peer: IpAddr,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<(Stream, Caller)> {
        let Some(keys) = &self.tls else {
            return Some((Stream::Plain(socket), Caller { peer, is_tls: false, is_plain_on_tls: false }));
        };
        tokio::select! {
            stream = self.handshakes.open(keys, socket, self.timeouts.handshake) => {
                let stream = stream?;
                let is_tls = stream.is_tls();
                Some((stream, Caller { peer, is_tls, is_plain_on_tls: !is_tls }))
            }
            _ = stop.wait_for(|&stopped| stopped) => None,
        }
    }

    /// Answers one request.
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

    /// Checks a request before its body is read. Returns its endpoint and how it was authorised.
    ///
    /// # Errors
    /// The response that refuses the request.
    fn admit(&self, head: &Head<'_>, caller: Caller) -> Result<(Endpoint, Option<Admission>), Response> {
        if caller.is_plain_on_tls {
            routes::admit_host(&self.policy, head)?;
            return Err(login::redirect_to_tls(head));
        }
        let endpoint = routes::admit(&self.policy, head)?;
        let admission = match &self.access {
            Some(access) if !endpoint.is_open() => {
                let shown = Credentials { authorization: head.authorization, cookie: head.cookie };
                Some(access.check(shown, caller.peer, Moment::now()).map_err(login::refusal)?)
            }
            _ => None,
        };
        Ok((endpoint, admission))
    }

    async fn respond(
        &self,
        head: &Head<'_>,
        caller: Caller,
        body: Incoming,
    ) -> (Response, Option<StreamedBody>) {
        let (endpoint, admission) = match self.admit(head, caller) {
            Ok(admitted) => admitted,
            Err(response) => return (response, None),
        };
        let body = match self.read_body(endpoint, body).await {
            Ok(body) => body,
            Err(response) => return (response, None),
        };
        let action = routes::act(endpoint, head, &body);
        drop(body);
        if let Some(response) = self.session(&action, head, caller, admission) {
            return (response, None);
        }
        match timeout(self.timeouts.backend, self.perform(head, action, self.login_lifetime(admission))).await
        {
            Ok(answer) => answer,
            Err(_) => {
                let error = ApiError {
                    status: 503,
                    code: "busy",
                    message: "the server did not answer in time: try again".into(),
                    retry_after_s: Some(1),
                };
                (error.into(), None)
            }
        }
    }

    /// Reads the body within its limits of bytes and time. A too large Content-Length is refused without reading.
    async fn read_body(&self, endpoint: Endpoint, body: Incoming) -> Result<Bytes, Response> {
        let bytes_max = endpoint.body_bytes_max();
        if body.size_hint().lower() > bytes_max as u64 {
            return Err(routes::body_too_large(endpoint));
        }
        match timeout(self.timeouts.body, Limited::new(body, bytes_max).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(routes::body_too_large(endpoint)),
            Ok(Err(_)) => {
                Err(Response::error(400, "bad_body", "the body is malformed or ends early").closing())
            }
            Err(_) => Err(Response::error(408, "timeout", "the body did not arrive in time").closing()),
        }
    }

    /// Answers requests for `/api/session`; `None` for all others.
    fn session(
        &self,
        action: &Action,
        head: &Head<'_>,
        caller: Caller,
        admission: Option<Admission>,
    ) -> Option<Response> {
        let Some(access) = &self.access else {
            let is_session = matches!(action, Action::Session | Action::LogIn { .. } | Action::LogOut);
            return is_session.then(|| login::answer(false));
        };
        // A proxy may end TLS before us. The scheme that the browser uses decides about the cookie.
        let is_tls = caller.is_tls || head.origin.is_some_and(|origin| origin.starts_with("https://"));
        let cookies = match (action, admission) {
            (Action::Session, Some(Admission::Login(login))) => {
                access.renew(login, Moment::now()).into_iter().collect()
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

    /// Returns the login that ends streams and sessions of this request; `None` if it carried the
    /// token itself.
    fn login_lifetime(&self, admission: Option<Admission>) -> Option<LoginLifetime> {
        match (&self.access, admission) {
            (Some(access), Some(Admission::Login(login))) => {
                Some(LoginLifetime::new(Arc::clone(access), login))
            }
            _ => None,
        }
    }

    async fn perform(
        &self,
        head: &Head<'_>,
        action: Action,
        login: Option<LoginLifetime>,
    ) -> (Response, Option<StreamedBody>) {
        let response = match action {
            Action::Respond(response) => response,
            Action::Recording(command) => routes::answer_recording(self.backend.recording(command).await),
            Action::RecordingStatus => routes::answer_recording(self.backend.recording_status().await),
            Action::Download { name, follow } => match self.backend.open_recording(name).await {
                Ok(file) => {
                    let (response, stream) = download::answer(head, file, follow, login);
                    return (response, stream.map(StreamedBody::File));
                }
                Err(error) => error.into(),
            },
            Action::Offer { sdp } => {
                let login_end = login.map(|login| Box::pin(login.ended()) as BoxFuture<()>);
                routes::answer_offer(self.backend.offer(&sdp, login_end).await)
            }
            Action::Viewers => routes::answer_viewers(&self.backend.viewers().await),
            Action::Status => Response::json(200, &events::status(self.backend.as_ref()).await),
            Action::Events => match self.feed.subscribe(login).await {
                Ok((response, events)) => {
                    let has_body = head.method != "HEAD";
                    return (response, has_body.then_some(StreamedBody::Events(events)));
                }
                Err(error) => error.into(),
            },
            Action::Ready => routes::answer_ready(self.backend.ready()),
            Action::Metrics => routes::answer_metrics(self.backend.metrics()),
            // Not reached: `session` answers these actions before.
            Action::Session | Action::LogIn { .. } | Action::LogOut => login::answer(self.access.is_some()),
        };
        (response, None)
    }
}

/// A body that is produced while it is sent.
enum StreamedBody {
    File(FileStream),
    Events(Subscription),
}

/// A complete body, or a streamed one.
type AnswerBody = Either<Full<Bytes>, Channel<Bytes, io::Error>>;

/// Returns the headers that [`routes`] reads. HTTP/1.1 requires exactly one Host (RFC 9112 section 3.2). A browser never
/// sends two Origins.
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

/// Returns an optional header; one that is not text is ignored.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Returns a header that may be sent once, as text.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Response> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(HeaderValue::to_str).transpose().map_err(|_| bad_header(name))?;
    if values.next().is_some() { Err(bad_header(name)) } else { Ok(first) }
}

fn bad_header(name: &HeaderName) -> Response {
    let message = format!("the header {name} is missing, was sent twice or is not text");
    Response::error(400, "bad_header", &message).closing()
}

fn into_hyper(response: Response, stream: Option<StreamedBody>) -> hyper::Response<AnswerBody> {
    let body = match stream {
        Some(StreamedBody::File(stream)) => Either::Right(stream.into_body()),
        Some(StreamedBody::Events(events)) => Either::Right(events.into_body()),
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
            Err(error) => log::error!("http: response header {name} is malformed and was omitted: {error}"),
        }
    }
    answer
}
