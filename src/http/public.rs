//! The HTTP endpoint for browsers and the network. It serves HTTP/1.1 with hyper on the caller's tokio current_thread
//! runtime, and limits the time and memory that connections use. [`routes`] decides about requests, [`super::access`]
//! about credentials.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request;
use hyper::http::uri::Authority;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::access::{Access, VerifiedLogin};
use super::backend::{ApiError, Backend};
use super::download::{self, DownloadBody};
use super::events::Feed;
use super::login;
use super::login_lifetime::login_end;
use super::perform::perform;
use super::request::Head;
use super::response::{BodyStream, Response};
use super::routes::{self, Action, Policy, Route};
use super::shares::{HttpShares, Share};
use super::stream::{Stream, linger};
use super::tls::{Handshakes, TlsKeys};
use crate::base::clock::{self, Moment};
use crate::base::limits;
use crate::base::log_limit::LogLimit;

/// Settings of one endpoint.
#[derive(Clone)]
pub struct HttpConfig {
    /// Address to which the listener is bound. It is used in log lines.
    pub address: SocketAddr,
    /// The foreign pages that may use the API, and the accepted values of `Host`.
    pub policy: Policy,
    /// Checks tokens and logins; `None` if the endpoint requires no token.
    pub access: Option<Arc<Access>>,
    /// Certificate and key; `None` for plain HTTP.
    pub tls: Option<Arc<TlsKeys>>,
    /// Time limits of the connections.
    pub timeouts: HttpTimeouts,
    /// Limits of downloads and answers. Endpoints of one program share them.
    pub shares: HttpShares,
}

/// Time limits of a connection. Tests shorten the defaults.
#[derive(Clone, Copy, Debug)]
pub struct HttpTimeouts {
    /// Longest time from the accept until the TLS handshake is complete.
    pub handshake: Duration,
    /// Longest time from the accept, the TLS handshake or the last answer until the head of a request is complete.
    pub header: Duration,
    /// Longest time for the body of a request to arrive.
    pub body: Duration,
    /// Time for the backend to answer.
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

/// Serves HTTP until `stop` becomes true or its sender is dropped. After that, answers in progress have
/// `limits::CLOSE_TIMEOUT` to finish. `listener` must be nonblocking.
pub async fn serve(
    config: HttpConfig,
    listener: std::net::TcpListener,
    backend: Arc<dyn Backend>,
    mut stop: watch::Receiver<bool>,
) {
    let address = config.address;
    limit_buffers(&listener);
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            log::error!(
                "http {address}: the runtime cannot use the listener, so this endpoint is closed: {error}"
            );
            return;
        }
    };
    let feed = Feed::new(backend.clone(), stop.clone());
    let shared = Arc::new(Shared { config, handshakes: Handshakes::default(), backend, feed });
    // `feed_task` is dropped when this function returns, which cancels the task.
    let mut feed_task = JoinSet::new();
    let feeding = shared.clone();
    feed_task.spawn(async move { feeding.feed.run().await });
    let mut acceptor = Acceptor {
        shared,
        stop: stop.clone(),
        connections: JoinSet::new(),
        permits: Arc::new(Semaphore::new(limits::CONNECTIONS_MAX)),
        refusal_permits: Arc::new(Semaphore::new(limits::REFUSALS_MAX)),
        log_limit: LogLimit::default(),
    };
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|&stopped| stopped) => break,
            Some(_) = acceptor.connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => acceptor.admit(stream, peer.ip()),
                Err(error) => acceptor.back_off(&error).await,
            },
        }
    }
    drop(listener);
    acceptor.close().await;
}

/// State that all connections share.
struct Shared {
    config: HttpConfig,
    handshakes: Handshakes,
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
    fn admit(&mut self, stream: TcpStream, peer: IpAddr) {
        prepare(&stream);
        let local = stream.local_addr().ok().map(|address| address.ip());
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            let (shared, mut stop) = (self.shared.clone(), self.stop.clone());
            self.connections.spawn(async move {
                if let Some(stream) = shared.open(stream, &mut stop).await {
                    let caller = Caller { peer, local, is_tls: stream.is_tls() };
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

    /// Handles a failed accept. If the caller has already closed the new connection, there is nothing to do. If
    /// descriptors or memory are exhausted (EMFILE, ENFILE, ENOBUFS, ENOMEM), waits a moment, because the accept loop
    /// would otherwise spin.
    async fn back_off(&mut self, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
        if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
            let address = self.shared.config.address;
            self.warn(&format!("http {address}: cannot accept a connection, trying again: {error}"));
            sleep(ACCEPT_PAUSE).await;
        }
    }

    fn warn(&self, message: &str) {
        if self.log_limit.allows(clock::monotonic_ns()) {
            log::warn!("{message}");
        }
    }

    /// Waits until all connections have ended, at most `limits::CLOSE_TIMEOUT`. Then drops the remaining connections.
    async fn close(mut self) {
        let all_ended = async { while self.connections.join_next().await.is_some() {} };
        if timeout(limits::CLOSE_TIMEOUT, all_ended).await.is_err() {
            self.connections.shutdown().await;
        }
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Limits the socket buffers of all connections that the listener accepts: they inherit its options. A failure is only
/// logged, because the connections also work without the options.
fn limit_buffers(listener: &std::net::TcpListener) {
    let limited = sockopt::set_socket_send_buffer_size(listener, limits::CONNECTION_SEND_BYTES)
        .and_then(|()| sockopt::set_socket_recv_buffer_size(listener, limits::CONNECTION_RECEIVE_BYTES));
    if let Err(error) = limited {
        log::warn!("http: cannot limit the socket buffers, so slow readers can take more memory: {error}");
    }
}

/// Sets socket options. A failure is only logged, because the connection also works without the options.
fn prepare(stream: &TcpStream) {
    let answer_timeout_ms = u32::try_from(limits::ANSWER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = sockopt::set_tcp_user_timeout(stream, answer_timeout_ms) {
        log::debug!("http: cannot set TCP_USER_TIMEOUT: {error}");
    }
    if let Err(error) = stream.set_nodelay(true) {
        log::debug!("http: cannot set TCP_NODELAY: {error}");
    }
}

/// Serves one connection until it ends.
async fn run_connection(
    shared: Arc<Shared>,
    stream: Stream,
    caller: Caller,
    mut stop: watch::Receiver<bool>,
) {
    let header_timeout = shared.config.timeouts.header;
    let service = service_fn(move |request| {
        let shared = shared.clone();
        Box::pin(async move { Ok::<_, Infallible>(shared.answer(request, caller).await) })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        // With this option, a caller that has closed its sending side (such as `nc -N`) still gets its answers.
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
    linger(connection.into_parts().io.into_inner()).await;
}

/// Logs a connection error at level debug only, because such an error is the caller's fault.
fn log_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        log::debug!("http: connection ended: {error}");
    }
}

/// Answers a connection above the limit with 503. A single write is enough, because the answer fits into any socket
/// buffer. A caller that uses TLS gets a TLS error instead.
async fn refuse(stream: TcpStream) {
    if matches!(stream.try_write(REFUSAL), Ok(bytes) if bytes == REFUSAL.len()) {
        linger(Box::new(stream)).await;
    }
}

const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
content-type: application/json\r\n\
content-length: 62\r\n\
cache-control: no-store\r\n\
retry-after: 1\r\n\
connection: close\r\n\r\n\
{\"error\":\"too many connections\",\"code\":\"too_many_connections\"}";

/// What is known about the other end of a connection.
#[derive(Clone, Copy, Debug)]
struct Caller {
    peer: IpAddr,
    /// Address of this machine on which the connection arrived.
    local: Option<IpAddr>,
    is_tls: bool,
}

impl Shared {
    /// Runs the TLS handshake if this endpoint has TLS, and returns the stream for HTTP. Returns `None` if the
    /// handshake has failed or the server stops.
    async fn open(&self, socket: TcpStream, stop: &mut watch::Receiver<bool>) -> Option<Stream> {
        let Some(keys) = &self.config.tls else { return Some(Box::new(socket)) };
        tokio::select! {
            stream = self.handshakes.open(keys, socket, self.config.timeouts.handshake) => stream,
            _ = stop.wait_for(|&stopped| stopped) => None,
        }
    }

    /// Returns the response to one request.
    async fn answer(&self, request: Request<Incoming>, caller: Caller) -> hyper::Response<AnswerBody> {
        let (parts, body) = request.into_parts();
        let (head, answer) = match head_of(&parts) {
            Ok(head) => (head, self.respond(&head, caller, body).await),
            Err(response) => (Head::default(), Err(response)),
        };
        let (response, stream) = answer.unwrap_or_else(|response| (response, None));
        into_hyper(routes::finish(&self.config.policy, &head, response), stream)
    }

    /// Checks a request before its body is read. Returns the route and, if the request has one, the login.
    ///
    /// # Errors
    /// Returns the response if the request is refused or needs no route, such as a redirect to TLS.
    fn admit(
        &self,
        head: &Head<'_>,
        caller: Caller,
    ) -> Result<(&'static Route, Option<VerifiedLogin>), Response> {
        let HttpConfig { policy, tls, access, .. } = &self.config;
        if tls.is_some() && !caller.is_tls {
            routes::admit_host(policy, head)?;
            return Err(login::redirect_to_tls(head));
        }
        let route = routes::admit(policy, head)?;
        let login = match access {
            Some(access) if !route.is_open => {
                access.check(head, caller.peer, Moment::now()).map_err(login::refusal)?
            }
            _ => None,
        };
        Ok((route, login))
    }

    async fn respond(&self, head: &Head<'_>, caller: Caller, body: Incoming) -> Result<Answer, Response> {
        let (route, login) = self.admit(head, caller)?;
        let body = self.read_body(route.body_bytes_max, body, caller).await?;
        let action = route.act(head, &body);
        drop(body);
        if let Some(response) = self.session(&action, head, caller, login) {
            return Ok((response, None));
        }
        match timeout(self.config.timeouts.backend, self.perform(head, action, caller, login)).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(ApiError::busy("the server did not answer in time: try again", 1).into()),
        }
    }

    /// Reads the body within its limits of bytes and time. If Content-Length is too large, the request is refused
    /// before the body is read.
    async fn read_body(&self, bytes_max: usize, body: Incoming, caller: Caller) -> Result<Bytes, Response> {
        // The response closes the connection, because the rest of the body is not read.
        let too_large = || Err(routes::body_too_large(bytes_max).closing());
        if body.size_hint().lower() > bytes_max as u64 {
            return too_large();
        }
        // The length of a chunked body is unknown before it has arrived.
        let expected =
            body.size_hint().upper().map_or(bytes_max, |bytes| usize::try_from(bytes).unwrap_or(bytes_max));
        let share = self.count_message(expected, caller).map_err(|error| Response::from(error).closing())?;
        match timeout(self.config.timeouts.body, Limited::new(body, bytes_max).collect()).await {
            Ok(Ok(body)) => Ok(held(body.to_bytes(), share)),
            Ok(Err(error)) if error.is::<LengthLimitError>() => too_large(),
            Ok(Err(_)) => {
                Err(Response::error(400, "bad_body", "the body is malformed or ends early").closing())
            }
            Err(_) => Err(Response::error(408, "timeout", "the body did not arrive in time").closing()),
        }
    }

    /// Returns the response to a request for `/api/session`. Returns `None` for every other request, and if the server
    /// has no token.
    fn session(
        &self,
        action: &Action,
        head: &Head<'_>,
        caller: Caller,
        login: Option<VerifiedLogin>,
    ) -> Option<Response> {
        let access = self.config.access.as_ref()?;
        // If a proxy terminates TLS, we see plain HTTP although the browser uses https. The kind of the cookie depends
        // on the scheme that the browser uses, so `Origin` counts too.
        let is_tls = caller.is_tls || head.origin.is_some_and(|origin| origin.starts_with("https://"));
        let cookies = match action {
            Action::Session => {
                login.and_then(|login| access.renew(login, Moment::now())).into_iter().collect()
            }
            Action::LogOut => access.log_out(head.cookie, Moment::now()).to_vec(),
            Action::LogIn(token) => match access.log_in(token, caller.peer, is_tls, Moment::now()) {
                Ok(cookie) => vec![cookie],
                Err(error) => return Some(login::refusal(error)),
            },
            _ => return None,
        };
        let answer = login::answer(true);
        Some(cookies.into_iter().fold(answer, |answer, cookie| answer.header("set-cookie", cookie)))
    }

    /// Runs the action. If the action starts a session, an event stream or a download with `follow`, that ends together
    /// with `login`.
    async fn perform(
        &self,
        head: &Head<'_>,
        action: Action,
        caller: Caller,
        login: Option<VerifiedLogin>,
    ) -> Result<Answer, ApiError> {
        let access = self.config.access.as_ref();
        let login_end = access.zip(login).map(|(access, login)| login_end(Arc::clone(access), login));
        match action {
            Action::Download { name, follow, until } => {
                let share = self.config.shares.downloads.take(caller.peer, 1).map_err(download::refusal)?;
                let file = self.backend.open_recording(name, until.filter(|_| !follow)).await?;
                let (response, body) = download::answer(head, file, follow, login_end, share);
                Ok((response, body.map(Either::Right)))
            }
            Action::Events => {
                let (response, body) = self.feed.subscribe(head.method != "HEAD", login_end).await?;
                Ok((response, body.map(Either::Left)))
            }
            // A prepared response is short, or a file of the page, whose bytes are not copied.
            Action::Respond(response) => Ok((response, None)),
            action => {
                let response = perform(self.backend.as_ref(), action, caller.local, login_end).await?;
                Ok((self.count_answer(response, caller)?, None))
            }
        }
    }

    /// Counts the body of a response until it is sent.
    ///
    /// # Errors
    /// Returns 503 if callers do not read their answers, so that too many bytes wait.
    fn count_answer(&self, response: Response, caller: Caller) -> Result<Response, ApiError> {
        let share = self.count_message(response.body.len(), caller)?;
        Ok(Response { body: held(response.body, share), ..response })
    }

    /// Counts the bytes of a body. Returns `None` for a short body.
    fn count_message(&self, bytes: usize, caller: Caller) -> Result<Option<Share>, ApiError> {
        if bytes <= limits::MESSAGE_BYTES_SHORT {
            return Ok(None);
        }
        let share = self.config.shares.message_bytes.take(caller.peer, bytes);
        share.map(Some).map_err(|_| ApiError::busy("too many long requests and answers are on their way", 1))
    }
}

/// Returns the same bytes, which hold the share until they are dropped.
fn held(bytes: Bytes, share: Option<Share>) -> Bytes {
    match share {
        Some(share) => share.hold(bytes),
        None => bytes,
    }
}

/// A response, and a body stream if the body is produced while it is sent.
type Answer = (Response, Option<StreamedBody>);

/// A body that is produced while it is sent: events, or a recording.
type StreamedBody = Either<BodyStream, DownloadBody>;

/// The body of a response: complete, or produced while it is sent.
type AnswerBody = Either<Full<Bytes>, StreamedBody>;

/// Returns the parts of the head that [`routes`] reads, or a 400 response if a header is invalid. HTTP/1.1 requires
/// exactly one Host header (RFC 9112 section 3.2). Two Origin headers are invalid, because a browser never sends two.
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

/// Returns a header as text, or `None` if it is missing or not text.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Returns a header as text, or `None` if it is missing. A header that was sent twice or is not text is refused with
/// 400.
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
    let body = stream.map_or_else(|| Either::Left(Full::new(response.body)), Either::Right);
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
