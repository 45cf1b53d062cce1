//! What an operation is called (its token) and how datagrams become batches. Pure: no memory the kernel sees,
//! no system call.

use std::net::{IpAddr, SocketAddr};

use crate::base::limits::{GSO_BYTES_MAX, GSO_SEGMENTS_MAX};

/// Names an operation in the ring: it goes out as `user_data` and comes back with each completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// The multishot receive.
    Receive,
    /// A one-shot receive, by buffer.
    ReceiveOne(u16),
    /// The read of a bell, by index.
    Eventfd(u16),
    /// A send, by operation.
    Send(u32),
    /// A cancellation; nothing waits for it.
    Cancel,
    /// The wait for a word to change.
    Futex,
}

impl Token {
    /// The token as `user_data`: kind in the upper half, index in the lower.
    pub(super) fn pack(self) -> u64 {
        let (kind, index) = match self {
            Token::Receive => (1, 0),
            Token::ReceiveOne(index) => (2, u32::from(index)),
            Token::Eventfd(index) => (3, u32::from(index)),
            Token::Send(index) => (4, index),
            Token::Cancel => (5, 0),
            Token::Futex => (6, 0),
        };
        (kind << 32) | u64::from(index)
    }

    /// The token in `user_data`; `None` for anything [`Token::pack`] does not make.
    pub(super) fn unpack(user_data: u64) -> Option<Token> {
        let index = u32::try_from(user_data & u64::from(u32::MAX)).ok()?;
        match (user_data >> 32, index) {
            (1, 0) => Some(Token::Receive),
            (2, index) => u16::try_from(index).ok().map(Token::ReceiveOne),
            (3, index) => u16::try_from(index).ok().map(Token::Eventfd),
            (4, index) => Some(Token::Send(index)),
            (5, 0) => Some(Token::Cancel),
            (6, 0) => Some(Token::Futex),
            _ => None,
        }
    }
}

/// Where a datagram leaves from and goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Source address; the kernel's choice where `None`.
    pub(super) local: Option<IpAddr>,
    /// Destination.
    pub(super) remote: SocketAddr,
}

/// The sizes of the datagrams in a batch: all of `segment_bytes`, only the last may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchShape {
    /// Bytes of every datagram but the last.
    pub(super) segment_bytes: usize,
    /// Datagrams so far, at least one.
    pub(super) segment_count: usize,
    /// Bytes of all of them.
    pub(super) bytes: usize,
    is_closed: bool,
}

impl BatchShape {
    /// A batch of one datagram. Empty and oversized ones stay alone: an empty segment would vanish.
    pub(super) fn of_first(bytes: usize) -> BatchShape {
        let is_closed = bytes == 0 || bytes > GSO_BYTES_MAX;
        BatchShape { segment_bytes: bytes, segment_count: 1, bytes, is_closed }
    }

    /// The same batch, taking no more.
    pub(super) fn closed(self) -> BatchShape {
        BatchShape { is_closed: true, ..self }
    }

    /// Whether a datagram of `bytes` may join.
    pub(super) fn accepts(&self, bytes: usize) -> bool {
        !self.is_closed
            && bytes > 0
            && bytes <= self.segment_bytes
            && self.segment_count < GSO_SEGMENTS_MAX
            && self.bytes + bytes <= GSO_BYTES_MAX
    }

    /// Adds a datagram that [`BatchShape::accepts`] took; a shorter one is the last.
    pub(super) fn push(&mut self, bytes: usize) {
        debug_assert!(self.accepts(bytes), "asked first");
        self.segment_count += 1;
        self.bytes += bytes;
        self.is_closed = bytes < self.segment_bytes || self.segment_count == GSO_SEGMENTS_MAX;
    }

    /// Whether no further datagram can join.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// The segment size to tell the kernel (`UDP_SEGMENT`); `None` for a datagram alone.
    pub(super) fn gso_segment(&self) -> Option<u16> {
        if self.segment_count > 1 { u16::try_from(self.segment_bytes).ok() } else { None }
    }
}

/// Consecutive datagrams of one viewer on one route: one send operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// Whose datagrams.
    pub(super) viewer: u32,
    /// From where to where.
    pub(super) route: Route,
    /// Their sizes.
    pub(super) shape: BatchShape,
}

impl Batch {
    /// Whether a datagram of `bytes` for `viewer` on `route` may join.
    pub(super) fn accepts(&self, viewer: u32, route: &Route, bytes: usize) -> bool {
        self.viewer == viewer && self.route == *route && self.shape.accepts(bytes)
    }
}

/// What the result of a send asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SendOutcome {
    /// Handed to the network: so many bytes.
    Sent(u32),
    /// No room in a queue: a loss like any other on the way (`ENOBUFS`, `EAGAIN`).
    Dropped,
    /// This route takes no GSO send: its datagrams go out one by one.
    Refused,
    /// The destination cannot be reached or the datagram cannot be sent.
    Failed,
}

impl SendOutcome {
    /// Reads the result of a completion: bytes, or an error number below zero.
    ///
    /// `EIO` is an interface without checksum offload, `EINVAL` (`EMSGSIZE` since Linux 6.14) a segment
    /// beyond the path's MTU, `EOPNOTSUPP` a tunnel without GSO; all of them only say so of a batch.
    pub(super) fn of(result: i32, shape: &BatchShape) -> SendOutcome {
        if let Ok(bytes) = u32::try_from(result) {
            return SendOutcome::Sent(bytes);
        }
        match result.saturating_neg() {
            libc::ENOBUFS | libc::EAGAIN => SendOutcome::Dropped,
            libc::EIO | libc::EINVAL | libc::EOPNOTSUPP | libc::EMSGSIZE if shape.segment_count > 1 => {
                SendOutcome::Refused
            }
            _ => SendOutcome::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Batches of sizes as the driver builds them.
    fn batches(sizes: &[usize]) -> Vec<Vec<usize>> {
        let mut out: Vec<Vec<usize>> = Vec::new();
        let mut open: Option<BatchShape> = None;
        for &bytes in sizes {
            match (open.as_mut(), out.last_mut()) {
                (Some(shape), Some(batch)) if shape.accepts(bytes) => {
                    shape.push(bytes);
                    batch.push(bytes);
                }
                _ => {
                    open = Some(BatchShape::of_first(bytes));
                    out.push(vec![bytes]);
                }
            }
        }
        out
    }

    /// The rule as prose: is this list of sizes one GSO send?
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

    /// The twin: take the longest prefix that is a batch, again and again.
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
        fn runs_are_the_longest_prefixes_that_are_runs(
            sizes in prop::collection::vec(
                prop_oneof![Just(1200usize), Just(1140), Just(40), 0usize..70_000, Just(0)], 0..200),
        ) {
            prop_assert_eq!(batches(&sizes), naive_batches(&sizes));
        }

        #[test]
        fn equal_sizes_fill_runs(count in 1usize..300, bytes in 1usize..1_400) {
            let sizes = vec![bytes; count];
            prop_assert_eq!(batches(&sizes), naive_batches(&sizes));
            prop_assert_eq!(batches(&sizes).len(), count.div_ceil(GSO_SEGMENTS_MAX.min(GSO_BYTES_MAX / bytes)));
        }

        #[test]
        fn tokens_come_back_as_they_went(index in any::<u32>(), small in any::<u16>()) {
            for token in [Token::Receive, Token::ReceiveOne(small), Token::Eventfd(small), Token::Send(index),
                          Token::Cancel] {
                prop_assert_eq!(Token::unpack(token.pack()), Some(token));
            }
        }

        #[test]
        fn a_token_nobody_made_is_none_or_packs_to_itself(user_data in any::<u64>()) {
            if let Some(token) = Token::unpack(user_data) {
                prop_assert_eq!(token.pack(), user_data);
            }
        }
    }

    #[test]
    fn a_batch_of_one_has_no_segment_size() {
        let mut shape = BatchShape::of_first(1200);
        assert_eq!(shape.gso_segment(), None);
        shape.push(1200);
        assert_eq!(shape.gso_segment(), Some(1200));
        shape.push(7);
        assert!(shape.is_closed());
        assert_eq!(shape.gso_segment(), Some(1200));
    }

    #[test]
    fn another_viewer_or_route_is_another_run() {
        let route = Route { local: None, remote: "192.0.2.1:5000".parse().unwrap() };
        let batch = Batch { viewer: 1, route, shape: BatchShape::of_first(100) };
        assert!(batch.accepts(1, &route, 100));
        assert!(!batch.accepts(2, &route, 100));
        let other = Route { remote: "192.0.2.1:5001".parse().unwrap(), ..route };
        assert!(!batch.accepts(1, &other, 100));
        let bound = Route { local: Some("192.0.2.9".parse().unwrap()), ..route };
        assert!(!batch.accepts(1, &bound, 100));
    }

    #[test]
    fn only_a_run_is_refused() {
        let one = BatchShape::of_first(100);
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
