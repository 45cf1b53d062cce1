//! Parses transport-wide feedback: when packets arrived at the viewer. Receivers send it several times a second
//! (draft-holmer-rmcat-transport-wide-cc-extensions-01 section 3.1). Pure.
//!
//! The work is linear in the bytes of the message: packets that did not arrive are skipped by the run, and every packet
//! that arrived takes at least one byte.

/// Statuses of one packet in a chunk.
const SMALL_DELTA: u8 = 1;
const LARGE_DELTA: u8 = 2;

/// The packets of one feedback message that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrivals<'a> {
    first: u16,
    count: u16,
    /// Reference time of the message in [`Arrivals::TICK_US`]. It wraps around.
    reference: u32,
    chunks: &'a [u8],
    deltas: &'a [u8],
}

/// One packet that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Transport-wide sequence number of the packet.
    pub sequence: u16,
    /// Time of arrival on the viewer's clock in [`Arrivals::TICK_US`]. It wraps around after 12 days.
    pub ticks: u32,
}

impl<'a> Arrivals<'a> {
    /// Microseconds of one tick of the arrival times.
    pub const TICK_US: i64 = 250;

    /// Reads a message without its two SSRCs. Returns `None` if it is shorter than its packet count requires.
    pub fn read(body: &'a [u8]) -> Option<Arrivals<'a>> {
        let (&[a, b, c, d, e, f, g, _], rest) = body.split_first_chunk::<8>()?;
        let (first, count) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let mut covered = 0;
        let mut chunks = rest.chunks_exact(2);
        let mut chunk_bytes = 0;
        while covered < usize::from(count) {
            let &[high, low] = chunks.next()?.first_chunk()?;
            covered += usize::from(Chunk::read(high, low).left);
            chunk_bytes += 2;
        }
        let (chunks, deltas) = rest.split_at_checked(chunk_bytes)?;
        // The reference time counts 64 ms, which are 256 ticks.
        Some(Arrivals { first, count, reference: u32::from_be_bytes([e, f, g, 0]), chunks, deltas })
    }

    /// Returns an iterator over the packets that arrived, in order of their sequence numbers. It ends early if an
    /// arrival time is missing.
    pub fn iter(&self) -> impl Iterator<Item = Arrival> + use<'a> {
        let Arrivals { first, count, reference, mut chunks, mut deltas } = *self;
        let (mut done, mut ticks) = (0_u16, reference);
        let mut chunk = Chunk::default();
        std::iter::from_fn(move || {
            loop {
                while chunk.left == 0 {
                    let (&[high, low], rest) = chunks.split_first_chunk()?;
                    (chunk, chunks) = (Chunk::read(high, low), rest);
                }
                let (status, run) = chunk.next();
                let sequence = first.wrapping_add(done);
                if done >= count {
                    return None;
                }
                done = done.saturating_add(run);
                match status {
                    SMALL_DELTA => {
                        let (delta, rest) = deltas.split_first()?;
                        deltas = rest;
                        ticks = ticks.wrapping_add(u32::from(*delta));
                    }
                    LARGE_DELTA => {
                        let (delta, rest) = deltas.split_first_chunk()?;
                        deltas = rest;
                        ticks = ticks.wrapping_add_signed(i32::from(i16::from_be_bytes(*delta)));
                    }
                    _ => continue,
                }
                return Some(Arrival { sequence, ticks });
            }
        })
    }
}

/// Statuses of consecutive packets, from 16 bits of a message.
#[derive(Clone, Copy, Debug, Default)]
struct Chunk {
    /// Number of packets that are left.
    left: u16,
    /// The status of all of them, or one or two bits for each.
    symbols: u16,
    bits: u16,
}

impl Chunk {
    fn read(high: u8, low: u8) -> Chunk {
        let word = u16::from_be_bytes([high, low]);
        match high >> 6 {
            0 | 1 => Chunk { left: word & 0x1fff, symbols: word >> 13, bits: 0 },
            2 => Chunk { left: 14, symbols: word & 0x3fff, bits: 1 },
            _ => Chunk { left: 7, symbols: word & 0x3fff, bits: 2 },
        }
    }

    /// Returns the status of the next packets, and their number. Must not be called if none is left.
    fn next(&mut self) -> (u8, u16) {
        let status = if self.bits == 0 {
            self.symbols & 3
        } else {
            (self.symbols >> (self.bits * (self.left - 1))) & ((1 << self.bits) - 1)
        };
        let has_arrived = matches!(status, 1 | 2);
        // A run of packets that did not arrive is skipped at once.
        let run = if self.bits == 0 && !has_arrived { self.left } else { 1 };
        self.left -= run;
        (u8::try_from(status).unwrap_or_default(), run)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Writes a message with statuses as vectors of two bits, or as runs. `reference` counts 64 ms. Each packet has the
    /// time since the one before in ticks, or `None` if it did not arrive.
    pub(in crate::session::media) fn message(
        first: u16,
        reference: u32,
        deltas: &[Option<i16>],
        with_runs: bool,
    ) -> Vec<u8> {
        let symbol = |delta: &Option<i16>| match delta {
            None => 0_u16,
            Some(0..=255) => 1,
            Some(_) => 2,
        };
        let mut bytes = first.to_be_bytes().to_vec();
        bytes.extend(u16::try_from(deltas.len()).unwrap().to_be_bytes());
        bytes.extend(&reference.to_be_bytes()[1..]);
        bytes.push(0);
        if with_runs {
            for run in deltas.chunk_by(|one, other| symbol(one) == symbol(other)) {
                bytes.extend((symbol(&run[0]) << 13 | u16::try_from(run.len()).unwrap()).to_be_bytes());
            }
        } else {
            for seven in deltas.chunks(7) {
                let word = (0..7).fold(3_u16, |word, at| word << 2 | seven.get(at).map_or(0, symbol));
                bytes.extend(word.to_be_bytes());
            }
        }
        for delta in deltas.iter().flatten() {
            match u8::try_from(*delta) {
                Ok(small) => bytes.push(small),
                Err(_) => bytes.extend(delta.to_be_bytes()),
            }
        }
        bytes
    }

    /// Returns the arrivals that the message must tell.
    fn expected(first: u16, reference: u32, deltas: &[Option<i16>]) -> Vec<Arrival> {
        let mut ticks = reference << 8;
        let mut arrivals = Vec::new();
        for (at, delta) in deltas.iter().enumerate() {
            let Some(delta) = delta else { continue };
            ticks = ticks.wrapping_add_signed(i32::from(*delta));
            let sequence = first.wrapping_add(u16::try_from(at).unwrap());
            arrivals.push(Arrival { sequence, ticks });
        }
        arrivals
    }

    #[test]
    fn one_bit_statuses_are_read() {
        let body = [0xff, 0xff, 0, 3, 0, 0, 1, 9, 0b1010_1000, 0, 4, 8, 0];
        let arrivals: Vec<_> = Arrivals::read(&body).unwrap().iter().collect();
        let expected = [Arrival { sequence: 0xffff, ticks: 260 }, Arrival { sequence: 1, ticks: 268 }];
        assert_eq!(arrivals, expected);
    }

    #[test]
    fn message_without_all_statuses_is_refused_and_missing_times_end_it() {
        assert_eq!(Arrivals::read(&[0, 0, 0, 8, 0, 0, 0, 0, 0xc0, 0]), None, "eight packets, seven statuses");
        assert_eq!(Arrivals::read(&[0, 0, 0, 1, 0, 0, 0]), None);
        let body = [0, 0, 0, 5, 0, 0, 0, 0, 0x20, 5, 1, 2];
        assert_eq!(Arrivals::read(&body).unwrap().iter().count(), 2);
    }

    #[test]
    fn empty_runs_end() {
        assert_eq!(Arrivals::read(&[0; 8]).unwrap().iter().count(), 0);
        assert_eq!(Arrivals::read(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), None, "runs of no packet");
        let body = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x20, 1, 7];
        assert_eq!(Arrivals::read(&body).unwrap().iter().count(), 1);
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn every_message_is_read_back(
            first in any::<u16>(),
            reference in 0..1_u32 << 24,
            deltas in prop::collection::vec(prop::option::of(any::<i16>()), 0..200),
            with_runs in any::<bool>(),
        ) {
            let body = message(first, reference, &deltas, with_runs);
            let arrivals: Vec<_> = Arrivals::read(&body).unwrap().iter().collect();
            prop_assert_eq!(arrivals, expected(first, reference, &deltas));
        }

        #[test]
        fn any_bytes_are_read_with_linear_work(body in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(arrivals) = Arrivals::read(&body) {
                prop_assert!(arrivals.iter().count() <= body.len());
            }
        }
    }
}
