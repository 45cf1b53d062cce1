//! TLS before HTTP: the certificate that is served, changed while connections go on, and handshakes that are bounded
//! in number and time. Knows no routes.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ServerSessionMemoryCache;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::lock;
use super::stream::Stream;
use crate::base::limits;

/// What new connections are served with.
pub struct TlsKeys {
    current: RwLock<Arc<ServerConfig>>,
}

impl TlsKeys {
    /// Serves `chain`, whose first certificate is that of `key`. TLS 1.2 and 1.3, HTTP/1.1.
    ///
    /// # Errors
    /// What is wrong with the two, such as that they do not belong together.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<TlsKeys, rustls::Error> {
        Ok(TlsKeys { current: RwLock::new(Arc::new(server_config(chain, key)?)) })
    }

    /// Serves these from the next connection on; those that are open keep theirs.
    ///
    /// # Errors
    /// As [`TlsKeys::new`]; then the old ones stay.
    pub fn replace(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), rustls::Error> {
        let config = Arc::new(server_config(chain, key)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = ServerSessionMemoryCache::new(limits::TLS_SESSIONS_MAX);
    Ok(config)
}

/// The handshakes in progress. Above the bound the oldest gives way: whoever says nothing does not keep out who
/// comes later.
#[derive(Clone, Default)]
pub(super) struct Handshakes {
    waiting: Arc<Mutex<VecDeque<oneshot::Sender<()>>>>,
}

impl Handshakes {
    /// Makes a connection ready for HTTP. Whoever speaks plain HTTP is not asked for a handshake. `None`: it
    /// broke off, took too long or gave way.
    pub(super) async fn open(&self, keys: &TlsKeys, socket: TcpStream, patience: Duration) -> Option<Stream> {
        let mut told_to_go = self.enter();
        let acceptor = TlsAcceptor::from(keys.current());
        let opening = async {
            let mut first = [0];
            match socket.peek(&mut first).await {
                Ok(1) if first != HANDSHAKE_RECORD && first[0].is_ascii_alphabetic() => {
                    Ok(Stream::Plain(socket))
                }
                Ok(_) => acceptor.accept(socket).await.map(|stream| Stream::Tls(Box::new(stream))),
                Err(error) => Err(error),
            }
        };
        tokio::select! {
            opened = timeout(patience, opening) => match opened {
                Ok(Ok(stream)) => Some(stream),
                Ok(Err(error)) => broken(&error),
                Err(elapsed) => broken(&elapsed.into()),
            },
            _ = &mut told_to_go => broken(&io::Error::other("gave way to a newer one")),
        }
    }

    fn enter(&self) -> oneshot::Receiver<()> {
        let (tell, told_to_go) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        // Those that have ended have dropped their receivers.
        waiting.retain(|other| !other.is_closed());
        if waiting.len() >= limits::TLS_HANDSHAKES_MAX
            && let Some(oldest) = waiting.pop_front()
        {
            // It may just have ended.
            let _ = oldest.send(());
        }
        waiting.push_back(tell);
        told_to_go
    }
}

/// First byte of a TLS connection (RFC 8446 section 5.1).
const HANDSHAKE_RECORD: [u8; 1] = [22];

/// The other side's doing and no news.
fn broken(error: &io::Error) -> Option<Stream> {
    log::debug!("http: TLS handshake ended: {error}");
    None
}
