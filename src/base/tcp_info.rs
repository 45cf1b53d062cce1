//! UNSAFE: asks the kernel how many bytes have arrived on a TCP connection, also if another library has read them.
#![expect(unsafe_code, reason = "getsockopt(2) with TCP_INFO; rustix has no function for it")]

use std::net::TcpStream;
use std::os::fd::AsRawFd as _;

/// Index of `tcpi_bytes_received` in the `struct tcp_info` of linux/tcp.h (Linux 4.1), in units of 64 bits. The kernel
/// only appends to this struct.
const BYTES_RECEIVED: usize = 16;

/// Returns the number of bytes that have arrived in order on the connection, or `None` if the kernel does not report it.
#[must_use]
pub fn received_bytes(connection: &TcpStream) -> Option<u64> {
    let mut info = [0_u64; BYTES_RECEIVED + 1];
    let mut bytes = libc::socklen_t::try_from(size_of_val(&info)).ok()?;
    let all_bytes = bytes;
    // SAFETY: the kernel writes at most `bytes` bytes, which is the size of `info`, and any bits are valid there. Both
    // pointers are valid during the call, and the descriptor is open.
    let result = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    (result == 0 && bytes == all_bytes).then(|| info[BYTES_RECEIVED])
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn bytes_are_counted_before_and_after_they_are_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        assert_eq!(received_bytes(&receiver), Some(0));
        sender.write_all(&[7; 300]).unwrap();
        let mut bytes = [0; 200];
        receiver.read_exact(&mut bytes).unwrap();
        assert_eq!(received_bytes(&receiver), Some(300));
        receiver.read_exact(&mut bytes[..100]).unwrap();
        assert_eq!(received_bytes(&receiver), Some(300));
    }
}
