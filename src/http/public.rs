//! The HTTP endpoint for browsers and the network. It serves HTTP/1.1 with hyper on the caller's tokio current_thread
//! runtime, and limits the time and memory that connections use. [`routes`] decides about requests, [`super::access`]
//! about credentials.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, LengthLimitError, Limited};
use hyper::Request;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::access::{Access, CookieKind, VerifiedLogin};
use super::activity::Watched;
use super::adapter::{AnswerBody, StreamedBody, head_of, into_hyper};
use super::address::{Exempt, group};
use super::backend::{ApiError, Backend, LiveOrigin, OfferOrigin, PlaceHolder, RecordingFile};
use super::download;
use super::events::Feed;
use super::live;
use super::login;
use super::login_lifetime::login_end;
use super::perform::perform;
use super::places::{Place, PlaceState, Places, Refusal};
use super::refusals::{RefusalLog, refuse};
use super::request::{Head, LogIn};
use super::response::Response;
use super::routes::{self, Action, Policy, Route};
use super::shares::{HttpShares, Share};
use super::stream::{Stream, close_now, limit_buffers, linger, prepare};
use super::timeouts::HttpTimeouts;
use super::tls::{Handshakes, TlsKeys};
use super::whep;
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
    /// The addresses to which the limits per address do not apply.
    pub exempt: Exempt,
    /// Certificate and key; `None` for plain HTTP.
    pub tls: Option<Arc<TlsKeys>>,
    /// Time limits of the connections.
    pub timeouts: HttpTimeouts,
    /// Limits of downloads and answers. Endpoints of one program share them.
    pub shares: HttpShares,
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
    let places = Arc::new(Places::new(config.exempt.clone()));
    let (handshakes, refusals) = (Handshakes::default(), RefusalLog::default());
    let shared = Arc::new(Shared { config, handshakes, places, refusals, backend, feed, stop: stop.clone() });
    // `feed_task` is dropped when this function returns, which cancels the task.
    let mut feed_task = JoinSet::new();
    let feeding = shared.clone();
    feed_task.spawn(async move { feeding.feed.run().await });
    let mut acceptor = Acceptor {
        shared,
        stop: stop.clone(),
        connections: JoinSet::new(),
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
    places: Arc<Places>,
    refusals: RefusalLog,
    backend: Arc<dyn Backend>,
    feed: Feed,
    stop: watch::Receiver<bool>,
}

/// Accepts connections up to a limit.
struct Acceptor {
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
    connections: JoinSet<()>,
    refusal_permits: Arc<Semaphore>,
    log_limit: LogLimit,
}

impl Acceptor {
    fn admit(&mut self, stream: TcpStream, peer: IpAddr) {
        prepare(&stream);
        let refusal = match self.shared.places.admit(peer) {
            Ok(place) => {
                let (shared, stop) = (self.shared.clone(), self.stop.clone());
                self.connections.spawn(serve_connection(shared, stream, peer, place, stop));
                return;
            }
            Err(refusal) => refusal,
        };
        if let Ok(permit) = self.refusal_permits.clone().try_acquire_owned() {
            let max = limits::CONNECTIONS_MAX;
            self.warn(&match refusal {
                Refusal::Full => format!("http: all {max} connections are in use: further ones are refused"),
                Refusal::Share => format!(
                    "http: {peer} holds half of the {max} connections: further ones of this address are refused. If it is a proxy, start the server with --trusted-proxy {peer}"
                ),
            });
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

/// Serves one connection until it ends or gives way to a new one.
async fn serve_connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    peer: IpAddr,
    place: Place,
    mut stop: watch::Receiver<bool>,
) {
    let local = stream.local_addr().ok().map(|address| address.ip());
    let port = stream.peer_addr().map_or(0, |address| address.port());
    let opened = tokio::select! {
        opened = shared.open(stream, &mut stop) => opened,
        () = place.state.gives_way.notified() => None,
    };
    if let Some(stream) = opened {
        let place = Arc::clone(&place.state);
        let caller = Caller { peer, port, local, is_tls: stream.is_tls(), place };
        run_connection(shared, stream, caller, stop).await;
    }
    drop(place);
}

/// Serves the requests of one connection.
async fn run_connection(
    shared: Arc<Shared>,
    stream: Stream,
    caller: Caller,
    mut stop: watch::Receiver<bool>,
) {
    let timeouts = shared.config.timeouts;
    let place = Arc::clone(&caller.place);
    place.activity.opened();
    let service = service_fn(move |request| {
        let (shared, caller) = (shared.clone(), caller.clone());
        Box::pin(async move {
            caller.place.activity.begin_answer();
            let answer = shared.answer(request, &caller).await;
            caller.place.activity.end_service();
            Ok::<_, Infallible>(answer)
        })
    });
    let stream = Watched { stream, activity: Arc::clone(&place.activity) };
    let mut connection = http1::Builder::new()
        // `Activity` knows more about the connection than the timeout of hyper, which does not tell an idle connection
        // from a slow head.
        .header_read_timeout(None)
        // With this option, a caller that has closed its sending side (such as `nc -N`) still gets its answers.
        .half_close(true)
        .max_header_size(limits::HEADER_BYTES_MAX)
        .max_buf_size(limits::CONNECTION_BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let end = {
        let mut late = pin!(sleep(timeouts.idle));
        let serving = poll_fn(|context| {
            if let Poll::Ready(ended) = connection.poll_without_shutdown(context) {
                log_end(ended);
                return Poll::Ready(End::Done);
            }
            let Some(deadline) = place.activity.deadline(&timeouts) else { return Poll::Pending };
            late.as_mut().reset(deadline);
            late.as_mut().poll(context).map(|()| End::Done)
        });
        tokio::select! {
            end = serving => end,
            _ = stop.wait_for(|&stopped| stopped) => End::Stop,
            () = place.gives_way.notified() => End::GiveWay,
        }
    };
    if end == End::Stop {
        Pin::new(&mut connection).graceful_shutdown();
        log_end(poll_fn(|context| connection.poll_without_shutdown(context)).await);
    }
    let stream = connection.into_parts().io.into_inner().stream;
    if end == End::GiveWay {
        close_now(stream).await;
    } else {
        linger(stream).await;
    }
}

/// Why a connection is closed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The caller has closed it, or let the time for a request pass.
    Done,
    /// The server stops. The answer in progress is finished.
    Stop,
    /// Another connection needs its place.
    GiveWay,
}

/// Logs a connection error at level debug only, because such an error is the caller's fault.
fn log_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        log::debug!("http: connection ended: {error}");
    }
}

/// What is known about the other end of a connection.
#[derive(Clone)]
struct Caller {
    peer: IpAddr,
    port: u16,
    /// Address of this machine on which the connection arrived.
    local: Option<IpAddr>,
    is_tls: bool,
    place: Arc<PlaceState>,
}

/// Returns who holds the place of a viewer. Returns `None` for an exempt address, such as that of a reverse proxy,
/// which passes on the offers of many viewers.
fn place_holder(peer: IpAddr, login: Option<VerifiedLogin>, exempt: &Exempt) -> Option<PlaceHolder> {
    let address = || Some(group(peer)).filter(|_| !exempt.contains(peer.to_canonical()));
    login.map(|login| PlaceHolder::Login(login.id())).or_else(|| address().map(PlaceHolder::Address))
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
    async fn answer(&self, request: Request<Incoming>, caller: &Caller) -> hyper::Response<AnswerBody> {
        let (parts, body) = request.into_parts();
        let (head, answer) = match head_of(&parts) {
            Ok(head) => (head, self.respond(&head, caller, body).await),
            Err(response) => (Head::default(), Err(response)),
        };
        let (response, stream) = answer.unwrap_or_else(|response| (response, None));
        if let Some(line) = &response.log_line {
            self.refusals.warn(line);
        }
        into_hyper(routes::finish(&self.config.policy, &head, response), stream)
    }

    /// Checks a request before its body is read.
    ///
    /// # Errors
    /// Returns the response if the request is refused or needs no route, such as a redirect to TLS.
    fn admit(&self, head: &Head<'_>, caller: &Caller) -> Result<Admission, Response> {
        let HttpConfig { policy, tls, access, .. } = &self.config;
        if tls.is_some() && !caller.is_tls {
            routes::admit_host(policy, head)?;
            return Err(login::redirect_to_tls(head));
        }
        let route = routes::admit(policy, head).map_err(|refusal| self.with_links(head, caller, refusal))?;
        let checked = match access {
            Some(access) if !route.is_open => access.check(head, caller.peer, Moment::now()).map(Some),
            _ => Ok(Some(None)),
        };
        let checked = match checked {
            Err(error) if error.code == "token_required" && whep::is_change(head) => None,
            checked => checked.map_err(login::refusal)?,
        };
        let (login, is_known) = (checked.flatten(), checked.is_some());
        if let Some(login) = login {
            self.places.assign(&caller.place, login.id()).map_err(|_| login::too_many_connections())?;
        }
        Ok(Admission { route, login, is_known })
    }

    /// Adds the STUN and TURN servers to the answer to OPTIONS of a WHEP endpoint. They may have credentials, so a
    /// server with a token tells them only to those who have it.
    fn with_links(&self, head: &Head<'_>, caller: &Caller, response: Response) -> Response {
        let HttpConfig { policy, access, .. } = &self.config;
        let is_known =
            || access.as_ref().is_none_or(|access| access.check(head, caller.peer, Moment::now()).is_ok());
        if whep::may_have_links(head, &response) && !policy.whep.ice_servers.is_empty() && is_known() {
            return whep::with_links(&policy.whep, response);
        }
        response
    }

    async fn respond(&self, head: &Head<'_>, caller: &Caller, body: Incoming) -> Result<Answer, Response> {
        let Admission { route, login, is_known } = self.admit(head, caller)?;
        let body = self.read_body(route.body_bytes_max, body, caller).await?;
        let action = match route.act(head, &body) {
            Action::Whep(request) if !is_known => Action::Whep(request.without_tags()),
            action => action,
        };
        drop(body);
        if let Some(response) = self.session(&action, head, caller, login) {
            return Ok((response, None));
        }
        match timeout(self.config.timeouts.backend, self.perform(head, action, caller, login)).await {
            Ok(Err(error)) if !is_known => Err(login::refusal(whep::token_required(error))),
            Ok(answer) => Ok(answer?),
            Err(_) => Err(ApiError::busy("the server did not answer in time: try again", 1).into()),
        }
    }

    /// Reads the body within its limits of bytes and time. If Content-Length is too large, the request is refused
    /// before the body is read.
    async fn read_body(&self, bytes_max: usize, body: Incoming, caller: &Caller) -> Result<Bytes, Response> {
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
        caller: &Caller,
        login: Option<VerifiedLogin>,
    ) -> Option<Response> {
        let access = self.config.access.as_ref()?;
        let cookies = match action {
            Action::Session => {
                login.and_then(|login| access.renew(login, Moment::now())).into_iter().collect()
            }
            Action::LogOut => access.log_out(head.cookie, Moment::now()).to_vec(),
            Action::LogIn(LogIn { token, is_framed }) => {
                let kind = self.cookie_kind(head, caller.is_tls, *is_framed);
                match access.log_in(token, caller.peer, kind, Moment::now()) {
                    Ok(cookie) => vec![cookie],
                    Err(error) => return Some(login::refusal(error)),
                }
            }
            _ => return None,
        };
        let answer = login::answer(true);
        Some(cookies.into_iter().fold(answer, |answer, cookie| answer.header("set-cookie", cookie)))
    }

    /// Returns the cookie that fits the page which logs in.
    fn cookie_kind(&self, head: &Head<'_>, is_tls: bool, is_framed: bool) -> CookieKind {
        // If a proxy terminates TLS, we see plain HTTP although the browser uses https. The cookie must fit the
        // browser's scheme, so we also count the request as TLS if its `Origin` header starts with `https://`.
        let is_tls = is_tls || head.origin.is_some_and(|origin| origin.starts_with("https://"));
        let policy = &self.config.policy;
        match is_tls {
            false => CookieKind::Plain,
            true if policy.is_foreign_friend(head) || (is_framed && !policy.allow_origin.is_empty()) => {
                CookieKind::Framed
            }
            true => CookieKind::Secure,
        }
    }

    /// Runs the action. If the action starts a session, a stream of events or video, or a download with `follow`, that
    /// ends together with `login`.
    async fn perform(
        &self,
        head: &Head<'_>,
        action: Action,
        caller: &Caller,
        login: Option<VerifiedLogin>,
    ) -> Result<Answer, ApiError> {
        let access = self.config.access.as_ref();
        let login_end = access.zip(login).map(|(access, login)| login_end(Arc::clone(access), login));
        match action {
            Action::Download { name, follow, until } => {
                let HttpConfig { shares, exempt, .. } = &self.config;
                let share = shares.downloads.take(caller.peer, exempt, 1).map_err(download::refusal)?;
                let file = self.open_recording(head, name, follow, until).await?;
                let (response, body) = download::answer(head, file, follow, login_end, share);
                Ok((response, body.map(|body| Either::Right(Either::Left(body)))))
            }
            Action::Live(format) => {
                caller.place.activity.begin_live();
                let origin = LiveOrigin {
                    holder: place_holder(caller.peer, login, &self.config.exempt),
                    remote: SocketAddr::new(caller.peer.to_canonical(), caller.port),
                    must_close: Arc::clone(&caller.place.gives_way),
                };
                let end = live::end(login_end, self.stop.clone());
                let (response, body) = live::answer(self.backend.as_ref(), head, format, origin, end).await?;
                Ok((response, body.map(|body| Either::Right(Either::Right(body)))))
            }
            Action::Events => {
                let (response, body) = self.feed.subscribe(head.method != "HEAD", login_end).await?;
                Ok((response, body.map(Either::Left)))
            }
            // A prepared response is short, or a file of the page, whose bytes are not copied.
            Action::Respond(response) => Ok((response, None)),
            action => {
                let origin = OfferOrigin {
                    local: caller.local,
                    holder: place_holder(caller.peer, login, &self.config.exempt),
                    login_end,
                };
                let response = match action {
                    Action::Whep(request) => {
                        whep::perform(self.backend.as_ref(), request, origin, &self.config.policy.whep)
                            .await?
                    }
                    action => perform(self.backend.as_ref(), action, origin).await?,
                };
                Ok((self.count_answer(response, caller)?, None))
            }
        }
    }

    /// Opens a recording for a download. A range that begins where a player looks for the index of a growing recording
    /// is read from its finished form.
    async fn open_recording(
        &self,
        head: &Head<'_>,
        name: String,
        follow: bool,
        until: Option<u64>,
    ) -> Result<Arc<dyn RecordingFile>, ApiError> {
        if follow {
            return self.backend.open_recording(name, None).await;
        }
        if until.is_none()
            && let Some(offset) = download::index_offset(head)
            && let Ok(file) = self.backend.open_recording(name.clone(), Some(offset)).await
        {
            return Ok(file);
        }
        self.backend.open_recording(name, until).await
    }

    /// Counts the body of a response until it is sent.
    ///
    /// # Errors
    /// Returns 503 if callers do not read their answers, so that too many bytes wait.
    fn count_answer(&self, response: Response, caller: &Caller) -> Result<Response, ApiError> {
        let share = self.count_message(response.body.len(), caller)?;
        Ok(Response { body: held(response.body, share), ..response })
    }

    /// Counts the bytes of a body. Returns `None` for a short body.
    fn count_message(&self, bytes: usize, caller: &Caller) -> Result<Option<Share>, ApiError> {
        if bytes <= limits::MESSAGE_BYTES_SHORT {
            return Ok(None);
        }
        let HttpConfig { shares, exempt, .. } = &self.config;
        let share = shares.message_bytes.take(caller.peer, exempt, bytes);
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

/// A request that may continue.
struct Admission {
    route: &'static Route,
    login: Option<VerifiedLogin>,
    /// False for a request without the token that may only bring the candidates of a session.
    is_known: bool,
}

/// A response, and a body stream if the body is produced while it is sent.
type Answer = (Response, Option<StreamedBody>);
