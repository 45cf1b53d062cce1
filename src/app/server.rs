//! Starts and stops the server: its threads, their order, and the signals. Only main uses it.

pub(crate) mod security;

use std::io;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::app::addresses::{host_candidates, interface_addresses};
use crate::app::backend::AppBackend;
use crate::app::service::{self, Notifier};
use crate::base::{clock, limits};
use crate::camera::waiter::{self, CameraWaiter, WaiterHandoff};
use crate::camera::{Camera, Layout};
use crate::config::{self, Config};
use crate::http::local::LocalConfig;
use crate::http::{self, Backend, HttpConfig};
use crate::recorder::{self, RecorderConfig, RecorderHandle};
use crate::session::{ContextError, SessionConfig, SessionContext};
use crate::simulator::{self, SimulatorConfig};
use crate::uring::{self, SocketError};
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
        /// The option that sets it.
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
    /// The certificate is not usable.
    #[error("TLS: {0}")]
    Certificate(#[from] http::certificate::CertificateError),
    /// A thread or a runtime could not start.
    #[error("cannot start {what}: {source}")]
    Start {
        /// The part that did not start.
        what: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// The certificate or the crypto self-check failed.
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
/// [`ServerError`] if a part cannot start. It names the option that helps.
pub fn run(config: &Config) -> Result<(), ServerError> {
    log::info!("streaming-server {}: {config}", env!("CARGO_PKG_VERSION"));
    let listener = listen(config.http, "--http")?;
    let http = listener.local_addr().unwrap_or(config.http);
    let plain = config.http_plain.map(|address| listen(address, "--http-plain")).transpose()?;
    let logins = Arc::default();
    let http_config = security::prepare(config, http, &logins)?;
    let (socket, udp) = open_udp(config.udp)?;
    let mut threads = Threads::default();
    let shm = if config.demo { threads.start_demo()? } else { config.shm.to_string() };
    let camera = Camera::new(&shm, config.wake);
    let context = session_context(config, udp)?;
    let _join_preparation = JoinPreparation(Arc::clone(&context));
    let workers = Workers::start(WorkersConfig {
        count: worker_count(config),
        camera: camera.clone(),
        socket: Arc::new(socket),
        viewers_max: config.max_viewers,
        camera_wait: threads.start_camera_wait(&camera, config.realtime)?,
    })?;
    let recorder = if config.no_recorder { None } else { Some(threads.start_recorder(&camera, config)?) };
    let app_backend = Arc::new(AppBackend {
        camera,
        context,
        mailboxes: workers.mailboxes.clone(),
        counters: workers.counters.clone(),
        recorder,
        logins,
        viewers_max: u32::try_from(config.max_viewers).unwrap_or(u32::MAX),
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

/// Opens the UDP socket. The io_uring of a killed server keeps its socket open until the kernel has freed it, shortly
/// after the process ended. A restart therefore waits for the port.
fn open_udp(address: SocketAddr) -> Result<(OwnedFd, SocketAddr), ServerError> {
    const PAUSE: Duration = Duration::from_millis(20); // local bound: only this loop uses it
    let mut left = limits::UDP_PORT_PATIENCE;
    loop {
        match uring::open_socket(address) {
            Err(SocketError::Bind { source, .. })
                if source.kind() == io::ErrorKind::AddrInUse && !left.is_zero() =>
            {
                if left == limits::UDP_PORT_PATIENCE {
                    log::info!("udp {address} is in use: waiting for it to become free");
                }
                std::thread::sleep(PAUSE);
                left = left.saturating_sub(PAUSE);
            }
            opened => return opened.map_err(|source| ServerError::Udp { address, source }),
        }
    }
}

/// Joins the background certificate generation before exit; aws-lc aborts otherwise.
struct JoinPreparation(Arc<SessionContext>);

impl Drop for JoinPreparation {
    fn drop(&mut self) {
        self.0.join_preparation();
    }
}

/// Starts the control endpoint if it is configured. It answers as long as the backend lives.
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
    /// Serves until `stopped` is set.
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

fn session_context(config: &Config, udp: SocketAddr) -> Result<Arc<SessionContext>, ServerError> {
    let candidates = host_candidates(udp, &interface_addresses());
    let advertise = config.advertise.iter().map(|address| address.with_port(udp.port())).collect();
    let session_config = SessionConfig { candidates, advertise, srtp: config.srtp };
    Ok(SessionContext::new(session_config)?)
}

/// Returns the number of workers: one for up to 64 viewers, else one per core.
fn worker_count(config: &Config) -> usize {
    match config.workers {
        config::Workers::Count(count) => count.get(),
        config::Workers::Auto if config.max_viewers < limits::VIEWERS_OF_ONE_WORKER => 1,
        config::Workers::Auto => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    }
}

/// Prints the URL of the page on stdout, and the addresses in the log for scripts.
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
    let mut stdout = io::stdout().lock();
    // The server also runs with a closed stdout.
    let _ = writeln!(stdout, "open {scheme}://{host}:{}/", http.port());
    let _ = stdout.flush();
}

/// Runs the HTTP endpoints on this thread until a signal arrives, then stops the workers.
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
        let mut server = pin!(endpoints.serve(backend, stopped));
        let mut notifier = Notifier::new(std::env::var_os("NOTIFY_SOCKET").as_deref());
        notifier.ready();
        tokio::select! {
            () = service::supervise(&mut notifier, watchdog_period(), || app_backend.health()) => {}
            () = &mut server => log::error!("the HTTP endpoint ended unexpectedly: stopping"),
            _ = interrupt.recv() => log::info!("SIGINT: stopping; send it again to stop at once"),
            _ = terminate.recv() => log::info!("SIGTERM: stopping; send it again to stop at once"),
            () = security::handle_hangups(config, keys.as_deref()) => log::info!("the terminal was closed: stopping"),
        }
        notifier.stopping();
        // The recording is finished while the sessions are closed.
        app_backend.stop_recorder();
        // Fails only if the HTTP endpoint has already ended.
        let _ = stop.send(true);
        tokio::select! {
            () = close_sessions(Arc::clone(app_backend), workers) => {}
            _ = interrupt.recv() => log::warn!("second signal: stopping at once"),
            _ = terminate.recv() => log::warn!("second signal: stopping at once"),
        }
        Ok(())
    })
}

/// Returns the time between two watchdog keep-alives, if the service manager has a watchdog.
fn watchdog_period() -> Option<Duration> {
    let usec = std::env::var_os("WATCHDOG_USEC");
    let pid = std::env::var_os("WATCHDOG_PID");
    service::watchdog_period(usec.as_deref(), pid.as_deref(), std::process::id())
}

/// Closes all sessions and joins the workers, on a separate thread so that signals are still handled.
async fn close_sessions(app_backend: Arc<AppBackend>, mut workers: Workers) {
    let (done, finished) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("shutdown".to_owned()).spawn(move || {
        app_backend.stop();
        workers.join();
        // Fails only after a second signal, which stops the wait for this message.
        let _ = done.send(());
    });
    match thread {
        Ok(_) => {
            let patience = Duration::from_millis(limits::STOP_MS_MAX * 3);
            if tokio::time::timeout(patience, finished).await.is_err() {
                log::warn!("a worker did not stop in time");
            }
        }
        Err(error) => log::warn!("the sessions are not closed, viewers will time out: {error}"),
    }
}

/// Prefix of the demo ring's name. The process id follows.
const DEMO_RING: &str = "/streaming-server-demo-";

/// Unlinks the rings of demos that were killed: their process ids no longer exist.
fn remove_rings_of_killed_demos() {
    let Ok(segments) = std::fs::read_dir("/dev/shm") else { return };
    for segment in segments.flatten() {
        let name = format!("/{}", segment.file_name().to_string_lossy());
        let process = name.strip_prefix(DEMO_RING).and_then(|number| number.parse::<u32>().ok());
        if process.is_some_and(|number| !std::path::Path::new(&format!("/proc/{number}")).exists()) {
            // Another demo may have unlinked it already.
            let _ = rustix::shm::unlink(name.as_str());
        }
    }
}

/// The threads other than the workers. Drop stops and joins them, so that the simulator always unlinks its ring.
#[derive(Default)]
struct Threads {
    stop: Arc<AtomicBool>,
    /// Ends the thread of the camera wait.
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

    /// Starts the fallback thread for the camera wait: it runs if no worker does, and after the workers have ended. With
    /// `realtime` it runs from the start. Otherwise returns the wait, to hand it to a worker.
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

    fn start_recorder(&mut self, camera: &Camera, config: &Config) -> Result<RecorderHandle, ServerError> {
        let recorder_config = RecorderConfig {
            directory: config.record_path.clone(),
            format: config.record_format,
            retention: recorder::retention::Retention {
                retain_bytes: config.retain_bytes,
                retain_days: config.retain_days,
                min_free_bytes: config.min_free_bytes,
            },
        };
        let (handle, thread) = recorder::spawn(camera, recorder_config)?;
        self.handles.push(thread);
        Ok(handle)
    }

    /// Starts the simulator on its own ring. Returns the ring's name.
    fn start_demo(&mut self) -> Result<String, ServerError> {
        remove_rings_of_killed_demos();
        let shm = format!("{DEMO_RING}{}", std::process::id());
        let demo = SimulatorConfig { name: shm.clone(), layout: Layout::LEASE, ..SimulatorConfig::default() };
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
            // Fails if the channel already holds a message or the thread has ended. Both end the wait.
            let _ = camera_wait.try_send(None);
        }
        for handle in self.handles.drain(..) {
            if handle.join().is_err() {
                log::error!("a thread panicked");
            }
        }
    }
}
