//! The receiver for `h264::Packetizer`: it turns RTP payloads back into NAL units (RFC 6184, packetization-mode 1).
//! It does not reorder packets, does not request retransmissions, and drops access units of which a packet is lost.

use streaming_server::base::limits::{NAL_UNITS_MAX, SLOT_DATA_BYTES_MAX};

const STAP_A: u8 = 24;
const FU_A: u8 = 28;
const FU_START: u8 = 0x80;
const FU_END: u8 = 0x40;
/// Size in bytes of the FU indicator and the FU header together.
const FU_HEADER_BYTES: usize = 2;
/// Size in bytes of the length field before each NAL unit of a STAP-A.
const STAP_SIZE_BYTES: usize = 2;
/// Maximum number of bytes collected for one access unit: the largest slot and its headers.
const UNIT_BYTES_MAX: usize = SLOT_DATA_BYTES_MAX + 64 * 1024;
/// Maximum number of NAL units collected for one access unit: those of a slot and the inserted parameter sets.
const RECEIVED_NAL_UNITS_MAX: usize = 2 * NAL_UNITS_MAX;

/// Counters of a [`Depacketizer`].
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct DepacketizerCounters {
    /// Complete access units returned.
    pub units: u64,
    /// Access units dropped because a part was missing or broken. Units lost as a whole are not counted.
    pub units_discarded: u64,
    /// Sequence numbers that never arrived or arrived too late.
    pub packets_lost: u64,
    /// Duplicate and late packets. The receiver drops them.
    pub packets_late: u64,
    /// Payloads that are not valid in packetization-mode 1.
    pub packets_malformed: u64,
}

/// Assembles RTP payloads into access units.
#[derive(Default)]
pub struct Depacketizer {
    nals: Vec<Vec<u8>>,
    bytes: usize,
    fragment: Option<Vec<u8>>,
    timestamp: Option<u32>,
    next_sequence_number: Option<u16>,
    broken: bool,
    counters: DepacketizerCounters,
}

impl Depacketizer {
    /// Creates a receiver that accepts any first sequence number.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the counters.
    #[must_use]
    pub fn counters(&self) -> DepacketizerCounters {
        self.counters
    }

    /// Takes the payload of the next RTP packet. Returns the NAL units of an access unit when `marker` completes the
    /// unit.
    ///
    /// After a loss, the current access unit is dropped up to its marker, because the lost packet may belong to it.
    pub fn push(
        &mut self,
        payload: &[u8],
        marker: bool,
        timestamp: u32,
        sequence_number: u16,
    ) -> Option<Vec<Vec<u8>>> {
        let missing = sequence_number.wrapping_sub(self.next_sequence_number.unwrap_or(sequence_number));
        if missing >= 1 << 15 {
            self.counters.packets_late += 1;
            return None;
        }
        self.next_sequence_number = Some(sequence_number.wrapping_add(1));
        if self.timestamp.is_some_and(|open| open != timestamp) {
            self.discard(); // the end of the previous unit was lost
        }
        self.timestamp = Some(timestamp);
        if missing > 0 {
            self.counters.packets_lost += u64::from(missing);
            self.broken = true;
        }
        if !self.broken && self.take(payload).is_none() {
            self.counters.packets_malformed += 1;
            self.broken = true;
        }
        if marker { self.finish() } else { None }
    }

    fn finish(&mut self) -> Option<Vec<Vec<u8>>> {
        if self.broken || self.fragment.is_some() || self.nals.is_empty() {
            self.discard();
            return None;
        }
        self.counters.units += 1;
        let nals = std::mem::take(&mut self.nals);
        self.reset();
        Some(nals)
    }

    fn discard(&mut self) {
        self.counters.units_discarded += 1;
        self.reset();
    }

    fn reset(&mut self) {
        self.nals.clear();
        self.bytes = 0;
        self.fragment = None;
        self.timestamp = None;
        self.broken = false;
    }

    fn take(&mut self, payload: &[u8]) -> Option<()> {
        let header = *payload.first()?;
        self.bytes += payload.len();
        let in_bounds = self.bytes <= UNIT_BYTES_MAX;
        let between_fragments = self.fragment.is_some();
        match header & 0x1F {
            _ if !in_bounds => None,
            1..=23 if !between_fragments => self.add(payload.to_vec()),
            STAP_A if !between_fragments => self.take_aggregate(payload.get(1..)?),
            FU_A => self.take_fragment(payload),
            _ => None,
        }
    }

    fn add(&mut self, nal: Vec<u8>) -> Option<()> {
        let room = self.nals.len() < RECEIVED_NAL_UNITS_MAX && !nal.is_empty();
        room.then(|| self.nals.push(nal))
    }

    fn take_aggregate(&mut self, mut rest: &[u8]) -> Option<()> {
        while !rest.is_empty() {
            let (size, tail) = rest.split_first_chunk::<STAP_SIZE_BYTES>()?;
            let (nal, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes(*size)))?;
            self.add(nal.to_vec())?;
            rest = tail;
        }
        Some(())
    }

    fn take_fragment(&mut self, payload: &[u8]) -> Option<()> {
        let ([indicator, header], body) = payload.split_first_chunk::<FU_HEADER_BYTES>()?;
        let (start, end) = (header & FU_START != 0, header & FU_END != 0);
        let nal_header = indicator & 0xE0 | header & 0x1F;
        let mut nal = match self.fragment.take() {
            None if start && !end => vec![nal_header],
            Some(nal) if !start && nal.first() == Some(&nal_header) => nal,
            _ => return None,
        };
        nal.extend_from_slice(body);
        if end {
            return self.add(nal);
        }
        self.fragment = Some(nal);
        Some(())
    }
}
