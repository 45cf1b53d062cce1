// Counts encoded units in a page, and prints the result. watch_firefox.mjs and watch_livekit.mjs use it.

/** Script of a worker that reads each encoded unit before it is decoded, and posts the number in its stamp. */
export const READ_UNITS = `onrtctransform = async ({ transformer: { readable, writable } }) => {
  const stamp = [...new TextEncoder().encode('camera-sim stamp')];
  const out = writable.getWriter();
  const frames = readable.getReader();
  for (;;) {
    const { done, value } = await frames.read();
    if (done) return;
    const bytes = new Uint8Array(value.data);
    const at = bytes.findIndex((_, start) => stamp.every((byte, index) => bytes[start + index] === byte));
    if (at >= 0) {
      let number = 0;
      for (const digit of bytes.slice(at + 16, at + 26)) number = number * 128 + (digit & 0x7f);
      postMessage(number);
    }
    await out.write(value);
  }
};`;

/** Returns the line that the scripts read. Fewer than 20 units a second count as missing: the camera has 30, and
 *  connecting takes time. */
export function result({ units, lost, decoded }, seconds) {
  const numbers = [...new Set(units)].sort((a, b) => a - b);
  const gaps = numbers.length === 0 ? 0 : numbers.at(-1) - numbers[0] + 1 - numbers.length;
  const late = Math.max(0, 20 * (seconds - 2) - numbers.length);
  const missing = gaps + lost + late;
  return `${numbers.length} units, ${missing} missing (${lost} packets, ${late} too few), ${decoded} decoded`;
}
