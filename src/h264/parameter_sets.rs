//! Caches sequence and picture parameter sets by id. The number of sets and the size of each set are limited. A set
//! that cannot be parsed is never stored. Only the fields that this program uses are kept.

use std::sync::Arc;

use super::bits::{BitReader, SyntaxError};
use super::nal::kind;
use crate::base::limits;

/// Why a parameter set was not stored.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterSetError {
    /// The set is longer than [`limits::PARAMETER_SET_BYTES_MAX`]. Holds its length in bytes.
    #[error("a parameter set of {0} bytes is too long")]
    TooLong(usize),
    /// The set has a `profile_idc` that this parser does not know. Holds the value.
    #[error("unknown profile_idc {0}")]
    Profile(u8),
    /// The set ends too early or has a field that is out of range.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
}

/// Properties of a stream that SDP and file headers state.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamInfo {
    /// The bytes `profile_idc`, constraint flags and `level_idc`, which SDP states as `profile-level-id` (RFC 6184
    /// 8.1).
    pub profile_level_id: [u8; 3],
    /// Width in pixels, after cropping.
    pub width: u32,
    /// Height in pixels, after cropping.
    pub height: u32,
}

/// One cached parameter set: its bytes, and the fields that this program uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ParameterSet<T> {
    /// `seq_parameter_set_id` (0 to 31) of an SPS, or `pic_parameter_set_id` (0 to 255) of a PPS.
    pub(super) id: u8,
    pub(super) fields: T,
    /// The whole NAL unit, without its start code.
    pub(super) bytes: Arc<[u8]>,
    /// Number of the last GOP that carried this set with this content. 0 if no GOP has carried it.
    carried_in: u32,
}

/// The fields of a sequence parameter set that this program uses (H.264 7.3.2.1.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SpsFields {
    /// Profile, level and size of the picture.
    pub(super) info: StreamInfo,
    /// `chroma_format_idc`, 0 (monochrome) to 3 (4:4:4).
    pub(super) chroma_format_idc: u8,
    /// `bit_depth_luma_minus8`, 0 to 6.
    pub(super) bit_depth_luma_minus8: u8,
    /// `bit_depth_chroma_minus8`, 0 to 6.
    pub(super) bit_depth_chroma_minus8: u8,
    /// True if a slice header has a `colour_plane_id` (`separate_colour_plane_flag`).
    pub(super) has_colour_planes: bool,
    /// True if no picture is a field (`frame_mbs_only_flag`).
    pub(super) has_only_frames: bool,
    /// Number of bits of `frame_num`, 4 to 16.
    pub(super) frame_num_bits: u8,
    /// How a slice header states the order of the pictures.
    pub(super) order: OrderFields,
}

/// `pic_order_cnt_type` with the fields that belong to it (H.264 7.3.2.1.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum OrderFields {
    /// Type 0: each picture states the last bits of its picture order count.
    Lsb {
        /// Number of these bits, 4 to 16.
        bits: u8,
    },
    /// Type 1: the picture order count follows from `frame_num` and a cycle of offsets.
    Cycle(Box<OrderCycle>),
    /// Type 2: pictures are shown in the order in which they are sent.
    #[default]
    Sent,
}

/// Fields of `pic_order_cnt_type` 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OrderCycle {
    /// True if a slice header has no `delta_pic_order_cnt` (`delta_pic_order_always_zero_flag`).
    pub(super) has_no_deltas: bool,
    pub(super) offset_for_non_ref_pic: i32,
    pub(super) offset_for_top_to_bottom_field: i32,
    /// `offset_for_ref_frame`, at most 255 values.
    pub(super) offsets: Vec<i32>,
}

/// The fields of a picture parameter set that this program uses (H.264 7.3.2.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PpsFields {
    /// `seq_parameter_set_id` of the sequence parameter set to which the picture parameter set refers.
    pub(super) sps_id: u8,
    /// True if a slice header states the order of the bottom field (`bottom_field_pic_order_in_frame_present_flag`).
    pub(super) has_bottom_order: bool,
}

/// Values of `profile_idc` for which an SPS has chroma format, bit depths and scaling matrices (7.3.2.1.1).
const PROFILES_WITH_CHROMA_INFO: [u8; 13] = [100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135];
const PROFILES_WITHOUT: [u8; 3] = [66, 77, 88];
const SPS_ID_MAX: u8 = 31; // local bound: set by the standard
const PPS_ID_MAX: u8 = 255; // local bound: set by the standard
const MACROBLOCK_PIXELS: u32 = 16;

/// Parses the id and the fields of a sequence parameter set.
fn parse_sps(nal: &[u8]) -> Result<(u8, SpsFields), ParameterSetError> {
    let mut bits = BitReader::new(nal.get(1..).unwrap_or_default());
    let profile_level_id = [bits.byte()?, bits.byte()?, bits.byte()?];
    let [profile_idc, ..] = profile_level_id;
    let id = bits.unsigned_u8("seq_parameter_set_id", SPS_ID_MAX)?;
    let mut set = SpsFields { chroma_format_idc: 1, ..SpsFields::default() };
    set.info.profile_level_id = profile_level_id;
    if PROFILES_WITH_CHROMA_INFO.contains(&profile_idc) {
        set.has_colour_planes = set.read_chroma_info(&mut bits)?;
    } else if !PROFILES_WITHOUT.contains(&profile_idc) {
        return Err(ParameterSetError::Profile(profile_idc));
    }
    set.read_order(&mut bits)?;
    set.read_size(&mut bits)?;
    bits.bit()?; // vui_parameters_present_flag; the fields after it are not used
    Ok((id, set))
}

impl SpsFields {
    fn read_chroma_info(&mut self, bits: &mut BitReader<'_>) -> Result<bool, SyntaxError> {
        self.chroma_format_idc = bits.unsigned_u8("chroma_format_idc", 3)?;
        let separate_colour_planes = self.chroma_format_idc == 3 && bits.bit()?;
        self.bit_depth_luma_minus8 = bits.unsigned_u8("bit_depth_luma_minus8", 6)?;
        self.bit_depth_chroma_minus8 = bits.unsigned_u8("bit_depth_chroma_minus8", 6)?;
        bits.bit()?; // qpprime_y_zero_transform_bypass_flag
        if bits.bit()? {
            for index in 0..if self.chroma_format_idc == 3 { 12 } else { 8 } {
                if bits.bit()? {
                    skip_scaling_list(bits, if index < 6 { 16 } else { 64 })?;
                }
            }
        }
        Ok(separate_colour_planes)
    }

    /// Reads the fields from `log2_max_frame_num_minus4` to `gaps_in_frame_num_value_allowed_flag`.
    fn read_order(&mut self, bits: &mut BitReader<'_>) -> Result<(), SyntaxError> {
        self.frame_num_bits = bits.unsigned_u8("log2_max_frame_num_minus4", 12)? + 4;
        self.order = match bits.unsigned("pic_order_cnt_type", 2)? {
            0 => OrderFields::Lsb { bits: bits.unsigned_u8("log2_max_pic_order_cnt_lsb_minus4", 12)? + 4 },
            1 => OrderFields::Cycle(Box::new(OrderCycle::read(bits)?)),
            _ => OrderFields::Sent,
        };
        bits.unsigned("max_num_ref_frames", 16)?;
        bits.bit()?; // gaps_in_frame_num_value_allowed_flag
        Ok(())
    }

    fn read_size(&mut self, bits: &mut BitReader<'_>) -> Result<(), SyntaxError> {
        let side_max = limits::PICTURE_SIDE_MACROBLOCKS_MAX - 1;
        let width_macroblocks = bits.unsigned("pic_width_in_mbs_minus1", side_max)? + 1;
        let height_map_units = bits.unsigned("pic_height_in_map_units_minus1", side_max)? + 1;
        self.has_only_frames = bits.bit()?;
        if !self.has_only_frames {
            bits.bit()?; // mb_adaptive_frame_field_flag
        }
        bits.bit()?; // direct_8x8_inference_flag
        let fields = if self.has_only_frames { 1 } else { 2 };
        let width = width_macroblocks * MACROBLOCK_PIXELS;
        let height = height_map_units * MACROBLOCK_PIXELS * fields;
        let (mut crop_x, mut crop_y) = (0, 0);
        if bits.bit()? {
            // The crop offsets count chroma samples and, in an interlaced stream, rows of a field. The factors convert
            // them to pixels (H.264 table 6-1, equations 7-19 to 7-22).
            let (unit_x, unit_y) = match self.chroma_format_idc {
                1 if !self.has_colour_planes => (2, 2 * fields),
                2 if !self.has_colour_planes => (2, fields),
                _ => (1, fields),
            };
            crop_x = unit_x
                * (bits.unsigned("frame_crop_left_offset", width)?
                    + bits.unsigned("frame_crop_right_offset", width)?);
            crop_y = unit_y
                * (bits.unsigned("frame_crop_top_offset", height)?
                    + bits.unsigned("frame_crop_bottom_offset", height)?);
        }
        if crop_x >= width || crop_y >= height {
            return Err(SyntaxError::OutOfRange("frame cropping"));
        }
        self.info.width = width - crop_x;
        self.info.height = height - crop_y;
        Ok(())
    }
}

impl OrderCycle {
    fn read(bits: &mut BitReader<'_>) -> Result<OrderCycle, SyntaxError> {
        let has_no_deltas = bits.bit()?;
        let offset_for_non_ref_pic = bits.signed("offset_for_non_ref_pic")?;
        let offset_for_top_to_bottom_field = bits.signed("offset_for_top_to_bottom_field")?;
        let count = bits.unsigned("num_ref_frames_in_pic_order_cnt_cycle", 255)?;
        let offsets = (0..count).map(|_| bits.signed("offset_for_ref_frame")).collect::<Result<_, _>>()?;
        Ok(OrderCycle { has_no_deltas, offset_for_non_ref_pic, offset_for_top_to_bottom_field, offsets })
    }
}

/// Skips a `scaling_list` (H.264 7.3.2.1.1.1). The list has one delta per entry, but ends early after a delta that
/// makes the next scale zero.
fn skip_scaling_list(bits: &mut BitReader<'_>, entries: u32) -> Result<(), SyntaxError> {
    let mut scale = 8;
    for _ in 0..entries {
        let delta = bits.signed("delta_scale")?;
        if !(-128..=127).contains(&delta) {
            return Err(SyntaxError::OutOfRange("delta_scale"));
        }
        scale = (scale + delta).rem_euclid(256);
        if scale == 0 {
            break;
        }
    }
    Ok(())
}

/// Parses the id and the fields of a picture parameter set.
fn parse_pps(nal: &[u8]) -> Result<(u8, PpsFields), ParameterSetError> {
    let mut bits = BitReader::new(nal.get(1..).unwrap_or_default());
    let id = bits.unsigned_u8("pic_parameter_set_id", PPS_ID_MAX)?;
    let sps_id = bits.unsigned_u8("seq_parameter_set_id", SPS_ID_MAX)?;
    bits.bit()?; // entropy_coding_mode_flag
    let has_bottom_order = bits.bit()?; // the fields after it are not used
    Ok((id, PpsFields { sps_id, has_bottom_order }))
}

/// Returns the id of an SPS or PPS NAL unit.
pub(super) fn read_id(nal: &[u8], nal_kind: u8) -> Result<u8, ParameterSetError> {
    let mut bits = BitReader::new(nal.get(1..).unwrap_or_default());
    if nal_kind == kind::PPS {
        return Ok(bits.unsigned_u8("pic_parameter_set_id", PPS_ID_MAX)?);
    }
    for _ in 0..3 {
        bits.byte()?; // profile, constraints, level
    }
    Ok(bits.unsigned_u8("seq_parameter_set_id", SPS_ID_MAX)?)
}

/// A function that parses the id and the fields of a parameter set.
type Parser<T> = fn(&[u8]) -> Result<(u8, T), ParameterSetError>;

/// Parameter sets of one type: all SPS, or all PPS.
#[derive(Debug, Default)]
struct Table<T> {
    entries: Vec<ParameterSet<T>>,
    /// Undo log for `roll_back`: the id of each set stored since the last `begin`, and the set that it replaced.
    journal: Vec<(u8, Option<ParameterSet<T>>)>,
}

impl<T> Table<T> {
    fn get(&self, id: u8) -> Option<&ParameterSet<T>> {
        self.entries.iter().find(|entry| entry.id == id)
    }

    /// Stores a set. Returns its id, and true if the set is new or changed. The table cannot grow without limit,
    /// because it has only one entry per id.
    fn store(&mut self, nal: &[u8], parse: Parser<T>) -> Result<(u8, bool), ParameterSetError> {
        if let Some(entry) = self.entries.iter().find(|entry| *entry.bytes == *nal) {
            return Ok((entry.id, false));
        }
        if nal.len() > limits::PARAMETER_SET_BYTES_MAX {
            return Err(ParameterSetError::TooLong(nal.len()));
        }
        let bytes: Arc<[u8]> = Arc::from(nal); // copied before the checks: the camera may change `nal`
        let (id, fields) = parse(&bytes)?;
        let entry = ParameterSet { id, fields, bytes, carried_in: 0 };
        let displaced = match self.entries.binary_search_by_key(&id, |entry| entry.id) {
            Ok(at) => self.entries.get_mut(at).map(|old| std::mem::replace(old, entry)),
            Err(at) => {
                self.entries.insert(at, entry);
                None
            }
        };
        self.journal.push((id, displaced));
        Ok((id, true))
    }

    /// Records that the GOP `gop` carries the set. Returns false if the GOP already carried it, or if the set is
    /// unknown.
    fn mark_carried(&mut self, id: u8, gop: u32) -> bool {
        match self.entries.iter_mut().find(|entry| entry.id == id) {
            Some(entry) => std::mem::replace(&mut entry.carried_in, gop) != gop,
            None => false,
        }
    }

    fn roll_back(&mut self) {
        while let Some((id, displaced)) = self.journal.pop() {
            self.entries.retain(|entry| entry.id != id);
            if let Some(entry) = displaced {
                let at = self.entries.partition_point(|other| other.id < id);
                self.entries.insert(at, entry);
            }
        }
    }
}

/// The cached parameter sets of one stream.
#[derive(Debug, Default)]
pub struct ParameterSets {
    sequence: Table<SpsFields>,
    picture: Table<PpsFields>,
    /// Id of the SPS to which the last IDR refers. `None` before the first IDR.
    pub(super) active_sps_id: Option<u8>,
    /// Value of `active_sps_id` before the current unit, which [`ParameterSets::roll_back`] restores.
    active_sps_id_before: Option<u8>,
}

impl ParameterSets {
    /// Copies all sets of `other`.
    pub(super) fn copy_from(&mut self, other: &Self) {
        self.sequence.entries.clone_from(&other.sequence.entries);
        self.picture.entries.clone_from(&other.picture.entries);
        self.active_sps_id = other.active_sps_id;
    }

    /// Returns profile, level and picture size from the active sequence parameter set. Returns `None` until the first
    /// set has arrived.
    #[must_use]
    pub fn stream_info(&self) -> Option<StreamInfo> {
        self.active_sps().map(|sps| sps.fields.info)
    }

    /// Returns the sequence parameter set to which the last IDR refers. Before the first IDR, returns the set with the
    /// lowest id.
    pub(super) fn active_sps(&self) -> Option<&ParameterSet<SpsFields>> {
        let active = self.active_sps_id.and_then(|id| self.sequence.get(id));
        active.or_else(|| self.sequence.entries.first())
    }

    /// Iterates over all picture parameter sets in the order of their ids.
    pub(super) fn pps(&self) -> impl Iterator<Item = &ParameterSet<PpsFields>> {
        self.picture.entries.iter()
    }

    pub(super) fn sps_by_id(&self, id: u8) -> Option<&ParameterSet<SpsFields>> {
        self.sequence.get(id)
    }

    pub(super) fn pps_by_id(&self, id: u8) -> Option<&ParameterSet<PpsFields>> {
        self.picture.get(id)
    }

    /// Starts a new unit. A later [`ParameterSets::roll_back`] restores the state at this call.
    pub(super) fn begin(&mut self) {
        self.sequence.journal.clear();
        self.picture.journal.clear();
        self.active_sps_id_before = self.active_sps_id;
    }

    /// Stores an SPS or PPS NAL unit. Returns its id, and true if the set is new or changed.
    pub(super) fn store(&mut self, nal: &[u8], nal_kind: u8) -> Result<(u8, bool), ParameterSetError> {
        match nal_kind {
            kind::SPS => self.sequence.store(nal, parse_sps),
            _ => self.picture.store(nal, parse_pps),
        }
    }

    /// Records that the GOP `gop` carries the set. Returns false if the GOP already carried it, or if the set is
    /// unknown.
    pub(super) fn mark_carried(&mut self, nal_kind: u8, id: u8, gop: u32) -> bool {
        match nal_kind {
            kind::SPS => self.sequence.mark_carried(id, gop),
            _ => self.picture.mark_carried(id, gop),
        }
    }

    /// Restores the state at the last [`ParameterSets::begin`].
    pub(super) fn roll_back(&mut self) {
        self.sequence.roll_back();
        self.picture.roll_back();
        self.active_sps_id = self.active_sps_id_before;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{BitWriter, pps, sps};
    use super::*;
    use proptest::prelude::*;

    fn parsed(nal: &[u8]) -> Result<SpsFields, ParameterSetError> {
        parse_sps(nal).map(|(_, set)| set)
    }

    fn info(nal: &[u8]) -> ([u8; 3], u32, u32) {
        let StreamInfo { profile_level_id, width, height } = parsed(nal).unwrap().info;
        (profile_level_id, width, height)
    }

    fn store(sets: &mut ParameterSets, nal: &[u8]) -> Result<(u8, bool), ParameterSetError> {
        sets.store(nal, nal[0] & 0x1F)
    }

    /// x264 wrote the parameter sets. The expected values are those that ffprobe shows.
    #[test]
    fn size_and_profile_of_x264_streams_are_read() {
        let high_720p = [
            0x67, 0x64, 0x00, 0x1F, 0xAC, 0xD9, 0x40, 0x50, 0x05, 0xBB, 0x01, 0x10, 0x00, 0x00, 0x03, 0x00,
            0x10, 0x00, 0x00, 0x03, 0x03, 0xC0, 0xF1, 0x83, 0x19, 0x60,
        ];
        assert_eq!(info(&high_720p), ([0x64, 0x00, 0x1F], 1280, 720));
        let constrained_baseline_1080p = [
            0x67, 0x42, 0xC0, 0x28, 0xD9, 0x00, 0x78, 0x02, 0x27, 0xE5, 0xC0, 0x44, 0x00, 0x00, 0x03, 0x00,
            0x04, 0x00, 0x00, 0x03, 0x00, 0xF0, 0x3C, 0x60, 0xC9, 0x20,
        ];
        assert_eq!(info(&constrained_baseline_1080p), ([0x42, 0xC0, 0x28], 1920, 1080));
        let main_odd = [
            0x67, 0x4D, 0x40, 0x0D, 0xEC, 0xA0, 0xA8, 0x43, 0xC4, 0x44, 0x60, 0x22, 0x00, 0x00, 0x03, 0x00,
            0x02, 0x00, 0x00, 0x03, 0x00, 0x78, 0x1E, 0x28, 0x53, 0x2C,
        ];
        assert_eq!(info(&main_odd), ([0x4D, 0x40, 0x0D], 322, 242));
    }

    #[test]
    fn size_of_other_chroma_formats_and_of_interlaced_streams_is_read() {
        let yuv_444 = [
            0x67, 0xF4, 0x00, 0x1E, 0x91, 0x9B, 0x28, 0x14, 0x05, 0xFF, 0x13, 0x80, 0x88, 0x00, 0x00, 0x03,
            0x00, 0x08, 0x00, 0x00, 0x03, 0x01, 0xE0, 0x78, 0xB1, 0x6C, 0xB0,
        ];
        assert_eq!(info(&yuv_444), ([0xF4, 0x00, 0x1E], 640, 360));
        let yuv_422_interlaced = [
            0x67, 0x7A, 0x00, 0x1F, 0xBC, 0xD9, 0x40, 0xB4, 0x20, 0xFC, 0x21, 0x80, 0x88, 0x00, 0x00, 0x03,
            0x00, 0x08, 0x00, 0x00, 0x03, 0x01, 0xE0, 0xF8, 0xB1, 0x6C, 0xB0,
        ];
        assert_eq!(info(&yuv_422_interlaced), ([0x7A, 0x00, 0x1F], 720, 482));
        let monochrome = [
            0x67, 0x64, 0x00, 0x0D, 0xF3, 0x65, 0x05, 0x42, 0x1E, 0x79, 0xF0, 0x16, 0xC8, 0x00, 0x00, 0x03,
            0x00, 0x08, 0x00, 0x00, 0x03, 0x01, 0xE0, 0x78, 0xA1, 0x4C, 0xB0,
        ];
        assert_eq!(info(&monochrome), ([0x64, 0x00, 0x0D], 330, 250));
        let ten_bit = [
            0x67, 0x6E, 0x00, 0x28, 0xA6, 0xCD, 0x94, 0x07, 0x80, 0x22, 0x7A, 0x97, 0x01, 0x10, 0x00, 0x00,
            0x03, 0x00, 0x10, 0x00, 0x00, 0x03, 0x03, 0xC0, 0xF1, 0x83, 0x19, 0x60,
        ];
        let sps = parsed(&ten_bit).unwrap();
        assert_eq!((sps.info.width, sps.info.height), (1918, 1080));
        assert_eq!(
            (sps.chroma_format_idc, sps.bit_depth_luma_minus8, sps.bit_depth_chroma_minus8),
            (1, 2, 2)
        );
    }

    #[test]
    fn cropping_of_an_interlaced_picture_counts_chroma_rows_of_a_field() {
        let writer =
            BitWriter::default().bits(77, 8).bits(0, 8).bits(40, 8).ue(0).ue(0).ue(2).ue(1).bits(0, 1);
        let nal = writer.ue(119).ue(33).bits(0b0011, 4).ue(0).ue(0).ue(0).ue(2).bits(0, 1).nal(0x67);
        assert_eq!(info(&nal), ([77, 0, 40], 1920, 1080));
    }

    #[test]
    fn scaling_lists_and_picture_order_cycles_are_skipped() {
        let mut writer = BitWriter::default().bits(100, 8).bits(0, 8).bits(31, 8).ue(3);
        writer = writer.ue(1).ue(0).ue(0).bits(0, 1).bits(1, 1);
        for index in 0..8 {
            writer = match index % 4 {
                0 => writer.bits(0, 1),               // no list
                1 => writer.bits(1, 1).se(-8),        // the first scale becomes 0: default list
                2 => writer.bits(1, 1).se(5).se(-13), // the second scale becomes 0: list ends
                _ => (0..if index < 6 { 16 } else { 64 }).fold(writer.bits(1, 1), |w, n| w.se(n % 3 - 1)),
            };
        }
        writer = writer.ue(4).ue(1).bits(0, 1).se(-7).se(9).ue(3).se(1).se(-2).se(3);
        let nal = writer.ue(4).bits(0, 1).ue(79).ue(44).bits(0b1100, 4).nal(0x67);
        let (id, sps) = parse_sps(&nal).unwrap();
        assert_eq!((id, sps.info.width, sps.info.height), (3, 1280, 720));
    }

    #[test]
    fn broken_sequence_parameter_sets_are_rejected() {
        let good = sps(0, 31, 80, 45);
        for length in 0..good.len() - 1 {
            assert!(parsed(&good[..length]).is_err(), "cut to {length}");
        }
        let mut profile = good.clone();
        profile[1] = 99;
        assert_eq!(parsed(&profile), Err(ParameterSetError::Profile(99)));
        let out_of_range =
            |nal: &[u8], field| assert_eq!(parsed(nal), Err(SyntaxError::OutOfRange(field).into()));
        out_of_range(&sps(32, 31, 80, 45), "seq_parameter_set_id");
        out_of_range(&sps(0, 31, 1056, 45), "pic_width_in_mbs_minus1");
        out_of_range(&sps(0, 31, 80, 1056), "pic_height_in_map_units_minus1");
        let start =
            || BitWriter::default().bits(66, 8).bits(0, 8).bits(31, 8).ue(0).ue(0).ue(2).ue(1).bits(0, 1);
        let cropped_away = start().ue(0).ue(0).bits(0b111, 3).ue(4).ue(4).ue(0).ue(0).bits(0, 1).nal(0x67);
        out_of_range(&cropped_away, "frame cropping");
        let overflowing =
            start().ue(0).ue(0).bits(0b111, 3).ue(u32::MAX - 2).ue(4).ue(0).ue(0).bits(0, 1).nal(0x67);
        out_of_range(&overflowing, "frame_crop_left_offset");
    }

    #[test]
    fn sets_are_stored_by_id_and_replaced_when_they_change() {
        let mut sets = ParameterSets::default();
        assert_eq!(sets.stream_info(), None);
        assert_eq!(store(&mut sets, &sps(1, 31, 80, 45)), Ok((1, true)));
        assert_eq!(store(&mut sets, &pps(7, 1, 0)), Ok((7, true)));
        assert_eq!(store(&mut sets, &sps(1, 31, 80, 45)), Ok((1, false)), "unchanged");
        assert_eq!(store(&mut sets, &pps(7, 1, 0)), Ok((7, false)), "unchanged");
        assert_eq!(store(&mut sets, &pps(7, 1, 5)), Ok((7, true)));
        assert_eq!(store(&mut sets, &pps(255, 1, 0)), Ok((255, true)));
        assert_eq!(store(&mut sets, &sps(0, 40, 120, 68)), Ok((0, true)));
        assert_eq!(sets.sequence.entries.iter().map(|set| set.id).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(
            sets.pps().map(|set| (set.id, set.bytes.to_vec())).collect::<Vec<_>>(),
            [(7, pps(7, 1, 5)), (255, pps(255, 1, 0)),]
        );
    }

    #[test]
    fn broken_sets_leave_the_cache_unchanged() {
        let mut sets = ParameterSets::default();
        store(&mut sets, &sps(0, 31, 80, 45)).unwrap();
        assert!(store(&mut sets, &[0x67, 66, 0, 31]).is_err());
        assert!(store(&mut sets, &[0x68]).is_err());
        assert!(store(&mut sets, &pps(256, 0, 0)).is_err());
        assert!(store(&mut sets, &pps(0, 32, 0)).is_err());
        let mut long = sps(0, 31, 80, 45);
        long.resize(limits::PARAMETER_SET_BYTES_MAX + 1, 0xFF);
        assert_eq!(store(&mut sets, &long), Err(ParameterSetError::TooLong(long.len())));
        assert_eq!((sets.sequence.entries.len(), sets.pps().count()), (1, 0));
    }

    #[test]
    fn roll_back_restores_content_and_active_set() {
        let mut sets = ParameterSets::default();
        store(&mut sets, &sps(0, 31, 80, 45)).unwrap();
        sets.active_sps_id = Some(0);
        sets.begin();
        store(&mut sets, &sps(0, 31, 40, 30)).unwrap();
        store(&mut sets, &sps(0, 31, 20, 10)).unwrap();
        store(&mut sets, &sps(1, 31, 20, 10)).unwrap();
        sets.active_sps_id = Some(1);
        sets.roll_back();
        assert_eq!(
            sets.sequence.entries.iter().map(|set| (set.id, set.fields.info.width)).collect::<Vec<_>>(),
            [(0, 1280)]
        );
        assert_eq!(sets.stream_info().unwrap().width, 1280);
        sets.roll_back();
        assert_eq!(sets.stream_info().unwrap().width, 1280, "a second roll_back changes nothing");
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn sizes_round_trip(id in 0..32_u32, level in 1..63_u32, width in 1..1056_u32, height in 1..1056_u32) {
            let (parsed_id, set) = parse_sps(&sps(id, level, width, height)).unwrap();
            prop_assert_eq!((u32::from(parsed_id), set.info.width, set.info.height), (id, width * 16, height * 16));
        }

        #[test]
        fn hostile_sets_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..80),
            profile in prop::sample::select(vec![66_u8, 77, 100, 244])
        ) {
            let mut nal = vec![0x67, profile];
            nal.extend(&bytes);
            let mut sets = ParameterSets::default();
            let _ = store(&mut sets, &nal);
            nal[0] = 0x68;
            let _ = store(&mut sets, &nal);
        }
    }
}
