//! Provides TLS below HTTP. Holds the current certificate, which can be replaced while connections are open, and limits
//! the number and the duration of handshakes.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::ServerSessionMemoryCache;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::certificate::{Certificate, CertificateError};
use super::lock;
use super::stream::Stream;
use crate::base::limits;

/// Certificate and key for new connections.
pub struct TlsKeys {
    current: RwLock<Arc<ServerConfig>>,
}

impl TlsKeys {
    /// Returns keys that use this certificate for TLS 1.2 and 1.3, with HTTP/1.1 as the only protocol in ALPN.
    ///
    /// # Errors
    /// Returns [`CertificateError::Unusable`], for example because the key does not fit the certificate.
    pub fn new(certificate: Certificate) -> Result<TlsKeys, CertificateError> {
        Ok(TlsKeys { current: RwLock::new(server_config(certificate)?) })
    }

    /// Uses this certificate from the next connection on. Open connections keep the old one.
    ///
    /// # Errors
    /// Returns the same errors as [`TlsKeys::new`]. The old certificate then stays in use.
    pub fn replace(&self, certificate: Certificate) -> Result<(), CertificateError> {
        let config = server_config(certificate)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn server_config(certificate: Certificate) -> Result<Arc<ServerConfig>, CertificateError> {
    let Certificate { chain, key, path, .. } = certificate;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    let mut config =
        config.map_err(|error| CertificateError::Unusable { path, reason: error.to_string() })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = ServerSessionMemoryCache::new(limits::TLS_SESSIONS_MAX);
    Ok(Arc::new(config))
}

/// The handshakes in progress. At the limit the oldest handshake is dropped, so idle connections cannot block new ones.
#[derive(Clone, Default)]
pub(super) struct Handshakes {
    pending: Arc<Mutex<VecDeque<oneshot::Sender<()>>>>,
}

impl Handshakes {
    /// Runs the TLS handshake of a connection. A connection that begins with plain HTTP is returned without a
    /// handshake. Returns `None` if the handshake failed, took longer than `timeout_after`, or was dropped at the
    /// limit.
    pub(super) async fn open(
        &self,
        keys: &TlsKeys,
        socket: TcpStream,
        timeout_after: Duration,
    ) -> Option<Stream> {
        let mut dropped = self.register();
        let acceptor = TlsAcceptor::from(keys.current());
        let opening = async {
            let mut first = [0];
            match socket.peek(&mut first).await {
                Ok(1) if first != HANDSHAKE_RECORD && first[0].is_ascii_alphabetic() => {
                    Ok(Box::new(socket) as Stream)
                }
                Ok(_) => acceptor.accept(socket).await.map(|mut stream| {
                    stream.get_mut().1.set_buffer_limit(Some(limits::TLS_BUFFER_BYTES));
                    Box::new(stream) as Stream
                }),
                Err(error) => Err(error),
            }
        };
        tokio::select! {
            opened = timeout(timeout_after, opening) => match opened {
                Ok(Ok(stream)) => Some(stream),
                Ok(Err(error)) => failed(&error),
                Err(elapsed) => failed(&elapsed.into()),
            },
            _ = &mut dropped => failed(&io::Error::other("dropped for a newer connection")),
        }
    }

    /// Adds a handshake. At the limit, drops the oldest one. The returned receiver completes when the added handshake
    /// is dropped.
    fn register(&self) -> oneshot::Receiver<()> {
        let (sender, dropped) = oneshot::channel();
        let mut pending = lock(&self.pending);
        // When a handshake ends, its receiver is dropped. The senders of such handshakes are removed here.
        pending.retain(|other| !other.is_closed());
        if pending.len() >= limits::TLS_HANDSHAKES_MAX
            && let Some(oldest) = pending.pop_front()
        {
            // This send fails if the oldest handshake has just ended, so the error is ignored.
            let _ = oldest.send(());
        }
        pending.push_back(sender);
        dropped
    }
}

/// First byte of a TLS connection: the record type `handshake` (RFC 8446 section 5.1).
const HANDSHAKE_RECORD: [u8; 1] = [22];

/// Logs a failed handshake at level debug only, because it is the caller's fault. Always returns `None`.
fn failed(error: &io::Error) -> Option<Stream> {
    log::debug!("http: TLS handshake ended: {error}");
    None
}
