//! The picture of the test card: colour bars, a moving bar, a clock, and the machine-readable unit number. This module
//! paints into macroblocks and records which of them changed. `test_card` encodes them.
//!
//! ```text
//!  ┌───────────────────────────────┐
//!  │ ██ colour bars, 8, 75 %    ██ │
//!  │ ██        ▢ square (optional) │
//!  ├───────────────────────────────┤
//!  │        ▌  moving bar          │
//!  ├───────────────────────────────┤
//!  │       12:34:56.789 (UTC)      │
//!  ├───────────────────────────────┤
//!  │ ■□□□□□□□□□□□□□□□□■   see NumberBlocks
//!  │ □■□■■□□□□□□□□□□□□■
//!  └───────────────────────────────┘
//! ```

use std::ops::Range;

use super::font;

/// Bytes of a macroblock: 16x16 luma, then 8x8 Cb, then 8x8 Cr samples. This is the order of I_PCM.
pub(super) const MACROBLOCK_BYTES: usize = 384;
pub(super) type Macroblock = [u8; MACROBLOCK_BYTES];
/// The planes of a macroblock: luma, Cb and Cr. Each entry has the byte range of the plane and its samples per line.
pub(super) const PLANES: [(Range<usize>, usize); 3] = [(0..256, 16), (256..320, 8), (320..384, 8)];

/// Y, Cb and Cr of a colour in limited range (BT.709). Every sample is at least 16, so none needs emulation prevention.
type Colour = [u8; 3];
const WHITE: Colour = [235, 128, 128];
const BLACK: Colour = [16, 128, 128];
const NIGHT: Colour = [32, 134, 124];
/// Colours of the 75 % bars: white, yellow, cyan, green, magenta, red, blue, black.
const BARS: [Colour; 8] = [
    [180, 128, 128],
    [168, 44, 136],
    [145, 147, 44],
    [133, 63, 52],
    [63, 193, 204],
    [51, 109, 212],
    [28, 212, 120],
    BLACK,
];

/// Position and encoding of the machine-readable unit number in a picture.
///
/// The number is shown as 36 square cells of `cell` pixels at the bottom of the picture. They form 2 rows of 18 and are
/// numbered row by row from the left. In the formulas, W and H are the width and height of the picture, and // is
/// integer division:
///
/// ```text
///  cell   = 16 * (W // 16 // 18)
///  left   = 16 * ((W // 16 - 18 * cell // 16) // 2)
///  top    = 16 * (H // 16) - 2 * cell
///  centre of cell i:  x = left + (i mod 18 + 1/2) * cell     y = top + (i // 18 + 1/2) * cell
/// ```
///
/// As fractions x / W and y / H, the positions are also valid in a scaled picture. A cell is 1 if its centre is
/// brighter than the mean of black and white.
///
/// | cell | value |
/// |---|---|
/// | 0 | always 1 |
/// | 1 to 32 | Gray code of the unit number's low 32 bits, `n ^ (n >> 1)`, most significant bit first |
/// | 33 | even parity: 1 when an odd number of cells 1 to 32 is 1 |
/// | 34 | always 0 |
/// | 35 | always 1 |
///
/// To decode, check cells 0, 33, 34 and 35. Read cells 1 to 32 as `g` and compute the unit number:
///
/// `n = g; for s in [1, 2, 4, 8, 16] { n ^= n >>> s }`
///
/// From one unit to the next, exactly two cells change: one bit and the parity.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct NumberBlocks {
    /// Side of a cell in pixels, a multiple of 16.
    pub cell: u32,
    /// Left edge of the first column in pixels.
    pub left: u32,
    /// Upper edge of the first row in pixels.
    pub top: u32,
}

impl NumberBlocks {
    /// Cells of a row.
    pub const COLUMNS: u32 = 18;
    /// Rows of cells.
    pub const ROWS: u32 = 2;
    /// All cells.
    pub const CELLS: u32 = Self::COLUMNS * Self::ROWS;

    /// Returns the cells for a picture of `width` x `height` pixels. Returns `None` if the width is below 288 or two
    /// rows of cells do not fit.
    #[must_use]
    pub fn of(width: u32, height: u32) -> Option<NumberBlocks> {
        let (columns, rows) = (width / 16, height / 16);
        let cell = columns / Self::COLUMNS;
        let top = rows.checked_sub(Self::ROWS * cell)?;
        let left = (columns - Self::COLUMNS * cell) / 2;
        (cell > 0).then_some(NumberBlocks { cell: 16 * cell, left: 16 * left, top: 16 * top })
    }

    /// Returns the x and y of the centre of cell `index` in pixels.
    fn centre(&self, index: u32) -> (u32, u32) {
        let (column, row) = (index % Self::COLUMNS, index / Self::COLUMNS);
        (self.left + column * self.cell + self.cell / 2, self.top + row * self.cell + self.cell / 2)
    }

    /// Returns true if cell `index` is 1 for this unit number.
    #[must_use]
    pub fn value(index: u32, unit_number: u32) -> bool {
        let gray = unit_number ^ unit_number >> 1;
        match index {
            1..=32 => gray >> (32 - index) & 1 == 1,
            33 => gray.count_ones() % 2 == 1,
            34 => false,
            _ => true,
        }
    }

    /// Reads the unit number from a picture. `sample` must return the luma (0 to 255) at the pixel x, y. Returns `None`
    /// if the fixed cells or the parity are wrong.
    pub fn read(&self, mut sample: impl FnMut(u32, u32) -> u8) -> Option<u32> {
        let mut cell = |index| {
            let (x, y) = self.centre(index);
            sample(x, y) >= 126
        };
        let gray = (1..=32).fold(0_u32, |bits, index| bits << 1 | u32::from(cell(index)));
        let parity = gray.count_ones() % 2 == 1;
        if !cell(0) || cell(33) != parity || cell(34) || !cell(35) {
            return None;
        }
        Some([1, 2, 4, 8, 16].into_iter().fold(gray, |number, shift| number ^ number >> shift))
    }
}

/// The white square that moves over the colour bars, for a simulated detector to find. It moves back and forth, by
/// 6 pixels to the side and 2 pixels up or down from unit to unit. Nothing else in the bars is as bright.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Square {
    /// Left edge in pixels.
    pub left: u32,
    /// Upper edge in pixels.
    pub top: u32,
    /// Width and height in pixels.
    pub side: u32,
}

impl Square {
    /// Returns the square in the picture of this unit. Returns `None` if no test card of this size is possible.
    #[must_use]
    pub fn at(unit_number: u64, width: u32, height: u32) -> Option<Square> {
        let room = Rows::of(width, height)?.track_top;
        let side = 16 * (room / 16 / 4).clamp(1, 6);
        let left = back_and_forth(unit_number, (width / 16 * 16 - side) / SQUARE_STEP_X) * SQUARE_STEP_X;
        let top = back_and_forth(unit_number, (room - side) / SQUARE_STEP_Y) * SQUARE_STEP_Y;
        Some(Square { left, top, side })
    }
}

/// Movement of the square from unit to unit in pixels, to the right or left.
const SQUARE_STEP_X: u32 = 6;
/// The same, down or up.
const SQUARE_STEP_Y: u32 = 2;

/// Returns the position of something that moves from 0 to `span` and back, by one per unit.
fn back_and_forth(unit_number: u64, span: u32) -> u32 {
    let phase = unit_number % (2 * u64::from(span)).max(1);
    u32::try_from(phase.min(2 * u64::from(span) - phase)).unwrap_or_default()
}

/// A rectangle in pixels. All edges are even, because chroma has half the resolution.
#[derive(Copy, Clone)]
struct Area {
    left: u32,
    top: u32,
    width: u32,
    height: u32,
}

/// A picture as macroblocks, row by row. A flag per macroblock records if the macroblock changed since it was last
/// encoded.
pub(super) struct Canvas {
    pub(super) columns: usize,
    pub(super) rows: usize,
    /// All macroblocks, row by row.
    pub(super) macroblocks: Vec<Macroblock>,
    /// One flag per macroblock: true if it changed since it was last encoded.
    pub(super) changed: Vec<bool>,
}

impl Canvas {
    fn new(columns: u32, rows: u32) -> Canvas {
        let (columns, rows) = (columns as usize, rows as usize);
        let mut macroblock = [0; MACROBLOCK_BYTES];
        fill_macroblock(&mut macroblock, &(0..16), &(0..16), NIGHT);
        Canvas {
            columns,
            rows,
            macroblocks: vec![macroblock; columns * rows],
            changed: vec![true; columns * rows],
        }
    }

    fn fill(&mut self, area: Area, colour: Colour) {
        let (right, bottom) = (area.left + area.width, area.top + area.height);
        for row in area.top / 16..bottom.div_ceil(16) {
            for column in area.left / 16..right.div_ceil(16) {
                let index = row as usize * self.columns + column as usize;
                let inner = |edge: u32, origin: u32| edge.saturating_sub(16 * origin).min(16) as usize;
                let x = inner(area.left, column)..inner(right, column);
                let y = inner(area.top, row)..inner(bottom, row);
                if let (Some(macroblock), Some(changed)) =
                    (self.macroblocks.get_mut(index), self.changed.get_mut(index))
                {
                    *changed |= fill_macroblock(macroblock, &x, &y, colour);
                }
            }
        }
    }
}

/// Fills the columns `x` and rows `y` of one macroblock with a colour. Returns true if a sample changed.
fn fill_macroblock(macroblock: &mut Macroblock, x: &Range<usize>, y: &Range<usize>, colour: Colour) -> bool {
    let mut changed = false;
    for ((plane, stride), value) in PLANES.into_iter().zip(colour) {
        let scale = 16 / stride;
        let lines = macroblock.get_mut(plane).unwrap_or_default().chunks_exact_mut(stride);
        for line in lines.take(y.end / scale).skip(y.start / scale) {
            let samples = line.get_mut(x.start / scale..x.end / scale).unwrap_or_default();
            changed |= samples.iter().any(|sample| *sample != value);
            samples.fill(value);
        }
    }
    changed
}

/// The layout of the test card for one picture size, and what the card currently shows.
pub(super) struct Picture {
    pub(super) canvas: Canvas,
    blocks: NumberBlocks,
    track: Area,
    bar_left: Option<u32>,
    clock_left: u32,
    clock_top: u32,
    /// Side of one font pixel, in pixels of the picture.
    clock_scale: u32,
    shown_time: String,
    shown_number: Option<u32>,
    shown_square: Option<Square>,
}

/// The upper edges of the parts of the card in pixels, and the size of the clock.
struct Rows {
    track_top: u32,
    track_rows: u32,
    clock_top: u32,
    clock_scale: u32,
}

impl Rows {
    /// Returns the rows of a card of this size, or `None` if the card does not fit.
    fn of(width: u32, height: u32) -> Option<Rows> {
        let blocks = NumberBlocks::of(width, height)?;
        let clock_scale = [16, 8, 4].into_iter().find(|scale| CLOCK_WIDTH * scale <= width * 4 / 5)?;
        let clock_rows = (font::CELL_HEIGHT * clock_scale).div_ceil(16);
        let gap_rows = u32::from(height >= 320);
        let track_rows = (height / 16 / 10).max(1);
        let clock_top = blocks.top.checked_sub(16 * clock_rows)?;
        let track_top = clock_top.checked_sub(16 * (track_rows + gap_rows))?;
        Some(Rows { track_top, track_rows, clock_top, clock_scale })
    }
}

/// Width of the whole clock, which has twelve characters, in font pixels.
const CLOCK_WIDTH: u32 = 12 * font::CELL_WIDTH;
/// Width of the moving bar, and its movement from unit to unit, in pixels.
const BAR_WIDTH: u32 = 32;
const BAR_STEP: u32 = 8;

impl Picture {
    /// Returns the card for a picture of `width` x `height` pixels, or `None` if the card does not fit.
    pub(super) fn new(width: u32, height: u32) -> Option<Picture> {
        let blocks = NumberBlocks::of(width, height)?;
        let columns = width / 16;
        let Rows { track_top, track_rows, clock_top, clock_scale } = Rows::of(width, height)?;
        let clock_columns = (CLOCK_WIDTH * clock_scale).div_ceil(16);
        let mut picture = Picture {
            canvas: Canvas::new(width.div_ceil(16), height.div_ceil(16)),
            blocks,
            track: Area { left: 0, top: track_top, width: 16 * columns, height: 16 * track_rows },
            bar_left: None,
            clock_left: 16 * ((columns - clock_columns) / 2),
            clock_top,
            clock_scale,
            shown_time: " ".repeat(12),
            shown_number: None,
            shown_square: None,
        };
        picture.paint_bars(Area { left: 0, top: 0, width: 16 * columns, height: track_top });
        Some(picture)
    }

    /// Paints the part of the colour bars that is inside `area`.
    fn paint_bars(&mut self, area: Area) {
        let edge = |bar: u32| self.track.width / 16 * bar / 8 * 16;
        let edges: [u32; BARS.len() + 1] = std::array::from_fn(|bar| edge(u32::try_from(bar).unwrap_or(0)));
        for ((from, to), colour) in edges.iter().zip(edges.iter().skip(1)).zip(BARS) {
            let (left, right) = ((*from).max(area.left), (*to).min(area.left + area.width));
            if left < right {
                self.canvas.fill(Area { left, width: right - left, ..area }, colour);
            }
        }
    }

    /// Moves the square to its position for this unit. Only what the square leaves and enters is painted.
    pub(super) fn paint_square(&mut self, square: Square) {
        if let Some(before) = self.shown_square.replace(square) {
            let freed = |from: u32, to: u32| {
                let width = from.abs_diff(to).min(square.side);
                (if to > from { from } else { from + square.side - width }, width)
            };
            let all = Area { left: before.left, top: before.top, width: before.side, height: before.side };
            let (left, width) = freed(before.left, square.left);
            self.paint_bars(Area { left, width, ..all });
            let (top, height) = freed(before.top, square.top);
            self.paint_bars(Area { top, height, ..all });
        }
        let Square { left, top, side } = square;
        self.canvas.fill(Area { left, top, width: side, height: side }, WHITE);
    }

    /// Paints the cells of the unit number. Only the cells that changed are painted, except at the first call.
    pub(super) fn paint_number(&mut self, unit_number: u32) {
        for index in 0..NumberBlocks::CELLS {
            let value = NumberBlocks::value(index, unit_number);
            if self.shown_number.is_some_and(|shown| NumberBlocks::value(index, shown) == value) {
                continue;
            }
            let (x, y) = self.blocks.centre(index);
            let cell = self.blocks.cell;
            let area = Area { left: x - cell / 2, top: y - cell / 2, width: cell, height: cell };
            self.canvas.fill(area, if value { WHITE } else { BLACK });
        }
        self.shown_number = Some(unit_number);
    }

    /// Moves the bar to its position for this unit. The bar moves back and forth over the whole width.
    pub(super) fn paint_bar(&mut self, unit_number: u64) {
        let left = back_and_forth(unit_number, (self.track.width - BAR_WIDTH) / BAR_STEP) * BAR_STEP;
        let bar = |left| Area { left, width: BAR_WIDTH, ..self.track };
        if let Some(before) = self.bar_left.replace(left) {
            let freed_width = before.abs_diff(left).min(BAR_WIDTH);
            let freed_left = if left > before { before } else { before + BAR_WIDTH - freed_width };
            self.canvas.fill(Area { width: freed_width, ..bar(freed_left) }, NIGHT);
        }
        self.canvas.fill(bar(left), WHITE);
    }

    /// Paints the UTC time of day. `realtime_ms` is CLOCK_REALTIME in ms.
    pub(super) fn paint_clock(&mut self, realtime_ms: u64) {
        let text = clock_text(realtime_ms);
        let shown = std::mem::take(&mut self.shown_time);
        for (place, (character, before)) in (0..).zip(text.bytes().zip(shown.bytes())) {
            if character != before {
                self.paint_character(place, character);
            }
        }
        self.shown_time = text;
    }

    fn paint_character(&mut self, place: u32, character: u8) {
        let side = self.clock_scale;
        for y in 0..font::CELL_HEIGHT {
            for x in 0..font::CELL_WIDTH {
                let left = self.clock_left + (place * font::CELL_WIDTH + x) * side;
                let area = Area { left, top: self.clock_top + y * side, width: side, height: side };
                self.canvas.fill(area, if font::is_set(character, x, y) { WHITE } else { NIGHT });
            }
        }
    }
}

/// Returns a time in ms since 1970 as text in the form HH:MM:SS.mmm.
fn clock_text(realtime_ms: u64) -> String {
    let seconds = realtime_ms / 1000;
    let (h, m, s, ms) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60, realtime_ms % 1000);
    format!("{h:02}:{m:02}:{s:02}.{ms:03}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn luma(canvas: &Canvas, x: u32, y: u32) -> u8 {
        let macroblock = &canvas.macroblocks[(y / 16) as usize * canvas.columns + (x / 16) as usize];
        macroblock[(y % 16 * 16 + x % 16) as usize]
    }

    #[test]
    fn the_unit_number_can_be_read_at_every_picture_size() {
        for (width, height) in [(288, 128), (320, 240), (640, 480), (1280, 720), (1920, 1080), (854, 480)] {
            let blocks = NumberBlocks::of(width, height).unwrap();
            let mut picture = Picture::new(width, height).unwrap();
            for number in [0, 1, 2, 3, 1000, 0x8000_0000, u32::MAX] {
                picture.paint_number(number);
                let read = blocks.read(|x, y| {
                    assert!(x < width && y < height, "the centre is in the visible picture");
                    luma(&picture.canvas, x, y)
                });
                assert_eq!(read, Some(number), "{width}x{height}");
            }
        }
    }

    #[test]
    fn a_wrong_cell_is_detected() {
        let blocks = NumberBlocks::of(640, 480).unwrap();
        let mut picture = Picture::new(640, 480).unwrap();
        picture.paint_number(12345);
        for wrong in 0..NumberBlocks::CELLS {
            let read = blocks.read(|x, y| {
                let sample = luma(&picture.canvas, x, y);
                if (x, y) == blocks.centre(wrong) { 251 - sample } else { sample }
            });
            assert_eq!(read, None, "cell {wrong}");
        }
    }

    #[test]
    fn the_next_unit_changes_only_two_cells_the_bar_and_some_digits() {
        let mut picture = Picture::new(1280, 720).unwrap();
        for unit in 0..2000_u32 {
            picture.paint_number(unit);
            picture.paint_bar(unit.into());
            picture.paint_clock(u64::from(unit) * 33);
            let changed = picture.canvas.changed.iter().filter(|changed| **changed).count();
            assert!(unit == 0 || changed < 32 + 16 + 60, "{unit}: {changed}");
            picture.canvas.changed.fill(false);
        }
    }

    #[test]
    fn the_bar_restores_the_background() {
        let mut moved = Picture::new(640, 480).unwrap();
        for unit in [0, 1, 2, 75, 76, 77, 151, 152, 153, 4, 5] {
            moved.paint_bar(unit);
        }
        let mut fresh = Picture::new(640, 480).unwrap();
        fresh.paint_bar(5);
        assert!(moved.canvas.macroblocks == fresh.canvas.macroblocks);
    }

    #[test]
    fn the_square_is_where_it_is_said_to_be_and_restores_the_background() {
        for (width, height) in [(288, 128), (320, 240), (640, 480), (1280, 720), (1920, 1080)] {
            let mut moved = Picture::new(width, height).unwrap();
            for unit in (0..500).chain([3, 900, 901]) {
                let Square { left, top, side } = Square::at(unit, width, height).unwrap();
                moved.paint_square(Square { left, top, side });
                assert!(left + side <= width && top + side <= moved.track.top && side >= 16);
                let (right, bottom) = (left + side - 1, top + side - 1);
                let corners = [(left, top), (right, top), (left, bottom), (right, bottom)];
                assert!(corners.iter().all(|(x, y)| luma(&moved.canvas, *x, *y) == 235), "{unit}");
                for (x, y) in [(left.wrapping_sub(1), top), (left, bottom + 1), (right + 1, bottom)] {
                    assert!(x >= width / 16 * 16 || luma(&moved.canvas, x, y) < 200, "{unit}: {x} {y}");
                }
            }
            let mut fresh = Picture::new(width, height).unwrap();
            fresh.paint_square(Square::at(901, width, height).unwrap());
            assert!(moved.canvas.macroblocks == fresh.canvas.macroblocks, "{width}x{height}");
        }
    }

    #[test]
    fn the_square_moves_steadily_and_changes_only_its_edges() {
        let mut picture = Picture::new(1280, 720).unwrap();
        let at = |unit| Square::at(unit, 1280, 720).unwrap();
        assert_eq!(at(0), Square { left: 0, top: 0, side: 96 });
        for unit in 0..2000 {
            picture.paint_square(at(unit));
            let changed = picture.canvas.changed.iter().filter(|changed| **changed).count();
            assert!(unit == 0 || changed <= 48, "{unit}: {changed}");
            assert!(
                unit == 0
                    || (at(unit).left.abs_diff(at(unit - 1).left), at(unit).top.abs_diff(at(unit - 1).top))
                        == (6, 2)
            );
            picture.canvas.changed.fill(false);
        }
    }

    #[test]
    fn the_clock_shows_the_time_of_day() {
        assert_eq!(clock_text(0), "00:00:00.000");
        assert_eq!(clock_text((23 * 3600 + 59 * 60 + 58) * 1000 + 86_400_000 * 20_000 + 7), "23:59:58.007");
    }

    #[test]
    fn pictures_too_small_for_the_unit_number_are_rejected() {
        for (width, height) in [(0, 0), (272, 480), (288, 16), (288, 64), (16, 16)] {
            assert!(Picture::new(width, height).is_none(), "{width}x{height}");
        }
    }
}
