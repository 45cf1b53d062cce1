//! Starts the threads of the server in the right order, handles the signals, and stops the threads. Only `main` uses
//! this module.

pub(crate) mod security;
pub(crate) mod sockets;

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle as JoinTask;

use crate::app::addresses::Addresses;
use crate::app::backend::AppBackend;
use crate::app::bitrate;
use crate::app::detections::{self, DetectionHub};
use crate::app::notify::Messenger;
use crate::app::publish::Publisher;
use crate::app::publish::board::PublishBoard;
use crate::app::record_on;
use crate::app::server::sockets::Sockets;
use crate::app::service::{self, Notifier, Supervisor};
use crate::app::threads_permitted;
use crate::app::viewer_places::ViewerPlaces;
use crate::base::{clock, limits, logging};
use crate::camera::detections::Results;
use crate::camera::waiter::{self, CameraWaiter, WaiterHandoff};
use crate::camera::{Camera, Layout, faults};
use crate::config::{self, Config};
use crate::http::local::LocalConfig;
use crate::http::{self, Backend, HttpConfig, StreamNames};
use crate::live::Live;
use crate::recorder::{self, RecorderConfig, RecorderHandle};
use crate::session::{ContextError, SessionConfig, SessionContext};
use crate::simulator::{self, DetectorConfig, SimulatorConfig};
use crate::uring::SocketError;
use crate::worker::{WorkerError, Workers, WorkersConfig};

/// Reasons why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The HTTP address is not available.
    #[error(
        "cannot listen on http {address}: {source}; is another server running? choose another with {option}"
    )]
    Http {
        /// The configured address.
        address: SocketAddr,
        /// The option that sets the address.
        option: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// The UDP address is not available.
    #[error("cannot open udp {address}: {source} (--udp chooses another)")]
    Udp {
        /// The configured address.
        address: SocketAddr,
        /// The kernel's error.
        source: SocketError,
    },
    /// The control address is not available.
    #[error(
        "cannot serve control at {address}: {source}; is another server running? choose another with --control, or --control off"
    )]
    Control {
        /// The configured address.
        address: SocketAddr,
        /// The kernel's error.
        source: io::Error,
    },
    /// The TLS certificate is not usable.
    #[error("TLS: {0}")]
    Certificate(#[from] http::certificate::CertificateError),
    /// The system does not permit all threads of the server.
    #[error(
        "the system does not permit the {needed} threads that the server needs: {source}; raise TasksMax= of the \
         service unit, the limit of processes of the container, or that of the user (ulimit -u)"
    )]
    Threads {
        /// Number of threads that the server makes at start.
        needed: usize,
        /// The kernel's error.
        source: io::Error,
    },
    /// A thread or a runtime could not start.
    #[error("cannot start {what}: {source}")]
    Start {
        /// The part that did not start.
        what: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// The addresses to announce to viewers are missing, too many or unusable.
    #[error("cannot prepare sessions: {0}")]
    Sessions(#[from] ContextError),
    /// The recorder did not start.
    #[error(transparent)]
    Recorder(#[from] recorder::SpawnError),
    /// A worker did not start.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// Runs the server until SIGINT or SIGTERM.
///
/// # Errors
/// Returns a [`ServerError`] if a part of the server cannot start. If an option can help, the error names it.
pub fn run(config: &Config) -> Result<(), ServerError> {
    log::info!("streaming-server {}: {config}", env!("CARGO_PKG_VERSION"));
    // This must come before `start_library`, which panics if it cannot make a thread.
    let needed = threads_permitted::needed(config, worker_count(config), notify_socket().is_some());
    threads_permitted::check(needed).map_err(|source| ServerError::Threads { needed, source })?;
    if config.control.is_some() {
        http::local::start_library();
    }
    // This must come after `start_library`, whose handlers it replaces, and before the first mapping of the ring.
    faults::install();
    let listener = listen(config.http, "--http")?;
    let http = listener.local_addr().unwrap_or(config.http);
    let plain = config.http_plain.map(|address| listen(address, "--http-plain")).transpose()?;
    let logins = Arc::default();
    let http_config = security::prepare(config, http, &logins)?;
    let Sockets { udp: socket, tcp, address: udp } = sockets::open(config, http)?;
    let mut threads = Threads::default();
    let shm = if config.demo { threads.start_demo()? } else { config.shm.to_string() };
    let camera = Camera::new(&shm, config.wake);
    let addresses = addresses(config, udp, tcp.is_some())?;
    let _join_preparation = JoinPreparation(addresses.latest());
    let workers = Workers::start(WorkersConfig {
        count: worker_count(config),
        camera: camera.clone(),
        socket: Arc::new(socket),
        listener: tcp,
        viewers_max: config.max_viewers + usize::from(config.whip.is_some()),
        camera_wait: threads.start_camera_wait(&camera, config.realtime)?,
    })?;
    let results = Results::default();
    let recorder =
        if config.no_recorder { None } else { Some(threads.start_recorder(&camera, config, &results)?) };
    let live = Live::new(&camera, recorder.clone());
    let segment = detections_segment(config, &shm);
    let detections = Arc::new(DetectionHub::new(segment, camera.clone(), workers.counters.clone(), results));
    let app_backend = Arc::new(AppBackend {
        stream: StreamNames { name: config.name.clone(), title: config.title.clone() },
        camera,
        addresses,
        mailboxes: workers.mailboxes.clone(),
        counters: workers.counters.clone(),
        recorder,
        live,
        detections,
        logins,
        publish: config.whip.as_ref().map(|whip| Arc::new(PublishBoard::new(whip.url.authority()))),
        viewers_max: u32::try_from(config.max_viewers).unwrap_or(u32::MAX),
        places: ViewerPlaces::new(config.max_viewers),
        next_id: AtomicU32::new(1),
        adopted: AtomicU32::new(0),
        started_ns: clock::monotonic_ns(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| ServerError::Start { what: "the HTTP runtime", source })?;
    start_control(config, &app_backend, runtime.handle())?;
    announce(config, http, plain.as_ref(), udp);
    let endpoints = Endpoints { config: http_config, listener, plain };
    serve(config, &runtime, endpoints, &app_backend, workers)
}

/// When this value is dropped, it waits until the background generation of the certificate has ended. Without this
/// wait, aws-lc aborts when the program exits.
struct JoinPreparation(Arc<SessionContext>);

impl Drop for JoinPreparation {
    fn drop(&mut self) {
        self.0.join_preparation();
    }
}

/// Starts the control endpoint if its address is configured. The endpoint holds only a weak reference to the backend:
/// after the backend is dropped, every request is answered with 503.
fn start_control(
    config: &Config,
    app_backend: &Arc<AppBackend>,
    runtime: &Handle,
) -> Result<(), ServerError> {
    let Some(address) = config.control else { return Ok(()) };
    let backend = Arc::downgrade(app_backend) as Weak<dyn Backend>;
    let local = LocalConfig { address, backend, runtime: runtime.clone() };
    let bound = http::local::start(local).map_err(|source| ServerError::Control { address, source })?;
    log::info!("control: http://{bound}/ for this machine, profiles below /debug/pprof/");
    Ok(())
}

/// Sockets and settings of the HTTP endpoints.
struct Endpoints {
    config: HttpConfig,
    listener: TcpListener,
    plain: Option<TcpListener>,
}

impl Endpoints {
    /// Serves HTTP on all listeners until `stopped` becomes true.
    async fn serve(self, backend: Arc<dyn Backend>, stopped: watch::Receiver<bool>) {
        let plain = self.plain.map(|listener| {
            let address = listener.local_addr().unwrap_or(self.config.address);
            let config = HttpConfig { address, tls: None, ..self.config.clone() };
            http::serve(config, listener, Arc::clone(&backend), stopped.clone())
        });
        let main = http::serve(self.config, self.listener, backend, stopped);
        match plain {
            Some(plain) => {
                tokio::join!(main, plain);
            }
            None => main.await,
        }
    }
}

fn listen(address: SocketAddr, option: &'static str) -> Result<TcpListener, ServerError> {
    let listener = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|source| ServerError::Http { address, option, source })
}

fn addresses(config: &Config, udp: SocketAddr, has_tcp: bool) -> Result<Addresses, ServerError> {
    let advertise = config.advertise.iter().map(|address| address.with_port(udp.port())).collect();
    let session_config = SessionConfig { candidates: Vec::new(), advertise, srtp: config.srtp };
    let addresses = Addresses::new(udp, session_config, clock::monotonic_ns())?;
    Ok(if has_tcp { addresses.with_tcp() } else { addresses })
}

/// Returns the name of the detector's segment. The demo's detector writes beside the demo's ring.
fn detections_segment(config: &Config, ring: &str) -> Option<String> {
    let configured = config.detections.clone()?;
    Some(if config.demo { demo_detections(ring) } else { configured })
}

/// Returns the name of the segment beside a demo's ring.
fn demo_detections(ring: &str) -> String {
    format!("{ring}{DEMO_DETECTIONS}")
}

/// Returns the configured number of workers. The default is one worker for up to 64 viewers, otherwise one per core.
fn worker_count(config: &Config) -> usize {
    match config.workers {
        config::Workers::Count(count) => count.get(),
        config::Workers::Auto if config.max_viewers < limits::VIEWERS_OF_ONE_WORKER => 1,
        config::Workers::Auto => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    }
}

/// Prints the URL of the page on stdout, and logs the bound addresses, which scripts read from the log.
fn announce(config: &Config, http: SocketAddr, plain: Option<&TcpListener>, udp: SocketAddr) {
    log::info!("listening: http={http} udp={udp}");
    let plain = plain.and_then(|listener| listener.local_addr().ok());
    if let Some(plain) = plain {
        log::info!("without TLS: http-plain={plain}");
    }
    security::warn(config, http, plain);
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let host = match http.ip() {
        ip if ip.is_unspecified() => "localhost".to_owned(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    logging::print(&format!("open {scheme}://{host}:{}/", http.port()));
}

/// Runs the HTTP endpoints on this thread until a signal arrives, then stops the recorder and the workers.
fn serve(
    config: &Config,
    runtime: &Runtime,
    endpoints: Endpoints,
    app_backend: &Arc<AppBackend>,
    workers: Workers,
) -> Result<(), ServerError> {
    let start = |what| move |source| ServerError::Start { what, source };
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(start("signal handling"))?;
        let mut terminate = signal(SignalKind::terminate()).map_err(start("signal handling"))?;
        let (stop, stopped) = watch::channel(false);
        let backend = Arc::clone(app_backend) as Arc<dyn Backend>;
        let keys = endpoints.config.tls.clone();
        let publisher = start_publisher(config, app_backend, stopped.clone());
        let bitrate = config.min_kbps.map(|min_kbps| {
            tokio::spawn(bitrate::run(Arc::clone(app_backend), min_kbps, stopped.clone()))
        });
        tokio::spawn(detections::run(Arc::clone(&app_backend.detections), stopped.clone()));
        let messenger = Messenger::new(config.webhook.clone(), app_backend.stream.clone());
        let messages = tokio::spawn(Arc::clone(&messenger).run(stopped.clone()));
        let (stop_events, events_stopped) = watch::channel(false);
        let events = record_on::start(config, app_backend, messenger, events_stopped);
        let mut server = pin!(endpoints.serve(backend, stopped));
        let shutdown = Shutdown::prepare(Arc::clone(app_backend), workers).map_err(start("shutdown"))?;
        let notifier = Notifier::new(notify_socket().as_deref());
        let watched = Arc::clone(app_backend);
        let supervisor = Supervisor::start(notifier, watchdog_period(), move || watched.health())
            .map_err(start("the messages to the service manager"))?;
        let mut is_serving = true;
        tokio::select! {
            () = &mut server => {
                is_serving = false;
                log::error!("the HTTP endpoint ended unexpectedly: stopping");
            }
            _ = interrupt.recv() => log::info!("SIGINT: stopping; send it again to stop at once"),
            _ = terminate.recv() => log::info!("SIGTERM: stopping; send it again to stop at once"),
            () = security::handle_hangups(config, keys.as_deref()) => log::info!("the terminal was closed: stopping"),
        }
        supervisor.stop();
        // Notes a running event in its recording while there is one. A disk that hangs must not delay the stop.
        let _ = stop_events.send(true);
        let stop_time = Duration::from_millis(limits::STOP_MS_MAX);
        let _ = tokio::time::timeout(stop_time, ended(events)).await;
        // This does not wait: the recorder finishes the recording while the sessions below are closed.
        app_backend.stop_recorder();
        // This send can fail only if the HTTP endpoints have already ended, so the error is ignored.
        let _ = stop.send(true);
        // Answers without an end, such as HTTP live, end after a whole part.
        let answers = async {
            if is_serving {
                let _ = tokio::time::timeout(stop_time, &mut server).await;
            }
        };
        let tasks = async { tokio::join!(finish(publisher), ended(bitrate), ended(Some(messages)), answers) };
        tokio::select! {
            _ = async { tokio::join!(shutdown.run(), tasks) } => {}
            _ = interrupt.recv() => log::warn!("second signal: stopping at once"),
            _ = terminate.recv() => log::warn!("second signal: stopping at once"),
        }
        Ok(())
    })
}

/// Returns the address of the service manager, or `None` if there is none.
fn notify_socket() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET")
}

/// Starts the task that publishes the stream, if --whip is given.
fn start_publisher(
    config: &Config,
    app_backend: &Arc<AppBackend>,
    stopped: watch::Receiver<bool>,
) -> Option<JoinTask<()>> {
    let (whip, board) = config.whip.clone().zip(app_backend.publish.clone())?;
    let publisher = Publisher { whip, backend: Arc::clone(app_backend), board, stopped };
    Some(tokio::spawn(publisher.run()))
}

/// Waits until the publisher has ended its session at the WHIP server, at most for a bounded time. If an offer is under
/// way, this includes the wait for its answer, because only the answer has the URL for DELETE.
async fn finish(publisher: Option<JoinTask<()>>) {
    if let Some(publisher) = publisher {
        // The result is ignored: after a timeout the WHIP server ends the session by itself, because it gets no media.
        let _ = tokio::time::timeout(limits::WHIP_FINISH_TIMEOUT, publisher).await;
    }
}

/// Waits until a task has ended.
async fn ended(task: Option<JoinTask<()>>) {
    if let Some(task) = task {
        // The result is ignored: a task that has panicked has ended too.
        let _ = task.await;
    }
}

/// Returns the time between two watchdog keep-alives, or `None` if the service manager does not watch this process.
fn watchdog_period() -> Option<Duration> {
    let usec = std::env::var_os("WATCHDOG_USEC");
    let pid = std::env::var_os("WATCHDOG_PID");
    service::watchdog_period(usec.as_deref(), pid.as_deref(), std::process::id())
}

/// The thread that closes all sessions and joins the workers. Signals are still handled meanwhile. The thread is
/// created at start, because the system may refuse a thread later (`TasksMax=`). It also ends if this value is dropped.
struct Shutdown {
    begin: SyncSender<()>,
    finished: tokio::sync::oneshot::Receiver<()>,
}

impl Shutdown {
    fn prepare(app_backend: Arc<AppBackend>, mut workers: Workers) -> io::Result<Shutdown> {
        let (begin, begun) = sync_channel(1);
        let (done, finished) = tokio::sync::oneshot::channel();
        let body = move || {
            // An error means that the server ended without a shutdown. The workers are then stopped as well.
            let _ = begun.recv();
            app_backend.stop();
            workers.join();
            // This send fails if a second signal or the timeout in `run` has ended the wait for this message, so the
            // error is ignored.
            let _ = done.send(());
        };
        std::thread::Builder::new()
            .name("shutdown".to_owned())
            .stack_size(limits::HELPER_STACK_BYTES)
            .spawn(body)?;
        Ok(Shutdown { begin, finished })
    }

    async fn run(self) {
        // This send fails only if the thread has panicked. The wait below then ends at once.
        let _ = self.begin.try_send(());
        let patience = Duration::from_millis(limits::STOP_MS_MAX * 3);
        if tokio::time::timeout(patience, self.finished).await.is_err() {
            log::warn!("a worker did not stop in time");
        }
    }
}

/// Beginning of the name of a demo's ring. The process id of the demo follows.
const DEMO_RING: &str = "/streaming-server-demo-";

/// End of the name of a demo's segment of detections, after the name of its ring.
const DEMO_DETECTIONS: &str = "-detections";

/// Unlinks the rings and detections that killed demos have left behind. A demo was killed if the process id in the name
/// no longer exists.
fn remove_rings_of_killed_demos() {
    let Ok(segments) = std::fs::read_dir("/dev/shm") else { return };
    for segment in segments.flatten() {
        let name = format!("/{}", segment.file_name().to_string_lossy());
        let ring = name.strip_suffix(DEMO_DETECTIONS).unwrap_or(&name);
        let process = ring.strip_prefix(DEMO_RING).and_then(|number| number.parse::<u32>().ok());
        if process.is_some_and(|number| !std::path::Path::new(&format!("/proc/{number}")).exists()) {
            // Another demo may already have unlinked the ring, so the error is ignored.
            let _ = rustix::shm::unlink(name.as_str());
        }
    }
}

/// All threads of the server except the workers. The drop stops and joins them, so that the simulator always unlinks
/// its ring.
#[derive(Default)]
struct Threads {
    stop: Arc<AtomicBool>,
    /// Channel to the camera-wait thread. The message `None` ends the thread.
    camera_wait: Option<SyncSender<Option<CameraWaiter>>>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    fn spawn(&mut self, name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<(), ServerError> {
        let handle = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(limits::HELPER_STACK_BYTES)
            .spawn(body)
            .map_err(|source| ServerError::Start { what: name, source })?;
        self.handles.push(handle);
        Ok(())
    }

    /// Starts the camera-wait thread, which waits for the camera if no worker does. With `realtime`, this thread runs
    /// the camera wait from the start, and the function returns `None`. Otherwise the function returns the camera wait
    /// for a worker. The thread takes over if the worker cannot run the wait, or when the worker has ended.
    fn start_camera_wait(
        &mut self,
        camera: &Camera,
        realtime: bool,
    ) -> Result<Option<WaiterHandoff>, ServerError> {
        let (back, returned) = sync_channel(2);
        self.camera_wait = Some(back.clone());
        let stop = Arc::clone(&self.stop);
        self.spawn("camera-wait", move || waiter::run_fallback(&returned, &stop, realtime))?;
        let handoff = WaiterHandoff::new(CameraWaiter::new(camera.clone()), back);
        Ok((!realtime).then_some(handoff))
    }

    fn start_recorder(
        &mut self,
        camera: &Camera,
        config: &Config,
        results: &Results,
    ) -> Result<RecorderHandle, ServerError> {
        let recorder_config = RecorderConfig {
            directory: config.record_path.clone(),
            format: config.record_format,
            retention: recorder::retention::Retention {
                retain_bytes: config.retain_bytes,
                retain_days: config.retain_days,
                retain_event_days: config.retain_event_days,
                min_free_bytes: config.min_free_bytes,
            },
            pre_roll: record_on::pre_roll(&config.events),
            results: Some(results.clone()),
        };
        let (handle, thread) = recorder::spawn(camera, recorder_config)?;
        self.handles.push(thread);
        Ok(handle)
    }

    /// Starts the camera simulator, which writes into a ring of its own. Returns the name of the ring.
    fn start_demo(&mut self) -> Result<String, ServerError> {
        remove_rings_of_killed_demos();
        let shm = format!("{DEMO_RING}{}", std::process::id());
        let demo = SimulatorConfig {
            name: shm.clone(),
            layout: Layout::LEASE,
            detector: Some(DetectorConfig::new(demo_detections(&shm))),
            ..SimulatorConfig::default()
        };
        let stop = Arc::clone(&self.stop);
        self.spawn("camera-sim", move || {
            if let Err(error) = simulator::run(&demo, &stop) {
                log::error!("camera simulator: {error}");
            }
        })?;
        log::info!("demo: the built-in camera simulator writes {shm}");
        Ok(shm)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(camera_wait) = self.camera_wait.take() {
            // `None` ends the thread if it is still waiting for a handoff. The send fails if the channel is full or the
            // thread has ended. The thread then ends without this message, so the error is ignored.
            let _ = camera_wait.try_send(None);
        }
        for handle in self.handles.drain(..) {
            if handle.join().is_err() {
                log::error!("a thread panicked");
            }
        }
    }
}
