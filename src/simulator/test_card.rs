//! A small H.264 encoder for the test card. The stream is Constrained Baseline with CAVLC. Its macroblocks are I_PCM,
//! exact copies of a neighbour, or P_Skip. Every picture is lossless. The caller decides the times and publishes the
//! units.
//!
//! An unchanged macroblock is skipped. A changed macroblock is copied from the one above or on the left if the copy is
//! exact (Intra_16x16, vertical or horizontal, without residual). Otherwise it is written as samples (I_PCM, 386
//! bytes). To reach a target bit rate, some unchanged macroblocks are also written as samples. They form a window that
//! moves from unit to unit. Deblocking is off, so the decoded samples equal the written ones.

use std::ops::Range;

use super::bits::{NalWriter, START_CODE_LONG, START_CODE_SHORT};
use super::picture::{MACROBLOCK_BYTES, Macroblock, PLANES, Picture, Square};
use super::unit::Unit;
use crate::base::limits::SLOT_DATA_BYTES_MAX;
use crate::h264::nal::kind;

/// Coding parameters of the test card.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct TestCardConfig {
    /// Width in pixels, which must be even.
    pub width: u32,
    /// Height in pixels, which must be even.
    pub height: u32,
    /// Units per second. The rate determines the level, the timing information and the unit sizes.
    pub fps: f64,
    /// Target bit rate. `None` does not pad the units (about 0.4 Mbit/s at 1280x720, 30 units/s).
    pub bitrate_kbps: Option<u32>,
    /// Number of units from one IDR to the next.
    pub gop: u32,
    /// Number of slices per picture, at most one per row of macroblocks.
    pub slices: u32,
    /// IDR units that carry parameter sets.
    pub parameter_sets: ParameterSetPolicy,
    /// True if each unit starts with an access unit delimiter.
    pub delimiters: bool,
    /// True if a white square moves over the picture, see [`Square`].
    pub square: bool,
}

impl Default for TestCardConfig {
    fn default() -> TestCardConfig {
        TestCardConfig {
            width: 1280,
            height: 720,
            fps: 30.0,
            bitrate_kbps: None,
            gop: 30,
            slices: 1,
            parameter_sets: ParameterSetPolicy::Every,
            delimiters: true,
            square: false,
        }
    }
}

/// Selects the IDR units that carry parameter sets.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum ParameterSetPolicy {
    /// Only the first IDR unit of the stream, and the first after a restart or a change of size.
    First,
    /// Every IDR unit.
    Every,
}

/// Reasons why a test card cannot be made.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum TestCardError {
    /// The picture is too small or too large, or a side is odd.
    #[error("a test card of {width}x{height} is not possible: use even numbers from 288x128 to 4096x2304")]
    Size {
        /// Requested width in pixels.
        width: u32,
        /// Requested height in pixels.
        height: u32,
    },
    /// A value is out of range.
    #[error("{what} must be {range}")]
    Range {
        /// The name of the value.
        what: &'static str,
        /// The allowed range.
        range: &'static str,
    },
}

/// The way in which one macroblock is encoded.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Coding {
    Skip,
    /// Intra_16x16 without residual, predicted from the lowest row of the macroblock above.
    Vertical,
    /// Intra_16x16 without residual, predicted from the last column of the macroblock on the left.
    Horizontal,
    Samples,
}

/// Length of the field `frame_num` in bits.
const FRAME_NUM_BITS: u32 = 8;
/// Bytes of one I_PCM macroblock, including its type, skip run and alignment bits.
const SAMPLES_BYTES: usize = MACROBLOCK_BYTES + 2;
/// Size of an IDR unit relative to the other units. Real encoders have a similar ratio.
const IDR_WEIGHT: f64 = 4.0;
/// Maximum bytes of a unit at any bit rate, so that it fits into a slot. This is a local bound.
const UNIT_BYTES_MAX: usize = SLOT_DATA_BYTES_MAX - 100_000;

/// The encoder of one stream. It allocates its memory once.
pub struct TestCard {
    config: TestCardConfig,
    picture: Picture,
    codings: Vec<Coding>,
    /// Index of the first row of macroblocks of each slice, and at the end the number of rows.
    slice_rows: Vec<usize>,
    /// Number of units since the last IDR. 0 means that the next unit is an IDR.
    gop_position: u32,
    /// Number of IDR pictures since the stream started or restarted.
    idr_count: u32,
    /// First macroblock of the next window of macroblocks that are written as samples to reach the bit rate.
    refresh_at: usize,
    /// Current bit rate in kbit/s, at most that of the configuration.
    kbps: Option<u32>,
    /// Bytes by which the stream is below its bit rate so far. A negative number means that it is above.
    owed_bytes: f64,
}

impl TestCard {
    /// Returns an encoder whose stream starts with an IDR.
    ///
    /// # Errors
    /// Returns [`TestCardError`] if a value is out of range.
    pub fn new(config: TestCardConfig) -> Result<TestCard, TestCardError> {
        let TestCardConfig { width, height, .. } = config;
        let size = TestCardError::Size { width, height };
        if width % 2 != 0 || height % 2 != 0 || width > 4096 || height > 2304 {
            return Err(size);
        }
        if config.gop == 0 {
            return Err(TestCardError::Range { what: "the IDR interval", range: "at least 1" });
        }
        if config.slices == 0 {
            return Err(TestCardError::Range { what: "the number of slices", range: "at least 1" });
        }
        if !(config.fps > 0.0 && config.fps <= 10_000.0) {
            return Err(TestCardError::Range { what: "the rate", range: "above 0, at most 10000 units/s" });
        }
        let picture = Picture::new(width, height).ok_or(size)?;
        let rows = picture.canvas.rows;
        let slices = rows.min(config.slices as usize);
        Ok(TestCard {
            config,
            codings: vec![Coding::Samples; picture.canvas.macroblocks.len()],
            slice_rows: (0..=slices).map(|slice| slice * rows / slices).collect(),
            picture,
            gop_position: 0,
            idr_count: 0,
            refresh_at: 0,
            kbps: config.bitrate_kbps,
            owed_bytes: 0.0,
        })
    }

    /// Makes the next unit an IDR and starts a new GOP with it.
    pub fn begin_with_idr(&mut self) {
        self.gop_position = 0;
    }

    /// Limits the bit rate from the next unit on; `None` ends the limit. The rate is never above that of the
    /// configuration, and the parameter sets stay the same.
    pub fn limit_bitrate(&mut self, kbps: Option<u32>) {
        self.kbps = self.config.bitrate_kbps.map(|own| kbps.map_or(own, |limit| own.min(limit)));
    }

    /// Makes the next unit an IDR with parameter sets, like the first unit of a restarted encoder.
    pub fn restart(&mut self) {
        self.gop_position = 0;
        self.idr_count = 0;
    }

    /// Encodes the next picture into `unit`. The picture shows the unit number, the bar and the clock. The stamp
    /// contains the unit number but no publish time yet.
    pub fn encode(&mut self, unit_number: u64, realtime_ms: u64, unit: &mut Unit) {
        let is_idr = self.gop_position == 0;
        let target = self.target_bytes(is_idr);
        self.paint(unit_number, realtime_ms, target);
        self.plan(is_idr);
        if let Some(target) = target {
            self.refresh(target, is_idr);
        }
        self.write(is_idr, unit);
        if let Some(target) = target {
            self.owed_bytes = (target - unit.bytes.len() as f64).clamp(-4e6, 4e6);
        }
        unit.seal(unit_number);
        self.picture.canvas.changed.fill(false);
        self.idr_count += u32::from(is_idr);
        self.gop_position = (self.gop_position + 1) % self.config.gop;
    }

    /// Returns the target size of this unit in bytes: its share of the bit rate plus `owed_bytes`. Returns `None` if
    /// there is no target bit rate.
    fn target_bytes(&self, is_idr: bool) -> Option<f64> {
        let mean = f64::from(self.kbps?) * 125.0 / self.config.fps;
        let gop = f64::from(self.config.gop);
        let weight = if is_idr { IDR_WEIGHT } else { 1.0 };
        Some(mean * gop * weight / (gop - 1.0 + IDR_WEIGHT) + self.owed_bytes)
    }

    /// Updates the picture. If the stream is above its bit rate, the clock and the bar stay unchanged to save bytes.
    /// The unit number and the square are always updated.
    #[expect(clippy::cast_possible_truncation, reason = "the picture shows the low 32 bits")]
    fn paint(&mut self, unit_number: u64, realtime_ms: u64, target: Option<f64>) {
        self.picture.paint_number(unit_number as u32);
        let TestCardConfig { width, height, square, .. } = self.config;
        if let Some(square) = Square::at(unit_number, width, height).filter(|_| square) {
            self.picture.paint_square(square);
        }
        if target.is_none_or(|bytes| bytes > 0.0) || self.idr_count == 0 {
            self.picture.paint_bar(unit_number);
            self.picture.paint_clock(realtime_ms);
        }
    }

    /// Chooses the smallest exact coding for each macroblock.
    fn plan(&mut self, is_idr: bool) {
        let canvas = &self.picture.canvas;
        let (macroblocks, columns) = (&canvas.macroblocks, canvas.columns);
        for (index, (coding, changed)) in self.codings.iter_mut().zip(&canvas.changed).enumerate() {
            *coding = Coding::Skip;
            if is_idr || *changed {
                let (row, column) = (index / columns, index % columns);
                let is_first_row = self.slice_rows.contains(&row);
                let above = if is_first_row { None } else { macroblocks.get(index - columns) };
                let left = if column == 0 { None } else { macroblocks.get(index - 1) };
                *coding = macroblocks.get(index).map_or(Coding::Samples, |own| exact_copy(own, above, left));
            }
        }
    }

    /// Changes the coding of more macroblocks to samples, until the unit has about `target` bytes.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
    fn refresh(&mut self, target: f64, is_idr: bool) {
        let fixed = self.codings.iter().filter(|coding| **coding == Coding::Samples).count() * SAMPLES_BYTES;
        // `rest` estimates the bytes of the other macroblocks, the parameter sets and the headers. In an IDR, a
        // macroblock that copies its neighbour takes 9 to 17 bits.
        let rest = if is_idr { self.codings.len() * 3 / 2 } else { 80 };
        let room = (target.max(0.0) as usize).min(UNIT_BYTES_MAX).saturating_sub(fixed + rest);
        let mut wanted = room / SAMPLES_BYTES;
        for _ in 0..self.codings.len() {
            if wanted == 0 {
                break;
            }
            if let Some(coding) = self.codings.get_mut(self.refresh_at)
                && *coding != Coding::Samples
            {
                *coding = Coding::Samples;
                wanted -= 1;
            }
            self.refresh_at = (self.refresh_at + 1) % self.codings.len();
        }
    }

    fn write(&self, is_idr: bool, unit: &mut Unit) {
        unit.begin(is_idr, self.config.width, self.config.height);
        if self.config.delimiters {
            let mut nal = NalWriter::begin(&mut unit.bytes, START_CODE_LONG, 0, kind::AUD);
            nal.bits(3, if is_idr { 0 } else { 1 }); // primary_pic_type: I, or I and P
            nal.finish();
        }
        if is_idr && (self.idr_count == 0 || self.config.parameter_sets == ParameterSetPolicy::Every) {
            self.write_sps(NalWriter::begin(&mut unit.bytes, START_CODE_LONG, 3, kind::SPS));
            write_pps(NalWriter::begin(&mut unit.bytes, START_CODE_LONG, 3, kind::PPS));
        }
        unit.place_stamp();
        let columns = self.picture.canvas.columns;
        for (row, next_row) in self.slice_rows.iter().zip(self.slice_rows.iter().skip(1)) {
            // The first slice has a long start code and the others have a short one, so that both occur as with real
            // encoders.
            let start_code = if *row == 0 { START_CODE_LONG } else { START_CODE_SHORT };
            let start = unit.bytes.len() + start_code.len();
            let kind = if is_idr { kind::IDR_SLICE } else { kind::SLICE };
            let nal = NalWriter::begin(&mut unit.bytes, start_code, 3, kind);
            self.write_slice(nal, is_idr, row * columns..next_row * columns);
            unit.slices.push(start..unit.bytes.len());
        }
    }

    /// Writes `seq_parameter_set_rbsp` (H.264 7.3.2.1.1). Its VUI permits decoders to output each picture at once
    /// (E.1.1).
    fn write_sps(&self, mut nal: NalWriter<'_>) {
        let TestCardConfig { width, height, fps, .. } = self.config;
        let (columns, rows) = (width.div_ceil(16), height.div_ceil(16));
        nal.bits(8, 66); // profile_idc: Baseline
        nal.bits(8, 0b1100_0000); // constraint_set0 and 1: Constrained Baseline
        nal.bits(8, self.level_idc());
        nal.ue(0); // seq_parameter_set_id
        nal.ue(FRAME_NUM_BITS - 4); // log2_max_frame_num_minus4
        nal.ue(2); // pic_order_cnt_type: output order is coding order
        nal.ue(1); // max_num_ref_frames
        nal.flag(false); // gaps_in_frame_num_value_allowed_flag
        nal.ue(columns - 1); // pic_width_in_mbs_minus1
        nal.ue(rows - 1); // pic_height_in_map_units_minus1
        nal.flag(true); // frame_mbs_only_flag
        nal.flag(true); // direct_8x8_inference_flag
        let (right, bottom) = (16 * columns - width, 16 * rows - height);
        nal.flag(right + bottom > 0); // frame_cropping_flag
        if right + bottom > 0 {
            for offset in [0, right / 2, 0, bottom / 2] {
                nal.ue(offset);
            }
        }
        nal.flag(true); // vui_parameters_present_flag
        nal.bits(2, 0); // no aspect ratio, no overscan information
        nal.flag(true); // video_signal_type_present_flag
        nal.bits(3, 5); // video_format: unspecified
        nal.flag(false); // video_full_range_flag
        nal.flag(true); // colour_description_present_flag
        for _primaries_transfer_matrix in 0..3 {
            nal.bits(8, 1); // BT.709
        }
        nal.flag(false); // chroma_loc_info_present_flag
        nal.flag(true); // timing_info_present_flag
        let (units_in_tick, time_scale) = timing(fps);
        nal.bits(32, units_in_tick);
        nal.bits(32, time_scale);
        nal.flag(true); // fixed_frame_rate_flag
        nal.bits(3, 0); // no NAL HRD, no VCL HRD, no pic_struct
        nal.flag(true); // bitstream_restriction_flag
        nal.flag(true); // motion_vectors_over_pic_boundaries_flag
        for value in [0, 0, 0, 0] {
            nal.ue(value); // no bound on bytes and bits; no motion vectors
        }
        nal.ue(0); // max_num_reorder_frames
        nal.ue(1); // max_dec_frame_buffering
        nal.finish();
    }

    /// Returns the lowest level (H.264 table A-1) that permits this picture size, rate and target bit rate. Returns 5.2
    /// if no lower level does.
    fn level_idc(&self) -> u32 {
        let size = self.codings.len() as f64;
        let kbps = f64::from(self.config.bitrate_kbps.unwrap_or(0));
        // Columns: level_idc, macroblocks per second, macroblocks per picture, kbit/s.
        const LEVELS: [(u32, f64, f64, f64); 11] = [
            (13, 11_880.0, 396.0, 768.0),
            (20, 11_880.0, 396.0, 2_000.0),
            (21, 19_800.0, 792.0, 4_000.0),
            (22, 20_250.0, 1_620.0, 4_000.0),
            (30, 40_500.0, 1_620.0, 10_000.0),
            (31, 108_000.0, 3_600.0, 14_000.0),
            (32, 216_000.0, 5_120.0, 20_000.0),
            (40, 245_760.0, 8_192.0, 20_000.0),
            (41, 245_760.0, 8_192.0, 50_000.0),
            (42, 522_240.0, 8_704.0, 50_000.0),
            (51, 983_040.0, 36_864.0, 240_000.0),
        ];
        let allows = |level: &&(u32, f64, f64, f64)| {
            size * self.config.fps <= level.1 && size <= level.2 && kbps <= level.3
        };
        LEVELS.iter().find(allows).map_or(52, |level| level.0)
    }

    /// Writes `slice_layer_without_partitioning_rbsp` (H.264 7.3.2.8) for the macroblocks of `range`.
    fn write_slice(&self, mut nal: NalWriter<'_>, is_idr: bool, range: Range<usize>) {
        self.write_slice_header(&mut nal, is_idr, range.start);
        let mut skipped = 0;
        let codings = self.codings.iter().zip(&self.picture.canvas.macroblocks).enumerate();
        for (index, (coding, samples)) in codings.take(range.end).skip(range.start) {
            if *coding == Coding::Skip {
                skipped += 1;
                continue;
            }
            if !is_idr {
                nal.ue(skipped); // mb_skip_run
                skipped = 0;
            }
            // In a P slice, the numbers of the intra types follow those of the five inter types (H.264 table 7-13).
            let type_base = if is_idr { 0 } else { 5 };
            let mode = match coding {
                Coding::Samples => {
                    nal.ue(type_base + 25); // I_PCM
                    nal.align();
                    nal.plain_bytes(samples);
                    continue;
                }
                Coding::Vertical => 0,
                _ => 1,
            };
            nal.ue(type_base + 1 + mode); // I_16x16_<mode>_0_0
            nal.ue(if mode == 0 { 2 } else { 1 }); // intra_chroma_pred_mode
            nal.ue(0); // mb_qp_delta
            self.write_no_coefficients(&mut nal, index, range.start);
        }
        if skipped > 0 {
            nal.ue(skipped);
        }
        nal.finish();
    }

    /// Writes `slice_header` (H.264 7.3.3).
    fn write_slice_header(&self, nal: &mut NalWriter<'_>, is_idr: bool, first_macroblock: usize) {
        nal.ue(u32::try_from(first_macroblock).unwrap_or_default()); // first_mb_in_slice
        nal.ue(if is_idr { 7 } else { 5 }); // slice_type: all slices of the picture are I, or P
        nal.ue(0); // pic_parameter_set_id
        nal.bits(FRAME_NUM_BITS, self.gop_position % (1 << FRAME_NUM_BITS)); // frame_num
        if is_idr {
            nal.ue(self.idr_count % 2); // idr_pic_id: differs from that of the previous IDR
            nal.flag(false); // no_output_of_prior_pics_flag
            nal.flag(false); // long_term_reference_flag
        } else {
            nal.flag(false); // num_ref_idx_active_override_flag
            nal.flag(false); // ref_pic_list_modification_flag_l0
            nal.flag(false); // adaptive_ref_pic_marking_mode_flag
        }
        nal.ue(0); // slice_qp_delta
        nal.ue(1); // disable_deblocking_filter_idc
    }

    /// Writes the `coeff_token` of an empty Intra16x16DCLevel (H.264 9.2.1). Its code depends on the number of
    /// coefficients of the neighbours, which is 16 for I_PCM and 0 for the others here. The mean of 16 and 0 selects
    /// the same code as 16.
    fn write_no_coefficients(&self, nal: &mut NalWriter<'_>, index: usize, slice_start: usize) {
        let columns = self.picture.canvas.columns;
        let has_samples = |neighbour: Option<usize>| {
            let in_slice = neighbour.filter(|neighbour| *neighbour >= slice_start);
            in_slice.is_some_and(|neighbour| self.codings.get(neighbour) == Some(&Coding::Samples))
        };
        let left = if index.is_multiple_of(columns) { None } else { Some(index - 1) };
        if has_samples(left) || has_samples(index.checked_sub(columns)) {
            nal.bits(6, 0b00_0011);
        } else {
            nal.bits(1, 1);
        }
    }
}

/// Writes `pic_parameter_set_rbsp` (H.264 7.3.2.2).
fn write_pps(mut nal: NalWriter<'_>) {
    nal.ue(0); // pic_parameter_set_id
    nal.ue(0); // seq_parameter_set_id
    nal.flag(false); // entropy_coding_mode_flag: CAVLC
    nal.flag(false); // bottom_field_pic_order_in_frame_present_flag
    nal.ue(0); // num_slice_groups_minus1
    nal.ue(0); // num_ref_idx_l0_default_active_minus1
    nal.ue(0); // num_ref_idx_l1_default_active_minus1
    nal.bits(3, 0); // no weighted prediction
    nal.ue(0); // pic_init_qp_minus26
    nal.ue(0); // pic_init_qs_minus26
    nal.ue(0); // chroma_qp_index_offset
    nal.flag(true); // deblocking_filter_control_present_flag
    nal.flag(false); // constrained_intra_pred_flag
    nal.flag(false); // redundant_pic_cnt_present_flag
    nal.finish();
}

/// Returns `num_units_in_tick` and `time_scale` for two ticks per unit. The rate that they express is exact to 1/1000
/// unit/s.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "0 < fps <= 10000, checked in new"
)]
fn timing(fps: f64) -> (u32, u32) {
    if fps.fract() == 0.0 { (1, 2 * fps as u32) } else { (1000, (2000.0 * fps).round() as u32) }
}

/// Returns the prediction that reproduces the samples of `own` exactly, or `Samples` if none does.
fn exact_copy(own: &Macroblock, above: Option<&Macroblock>, left: Option<&Macroblock>) -> Coding {
    if above.is_some_and(|above| planes(own, above).all(is_below)) {
        Coding::Vertical
    } else if left.is_some_and(|left| planes(own, left).all(is_right_of)) {
        Coding::Horizontal
    } else {
        Coding::Samples
    }
}

/// The samples of one plane of a macroblock, those of the same plane of its neighbour, and the samples per line.
type PlanePair<'a> = (&'a [u8], &'a [u8], usize);

fn planes<'a>(own: &'a Macroblock, neighbour: &'a Macroblock) -> impl Iterator<Item = PlanePair<'a>> {
    let pair = |(plane, stride): (Range<usize>, usize)| {
        Some((own.get(plane.clone())?, neighbour.get(plane)?, stride))
    };
    PLANES.into_iter().filter_map(pair)
}

fn is_below((own, above, stride): PlanePair<'_>) -> bool {
    let edge = above.rchunks_exact(stride).next();
    own.chunks_exact(stride).all(|line| Some(line) == edge)
}

fn is_right_of((own, left, stride): PlanePair<'_>) -> bool {
    let mut lines = own.chunks_exact(stride).zip(left.chunks_exact(stride));
    lines.all(|(own, left)| own.iter().all(|sample| Some(sample) == left.last()))
}
