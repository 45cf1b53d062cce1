//! Tokens that identify operations, and the rule by which datagrams form batches. This module is pure.

use std::net::{IpAddr, SocketAddr};

use crate::base::limits::{GSO_BYTES_MAX, GSO_SEGMENTS_MAX};

/// Identifies an operation. It is submitted as `user_data`, and the kernel returns it with each completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// The multishot receive.
    Receive,
    /// A one-shot receive. The number is the index of its buffer.
    ReceiveOne(u16),
    /// The read of an eventfd. The number is the index of the eventfd.
    Eventfd(u16),
    /// A send. The number is the index of the send operation.
    Send(u32),
    /// A cancellation. Its completion is ignored.
    Cancel,
    /// The futex wait.
    Futex,
    /// The accept of a TCP connection.
    Accept,
    /// The receive on a TCP connection. The number is that of the connection.
    TcpReceive(u32),
    /// The send on a TCP connection.
    TcpSend(u32),
}

impl Token {
    /// Returns the token as `user_data`. The kind is in the upper 32 bits, and the index in the lower 32 bits.
    pub(super) fn pack(self) -> u64 {
        let (kind, index) = match self {
            Token::Receive => (1, 0),
            Token::ReceiveOne(index) => (2, u32::from(index)),
            Token::Eventfd(index) => (3, u32::from(index)),
            Token::Send(index) => (4, index),
            Token::Cancel => (5, 0),
            Token::Futex => (6, 0),
            Token::Accept => (7, 0),
            Token::TcpReceive(id) => (8, id),
            Token::TcpSend(id) => (9, id),
        };
        (kind << 32) | u64::from(index)
    }

    /// Returns the token in `user_data`. Returns `None` for any value that [`Token::pack`] cannot produce.
    pub(super) fn unpack(user_data: u64) -> Option<Token> {
        let index = u32::try_from(user_data & u64::from(u32::MAX)).ok()?;
        match (user_data >> 32, index) {
            (1, 0) => Some(Token::Receive),
            (2, index) => u16::try_from(index).ok().map(Token::ReceiveOne),
            (3, index) => u16::try_from(index).ok().map(Token::Eventfd),
            (4, index) => Some(Token::Send(index)),
            (5, 0) => Some(Token::Cancel),
            (6, 0) => Some(Token::Futex),
            (7, 0) => Some(Token::Accept),
            (8, id) => Some(Token::TcpReceive(id)),
            (9, id) => Some(Token::TcpSend(id)),
            _ => None,
        }
    }
}

/// Source and destination of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Source address. If it is `None`, the kernel chooses a source address.
    pub(super) local: Option<IpAddr>,
    /// Destination address and port.
    pub(super) remote: SocketAddr,
}

/// Consecutive datagrams of one viewer on one route, which are sent by one send operation. Each has `segment_bytes`
/// bytes, but the last one may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// Number of the viewer.
    pub(super) viewer: u32,
    pub(super) route: Route,
    /// Bytes of every datagram except the last.
    pub(super) segment_bytes: usize,
    /// Number of datagrams, at least one.
    pub(super) segment_count: usize,
    /// Bytes of all datagrams together.
    pub(super) bytes: usize,
    /// True if no further datagram can join the batch.
    pub(super) is_closed: bool,
}

impl Batch {
    /// Returns a batch of one datagram. An empty or oversized datagram is sent alone, so its batch is closed. (An empty
    /// segment inside a GSO send would be lost.)
    pub(super) fn of_first(viewer: u32, route: Route, bytes: usize) -> Batch {
        let is_closed = bytes == 0 || bytes > GSO_BYTES_MAX;
        Batch { viewer, route, segment_bytes: bytes, segment_count: 1, bytes, is_closed }
    }

    /// Returns true if a datagram of `bytes` bytes for `viewer` on `route` may join the batch. The number of segments
    /// is not compared here, because [`Batch::push`] closes a full batch.
    pub(super) fn accepts(&self, viewer: u32, route: &Route, bytes: usize) -> bool {
        self.viewer == viewer
            && self.route == *route
            && !self.is_closed
            && bytes > 0
            && bytes <= self.segment_bytes
            && self.bytes + bytes <= GSO_BYTES_MAX
    }

    /// Adds a datagram of `bytes` bytes, which [`Batch::accepts`] must allow. A datagram that is shorter than the
    /// others closes the batch.
    pub(super) fn push(&mut self, bytes: usize) {
        debug_assert!(self.accepts(self.viewer, &self.route, bytes), "`accepts` was checked first");
        self.segment_count += 1;
        self.bytes += bytes;
        self.is_closed = bytes < self.segment_bytes || self.segment_count == GSO_SEGMENTS_MAX;
    }

    /// Returns the segment size for the kernel (`UDP_SEGMENT`), or `None` for a single datagram.
    pub(super) fn gso_segment(&self) -> Option<u16> {
        if self.segment_count > 1 { u16::try_from(self.segment_bytes).ok() } else { None }
    }
}

/// Outcome of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SendOutcome {
    /// The kernel sent this many bytes.
    Sent(u32),
    /// A queue was full (`ENOBUFS`, `EAGAIN`). The datagrams are lost, as if the network had lost them.
    Dropped,
    /// The route does not support GSO sends.
    Refused,
    /// The destination is unreachable, or the datagram cannot be sent.
    Failed,
}

impl SendOutcome {
    /// Returns the outcome for the result of a completion, which is a number of bytes or a negative error number.
    ///
    /// `EIO` means an interface without checksum offload. `EINVAL` (`EMSGSIZE` since Linux 6.14) means a segment larger
    /// than the path's MTU. `EOPNOTSUPP` means a tunnel without GSO. These errors count as a refusal only for a batch
    /// of several datagrams.
    pub(super) fn of(result: i32, batch: &Batch) -> SendOutcome {
        if let Ok(bytes) = u32::try_from(result) {
            return SendOutcome::Sent(bytes);
        }
        match result.saturating_neg() {
            libc::ENOBUFS | libc::EAGAIN => SendOutcome::Dropped,
            libc::EIO | libc::EINVAL | libc::EOPNOTSUPP | libc::EMSGSIZE if batch.segment_count > 1 => {
                SendOutcome::Refused
            }
            _ => SendOutcome::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::*;
    use proptest::prelude::*;

    const ROUTE: Route =
        Route { local: None, remote: SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 5000)) };

    /// Splits a list of datagram sizes into batches as the driver does.
    fn batches(sizes: &[usize]) -> Vec<Vec<usize>> {
        let mut out: Vec<Vec<usize>> = Vec::new();
        let mut open: Option<Batch> = None;
        for &bytes in sizes {
            match (open.as_mut(), out.last_mut()) {
                (Some(open), Some(batch)) if open.accepts(1, &ROUTE, bytes) => {
                    open.push(bytes);
                    batch.push(bytes);
                }
                _ => {
                    open = Some(Batch::of_first(1, ROUTE, bytes));
                    out.push(vec![bytes]);
                }
            }
        }
        out
    }

    /// Returns true if datagrams of these sizes can be one batch.
    fn is_batch(sizes: &[usize]) -> bool {
        let [first, middle @ .., last] = sizes else {
            return sizes.len() == 1;
        };
        middle.iter().all(|bytes| bytes == first)
            && *last <= *first
            && *last > 0
            && sizes.len() <= GSO_SEGMENTS_MAX
            && sizes.iter().sum::<usize>() <= GSO_BYTES_MAX
    }

    /// Splits the sizes in the naive way: repeatedly takes the longest prefix that is a batch.
    fn naive_batches(mut sizes: &[usize]) -> Vec<Vec<usize>> {
        let mut out = Vec::new();
        while !sizes.is_empty() {
            let mut count = 1;
            while count < sizes.len() && is_batch(&sizes[..=count]) {
                count += 1;
            }
            out.push(sizes[..count].to_vec());
            sizes = &sizes[count..];
        }
        out
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn each_batch_is_the_longest_possible_prefix(
            sizes in prop::collection::vec(
                prop_oneof![Just(1200usize), Just(1140), Just(40), 0usize..70_000, Just(0)], 0..200),
        ) {
            prop_assert_eq!(batches(&sizes), naive_batches(&sizes));
        }

        #[test]
        fn equal_sizes_fill_whole_batches(count in 1usize..300, bytes in 1usize..1_400) {
            let sizes = vec![bytes; count];
            prop_assert_eq!(batches(&sizes), naive_batches(&sizes));
            prop_assert_eq!(batches(&sizes).len(), count.div_ceil(GSO_SEGMENTS_MAX.min(GSO_BYTES_MAX / bytes)));
        }

        #[test]
        fn tokens_survive_packing(index in any::<u32>(), small in any::<u16>()) {
            for token in [Token::Receive, Token::ReceiveOne(small), Token::Eventfd(small), Token::Send(index),
                          Token::Cancel, Token::Accept, Token::TcpReceive(index), Token::TcpSend(index)] {
                prop_assert_eq!(Token::unpack(token.pack()), Some(token));
            }
        }

        #[test]
        fn unknown_user_data_is_no_token_or_packs_to_itself(user_data in any::<u64>()) {
            if let Some(token) = Token::unpack(user_data) {
                prop_assert_eq!(token.pack(), user_data);
            }
        }
    }

    #[test]
    fn batch_of_one_has_no_segment_size() {
        let mut batch = Batch::of_first(1, ROUTE, 1200);
        assert_eq!(batch.gso_segment(), None);
        batch.push(1200);
        assert_eq!(batch.gso_segment(), Some(1200));
        batch.push(7);
        assert!(batch.is_closed);
        assert_eq!(batch.gso_segment(), Some(1200));
    }

    #[test]
    fn other_viewer_or_route_does_not_join_a_batch() {
        let batch = Batch::of_first(1, ROUTE, 100);
        assert!(batch.accepts(1, &ROUTE, 100));
        assert!(!batch.accepts(2, &ROUTE, 100));
        let other = Route { remote: "192.0.2.1:5001".parse().unwrap(), ..ROUTE };
        assert!(!batch.accepts(1, &other, 100));
        let bound = Route { local: Some("192.0.2.9".parse().unwrap()), ..ROUTE };
        assert!(!batch.accepts(1, &bound, 100));
    }

    #[test]
    fn only_a_batch_of_several_is_refused() {
        let one = Batch::of_first(1, ROUTE, 100);
        let mut two = one;
        two.push(100);
        for errno in [libc::EIO, libc::EINVAL, libc::EOPNOTSUPP, libc::EMSGSIZE] {
            assert_eq!(SendOutcome::of(-errno, &two), SendOutcome::Refused);
            assert_eq!(SendOutcome::of(-errno, &one), SendOutcome::Failed);
        }
        assert_eq!(SendOutcome::of(-libc::ENOBUFS, &two), SendOutcome::Dropped);
        assert_eq!(SendOutcome::of(-libc::EAGAIN, &one), SendOutcome::Dropped);
        assert_eq!(SendOutcome::of(-libc::ECONNREFUSED, &two), SendOutcome::Failed);
        assert_eq!(SendOutcome::of(200, &two), SendOutcome::Sent(200));
    }
}
