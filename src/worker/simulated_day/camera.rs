//! The camera of a simulated day: synthetic H.264 of realistic sizes in a real ring. It has restarts, other
//! resolutions, silence, slots with wrong metadata, and non-reference units. It keeps a ledger of the published units,
//! with which the receivers compare what they get.

use std::collections::VecDeque;
use std::ops::Range;

use super::{MS, SECOND};
use crate::camera::{FORMAT_H264, Layout, RingWriter, SlotMetadata};
use crate::h264::testing::BitWriter;
use crate::recorder::tests::harness::parameter_sets;
use support::random::Random;

/// Number of units in the ledger: more than the camera publishes during the longest congestion of a link.
const REMEMBERED: usize = 4_096;

/// The two picture widths, in macroblocks.
const WIDTHS: [u32; 2] = [80, 40];

/// One published unit.
pub(super) struct Published {
    /// The NAL units without start codes, as a receiver assembles them.
    pub(super) nals: Vec<Vec<u8>>,
    pub(super) is_idr: bool,
    pub(super) is_reference: bool,
    /// Number of the unit that this unit refers to.
    pub(super) refers_to: u32,
    pub(super) published_ns: i64,
    /// True if every viewer on a good link must get the unit. False if something has happened by which it may be lost.
    pub(super) is_owed: bool,
}

/// The published units, by number.
#[derive(Default)]
pub(super) struct Ledger {
    units: VecDeque<Published>,
    first: u32,
}

impl Ledger {
    pub(super) fn get(&self, number: u32) -> Option<&Published> {
        self.units.get(number.checked_sub(self.first)? as usize)
    }

    /// Returns the number of the next unit.
    pub(super) fn next(&self) -> u32 {
        self.first + self.units.len() as u32
    }

    /// Returns the first unit of `range`, published at `since_ns` or later, that every viewer on a good link must get.
    pub(super) fn first_owed(&self, mut range: Range<u32>, since_ns: i64) -> Option<u32> {
        let is_owed = |unit: &Published| unit.is_owed && unit.published_ns >= since_ns;
        range.find(|number| self.get(*number).is_none_or(is_owed))
    }

    /// Returns the time when the latest IDR up to unit `number` was published.
    pub(super) fn idr_before_ns(&self, number: u32) -> i64 {
        let mut back = (self.first..=number).rev().filter_map(|number| self.get(number));
        back.find(|unit| unit.is_idr).map_or(i64::MIN, |unit| unit.published_ns)
    }

    fn push(&mut self, unit: Published) {
        self.units.push_back(unit);
        if self.units.len() > REMEMBERED {
            self.units.pop_front();
            self.first += 1;
        }
    }
}

/// An irregularity of the camera.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Whim {
    Nothing,
    RestartSame,
    RestartRewound,
    RestartNew,
    Resize,
    Silence,
    Lie,
}

const WHIMS: [Whim; 6] =
    [Whim::RestartSame, Whim::RestartRewound, Whim::RestartNew, Whim::Resize, Whim::Silence, Whim::Lie];

pub(super) struct SimulatedCamera {
    name: String,
    layout: Layout,
    writer: RingWriter,
    random: Random,
    pub(super) ledger: Ledger,
    pub(super) next_ns: i64,
    interval_ns: i64,
    gop: u32,
    gop_position: u32,
    frame_number: u64,
    width: usize,
    last_reference: u32,
    /// True if units may be lost until the next IDR.
    is_broken: bool,
    /// True while the server is stalled. Units published in this time need not arrive.
    pub(super) is_unwatched: bool,
    /// True in quiet times, in which no irregularities happen.
    pub(super) is_calm: bool,
    pub(super) restarts: u32,
    /// How often each irregularity happened, in the order of `WHIMS`.
    pub(super) whims: [u32; WHIMS.len()],
}

impl Drop for SimulatedCamera {
    fn drop(&mut self) {
        self.writer.unlink();
    }
}

impl SimulatedCamera {
    pub(super) fn new(name: &str, seed: u64, units_per_s: u32, gop: u32, now_ns: i64) -> SimulatedCamera {
        // A reader that is delayed for more than a second is lapped in the short ring, but not in the long one.
        let layout = if seed.is_multiple_of(2) { Layout::V3 } else { Layout::V3Ring6 };
        SimulatedCamera {
            name: name.to_owned(),
            layout,
            writer: RingWriter::create(name, layout, 1_000 / units_per_s).unwrap(),
            random: Random::new(seed),
            ledger: Ledger::default(),
            next_ns: now_ns,
            interval_ns: SECOND / i64::from(units_per_s),
            gop,
            gop_position: 0,
            frame_number: 0,
            width: 0,
            last_reference: 0,
            is_broken: false,
            is_unwatched: false,
            is_calm: true,
            restarts: 0,
            whims: [0; WHIMS.len()],
        }
    }

    /// Publishes the unit that is due, or starts an irregularity.
    pub(super) fn work(&mut self, now_ns: i64) {
        let whim = self.whim();
        self.next_ns += self.interval_ns;
        match whim {
            Whim::Nothing | Whim::Lie => {}
            Whim::Resize => {
                self.width = (self.width + 1) % WIDTHS.len();
                self.gop_position = 0;
            }
            Whim::Silence => {
                self.next_ns += self.a_while();
                return;
            }
            Whim::RestartSame | Whim::RestartRewound | Whim::RestartNew => {
                self.restart(whim);
                self.next_ns += self.a_while();
                return;
            }
        }
        self.publish(now_ns, whim == Whim::Lie);
    }

    /// Draws an irregularity, about once in fifteen GOPs.
    fn whim(&mut self) -> Whim {
        if self.is_calm || self.random.below(u64::from(15 * self.gop)) != 0 {
            return Whim::Nothing;
        }
        let which = self.random.below(WHIMS.len() as u64) as usize;
        self.whims[which] += 1;
        WHIMS[which]
    }

    fn a_while(&mut self) -> i64 {
        (200 + self.random.below(4_000) as i64) * MS
    }

    fn restart(&mut self, whim: Whim) {
        match whim {
            Whim::RestartNew => {
                self.writer.unlink();
                self.writer =
                    RingWriter::create(&self.name, self.layout, (self.interval_ns / MS) as u32).unwrap();
            }
            Whim::RestartRewound => self.writer.set_write_index(0),
            _ => {}
        }
        self.gop_position = 0;
        self.frame_number = 0;
        self.restarts += 1;
    }

    fn metadata(&self, now_ns: i64, bytes: usize) -> SlotMetadata {
        SlotMetadata {
            frame_number: self.frame_number,
            timestamp_s: now_ns / SECOND,
            timestamp_ns: now_ns % SECOND,
            camera_id: 0,
            width: WIDTHS[self.width].cast_signed() * 16,
            height: 720,
            format: FORMAT_H264,
            data_bytes: bytes as u64,
        }
    }

    /// Publishes a unit. If `lies` is true, the slot's metadata is invalid, so that no reader can use the unit.
    fn publish(&mut self, now_ns: i64, lies: bool) {
        let is_idr = self.gop_position == 0;
        let is_reference = is_idr || lies || self.random.below(4) != 0;
        let number = self.ledger.next();
        // The unit has one of only a few sizes, so that memory pools stop growing after the first rounds.
        let body = if is_idr { 5_000 + 500 * self.random.below(8) } else { 100 + 300 * self.random.below(8) };
        let header = if is_idr { 0x65 } else { u8::from(is_reference) << 6 | 1 };
        let slice = self.slice(header, number, body as usize);
        let mut bytes = if is_idr { parameter_sets(WIDTHS[self.width]) } else { Vec::new() };
        bytes.extend_from_slice(&[0, 0, 0, 1]);
        bytes.extend_from_slice(&slice);
        self.is_broken = self.is_unwatched || lies || (self.is_broken && !is_idr);
        let unit = Published {
            nals: nals(&bytes),
            is_idr,
            is_reference,
            refers_to: self.last_reference,
            published_ns: now_ns,
            is_owed: !self.is_broken,
        };
        self.ledger.push(unit);
        let mut metadata = self.metadata(now_ns, bytes.len());
        if lies {
            metadata.data_bytes = u64::MAX;
        }
        self.writer.publish(&metadata, &bytes);
        if is_reference {
            self.last_reference = number;
        }
        self.frame_number += 1;
        self.gop_position = (self.gop_position + 1) % self.gop;
    }

    /// Returns a slice with a random body, the unit's number, and the tail by which the recorder's test harness finds
    /// that number.
    fn slice(&mut self, header: u8, number: u32, body: usize) -> Vec<u8> {
        let mut nal = BitWriter::default().ue(0).ue(7).ue(0).bits(0xff, 8).nal(header);
        while nal.len() < body {
            nal.extend(self.random.next_u64().to_le_bytes().map(|byte| byte | 0x80));
        }
        nal.extend((0..4).rev().map(|byte| (number >> (7 * byte) & 0x7f) as u8 | 0x80));
        nal.extend(std::iter::repeat_n(0x55, 40));
        nal
    }
}

fn nals(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = smallvec::SmallVec::new();
    crate::h264::scan(bytes, &mut found).unwrap();
    found.iter().map(|nal| bytes[nal.start as usize..nal.end as usize].to_vec()).collect()
}
