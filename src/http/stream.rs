//! Provides a connection as a byte stream for hyper, with or without TLS, sets its options, and closes it in an orderly
//! way.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use crate::base::limits;

/// A connection that is ready for HTTP: plain TCP, or TLS with the handshake finished.
pub(super) type Stream = Box<dyn Connection>;

/// A TCP connection, with or without TLS.
pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {
    /// Returns true for a connection over TLS.
    fn is_tls(&self) -> bool;

    /// Returns the socket of the connection.
    fn socket(&self) -> &TcpStream;
}

impl Connection for TcpStream {
    fn is_tls(&self) -> bool {
        false
    }

    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Connection for TlsStream<TcpStream> {
    fn is_tls(&self) -> bool {
        true
    }

    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// Limits the socket buffers of all connections that the listener accepts: they inherit its options. A failure is only
/// logged, because the connections also work without the options.
pub(super) fn limit_buffers(listener: &std::net::TcpListener) {
    let limited = sockopt::set_socket_send_buffer_size(listener, limits::CONNECTION_SEND_BYTES)
        .and_then(|()| sockopt::set_socket_recv_buffer_size(listener, limits::CONNECTION_RECEIVE_BYTES));
    if let Err(error) = limited {
        log::warn!("http: cannot limit the socket buffers, so slow readers can take more memory: {error}");
    }
}

/// Sets socket options. A failure is only logged, because the connection also works without the options.
pub(super) fn prepare(stream: &TcpStream) {
    let answer_timeout_ms = u32::try_from(limits::ANSWER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = sockopt::set_tcp_user_timeout(stream, answer_timeout_ms) {
        log::debug!("http: cannot set TCP_USER_TIMEOUT: {error}");
    }
    if let Err(error) = stream.set_nodelay(true) {
        log::debug!("http: cannot set TCP_NODELAY: {error}");
    }
}

/// Closes the sending side, then reads until the caller closes too, at most for `limits::LINGER`. If the socket were
/// closed with unread bytes, TCP would reset the connection, and the caller could lose the last answer (RFC 9112
/// section 9.6).
pub(super) async fn linger(mut stream: Stream) {
    let closing = async {
        if poll_fn(|context| Pin::new(&mut stream).poll_shutdown(context)).await.is_ok() {
            read_to_end(stream.socket()).await;
        }
    };
    // The result is ignored: even after a timeout the socket is closed, because `stream` is dropped.
    let _ = timeout(limits::LINGER, closing).await;
}

/// Closes an idle connection without waiting for the caller. TLS sends its end, if the socket takes it at once.
pub(super) async fn close_now(mut stream: Stream) {
    poll_fn(|context| {
        // The result is ignored: the socket is closed next in any case.
        let _ = Pin::new(&mut stream).poll_shutdown(context);
        Poll::Ready(())
    })
    .await;
}

async fn read_to_end(socket: &TcpStream) {
    let mut discarded = [0; 4096];
    while socket.readable().await.is_ok() {
        match socket.try_read(&mut discarded) {
            Ok(0) => break,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => break,
            _ => {}
        }
    }
}
