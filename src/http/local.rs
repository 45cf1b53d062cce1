//! The HTTP endpoint for this machine only: the same routes, profiles and traces, by may_minihttp on a loopback
//! address. For curl, Prometheus and `go tool pprof`; a browser belongs on [`public`](super::public).
//!
//! ```text
//!  coroutine: head ─► guard ─► body ─┬─► tokio task: Backend ──────┬─ channel ─► coroutine: answer
//!                                    └─► thread: Diagnostics ──────┘
//! ```
//!
//! A coroutine parses and waits; what blocks or needs stack runs elsewhere. No coroutine is ever cancelled (that
//! is a panic): the endpoint ends with the process.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use may::sync::mpsc;
use may_minihttp::{HttpService, HttpServiceFactory, Request};
use tokio::runtime::Handle;

use super::backend::{ApiError, Backend};
use super::debug::{self, Diagnostics, Inspection};
use super::local_guard::{self, Connection, Guard, MemoryWatch};
use super::login;
use super::routes::{self, Action, Endpoint, Head, Policy, Response};
use super::{events, lock};
use crate::base::limits;

/// What stands behind the endpoint.
pub struct LocalConfig {
    /// Address to listen at; loopback. Port 0: any.
    pub address: SocketAddr,
    /// The program; once it is dropped the answer is 503.
    pub backend: Weak<dyn Backend>,
    /// Takes profiles.
    pub diagnostics: Weak<dyn Diagnostics>,
    /// Runs the backend's futures.
    pub runtime: Handle,
}

/// Starts the endpoint on threads of its own; gives its address. It ends with the process.
///
/// # Errors
/// The address is not loopback, is in use, or threads are not to be had.
pub fn start(config: LocalConfig) -> io::Result<SocketAddr> {
    if !config.address.ip().is_loopback() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a loopback address"));
    }
    // may binds with SO_REUSEPORT, which would let a second server start and take every other connection.
    let address = TcpListener::bind(config.address)?.local_addr()?;
    let library = may::config();
    library.set_workers(limits::LOCAL_WORKERS);
    library.set_stack_size(limits::LOCAL_STACK_BYTES / size_of::<usize>());
    library.set_pool_capacity(limits::LOCAL_COROUTINE_POOL);
    library.set_worker_pin(false);
    library.set_timeout_ns(SLOW_POLL_NS);
    if !local_guard::is_possible() {
        log::warn!("control {address}: pidfd_getfd is refused: callers that never finish are not hung up on");
    }
    let shared = Arc::new(Shared { config, guard: Guard::default(), inspections: AtomicU32::new(0) });
    let guard = shared.guard.clone();
    let watching = std::thread::Builder::new()
        .name("control-watch".to_owned())
        .stack_size(limits::HELPER_STACK_BYTES)
        .spawn(move || watch(&guard))?;
    let watching = watching.thread().clone();
    // Dropping a coroutine's handle detaches it.
    drop(Factory { shared, watching }.start(address)?);
    Ok(address)
}

/// How long its threads sleep when nothing happens.
const SLOW_POLL_NS: u64 = 500_000_000;

fn watch(guard: &Guard) {
    let mut memory = MemoryWatch::default();
    let mut is_waited_for = false;
    loop {
        // Unparked with each connection.
        std::thread::park_timeout(if is_waited_for {
            limits::LOCAL_MEMORY_INTERVAL
        } else {
            limits::LOCAL_WATCH_INTERVAL
        });
        is_waited_for = guard.close_late(now());
        if !is_waited_for {
            memory.rest();
        } else if local_guard::private_bytes().is_some_and(|bytes| memory.is_too_much(bytes)) {
            log::warn!("control: requests without an end take the memory: those callers are hung up on");
            guard.close_waiting();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "an edge with threads of its own: how long callers take")]
fn now() -> Instant {
    Instant::now()
}

struct Shared {
    config: LocalConfig,
    guard: Guard,
    inspections: AtomicU32,
}

struct Factory {
    shared: Arc<Shared>,
    /// The thread that watches over connections.
    watching: std::thread::Thread,
}

impl HttpServiceFactory for Factory {
    type Service = Service;

    /// The library numbers a connection by its descriptor.
    fn new_service(&self, id: usize) -> Service {
        let descriptor = RawFd::try_from(id).unwrap_or(-1);
        let connection = self.shared.guard.admit(descriptor, now());
        self.watching.unpark();
        Service { shared: Arc::clone(&self.shared), connection, is_over: false }
    }
}

/// One connection.
struct Service {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    /// Nothing after the last answer is a request.
    is_over: bool,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shared.guard.forget(&self.connection);
    }
}

impl HttpService for Service {
    fn call(&mut self, request: Request, answer: &mut may_minihttp::Response) -> io::Result<()> {
        if self.is_over || self.connection.is_spent() {
            self.connection.close();
            return Ok(());
        }
        let (response, is_framed) = match Asked::read(request) {
            Ok(asked) => {
                self.connection.begin();
                (self.shared.respond(asked), true)
            }
            Err(response) => (response, false),
        };
        if !is_framed {
            self.is_over = true;
            if self.connection.refuse(&response) {
                return Ok(());
            }
        }
        let is_last = self.connection.end(response.body.len(), now()) || !is_framed;
        give(if is_last { response.closing() } else { response }, answer);
        Ok(())
    }
}

/// A request, copied out of the library's buffer.
struct Asked {
    method: String,
    path: String,
    query: Option<String>,
    host: Option<String>,
    origin: Option<String>,
    /// `Sec-Fetch-Site`: how the page that asks stands to us, in its browser's words.
    site: Option<String>,
    requested_method: Option<String>,
    route: Result<Wanted, Response>,
    body: Vec<u8>,
}

/// What it is for.
#[derive(Clone, Copy)]
enum Wanted {
    Endpoint(Endpoint),
    Inspection(Inspection),
}

impl Asked {
    /// Reads head and body. The error ends the connection: where the next request begins is not known.
    fn read(request: Request) -> Result<Asked, Response> {
        if request.path().len() > limits::LOCAL_TARGET_BYTES_MAX {
            return Err(Response::error(414, "target_too_long", "the path is too long"));
        }
        let (path, query) = match request.path().split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (request.path(), None),
        };
        let mut asked = Asked {
            method: request.method().to_owned(),
            path: path.to_owned(),
            query,
            host: header(&request, "host")?,
            origin: header(&request, "origin")?,
            site: header(&request, "sec-fetch-site")?,
            requested_method: header(&request, "access-control-request-method")?,
            route: Err(Response::empty(500)),
            body: Vec::new(),
        };
        asked.route = asked.find_route();
        let bytes_max = match asked.route {
            Ok(Wanted::Endpoint(endpoint)) => endpoint.body_bytes_max(),
            _ => limits::COMMAND_BYTES_MAX,
        };
        let headers = request.headers().iter().map(|header| (header.name, header.value));
        let bytes = local_guard::body_bytes(headers, bytes_max)?;
        if bytes > 0 {
            asked.body = vec![0; bytes];
            let broken = |_| Response::error(400, "bad_body", "the body is broken off");
            request.body().read_exact(&mut asked.body).map_err(broken)?;
        }
        Ok(asked)
    }

    fn find_route(&self) -> Result<Wanted, Response> {
        if !local_guard::is_this_machine(self.host.as_deref()) {
            return Err(Response::error(403, "host_refused", "this endpoint serves this machine only"));
        }
        // Reading has a price here: profiles. A picture that is a profile needs no answer to cost one.
        if matches!(self.site.as_deref(), Some("cross-site" | "same-site")) {
            return Err(Response::error(403, "origin_refused", "this endpoint is for no other page"));
        }
        if self.method == "HEAD" {
            return Err(Response::error(405, "method_not_allowed", "HEAD is for the public endpoint")
                .header("allow", "GET, POST, DELETE"));
        }
        if let Some(inspection) = debug::inspection(&self.method, &self.path, self.query.as_deref()) {
            return inspection.map(Wanted::Inspection);
        }
        routes::admit(&Policy::default(), &self.head()).map(Wanted::Endpoint)
    }

    fn head(&self) -> Head<'_> {
        Head {
            method: &self.method,
            path: &self.path,
            query: self.query.as_deref(),
            host: self.host.as_deref(),
            origin: self.origin.as_deref(),
            requested_method: self.requested_method.as_deref(),
            ..Head::default()
        }
    }
}

/// A header that may come once, as text.
fn header(request: &Request, name: &str) -> Result<Option<String>, Response> {
    let mut values = request.headers().iter().filter(|header| header.name.eq_ignore_ascii_case(name));
    let value = values.next().map(|header| std::str::from_utf8(header.value).map(str::to_owned));
    match (value.transpose(), values.next()) {
        (Ok(value), None) => Ok(value),
        _ => Err(Response::error(400, "bad_header", &format!("header {name}: twice, or not text"))),
    }
}

impl Shared {
    /// Has it answered elsewhere and waits.
    fn respond(&self, asked: Asked) -> Response {
        match asked.route {
            Err(response) => response,
            Ok(Wanted::Inspection(what)) => self.inspect(what),
            Ok(Wanted::Endpoint(endpoint)) => self.ask_backend(endpoint, asked),
        }
    }

    fn ask_backend(&self, endpoint: Endpoint, asked: Asked) -> Response {
        let Some(backend) = self.config.backend.upgrade() else { return stopping() };
        let (reply, answer) = mpsc::channel();
        // A task that the runtime drops takes its sender along.
        drop(self.config.runtime.spawn(async move {
            let action = routes::act(endpoint, &asked.head(), &asked.body);
            let response = perform(backend, action).await;
            // The asking side has given up.
            let _ = reply.send(routes::finish(&Policy::default(), &asked.head(), response));
        }));
        answer.recv_timeout(limits::BACKEND_TIMEOUT).unwrap_or_else(|_| busy("the server did not get to it"))
    }

    fn inspect(&self, what: Inspection) -> Response {
        let Some(diagnostics) = self.config.diagnostics.upgrade() else { return stopping() };
        let running = self.inspections.fetch_add(1, Ordering::Relaxed);
        let place = Place(&self.inspections);
        if running >= limits::INSPECTIONS_MAX {
            return busy("enough profiles are being taken");
        }
        let (reply, answer) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("inspection".to_owned())
            .stack_size(limits::INSPECTION_STACK_BYTES)
            .spawn(move || {
                // The asking side has given up.
                let _ = reply.send(debug::answer(what, diagnostics.inspect(what)));
            });
        if let Err(error) = thread {
            return busy(&format!("no thread to be had: {error}"));
        }
        let patience = Duration::from_secs(u64::from(what.seconds())) + limits::INSPECTION_GRACE;
        let response = answer.recv_timeout(patience).unwrap_or_else(|_| busy("the profile did not come"));
        drop(place);
        response
    }
}

/// A place among the inspections, given back on drop.
struct Place<'a>(&'a AtomicU32);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn perform(backend: Arc<dyn Backend>, action: Action) -> Response {
    match action {
        Action::Respond(response) => response,
        Action::Offer { sdp } => routes::answer_offer(backend.offer(&sdp, None).await),
        Action::Viewers => routes::answer_viewers(&backend.viewers().await),
        Action::Status => Response::json(200, &events::status(backend.as_ref()).await),
        Action::Events => Response::error(404, "not_here", "events are told by the public endpoint (--http)"),
        Action::Ready => routes::answer_ready(backend.ready()),
        // Who may log in to this machine needs no token here.
        Action::Session | Action::LogIn { .. } | Action::LogOut => login::answer(false),
        Action::Metrics => routes::answer_metrics(backend.metrics()),
        Action::Recording(command) => routes::answer_recording(backend.recording(command).await),
        Action::Download { .. } => {
            Response::error(404, "not_here", "recordings are downloaded from the public endpoint (--http)")
        }
    }
}

fn busy(message: &str) -> Response {
    ApiError { status: 503, code: "busy", message: message.to_owned(), retry_after_s: Some(1) }.into()
}

fn stopping() -> Response {
    Response::error(503, "stopping", "the server is stopping")
}

/// Hands a response to the library, which writes a Content-Length beside it.
fn give(response: Response, answer: &mut may_minihttp::Response) {
    // 204 and 304 may not carry the Content-Length it always writes.
    let status = if response.status == 204 { 200 } else { response.status };
    answer.status_code(usize::from(status), reason(status));
    let content_type = response.content_type.map(|kind| ("content-type", kind.to_owned()));
    let lines = content_type.into_iter().chain(response.headers);
    for line in lines.filter_map(|(name, value)| interned(name, &value)).take(HEADERS_MAX) {
        answer.header(line);
    }
    answer.body_vec(response.body.to_vec());
}

/// The library has room for 16 and panics beyond.
const HEADERS_MAX: usize = 14;

/// A header line that lives as long as the library wants: forever. Few different ones are ever answered; beyond
/// the bound a line is left out.
fn interned(name: &str, value: &str) -> Option<&'static str> {
    static LINES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let line = format!("{name}: {value}");
    let mut lines = lock(&LINES);
    if let Some(known) = lines.get(line.as_str()) {
        return Some(known);
    }
    if lines.len() >= limits::LOCAL_HEADER_LINES_MAX {
        return None;
    }
    let line: &'static str = Box::leak(line.into_boxed_str());
    lines.insert(line);
    Some(line)
}

fn reason(status: u16) -> &'static str {
    let status = hyper::StatusCode::from_u16(status).ok();
    status.and_then(|status| status.canonical_reason()).unwrap_or("Status")
}
