//! One HTTP request to a WHIP server, over TCP or TLS. The response is untrusted: its head, its body, its duration and the
//! number of redirects are bounded.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT,
};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::error::PublishError;
use crate::base::{foreign_file, limits};
use crate::config::{Whip, WhipUrl};

/// A request to a WHIP server, or to another server that is named in the same way.
pub(in crate::app) struct Exchange<'a> {
    pub(in crate::app) whip: &'a Whip,
    pub(in crate::app) method: Method,
    pub(in crate::app) body: Option<Body>,
}

/// The body of a request.
#[derive(Clone)]
pub(in crate::app) struct Body {
    pub(in crate::app) media_type: &'static str,
    pub(in crate::app) bytes: Bytes,
    /// Value of the header [`SIGNATURE`]. `None` to omit the header.
    pub(in crate::app) signature: Option<String>,
}

/// Header with which the receiver checks who sent the body.
const SIGNATURE: &str = "x-signature-256";

/// A response after all redirects.
#[derive(Debug)]
pub(in crate::app) struct Reply {
    /// URL of the request that was answered.
    pub(in crate::app) url: WhipUrl,
    pub(in crate::app) status: u16,
    /// `Location`, resolved against `url`. `None` if the header is missing.
    pub(super) location: Option<WhipUrl>,
    /// Media type without parameters, in lower case. `None` if the header is missing.
    pub(super) content_type: Option<String>,
    pub(in crate::app) retry_after: Option<Duration>,
    pub(in crate::app) body: ReplyBody,
}

/// The body of a response.
#[derive(Debug)]
pub(in crate::app) struct ReplyBody {
    /// The text, or its beginning if there is a fault.
    pub(in crate::app) text: String,
    /// Why the rest could not be read.
    fault: Option<PublishError>,
}

impl ReplyBody {
    /// Returns the text if all of it could be read.
    pub(super) fn whole(self) -> Result<String, PublishError> {
        self.fault.map_or(Ok(self.text), Err)
    }
}

/// A TCP connection, with or without TLS.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

impl Exchange<'_> {
    /// Sends the request to `url` and returns the response. Follows redirects with the status 307 or 308.
    pub(in crate::app) async fn run(&self, url: &WhipUrl) -> Result<Reply, PublishError> {
        let mut url = url.clone();
        for _ in 0..=limits::WHIP_REDIRECTS_MAX {
            let reply = self.send(&url).await?;
            if !matches!(reply.status, 307 | 308) {
                return Ok(reply);
            }
            url = reply.location.ok_or(PublishError::NoLocation(url.authority(), reply.status))?;
        }
        Err(PublishError::Redirects(url.authority()))
    }

    async fn send(&self, url: &WhipUrl) -> Result<Reply, PublishError> {
        let opened = timeout(limits::WHIP_REQUEST_TIMEOUT, self.open(url)).await;
        let (response, _driver) = opened.map_err(|_| PublishError::Timeout(url.authority()))??;
        read(url, response).await
    }

    /// Sends the request and returns the head of the response. Its body can be read as long as the driver lives.
    async fn open(&self, url: &WhipUrl) -> Result<(Response<Incoming>, AbortOnDrop), PublishError> {
        let host = url.authority();
        let stream = connect(self.whip, url).await?;
        let broken = |error: hyper::Error| PublishError::Http(url.authority(), causes(&error));
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(limits::WHIP_HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let driver = tokio::spawn(async move {
            // The error also reaches the request, which reports it.
            let _ = connection.await;
        });
        let driver = AbortOnDrop(driver);
        let response = sender.send_request(self.request(url, &host)?).await.map_err(broken)?;
        Ok((response, driver))
    }

    fn request(&self, url: &WhipUrl, host: &str) -> Result<Request<Full<Bytes>>, PublishError> {
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(url.target.as_str())
            .header(HOST, host)
            .header(USER_AGENT, concat!("streaming-server/", env!("CARGO_PKG_VERSION")));
        if let Some(body) = &self.body {
            request = request.header(CONTENT_TYPE, body.media_type);
            if let Some(signature) = &body.signature {
                request = request.header(SIGNATURE, signature);
            }
        }
        // A redirect or a Location can name another host. It gets the token only encrypted.
        let may_have_token = url.is_tls || url.host == self.whip.url.host;
        if let Some(token) = self.whip.token.as_ref().filter(|_| may_have_token) {
            let value = [b"Bearer ", token.expose()].concat();
            if let Ok(mut value) = HeaderValue::from_bytes(&value) {
                value.set_sensitive(true);
                request = request.header(AUTHORIZATION, value);
            }
        }
        request
            .body(Full::new(self.body.as_ref().map_or(Bytes::new(), |body| body.bytes.clone())))
            .map_err(|error| PublishError::Http(host.to_owned(), error.to_string()))
    }
}

/// Media type of offers and answers.
pub(super) const SDP: &str = "application/sdp";

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reads a response. A fault of the body is no error, because the status and the location are known without it.
async fn read(url: &WhipUrl, response: Response<Incoming>) -> Result<Reply, PublishError> {
    let (head, body) = response.into_parts();
    let text = |name: HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
    let status = head.status.as_u16();
    let has_location = matches!(status, 201 | 307 | 308);
    let location = match text(LOCATION).filter(|_| has_location).map(|location| url.join(location.trim())) {
        None => None,
        Some(Err(error)) => return Err(PublishError::Location(url.authority(), error)),
        Some(Ok(to)) if url.is_tls && !to.is_tls => return Err(PublishError::Downgrade(to.authority())),
        Some(Ok(to)) => Some(to),
    };
    let media_type = text(CONTENT_TYPE).map(|value| value.split(';').next().unwrap_or_default());
    let content_type = media_type.map(|value| printable(&value.trim().to_ascii_lowercase()));
    let retry_after = text(RETRY_AFTER).and_then(|value| value.trim().parse().ok()).map(Duration::from_secs);
    let body = read_body(url, body).await;
    Ok(Reply { url: url.clone(), status, location, content_type, retry_after, body })
}

/// Reads a body of at most [`limits::WHIP_ANSWER_BYTES_MAX`] within [`limits::WHIP_BODY_TIMEOUT`].
async fn read_body(url: &WhipUrl, body: Incoming) -> ReplyBody {
    let mut body = Limited::new(body, limits::WHIP_ANSWER_BYTES_MAX);
    let mut bytes = Vec::new();
    let all = async {
        while let Some(frame) = body.frame().await {
            bytes.extend_from_slice(frame?.data_ref().map_or(&[], |data| data));
        }
        Ok(())
    };
    let host = || url.authority();
    let fault = match timeout(limits::WHIP_BODY_TIMEOUT, all).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => {
            let error: Box<dyn std::error::Error + Send + Sync> = error;
            let is_too_long = error.is::<LengthLimitError>();
            Some(if is_too_long {
                PublishError::TooLong(host())
            } else {
                PublishError::Http(host(), causes(&*error))
            })
        }
        Err(_) => Some(PublishError::Http(host(), "the body did not arrive in time".to_owned())),
    };
    ReplyBody { text: String::from_utf8_lossy(&bytes).into_owned(), fault }
}

/// Returns an error with its causes, which hyper does not include in its own text.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Returns the beginning of a foreign text, without control characters, for the log and the page.
pub(in crate::app) fn printable(text: &str) -> String {
    let kept = text.chars().filter(|c| !c.is_control()).take(limits::WHIP_ERROR_CHARS_MAX);
    kept.collect::<String>().trim().to_owned()
}

async fn connect(whip: &Whip, url: &WhipUrl) -> Result<Box<dyn Connection>, PublishError> {
    let host = url.authority();
    let socket = connect_tcp(url).await.map_err(|error| PublishError::Connect(host.clone(), error))?;
    if !url.is_tls {
        return Ok(Box::new(socket));
    }
    let config = tls_config(whip.ca.clone()).await?;
    let tls = |error: io::Error| PublishError::Tls(host.clone(), error);
    let name = ServerName::try_from(url.host.clone()).map_err(|error| tls(io::Error::other(error)))?;
    let stream = TlsConnector::from(config).connect(name, socket).await.map_err(tls)?;
    Ok(Box::new(stream))
}

/// Connects to the first address of the host that accepts.
async fn connect_tcp(url: &WhipUrl) -> io::Result<TcpStream> {
    let (host, port) = (url.host.clone(), url.port);
    let addresses: Vec<SocketAddr> = match host.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => on_thread(move || (host.as_str(), port).to_socket_addrs().map(Iterator::collect)).await??,
    };
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let last = addresses.len().saturating_sub(1);
    for (index, address) in addresses.into_iter().enumerate() {
        // An address without a route must not use up the time of the others. The request limits the time of the last.
        let limit = if index < last { limits::WHIP_CONNECT_TIMEOUT } else { limits::WHIP_REQUEST_TIMEOUT };
        match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => failure = error,
            Err(_) => failure = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failure)
}

/// The right to run the thread of [`on_thread`].
static THREAD_PERMIT: Semaphore = Semaphore::const_new(1);

/// Runs a function that may block on a thread of its own. `tokio::task::spawn_blocking` is not used, because it panics if
/// the system refuses a thread (`TasksMax=`). There is at most one such thread, so threads that block for ever do not
/// pile up.
async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let permit = THREAD_PERMIT.acquire().await.map_err(io::Error::other)?;
    let (reply, answer) = oneshot::channel();
    let body = move || {
        let done = work();
        drop(permit);
        // The send fails only if the request has timed out.
        let _ = reply.send(done);
    };
    std::thread::Builder::new().name("whip".to_owned()).stack_size(limits::WHIP_STACK_BYTES).spawn(body)?;
    answer.await.map_err(io::Error::other)
}

/// Returns the configuration of TLS. It is made for each connection, so that new certificates are trusted without a
/// restart and the list uses no memory in between.
async fn tls_config(ca: Option<PathBuf>) -> Result<Arc<ClientConfig>, PublishError> {
    let roots = on_thread(move || trusted(ca)).await;
    let roots = roots.map_err(|error| PublishError::NoRoots(error.to_string()))?;
    let roots = roots.map_err(PublishError::NoRoots)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| PublishError::NoRoots(error.to_string()))?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Returns the certificates of the file `ca`, or those that the machine trusts. Reads files. The error is a text.
fn trusted(ca: Option<PathBuf>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let certificates = match &ca {
        None => {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                return Err(found
                    .errors
                    .first()
                    .map_or("this machine has none".to_owned(), ToString::to_string));
            }
            found.certs
        }
        Some(path) => {
            let shown = path.display();
            let bytes = foreign_file::open_configured(path)
                .and_then(|file| foreign_file::read_bounded(file, limits::TLS_FILE_BYTES_MAX))
                .map_err(|error| format!("{shown}: {error}"))?;
            let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
            parsed.map_err(|error| format!("{shown}: {error:?}"))?
        }
    };
    let (added, _) = roots.add_parsable_certificates(certificates);
    match (added, &ca) {
        (0, Some(path)) => Err(format!("{} contains no certificate (PEM)", path.display())),
        (0, None) => Err("this machine has none that can be parsed".to_owned()),
        _ => Ok(roots),
    }
}
