// The unit number in the test card's picture: 36 cells in two rows at the bottom, Gray-coded with parity.
// The geometry is documented at `NumberBlocks` in src/simulator/picture.rs.

/** Lines at the bottom that contain the cells, for all widths up to 1920 pixels. */
export const STRIP = { height: 208 };

/** Reads the number from the RGBA pixels of the lowest `height` lines; null if it is not readable. Runs in the page, so it
 *  must not use anything outside of itself. */
export function readUnitNumber(rgba, width, height, pictureHeight) {
  const columns = Math.floor(width / 16);
  const cell = 16 * Math.floor(columns / 18);
  if (cell === 0) return null;
  const left = 16 * Math.floor((columns - (18 * cell) / 16) / 2);
  const top = 16 * Math.floor(pictureHeight / 16) - 2 * cell - (pictureHeight - height);
  const isSet = (index) => {
    const x = left + (index % 18) * cell + cell / 2;
    const y = top + Math.floor(index / 18) * cell + cell / 2;
    return rgba[4 * (y * width + x) + 1] >= 128;
  };
  let gray = 0;
  let parity = 0;
  for (let index = 1; index <= 32; index += 1) {
    const bit = isSet(index) ? 1 : 0;
    gray = (gray * 2) + bit;
    parity ^= bit;
  }
  if (!isSet(0) || isSet(33) !== (parity === 1) || isSet(34) || !isSet(35)) return null;
  let number = gray >>> 0;
  for (const shift of [1, 2, 4, 8, 16]) number = (number ^ (number >>> shift)) >>> 0;
  return number;
}
