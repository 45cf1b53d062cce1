// Parses the boxes of a recording from the file beside it: JSON Lines, one result with its media time a line. Says which
// boxes belong to a picture. Pure: reads no file.

import { NONE, between, readBoxes } from "./boxes.js";

const GAP_S_MAX = 0.5; // pictures between two results that are further apart have no boxes
const PICTURE_S = 1 / 30; // time from picture to picture until it is known

/** @typedef {{ time_s: number, boxes: import("./boxes.js").Box[] }} Line */

/** The results of a recording. */
export class Sidecar {
  /** @param {Line[]} lines */
  constructor(lines) {
    this.lines = lines.sort((a, b) => a.time_s - b.time_s);
    this.picture_s = PICTURE_S;
    this.last_s = -1;
  }

  /**
   * Returns the boxes of the picture at this media time.
   * @param {number} time_s
   * @returns {import("./boxes.js").Shown}
   */
  at(time_s) {
    const step_s = time_s - this.last_s;
    this.last_s = time_s;
    if (step_s > 0.001 && step_s < 1) this.picture_s = Math.min(this.picture_s * 1.5, step_s);
    const next = this.firstFrom(time_s);
    const [before, after] = [this.lines[next - 1], this.lines[next]];
    const distance_s = (/** @type {Line | undefined} */ line) => (line ? Math.abs(line.time_s - time_s) : Infinity);
    const nearest = distance_s(after) <= distance_s(before) ? after : before;
    if (nearest && distance_s(nearest) <= this.picture_s / 2) return { how: "exact", boxes: nearest.boxes };
    if (!before || !after || after.time_s - before.time_s > GAP_S_MAX) return NONE;
    const part = (time_s - before.time_s) / (after.time_s - before.time_s);
    return { how: "between", boxes: between(before.boxes, after.boxes, part) };
  }

  /**
   * Returns the index of the first line at or after this time.
   * @param {number} time_s
   */
  firstFrom(time_s) {
    let [low, high] = [0, this.lines.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.lines[middle].time_s < time_s) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/**
 * Returns the results in the text of a file. Lines that are none are left out, such as one that is not complete.
 * @param {string} text
 */
export function parseSidecar(text) {
  /** @type {Line[]} */
  const lines = [];
  for (const line of text.split("\n")) {
    try {
      const news = JSON.parse(line);
      if (Number.isFinite(news?.t) && Array.isArray(news.boxes)) lines.push({ time_s: news.t, boxes: readBoxes(news) });
    } catch {
      // Not a whole line.
    }
  }
  return lines;
}
