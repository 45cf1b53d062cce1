//! The font of the clock: digits, colon and full stop in 3x5 pixels.

/// Width and height of a character cell in font pixels. They include one column of space on the right and one row
/// below.
pub(super) const CELL_WIDTH: u32 = 4;
pub(super) const CELL_HEIGHT: u32 = 6;

/// Returns true if the font pixel at `x`, `y` of the cell of `character` is set.
pub(super) fn is_set(character: u8, x: u32, y: u32) -> bool {
    let rows: [u8; 5] = match character {
        b'0' => [0b111, 0b101, 0b101, 0b101, 0b111],
        b'1' => [0b010, 0b110, 0b010, 0b010, 0b111],
        b'2' => [0b111, 0b001, 0b111, 0b100, 0b111],
        b'3' => [0b111, 0b001, 0b111, 0b001, 0b111],
        b'4' => [0b101, 0b101, 0b111, 0b001, 0b001],
        b'5' => [0b111, 0b100, 0b111, 0b001, 0b111],
        b'6' => [0b111, 0b100, 0b111, 0b101, 0b111],
        b'7' => [0b111, 0b001, 0b001, 0b001, 0b001],
        b'8' => [0b111, 0b101, 0b111, 0b101, 0b111],
        b'9' => [0b111, 0b101, 0b111, 0b001, 0b111],
        b':' => [0b000, 0b010, 0b000, 0b010, 0b000],
        b'.' => [0b000, 0b000, 0b000, 0b000, 0b010],
        _ => [0; 5],
    };
    rows.get(y as usize).is_some_and(|row| x < 3 && row >> (2 - x) & 1 == 1)
}
