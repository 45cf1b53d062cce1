//! UNSAFE. System calls that have no safe binding. They receive many datagrams per call with their arrival times, send
//! GSO batches, set the scheduling class, open TUN devices, and let children end with this process.
#![expect(
    unsafe_code,
    reason = "recvmmsg, sendmsg with control messages, scheduling class, TUNSETIFF, pre_exec"
)]

use std::fs::File;
use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Datagrams received per call.
const BATCH: usize = 64;
/// Bytes of one receive buffer, without GRO and with GRO. With GRO, one buffer receives a whole batch of datagrams.
const PLAIN_BYTES: usize = 2_048;
const GRO_BYTES: usize = 65_536;
/// Size of the buffer for the control messages of one datagram: arrival time, number of lost datagrams, segment size.
const CONTROL_BYTES: usize = 128;
/// Bytes of a socket's receive buffer. It holds seconds of 8 Mbit/s, so that a viewer loses nothing while its thread
/// does not run.
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;

fn set_option(socket: &UdpSocket, level: i32, name: i32, value: i32) -> io::Result<()> {
    let bytes = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the descriptor is open while `socket` exists. The value is an i32 that outlives the call, and its size is
    // passed.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(&value).cast(), bytes)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Configures a viewer's socket with kernel timestamps, a loss counter, a large receive buffer and, if `gro` is true,
/// GRO.
pub(crate) fn prepare_viewer(socket: &UdpSocket, gro: bool) -> io::Result<()> {
    let bytes = RECEIVE_BUFFER_BYTES as i32;
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
        .or_else(|_| set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes))?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)?;
    if gro {
        set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1)?;
    }
    socket.set_nonblocking(true)
}

/// Gives the socket of the bare sender a large send buffer.
pub(crate) fn prepare_sender(socket: &UdpSocket) -> io::Result<()> {
    let bytes = RECEIVE_BUFFER_BYTES as i32;
    set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes)
        .or_else(|_| set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes))
}

/// Sets the scheduling class of the calling thread to SCHED_IDLE. If the thread runs late, the kernel timestamps are
/// still correct. If it occupied a core, it would slow the server under test.
pub(crate) fn use_idle_priority() -> io::Result<()> {
    set_scheduler(libc::SCHED_IDLE, 0)
}

/// Gives the calling thread the lowest real-time priority (SCHED_RR), so that other processes do not delay it.
pub(crate) fn use_real_time_priority() -> io::Result<()> {
    set_scheduler(libc::SCHED_RR, 1)
}

/// Makes a TUN device called `name` in the network namespace of the calling thread. Reads and writes of the file are
/// whole IP packets and never block. The device is removed when the file is closed.
pub(crate) fn open_tun(name: &str) -> io::Result<File> {
    let mut options = File::options();
    let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all fields of `ifreq` are integers, arrays of integers, or pointers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open while `file` exists. TUNSETIFF reads and writes one `ifreq`, which outlives the
    // call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(file) }
}

fn set_scheduler(policy: i32, priority: i32) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: thread id 0 means the calling thread, and `parameters` outlives the call.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the kernel kill the child when the spawning thread ends, so that a killed harness leaves no server behind. If
/// `shielded` is true, the child gets real-time priority (SCHED_RR).
pub(crate) fn end_with_us(command: &mut Command, shielded: bool) {
    let prepare = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        if shielded { set_scheduler(libc::SCHED_RR, 1) } else { Ok(()) }
    };
    // SAFETY: between fork and exec the closure makes two system calls and touches neither memory nor locks.
    unsafe { command.pre_exec(prepare) };
}

/// Buffer for control messages, aligned as `cmsghdr` requires.
#[repr(C, align(8))]
#[derive(Copy, Clone)]
struct Control([u8; CONTROL_BYTES]);

/// One received datagram, or several joined by GRO.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Datagram<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) from: SocketAddrV4,
    /// CLOCK_REALTIME ns at which the kernel received the datagram.
    pub(crate) at_realtime_ns: i64,
    /// Datagrams lost by this socket so far because its buffer was full.
    pub(crate) lost_in_total: Option<u32>,
    /// Size of each joined datagram in bytes. The last one may be smaller.
    pub(crate) segment_bytes: usize,
}

/// Receive buffers for [`BATCH`] datagrams.
pub(crate) struct Receiver {
    buffer_bytes: usize,
    buffers: Vec<u8>,
    controls: Vec<Control>,
    names: Vec<libc::sockaddr_in>,
    /// Number of bytes and number of control bytes of each datagram that the last call received.
    lengths: Vec<(usize, usize)>,
}

impl Receiver {
    /// Maximum number of datagrams per call.
    pub(crate) const BATCH: usize = BATCH;

    pub(crate) fn new(gro: bool) -> Receiver {
        let buffer_bytes = if gro { GRO_BYTES } else { PLAIN_BYTES };
        Receiver {
            buffer_bytes,
            buffers: vec![0; buffer_bytes * BATCH],
            controls: vec![Control([0; CONTROL_BYTES]); BATCH],
            names: vec![address_of(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)); BATCH],
            lengths: Vec::with_capacity(BATCH),
        }
    }

    /// Receives available datagrams without waiting. Returns their number.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.lengths.clear();
        let mut iovecs: [libc::iovec; BATCH] =
            std::array::from_fn(|_| libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 });
        let places = self.buffers.chunks_exact_mut(self.buffer_bytes);
        for (iovec, place) in iovecs.iter_mut().zip(places) {
            *iovec = libc::iovec { iov_base: place.as_mut_ptr().cast(), iov_len: place.len() };
        }
        // SAFETY: `mmsghdr` is plain data for which all zeroes are valid (null pointers, zero lengths).
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { zeroed() };
        let places = iovecs.iter_mut().zip(&mut self.controls).zip(&mut self.names);
        for (header, ((iovec, control), name)) in headers.iter_mut().zip(places) {
            header.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL_BYTES;
        }
        // SAFETY: each header points to its own name, iovec and control buffer, and each iovec points to its own part
        // of `buffers`. All of them outlive the call, and nothing else accesses them during the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(0) } else { Err(error) };
        };
        let lengths = |header: &libc::mmsghdr| (header.msg_len as usize, header.msg_hdr.msg_controllen);
        self.lengths.extend(headers[..count].iter().map(lengths));
        Ok(count)
    }

    /// Returns the datagram `index` of those that the last call of `receive` received.
    pub(crate) fn datagram(&self, index: usize) -> Datagram<'_> {
        let (bytes, control_bytes) = self.lengths[index];
        let start = index * self.buffer_bytes;
        let bytes = &self.buffers[start..start + bytes];
        let name = &self.names[index];
        let from = SocketAddrV4::new(
            Ipv4Addr::from_bits(u32::from_be(name.sin_addr.s_addr)),
            u16::from_be(name.sin_port),
        );
        let segment_bytes = bytes.len().max(1);
        let mut datagram = Datagram { bytes, from, at_realtime_ns: 0, lost_in_total: None, segment_bytes };
        let mut rest = &self.controls[index].0[..control_bytes.min(CONTROL_BYTES)];
        while let Some((kind, data, more)) = next_control(rest) {
            match kind {
                (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => datagram.at_realtime_ns = time_of(data),
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => datagram.lost_in_total = first_u32(data),
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    datagram.segment_bytes = first_u32(data).map_or(bytes.len(), |size| size as usize).max(1);
                }
                _ => {}
            }
            rest = more;
        }
        datagram
    }
}

type ControlMessage<'a> = ((i32, i32), &'a [u8], &'a [u8]);

/// Splits off the first control message (cmsg(3), 64-bit layout). Returns its level and type, its data, and the
/// remaining bytes.
fn next_control(bytes: &[u8]) -> Option<ControlMessage<'_>> {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    let length = usize::try_from(u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?)).ok()?;
    let level = i32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    let kind = i32::from_ne_bytes(bytes.get(12..16)?.try_into().ok()?);
    let data = bytes.get(HEADER..length)?;
    Some(((level, kind), data, bytes.get(length.next_multiple_of(8)..).unwrap_or_default()))
}

fn first_u32(data: &[u8]) -> Option<u32> {
    data.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn time_of(data: &[u8]) -> i64 {
    let word =
        |at: usize| data.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(i64::from_ne_bytes);
    word(0).unwrap_or(0) * 1_000_000_000 + word(8).unwrap_or(0)
}

fn address_of(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: address.ip().to_bits().to_be() },
        sin_zero: [0; 8],
    }
}

/// Sends `bytes` as datagrams of `segment_bytes` in one call; the last datagram may be shorter.
pub(crate) fn send_batch(
    socket: &UdpSocket,
    remote: SocketAddrV4,
    bytes: &[u8],
    segment_bytes: usize,
) -> io::Result<usize> {
    let mut address = address_of(remote);
    let mut iovec = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; CONTROL_BYTES]);
    let length = size_of::<libc::cmsghdr>() + size_of::<u16>();
    control.0[..8].copy_from_slice(&(length as u64).to_ne_bytes());
    control.0[8..12].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
    control.0[12..16].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
    control.0[16..18].copy_from_slice(&(segment_bytes as u16).to_ne_bytes());
    // SAFETY: `msghdr` is plain data for which all zeroes are valid.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_name = std::ptr::from_mut(&mut address).cast();
    header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    header.msg_iov = &raw mut iovec;
    header.msg_iovlen = 1;
    if bytes.len() > segment_bytes {
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = length.next_multiple_of(8);
    }
    // SAFETY: the name, the iovec and the control buffer outlive the call. sendmsg only reads the bytes of the iovec.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, 0) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn pair(gro: bool) -> (UdpSocket, UdpSocket, SocketAddrV4) {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        prepare_viewer(&receiver, gro).unwrap();
        let std::net::SocketAddr::V4(address) = receiver.local_addr().unwrap() else { unreachable!() };
        (UdpSocket::bind("127.0.0.1:0").unwrap(), receiver, address)
    }

    #[test]
    fn batch_arrives_as_datagrams_with_arrival_times() {
        let (sender, receiver, address) = pair(false);
        let before = crate::clock::monotonic_ns() + crate::clock::realtime_offset_ns();
        send_batch(&sender, address, &[7; 2_500], 1_000).unwrap();
        let mut batch = Receiver::new(false);
        assert_eq!(batch.receive(receiver.as_fd()).unwrap(), 3);
        let sizes: Vec<usize> = (0..3).map(|index| batch.datagram(index).bytes.len()).collect();
        assert_eq!(sizes, [1_000, 1_000, 500]);
        let late = batch.datagram(0).at_realtime_ns - before;
        assert!((-1_000_000..60_000_000_000).contains(&late), "{late} ns");
        assert_eq!(batch.receive(receiver.as_fd()).unwrap(), 0);
    }

    #[test]
    fn gro_keeps_the_batch_together_and_reports_its_segment_size() {
        let (sender, receiver, address) = pair(true);
        send_batch(&sender, address, &[7; 2_500], 1_000).unwrap();
        let mut batch = Receiver::new(true);
        assert_eq!(batch.receive(receiver.as_fd()).unwrap(), 1);
        let joined = batch.datagram(0);
        assert_eq!((joined.bytes.len(), joined.segment_bytes), (2_500, 1_000));
    }
}
