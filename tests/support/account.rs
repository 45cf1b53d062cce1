//! Counts what a viewer received. It orders RTP packets, joins them to access units, and checks the unit number that
//! the camera simulator stamps into each unit. It shares no code with `depacketize`, so that the two do not share a
//! mistake.

use std::collections::BTreeMap;

use streaming_server::h264::{Assembler, Stamp, crc32_of_slices};

/// A missing packet counts as lost when the packet after the gap has waited for this long.
const HOLE_PATIENCE_NS: i64 = 1_500_000_000;

/// What one viewer has received: units, packets and faults.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub connected: bool,
    /// CLOCK_MONOTONIC ns at which the viewer's DTLS handshake finished, and at which its first media datagram arrived.
    pub connected_at_ns: Option<i64>,
    pub first_media_at_ns: Option<i64>,
    /// True if the server closed the session with a DTLS close_notify.
    pub got_close_notify: bool,
    /// True if the viewer's own session has ended, for any reason.
    pub ended: bool,
    /// Complete access units with a stamp.
    pub units: u64,
    /// Complete access units without a stamp.
    pub unstamped: u64,
    /// Unit numbers that are missing between two received units.
    pub missing: u64,
    pub duplicated: u64,
    pub reordered: u64,
    /// Units whose slices do not match the checksum in their stamp.
    pub torn: u64,
    /// How often the unit numbers started again, because another camera took over.
    pub restarts: u64,
    pub idrs: u64,
    /// IDR units without exactly one SPS and one PPS before their first slice.
    pub bad_idrs: u64,
    /// True if the first unit was not an IDR.
    pub began_without_idr: bool,
    pub first_unit: Option<u64>,
    pub last_unit: Option<u64>,
    /// RTP packets counted as lost.
    pub lost_packets: u64,
    /// RTP packets that arrived twice, or after they were counted as lost.
    pub late_packets: u64,
    /// Width and height from the last SPS.
    pub size: Option<(u32, u32)>,
    /// Time from the publication of a unit in the ring to the arrival of its last datagram, one sample for each unit.
    pub latencies_ns: Vec<i64>,
}

impl Report {
    /// Asserts that no unit is missing, duplicated, reordered or torn, and that each IDR has its parameter sets.
    pub fn assert_perfect(&self, who: &str) {
        let wrong = self.missing + self.duplicated + self.reordered + self.torn + self.unstamped;
        let counts = Report { latencies_ns: Vec::new(), ..self.clone() };
        assert_eq!(wrong + self.bad_idrs + self.restarts, 0, "{who}: {counts:?}");
        assert!(!self.began_without_idr, "{who}: {counts:?}");
    }

    /// Returns the latency, in ns, that `fraction` of the units did not exceed.
    pub fn latency_ns(&self, fraction: f64) -> i64 {
        let mut sorted = self.latencies_ns.clone();
        sorted.sort_unstable();
        let index = (sorted.len() as f64 * fraction) as usize;
        sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// One complete access unit as it was received.
#[derive(Clone, Debug)]
pub struct KeptUnit {
    pub nal_units: Vec<Vec<u8>>,
    pub rtp_time: u32,
    pub at_ns: i64,
}

/// One RTP packet and its arrival time.
pub struct Arrived {
    pub payload: Vec<u8>,
    pub marker: bool,
    pub rtp_time: u32,
    pub at_ns: i64,
}

/// Orders packets, joins them to units, and counts packets and units.
#[derive(Default)]
pub struct Account {
    pub report: Report,
    keeps_units: bool,
    /// The complete access units that arrived. Empty unless the account was created with `keeping_units`.
    pub kept: Vec<KeptUnit>,
    held: BTreeMap<u64, Arrived>,
    next: Option<u64>,
    unit: UnitParts,
    /// True if packets directly before the next one are missing. They may belong to the open unit or to the next unit.
    after_hole: bool,
    last_published_ns: i64,
    assembler: Option<Assembler>,
}

#[derive(Default)]
struct UnitParts {
    nal_units: Vec<Vec<u8>>,
    fragment: Option<Vec<u8>>,
    rtp_time: Option<u32>,
    broken: bool,
}

impl Account {
    /// Creates an account that keeps every complete access unit. Without this, a long test does not fill the memory.
    pub fn keeping_units() -> Self {
        Self { keeps_units: true, ..Self::default() }
    }

    /// Takes one received packet. `sequence` is the extended sequence number, which does not wrap.
    pub fn push(&mut self, sequence: u64, packet: Arrived) {
        let now_ns = packet.at_ns;
        let next = *self.next.get_or_insert(sequence);
        if sequence < next || self.held.insert(sequence, packet).is_some() {
            self.report.late_packets += 1;
            return;
        }
        self.drain();
        self.give_up_old_holes(now_ns);
    }

    fn drain(&mut self) {
        while let Some(next) = self.next {
            let Some(packet) = self.held.remove(&next) else { return };
            self.next = Some(next + 1);
            self.join(packet);
        }
    }

    fn give_up_old_holes(&mut self, now_ns: i64) {
        let Some((&first, packet)) = self.held.first_key_value() else { return };
        let Some(next) = self.next else { return };
        if now_ns - packet.at_ns > HOLE_PATIENCE_NS {
            self.report.lost_packets += first - next;
            self.after_hole = true;
            self.next = Some(first);
            self.drain();
        }
    }

    fn join(&mut self, packet: Arrived) {
        if self.unit.rtp_time.is_some_and(|time| time != packet.rtp_time) {
            // The previous unit is still open, so its end was lost and its parts are dropped.
            self.unit = UnitParts::default();
        }
        self.unit.broken |= std::mem::take(&mut self.after_hole);
        self.unit.rtp_time = Some(packet.rtp_time);
        if self.unit.add(&packet.payload).is_none() {
            self.unit.broken = true;
        }
        if packet.marker {
            let unit = std::mem::take(&mut self.unit);
            if !unit.broken && unit.fragment.is_none() && !unit.nal_units.is_empty() {
                self.count(&unit.nal_units, packet.at_ns);
                if self.keeps_units {
                    let (rtp_time, at_ns) = (packet.rtp_time, packet.at_ns);
                    self.kept.push(KeptUnit { nal_units: unit.nal_units, rtp_time, at_ns });
                }
            }
        }
    }

    fn count(&mut self, nal_units: &[Vec<u8>], at_ns: i64) {
        self.check_parameter_sets(nal_units);
        let Some(stamp) = Stamp::find(nal_units.iter().map(Vec::as_slice)) else {
            self.report.unstamped += 1;
            return;
        };
        let report = &mut self.report;
        if crc32_of_slices(nal_units.iter().map(Vec::as_slice)) != stamp.slices_crc32 {
            report.torn += 1;
        }
        if report.latencies_ns.len() < 1_000_000 {
            report.latencies_ns.push(at_ns - stamp.published_monotonic_ns);
        }
        report.units += 1;
        report.first_unit.get_or_insert(stamp.unit_number);
        match report.last_unit {
            Some(last) if stamp.unit_number == last => report.duplicated += 1,
            Some(last) if stamp.unit_number > last => report.missing += stamp.unit_number - last - 1,
            Some(_) if stamp.published_monotonic_ns > self.last_published_ns => report.restarts += 1,
            Some(_) => report.reordered += 1,
            None => {}
        }
        report.last_unit = Some(stamp.unit_number);
        self.last_published_ns = stamp.published_monotonic_ns;
    }

    fn check_parameter_sets(&mut self, nal_units: &[Vec<u8>]) {
        let kinds: Vec<u8> = nal_units.iter().map(|nal| nal[0] & 0x1F).collect();
        let Some(slice) = kinds.iter().position(|kind| matches!(kind, 1 | 5)) else { return };
        if kinds[slice] != 5 {
            self.report.began_without_idr |= self.report.units == 0;
            return;
        }
        self.report.idrs += 1;
        let before = |wanted: u8| kinds[..slice].iter().filter(|kind| **kind == wanted).count();
        let all = |wanted: u8| kinds.iter().filter(|kind| **kind == wanted).count();
        if before(7) != 1 || before(8) != 1 || all(7) != 1 || all(8) != 1 {
            self.report.bad_idrs += 1;
        }
        let annex_b: Vec<u8> =
            nal_units.iter().flat_map(|nal| [&[0, 0, 0, 1], nal.as_slice()].concat()).collect();
        let assembler = self.assembler.get_or_insert_default();
        if assembler.assemble(&annex_b).is_ok() {
            self.report.size = assembler.parameter_sets().stream_info().map(|info| (info.width, info.height));
        }
    }
}

impl UnitParts {
    /// Adds a payload of RFC 6184: a single NAL unit, a STAP-A (24) or an FU-A (28). Returns `None` if the payload has
    /// another type, is malformed, or must not follow the previous payload.
    fn add(&mut self, payload: &[u8]) -> Option<()> {
        match payload.first()? & 0x1F {
            1..=23 if self.fragment.is_none() => self.nal_units.push(payload.to_vec()),
            24 => {
                let mut rest = &payload[1..];
                while !rest.is_empty() {
                    let length = usize::from(u16::from_be_bytes([rest[0], *rest.get(1)?]));
                    self.nal_units.push(rest.get(2..2 + length).filter(|nal| !nal.is_empty())?.to_vec());
                    rest = &rest[2 + length..];
                }
            }
            28 => self.add_fragment(payload)?,
            _ => return None,
        }
        Some(())
    }

    fn add_fragment(&mut self, payload: &[u8]) -> Option<()> {
        let header = *payload.get(1)?;
        let (starts, ends) = (header & 0x80 != 0, header & 0x40 != 0);
        if starts {
            if self.fragment.is_some() {
                return None;
            }
            self.fragment = Some(vec![(payload[0] & 0xE0) | (header & 0x1F)]);
        }
        self.fragment.as_mut()?.extend_from_slice(&payload[2..]);
        if ends {
            self.nal_units.push(self.fragment.take()?);
        }
        Some(())
    }
}
