//! The HTTP endpoint on its own port in front of a stub backend, and functions that send raw requests to the endpoint.

use std::future::pending;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use streaming_server::http::{
    ApiError, Backend, BoxFuture, CameraPicture, CameraSummary, DetectionsStatus, Exempt, HttpConfig,
    HttpShares, HttpTimeouts, Inspection, LiveFormat, LiveOrigin, LiveStream, OfferOrigin, Offered, Policy,
    PostedDetections, RecordingCommand, RecordingFile, RecordingReply, RecordingStatus, SessionCommand,
    SessionReply, StreamNames, Summary, ViewerOffer, serve,
};
use streaming_server::metrics::status::{
    GateState, RecorderState, RecordingInfo, RecordingReport, StartReply, Via, ViewerState, ViewerStatus,
    ViewerTransport,
};
use support::http::assert_no_header_twice;
use tokio::sync::{Notify, broadcast, watch};

/// Read timeout. It ends a test that would hang otherwise.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The only origin that is on the allow list.
pub(crate) const FRIEND: &str = "https://home.example";

/// A backend that answers an offer according to words in its SDP, and stores recording commands.
pub(crate) struct Stub {
    pub(crate) is_ready: AtomicBool,
    pub(crate) is_recording: AtomicBool,
    pub(crate) viewers: AtomicU32,
    /// Sends results of a detector to listeners of events.
    pub(crate) detections: broadcast::Sender<Bytes>,
    /// Results that came over HTTP.
    pub(crate) posted: Mutex<Vec<PostedDetections>>,
    /// Number of recordings in a listing.
    pub(crate) listed: AtomicU32,
    pub(crate) commands: Mutex<Vec<RecordingCommand>>,
    /// What happened to streams of HTTP live.
    pub(crate) live: Arc<LiveCounts>,
    /// Keys and commands of requests about sessions.
    pub(crate) sessions: Mutex<Vec<(String, SessionCommand)>>,
    /// Longest delay that the last offer asked for.
    pub(crate) playout_delay_max_ms: AtomicU16,
}

/// Key of the only session.
pub(crate) const KEY: &str = "0123456789abcdef";

impl Backend for Stub {
    fn offer(&self, offer: ViewerOffer, origin: OfferOrigin) -> BoxFuture<Result<Offered, ApiError>> {
        // The endpoint passes the address of this machine to which the caller has connected.
        assert!(origin.local.is_some_and(|ip| ip.is_loopback()));
        let ViewerOffer { sdp, playout_delay_max_ms } = offer;
        self.playout_delay_max_ms.store(playout_delay_max_ms, Ordering::Relaxed);
        Box::pin(async move {
            if sdp.contains("full") {
                let message = "all viewer slots are in use".into();
                return Err(ApiError { status: 503, code: "full", message, retry_after_s: Some(5) });
            }
            if sdp.contains("vp8") {
                return Err(ApiError::new(422, "no_common_codec", "no H.264 in the offer"));
            }
            if sdp.contains("hang") {
                pending::<()>().await;
            }
            if sdp.contains("slow") {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            let answer = format!("v=0 answer to {} bytes", sdp.len());
            Ok(Offered { answer, key: KEY.to_owned(), tag: "1f/tag".to_owned() })
        })
    }

    fn session(&self, key: &str, command: SessionCommand) -> BoxFuture<Result<SessionReply, ApiError>> {
        self.sessions.lock().unwrap().push((key.to_owned(), command.clone()));
        let reply = match command {
            _ if key != KEY => Err(ApiError::new(404, "no_session", "no such session")),
            SessionCommand::Report(report) if report.samples == 429 => {
                Err(ApiError { retry_after_s: Some(1), ..ApiError::new(429, "too_soon", "too soon") })
            }
            SessionCommand::Find | SessionCommand::Report(_) => Ok(SessionReply::Found),
            SessionCommand::Delete => Ok(SessionReply::Deleted),
            SessionCommand::Fragment { text, if_match: None } if text.contains("new") => {
                Err(ApiError::new(428, "tag_required", "If-Match is missing"))
            }
            SessionCommand::Fragment { text, .. } if text.contains("new") => {
                let (fragment, tag) = ("a=ice-ufrag:ours\r\n".to_owned(), "2f/tag".to_owned());
                Ok(SessionReply::Restarted { fragment, tag })
            }
            SessionCommand::Fragment { .. } => Ok(SessionReply::Accepted),
        };
        Box::pin(std::future::ready(reply))
    }

    fn live(
        &self,
        format: LiveFormat,
        origin: LiveOrigin,
    ) -> BoxFuture<Result<Box<dyn LiveStream>, ApiError>> {
        let counts = Arc::clone(&self.live);
        counts.opened.fetch_add(1, Ordering::Relaxed);
        counts.connections.lock().unwrap().push(origin.must_close);
        Box::pin(std::future::ready(Ok(Box::new(Pieces { format, counts }) as Box<dyn LiveStream>)))
    }

    fn stream(&self) -> StreamNames {
        StreamNames { name: "camera".to_owned(), title: "Front door".to_owned() }
    }

    fn viewers(&self) -> BoxFuture<Vec<ViewerStatus>> {
        Box::pin(async { vec![viewer(1), viewer(2)] })
    }

    fn ready(&self) -> Result<(), String> {
        if self.is_ready.load(Ordering::Relaxed) { Ok(()) } else { Err("no camera".into()) }
    }

    fn summary(&self) -> Summary {
        let camera = if self.is_ready.load(Ordering::Relaxed) {
            CameraSummary::Live(CameraPicture {
                layout: "v3".into(),
                width: 1280,
                height: 720,
                fps: 29.9,
                stalled_after_ms: 1_500,
                ..CameraPicture::default()
            })
        } else {
            CameraSummary::Away { reason: "no camera".into() }
        };
        Summary {
            camera,
            viewers: self.viewers.load(Ordering::Relaxed),
            http_viewers: 0,
            is_recording: self.is_recording.load(Ordering::Relaxed),
            detections: DetectionsStatus::default(),
            publish: None,
        }
    }

    fn detections(&self) -> broadcast::Receiver<Bytes> {
        self.detections.subscribe()
    }

    fn post_detections(&self, posted: PostedDetections) -> Result<(), ApiError> {
        self.posted.lock().unwrap().push(posted);
        Ok(())
    }

    fn metrics(&self) -> String {
        "# TYPE up gauge\nup 1\n".into()
    }

    fn recording(&self, command: RecordingCommand) -> BoxFuture<Result<RecordingReply, ApiError>> {
        let (filename, name) = ("/r/a.mp4".to_owned(), "a.mp4".to_owned());
        let reply = match &command {
            RecordingCommand::Start(Ok(_)) => {
                RecordingReply::Started(StartReply { filename, name, waits_for_idr: false })
            }
            RecordingCommand::Start(Err(error)) => return Box::pin(std::future::ready(Err(error.clone()))),
            RecordingCommand::Stop => RecordingReply::Stopped {
                report: RecordingReport::default(),
                reason: "asked",
                kept: true,
                message: None,
            },
            RecordingCommand::Heartbeat => RecordingReply::HeartbeatAccepted,
            RecordingCommand::List => {
                let count = self.listed.load(Ordering::Relaxed);
                let recording =
                    |number| RecordingInfo { name: format!("{number:0100}.mp4"), ..RecordingInfo::default() };
                RecordingReply::List { recordings: (0..count).map(recording).collect(), free_bytes: None }
            }
            RecordingCommand::Delete(name) => RecordingReply::Deleted { name: name.clone() },
        };
        self.commands.lock().unwrap().push(command);
        Box::pin(async move { Ok(reply) })
    }

    fn inspect(&self, _: Inspection) -> Result<Vec<u8>, ApiError> {
        Err(ApiError::new(501, "not_here", "the stub takes no profiles"))
    }

    fn recording_status(&self) -> BoxFuture<Result<RecordingStatus, ApiError>> {
        let is_recording = self.is_recording.load(Ordering::Relaxed);
        let state = if is_recording { RecorderState::Recording } else { RecorderState::Idle };
        Box::pin(async move { Ok(RecordingStatus::bare(state, is_recording)) })
    }

    fn open_recording(
        &self,
        name: String,
        until: Option<u64>,
    ) -> BoxFuture<Result<Arc<dyn RecordingFile>, ApiError>> {
        Box::pin(async move {
            match name.as_str() {
                "a b.mp4" | "Küche 1.mp4" => Ok(clip(name, CLIP_BYTES, false)),
                "endless.mp4" => Ok(clip(name, ENDLESS_BYTES, true)),
                "growing:1.mp4" if until.is_some_and(|until| until != CLIP_BYTES) => {
                    Err(ApiError::new(400, "bad_until", "no unit ends there"))
                }
                "growing:1.mp4" => Ok(growing(name, until)),
                _ => Err(ApiError::new(404, "not_found", "no such recording")),
            }
        })
    }
}

/// What happened to streams of HTTP live.
#[derive(Default)]
pub(crate) struct LiveCounts {
    pub(crate) opened: AtomicU32,
    pub(crate) ended: AtomicU32,
    /// Closes the connection of each stream when it is notified.
    pub(crate) connections: Mutex<Vec<Arc<Notify>>>,
}

/// A stream without an end: the same piece again and again.
struct Pieces {
    format: LiveFormat,
    counts: Arc<LiveCounts>,
}

impl LiveStream for Pieces {
    fn poll_next(&mut self, _: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let piece = if self.format == LiveFormat::Mp4 { "fragment" } else { "nal unit" };
        Poll::Ready(Some(Bytes::from(piece.repeat(1_000))))
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.counts.ended.fetch_add(1, Ordering::Relaxed);
    }
}

fn viewer(id: u32) -> ViewerStatus {
    ViewerStatus {
        id,
        is_publisher: false,
        via: Via::WebRtc,
        state: ViewerState::Connected,
        gate: GateState::WaitingForIdr,
        remote: Some(SocketAddr::from(([192, 0, 2, 1], 5000))),
        transport: Some(ViewerTransport::Udp),
        profile: None,
        connected_ms: 1,
        first_idr_ms: None,
        units_sent: 0,
        units_replayed: 0,
        replays: 0,
        units_dropped: 0,
        drops_to_idr: 0,
        bytes_sent: 0,
        datagrams: 0,
        datagrams_rejected: 0,
        nacks: 0,
        plis: 0,
        retransmits: 0,
        retransmits_refused: 0,
        link_kbps: None,
        stream_kbps: None,
        paced: false,
        units_thinned: 0,
        lag_ms: None,
        loss_fraction: Some(0.5),
        rtt_ms: None,
        jitter_ms: None,
        glass_ms: None,
        ended: None,
    }
}

/// A recording, usually of 1,000,000 bytes. Each byte is the low byte of its offset. The recording grows once while a
/// client follows it. A client that follows an endless recording waits forever. The endless recording is larger than
/// the socket buffers.
struct Clip {
    name: String,
    bytes: u64,
    is_endless: bool,
    finished_until: Option<u64>,
}

fn clip(name: String, bytes: u64, is_endless: bool) -> Arc<dyn RecordingFile> {
    Arc::new(Clip { name, bytes, is_endless, finished_until: None })
}

/// Returns a recording that is being written.
fn growing(name: String, until: Option<u64>) -> Arc<dyn RecordingFile> {
    let finished_until = if until.is_none() { Some(CLIP_BYTES) } else { None };
    let bytes = until.map_or(CLIP_BYTES, |until| until + 100);
    Arc::new(Clip { name, bytes, is_endless: false, finished_until })
}

pub(crate) const ENDLESS_BYTES: u64 = 32 * 1024 * 1024;
pub(crate) const CLIP_BYTES: u64 = 1_000_000;
pub(crate) const CLIP_GROWTH: u64 = 5_000;

impl RecordingFile for Clip {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn content_type(&self) -> &'static str {
        "video/mp4"
    }

    fn etag(&self) -> String {
        "\"clip\"".into()
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn read(&self, offset: u64, bytes_max: u64) -> BoxFuture<std::io::Result<Bytes>> {
        let piece: Vec<u8> =
            (offset..offset + bytes_max.min(65_536)).map(|byte| (byte & 0xff) as u8).collect();
        Box::pin(std::future::ready(Ok(piece.into())))
    }

    fn finished_until(&self) -> Option<u64> {
        self.finished_until
    }

    fn grown_beyond(&self, bytes: u64) -> BoxFuture<u64> {
        let is_endless = self.is_endless;
        Box::pin(async move {
            match bytes {
                _ if is_endless => pending().await,
                CLIP_BYTES => CLIP_BYTES + CLIP_GROWTH,
                _ => bytes,
            }
        })
    }
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) backend: Arc<Stub>,
    pub(crate) stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// Returns a configuration for plain HTTP without a token.
pub(crate) fn open(address: SocketAddr) -> HttpConfig {
    let (policy, timeouts) = (Policy::default(), HttpTimeouts::default());
    let (exempt, shares) = (Exempt::default(), HttpShares::default());
    HttpConfig { address, policy, access: None, exempt, tls: None, timeouts, shares }
}

impl Server {
    pub(crate) fn start() -> Server {
        Server::with_timeouts(HttpTimeouts::default())
    }

    pub(crate) fn with_timeouts(timeouts: HttpTimeouts) -> Server {
        Server::configured(timeouts, open)
    }

    pub(crate) fn configured(
        timeouts: HttpTimeouts,
        configure: impl FnOnce(SocketAddr) -> HttpConfig,
    ) -> Server {
        Server::unlisted(|address| {
            let mut config = HttpConfig { timeouts, ..configure(address) };
            config.policy.allow_origin.push(FRIEND.into());
            config
        })
    }

    /// Starts a server whose allow list holds only what `configure` puts there.
    pub(crate) fn unlisted(configure: impl FnOnce(SocketAddr) -> HttpConfig) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let backend = Arc::new(Stub {
            is_ready: AtomicBool::new(false),
            is_recording: AtomicBool::new(false),
            detections: broadcast::Sender::new(256),
            posted: Mutex::default(),
            viewers: AtomicU32::new(2),
            listed: AtomicU32::new(0),
            commands: Mutex::default(),
            live: Arc::default(),
            sessions: Mutex::default(),
            playout_delay_max_ms: AtomicU16::new(0),
        });
        let (stop, stopped) = watch::channel(false);
        let config = configure(address);
        let stub = backend.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(config, listener, stub, stopped));
        });
        Server { address, backend, stop, thread: Some(thread) }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Connects like [`Server::connect`], but from another loopback address.
    pub(crate) fn connect_from(&self, source: [u8; 4]) -> TcpStream {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&socket, &SocketAddr::from((source, 0))).unwrap();
        connect(&socket, &self.address).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends raw bytes and returns all that the server sends until it closes the connection.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        // The server may refuse the request before it has read everything, so a failed write is ignored.
        let _ = stream.write_all(bytes);
        read_to_end(&mut stream)
    }

    /// Sends one request on a new connection and returns the response.
    pub(crate) fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Reply {
        let mut bytes = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            self.address,
            body.len()
        )
        .into_bytes();
        bytes.extend_from_slice(body);
        Reply::parse(&self.raw(&bytes))
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.request("GET", path, "", b"")
    }

    pub(crate) fn offer(&self, body: &[u8]) -> Reply {
        self.request("POST", "/api/webrtc/offer", "", body)
    }

    /// Stops the server and waits for `serve` to return.
    pub(crate) fn stop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Reads until the connection is closed or reset, and returns all bytes.
pub(crate) fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => bytes,
    }
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn parse(bytes: &[u8]) -> Reply {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or_else(|| {
            panic!("no response head in {:?}", String::from_utf8_lossy(bytes));
        });
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.map(|line| line.split_once(": ").unwrap());
        let headers: Vec<_> =
            headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        assert_no_header_twice(&headers);
        Reply { status, headers, body: bytes[end + 4..].to_vec() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|header| header.0 == name).map(|header| header.1.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Asserts that the response is a JSON error, and returns its code.
    pub(crate) fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/json"));
        let value = self.json();
        assert!(!value["error"].as_str().unwrap().is_empty());
        value["code"].as_str().unwrap().to_owned()
    }
}
