// Reads the unit number in the picture of the test card: 36 cells in two rows at the bottom, Gray-coded with a parity
// cell. The geometry is documented at `NumberBlocks` in src/simulator/picture.rs.

/** The bottom part of the picture that contains all cells: `height` lines suffice for every width up to 1920 pixels. */
export const STRIP = { height: 208 };

/** Reads the unit number from the RGBA pixels of the lowest `height` lines of the picture. Returns null if the
 *  number is not readable. This function runs in the page, so it must not use anything defined outside of it. */
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
