//! The HTTP endpoint for this machine only (`--control`). It serves the same routes as [`public`](super::public), plus
//! profiles and traces, with may_minihttp on a loopback address. It is meant for curl, Prometheus and `go tool pprof`;
//! browsers use the public endpoint.
//!
//! ```text
//!  coroutine: head ─► guard ─► body ─┬─► tokio task: Backend ──────┬─ channel ─► coroutine: answer
//!                                    └─► thread: inspection ───────┘
//! ```
//!
//! A coroutine parses a request and waits for the answer. Code that blocks or needs a large stack runs on other
//! threads. No coroutine is ever cancelled, because the cancellation would be a panic. The endpoint therefore ends only
//! with the process.

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

use super::backend::{ApiError, Backend, Inspection, OfferOrigin};
use super::debug;
use super::local_guard::{self, Connection, GrowthLimit, Guard};
use super::lock;
use super::perform::perform;
use super::request::Head;
use super::response::Response;
use super::routes::{self, Policy, Route};
use crate::base::limits;

/// What the endpoint needs from the program.
pub struct LocalConfig {
    /// Loopback address to listen at. Port 0 selects any free port.
    pub address: SocketAddr,
    /// Answers requests and takes profiles. After the backend is dropped, requests are answered with 503.
    pub backend: Weak<dyn Backend>,
    /// Runs the backend's futures.
    pub runtime: Handle,
}

/// Starts the threads of the library `may`, and makes a first coroutine. The library then also installs handlers of
/// SIGSEGV and SIGBUS. The caller must install its own handlers after this call, and check before it that the system
/// permits `limits::LOCAL_WORKERS` threads and one more: the library panics otherwise.
pub fn start_library() {
    let library = may::config();
    library.set_workers(limits::LOCAL_WORKERS);
    library.set_stack_size(limits::LOCAL_STACK_BYTES / size_of::<usize>());
    library.set_pool_capacity(limits::LOCAL_COROUTINE_POOL);
    library.set_worker_pin(false);
    library.set_timeout_ns(SLOW_POLL_NS);
    let first = may::go!(|| {});
    // The result is ignored: an empty coroutine cannot panic.
    let _ = first.join();
}

/// Starts the endpoint on its own threads, and returns the address at which it listens. The endpoint ends only with the
/// process. [`start_library`] must have been called.
///
/// # Errors
/// Returns an error if the address is not a loopback address or is in use, or if no thread can be started.
pub fn start(config: LocalConfig) -> io::Result<SocketAddr> {
    if !config.address.ip().is_loopback() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a loopback address"));
    }
    // This bind fails if the address is in use. The library `may` binds with SO_REUSEPORT, so without this check a
    // second server would start and get every other connection.
    let address = TcpListener::bind(config.address)?.local_addr()?;
    if !local_guard::is_possible() {
        log::warn!(
            "control {address}: the kernel refuses pidfd_getfd, so connections that never finish a request stay open"
        );
    }
    let shared = Arc::new(Shared { config, guard: Guard::default(), inspections: AtomicU32::new(0) });
    let guard = shared.guard.clone();
    let guarding = std::thread::Builder::new()
        .name("control-watch".to_owned())
        .stack_size(limits::HELPER_STACK_BYTES)
        .spawn(move || enforce_limits(&guard))?;
    let guarding = guarding.thread().clone();
    // Dropping the handle only detaches the coroutine, which continues to run.
    drop(Factory { shared, guarding }.start(address)?);
    Ok(address)
}

/// Nanoseconds for which the library's threads sleep while nothing happens.
const SLOW_POLL_NS: u64 = 500_000_000;

/// Closes connections on which a request takes too long to arrive. If incomplete requests use too much memory, closes
/// all connections that wait for a request. Never returns.
fn enforce_limits(guard: &Guard) {
    let mut growth = GrowthLimit::default();
    let mut is_request_pending = false;
    loop {
        // A new connection unparks this thread before the timeout.
        std::thread::park_timeout(if is_request_pending {
            limits::LOCAL_MEMORY_INTERVAL
        } else {
            limits::LOCAL_WATCH_INTERVAL
        });
        is_request_pending = guard.close_late(now());
        if !is_request_pending {
            growth.reset();
        } else if local_guard::private_bytes().is_some_and(|bytes| growth.is_exceeded(bytes)) {
            log::warn!("control: incomplete requests use too much memory: their connections are closed");
            guard.close_waiting();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "an edge with its own threads: measures how long callers take")]
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
    /// The thread that enforces the limits.
    guarding: std::thread::Thread,
}

impl HttpServiceFactory for Factory {
    type Service = Service;

    /// Makes the service of a new connection. The library passes the descriptor of the connection's socket as `id`.
    fn new_service(&self, id: usize) -> Service {
        let descriptor = RawFd::try_from(id).unwrap_or(-1);
        let connection = self.shared.guard.admit(descriptor, now());
        self.guarding.unpark();
        Service { shared: Arc::clone(&self.shared), connection, is_over: false }
    }
}

/// Serves the requests of one connection, one after another.
struct Service {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    /// True after the last answer was sent. Bytes that arrive after that are not read as a request.
    is_over: bool,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shared.guard.remove(&self.connection);
    }
}

impl HttpService for Service {
    fn call(&mut self, request: Request, answer: &mut may_minihttp::Response) -> io::Result<()> {
        if self.is_over || self.connection.is_spent() {
            self.connection.close();
            return Ok(());
        }
        let (response, is_framed) = match LocalRequest::read(request) {
            Ok(request) => {
                self.connection.begin();
                (self.shared.respond(request), true)
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
        write_response(if is_last { response.closing() } else { response }, answer);
        Ok(())
    }
}

/// A request, copied out of the library's buffer.
struct LocalRequest {
    target: Result<Target, Response>,
    path: String,
    body: Vec<u8>,
}

enum Target {
    Route(&'static Route),
    Inspection(Inspection),
}

impl LocalRequest {
    /// Reads the head and the body of a request. After an error the connection must be closed, because the start of the
    /// next request is unknown.
    fn read(request: Request) -> Result<LocalRequest, Response> {
        if request.path().len() > limits::LOCAL_TARGET_BYTES_MAX {
            return Err(Response::error(414, "target_too_long", "the path with its query is too long"));
        }
        let (path, query) = match request.path().split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (request.path(), None),
        };
        let head = Head {
            method: request.method(),
            path,
            query,
            host: header(&request, "host")?,
            origin: header(&request, "origin")?,
            requested_method: header(&request, "access-control-request-method")?,
            ..Head::default()
        };
        let target = find_target(&head, header(&request, "sec-fetch-site")?);
        let bytes_max = match target {
            Ok(Target::Route(route)) => route.body_bytes_max,
            _ => limits::COMMAND_BYTES_MAX,
        };
        let headers = request.headers().iter().map(|header| (header.name, header.value));
        let mut body = vec![0; local_guard::body_bytes(headers, bytes_max)?];
        let path = path.to_owned();
        if !body.is_empty() {
            let incomplete = |_| Response::error(400, "bad_body", "the body is shorter than Content-Length");
            request.body().read_exact(&mut body).map_err(incomplete)?;
        }
        Ok(LocalRequest { target, path, body })
    }
}

/// Returns what the request is for, or the response that refuses it. `site` is the value of `Sec-Fetch-Site`, in which
/// a browser states how the requesting page is related to this server.
fn find_target(head: &Head<'_>, site: Option<&str>) -> Result<Target, Response> {
    if !local_guard::is_this_machine(head.host) {
        return Err(Response::error(
            403,
            "host_refused",
            "this endpoint serves this machine only: use localhost or a loopback address",
        ));
    }
    // Pages of other sites are refused even for a GET, because a profile is expensive. A page can send a GET with an
    // <img> element, although it cannot read the answer.
    if matches!(site, Some("cross-site" | "same-site")) {
        return Err(Response::error(403, "origin_refused", "pages of other sites may not use this endpoint"));
    }
    if head.method == "HEAD" {
        return Err(Response::error(
            405,
            "method_not_allowed",
            "this endpoint does not answer HEAD: use the public endpoint (--http)",
        )
        .header("allow", "GET, POST, DELETE"));
    }
    if let Some(inspection) = debug::inspection(head.method, head.path, head.query) {
        return inspection.map(Target::Inspection);
    }
    routes::admit(&Policy::default(), head).map(Target::Route)
}

/// Returns the header as text, or `None` if it is missing. A header that was sent twice or is not text is refused with
/// 400.
fn header<'a>(request: &'a Request, name: &str) -> Result<Option<&'a str>, Response> {
    let mut values = request.headers().iter().filter(|header| header.name.eq_ignore_ascii_case(name));
    let value = values.next().map(|header| std::str::from_utf8(header.value));
    match (value.transpose(), values.next()) {
        (Ok(value), None) => Ok(value),
        _ => Err(Response::error(
            400,
            "bad_header",
            &format!("the header {name} was sent twice or is not text"),
        )),
    }
}

impl Shared {
    /// Returns the response to a request. Calls of the backend run on another thread, and this coroutine waits for the
    /// result.
    fn respond(&self, request: LocalRequest) -> Response {
        match request.target {
            Err(response) => response,
            Ok(Target::Inspection(what)) => self.inspect(what),
            Ok(Target::Route(route)) => self.call_backend(route, request.path, request.body),
        }
    }

    fn call_backend(&self, route: &'static Route, path: String, body: Vec<u8>) -> Response {
        let Some(backend) = self.config.backend.upgrade() else { return stopping() };
        let (reply, answer) = mpsc::channel();
        // If the runtime drops the task, the sender `reply` is dropped too, which ends the wait below.
        drop(self.config.runtime.spawn(async move {
            let head = Head { path: &path, ..Head::default() };
            let performed = perform(backend.as_ref(), route.act(&head, &body), OfferOrigin::default()).await;
            let response = performed.unwrap_or_else(Response::from);
            // This send fails if the wait below has timed out, so the error is ignored.
            let _ = reply.send(routes::finish(&Policy::default(), &head, response));
        }));
        answer
            .recv_timeout(limits::BACKEND_TIMEOUT)
            .unwrap_or_else(|_| busy("the server did not answer in time"))
    }

    fn inspect(&self, what: Inspection) -> Response {
        let Some(backend) = self.config.backend.upgrade() else { return stopping() };
        let running = self.inspections.fetch_add(1, Ordering::Relaxed);
        let permit = InspectionPermit(&self.inspections);
        if running >= limits::INSPECTIONS_MAX {
            return busy("too many profiles are being taken: try again later");
        }
        let (reply, answer) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("inspection".to_owned())
            .stack_size(limits::INSPECTION_STACK_BYTES)
            .spawn(move || {
                // This send fails if the wait below has timed out, so the error is ignored.
                let _ = reply.send(debug::answer(what, backend.inspect(what)));
            });
        if let Err(error) = thread {
            return busy(&format!("the system cannot start a thread for the profile: {error}"));
        }
        let timeout_after = Duration::from_secs(u64::from(what.seconds())) + limits::INSPECTION_GRACE;
        let response =
            answer.recv_timeout(timeout_after).unwrap_or_else(|_| busy("the profile did not finish in time"));
        drop(permit);
        response
    }
}

/// Counts one running inspection until it is dropped.
struct InspectionPermit<'a>(&'a AtomicU32);

impl Drop for InspectionPermit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn busy(message: &str) -> Response {
    ApiError::busy(message, 1).into()
}

fn stopping() -> Response {
    Response::error(503, "stopping", "the server is shutting down")
}

/// Passes a response to the library, which adds a Content-Length header.
fn write_response(response: Response, answer: &mut may_minihttp::Response) {
    // A 204 is sent as 200: the library always sends a Content-Length, which a 204 must not have.
    let status = if response.status == 204 { 200 } else { response.status };
    answer.status_code(usize::from(status), reason(status));
    let content_type = response.content_type.map(|kind| ("content-type", kind.to_owned()));
    let lines = content_type.into_iter().chain(response.headers);
    for line in lines.filter_map(|(name, value)| interned(name, &value)).take(HEADERS_MAX) {
        answer.header(line);
    }
    answer.body_vec(response.body.to_vec());
}

/// Largest number of headers to pass to the library. The library panics above 16 headers and adds some itself.
const HEADERS_MAX: usize = 14; // local bound: set by the library

/// Returns a header line with the static lifetime that the library requires. Each different line is allocated once and
/// never freed. There are few different lines. Returns `None` for a new line above `limits::LOCAL_HEADER_LINES_MAX`;
/// the header is then omitted.
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
