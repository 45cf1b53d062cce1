// Keeps the newest results of the detector, and says which boxes belong to a picture. Pure: draws nothing, reads no clock.
//
//   result ──► Results.add ──► boxes with trails (where the same box was in earlier results)
//   picture ──► Results.at ──► exact: the result of this picture     between: from the results before and after it
//                              ahead: moved on from the result before it, by the motion of its trail
//
// RTP times have 32 bits and wrap, so only their differences are used. All coordinates are parts of the picture (0 to 1).

const RESULTS_MAX = 96; // more than 500 ms at the 120 results per second that the server forwards
const BOXES_MAX = 10;
const TRAIL_MAX = 5;
const TRAIL_MS = 400;
const STEP_MS_MAX = 5000; // a larger step between two results is another stream, or the camera's clock was set
const AHEAD_MS_MAX = 250; // a box moves on for at most this long, then it stays until it expires
const EXPIRES_MS = 500; // if a result does not say it
const EXPIRES_MS_MAX = 2000;
const OVERLAP_MIN = 0.3; // a box whose label changes is the same box if they overlap this much
const REACH = 2; // a box moves at most this many times its size from result to result
const NEEDS_MAX = 200;
const EARLY_MAX = 64;
const NEED_SHARE = 0.98;
const HOLD_MARGIN_MS = 20;
export const HOLD_MS_MAX = 500;

/**
 * @typedef {{ time_ms: number, x: number, y: number }} Place centre of a box at a time before its result
 * @typedef {{ label: string, confidence: number, x: number, y: number, width: number, height: number }} Box
 * @typedef {Box & { trail: Place[] }} TracedBox
 * @typedef {{ time: number | null, arrivedAt: number, expires_ms: number, boxes: TracedBox[] }} Result
 * @typedef {{ how: "exact" | "between" | "ahead" | "arrival" | "none", boxes: Box[] }} Shown
 */

/** @type {Shown} */
export const NONE = { how: "none", boxes: [] };

/**
 * Returns the milliseconds from one RTP time to another.
 * @param {number} from
 * @param {number} to
 */
export const rtpElapsed_ms = (from, to) => ((to - from) | 0) / 90;

const centreX = (/** @type {Box} */ box) => box.x + box.width / 2;
const centreY = (/** @type {Box} */ box) => box.y + box.height / 2;

/**
 * Reads the boxes of a result, as the server or a sidecar file has them. Boxes that are malformed are left out.
 * @param {any} news
 * @returns {Box[]}
 */
export function readBoxes(news) {
  const [width, height] = [Number(news.width), Number(news.height)];
  if (!(width > 0 && height > 0) || !Array.isArray(news.boxes)) return [];
  const boxes = news.boxes.slice(0, BOXES_MAX).map((/** @type {any} */ box) => ({
    label: String(box?.label ?? ""),
    confidence: Number(box?.confidence),
    x: Number(box?.x) / width,
    y: Number(box?.y) / height,
    width: Number(box?.width) / width,
    height: Number(box?.height) / height,
  }));
  const isSound = (/** @type {Box} */ box) => [box.confidence, box.x, box.y].every(Number.isFinite) && box.width > 0 && box.height > 0
    && box.width <= 2 && box.height <= 2 && Math.abs(box.x) <= 2 && Math.abs(box.y) <= 2;
  return boxes.filter(isSound);
}

/**
 * Returns the share of both boxes that they have in common.
 * @param {Box} a
 * @param {Box} b
 */
function overlap(a, b) {
  const common = (/** @type {number} */ from, /** @type {number} */ size, /** @type {number} */ other, /** @type {number} */ otherSize) =>
    Math.max(0, Math.min(from + size, other + otherSize) - Math.max(from, other));
  const both = common(a.x, a.width, b.x, b.width) * common(a.y, a.height, b.y, b.height);
  return both / (a.width * a.height + b.width * b.height - both);
}

/**
 * Finds for each box the same box in an earlier result: the nearest with the same label, or one of another label that
 * overlaps. Each earlier box is found at most once.
 * @template {Box} T
 * @param {Box[]} boxes
 * @param {T[]} earlier
 * @returns {Map<Box, T>}
 */
export function match(boxes, earlier) {
  const pairs = [];
  for (const box of boxes) {
    for (const before of earlier) {
      const [x, y] = [centreX(box) - centreX(before), centreY(box) - centreY(before)];
      const distance = Math.hypot(x / (box.width + before.width), y / (box.height + before.height)) * 2;
      const isSame = box.label === before.label ? distance <= REACH : overlap(box, before) >= OVERLAP_MIN;
      if (isSame) pairs.push({ box, before, distance: distance + (box.label === before.label ? 0 : REACH) });
    }
  }
  pairs.sort((a, b) => a.distance - b.distance);
  const matched = new Map();
  const taken = new Set();
  for (const { box, before } of pairs) {
    if (matched.has(box) || taken.has(before)) continue;
    matched.set(box, before);
    taken.add(before);
  }
  return matched;
}

/**
 * Returns a box at another place, within the picture.
 * @param {Box} box
 * @param {number} x
 * @param {number} y
 * @returns {Box}
 */
function placed(box, x, y) {
  const within = (/** @type {number} */ value, /** @type {number} */ size) => Math.max(Math.min(0, 1 - size), Math.min(Math.max(0, 1 - size), value));
  return { ...box, x: within(x, box.width), y: within(y, box.height) };
}

/**
 * Returns where a box is `ahead_ms` after its result, by the motion of its trail: the line that fits its places best.
 * @param {TracedBox} box
 * @param {number} ahead_ms
 */
export function movedOn(box, ahead_ms) {
  const { trail } = box;
  if (trail.length < 2) return box;
  const mean = (/** @type {(place: Place) => number} */ of) => trail.reduce((sum, place) => sum + of(place), 0) / trail.length;
  const [time, x, y] = [mean((place) => place.time_ms), mean((place) => place.x), mean((place) => place.y)];
  let [spread, alongX, alongY] = [0, 0, 0];
  for (const place of trail) {
    spread += (place.time_ms - time) ** 2;
    alongX += (place.time_ms - time) * (place.x - x);
    alongY += (place.time_ms - time) * (place.y - y);
  }
  if (spread === 0) return box;
  const span_ms = Math.min(ahead_ms, AHEAD_MS_MAX);
  return placed(box, box.x + (alongX / spread) * span_ms, box.y + (alongY / spread) * span_ms);
}

/**
 * Returns the boxes of a picture between two results.
 * @param {Box[]} before
 * @param {Box[]} after
 * @param {number} part 0 at the result before, 1 at the one after
 */
export function between(before, after, part) {
  const matched = match(after, before);
  const boxes = [];
  for (const [next, last] of matched) {
    const mix = (/** @type {"x" | "y" | "width" | "height"} */ key) => last[key] + (next[key] - last[key]) * part;
    boxes.push({ ...last, x: mix("x"), y: mix("y"), width: mix("width"), height: mix("height") });
  }
  return boxes;
}

/**
 * @param {Result} result
 * @param {number} rtpTime
 */
const isBefore = ({ time }, rtpTime) => time !== null && rtpElapsed_ms(time, rtpTime) > 0;

/** The newest results. */
export class Results {
  constructor() {
    /** @type {Result[]} */
    this.list = []; // in order of their time
  }

  /**
   * Adds a result. Returns it, or null if it is malformed.
   * @param {any} news
   * @param {number} now
   * @returns {Result | null}
   */
  add(news, now) {
    if (!news || typeof news !== "object") return null;
    const time = Number.isInteger(news.rtp_time) ? news.rtp_time >>> 0 : null;
    const expires_ms = news.expires_ms > 0 ? Math.min(news.expires_ms, EXPIRES_MS_MAX) : EXPIRES_MS;
    const last = this.list[this.list.length - 1];
    const step_ms = last && last.time !== null && time !== null ? rtpElapsed_ms(last.time, time) : 0;
    if (step_ms < 0 || step_ms > STEP_MS_MAX || (last && (last.time === null) !== (time === null))) this.list.length = 0;
    else if (last && time !== null && step_ms === 0) this.list.pop(); // another result of the same picture
    const result = { time, arrivedAt: now, expires_ms, boxes: this.trace(readBoxes(news), time) };
    this.list.push(result);
    if (this.list.length > RESULTS_MAX) this.list.shift();
    return result;
  }

  /**
   * Gives each box its trail.
   * @param {Box[]} boxes
   * @param {number | null} time
   * @returns {TracedBox[]}
   */
  trace(boxes, time) {
    const last = this.list[this.list.length - 1];
    const since_ms = last && last.time !== null && time !== null ? rtpElapsed_ms(last.time, time) : null;
    const matched = last && since_ms !== null ? match(boxes, last.boxes) : new Map();
    return boxes.map((box) => {
      const before = matched.get(box);
      const earlier = before && since_ms !== null ? before.trail.map((/** @type {Place} */ place) => ({ ...place, time_ms: place.time_ms - since_ms })) : [];
      const trail = [...earlier, { time_ms: 0, x: centreX(box), y: centreY(box) }];
      return { ...box, trail: trail.filter((place) => place.time_ms >= -TRAIL_MS).slice(-TRAIL_MAX) };
    });
  }

  /**
   * Returns the result of a picture, or null.
   * @param {number} rtpTime
   * @param {number} tolerance_ms
   */
  of(rtpTime, tolerance_ms) {
    /** @type {Result | null} */
    let nearest = null;
    let least_ms = tolerance_ms;
    for (const result of this.list) {
      if (result.time === null) continue;
      const distance_ms = Math.abs(rtpElapsed_ms(result.time, rtpTime));
      if (distance_ms <= least_ms) [nearest, least_ms] = [result, distance_ms];
    }
    return nearest;
  }

  /**
   * Returns the boxes of a picture.
   * @param {number} rtpTime
   * @param {number} tolerance_ms half the time from picture to picture
   * @returns {Shown}
   */
  at(rtpTime, tolerance_ms) {
    const own = this.of(rtpTime, tolerance_ms);
    if (own) return { how: "exact", boxes: own.boxes };
    let index = this.list.length - 1;
    while (index >= 0 && !isBefore(this.list[index], rtpTime)) index -= 1;
    const before = this.list[index];
    if (!before || before.time === null) return NONE;
    const since_ms = rtpElapsed_ms(before.time, rtpTime);
    const after = this.list[index + 1];
    const gap_ms = after && after.time !== null ? rtpElapsed_ms(before.time, after.time) : Infinity;
    if (gap_ms <= before.expires_ms) return { how: "between", boxes: between(before.boxes, after.boxes, since_ms / gap_ms) };
    if (since_ms > before.expires_ms || before.boxes.length === 0) return NONE;
    return { how: "ahead", boxes: before.boxes.map((box) => movedOn(box, since_ms)) };
  }

  /**
   * Returns the boxes that arrived last, for pictures whose time is not known.
   * @param {number} now
   * @returns {Shown}
   */
  newest(now) {
    const last = this.list[this.list.length - 1];
    return last && now - last.arrivedAt <= last.expires_ms ? { how: "arrival", boxes: last.boxes } : NONE;
  }

  /**
   * Returns true if no result has arrived for a while.
   * @param {number} now
   */
  isIdle(now) {
    const last = this.list[this.list.length - 1];
    return !last || now - last.arrivedAt > STEP_MS_MAX;
  }

  clear() {
    this.list.length = 0;
  }
}

/**
 * Learns how long pictures must be held back until they and their results are there. The time counts from when a picture
 * would arrive if it were as fast as the fastest of the newest pictures.
 */
export class HoldBack {
  constructor() {
    /** @type {number[]} */
    this.needs = []; // the newest times in ms that pictures would have had to be held back
    /** @type {{ time: number, receivedAt: number }[]} */
    this.pictures = []; // the newest pictures, from which the fastest is found
    /** @type {{ time: number, receivedAt: number, expectedAt: number }[]} */
    this.early = []; // pictures that were shown before their results
    this.target_ms = 0;
  }

  /**
   * Notes a picture that is shown, and its result if that is there.
   * @param {number} time RTP time
   * @param {number} receivedAt
   * @param {Result | null} result
   */
  onPicture(time, receivedAt, result) {
    this.pictures.push({ time, receivedAt });
    if (this.pictures.length > NEEDS_MAX) this.pictures.shift();
    const expectedAt = Math.min(...this.pictures.map((picture) => picture.receivedAt + rtpElapsed_ms(picture.time, time)));
    if (result) return this.learn(Math.max(result.arrivedAt, receivedAt) - expectedAt);
    this.early.push({ time, receivedAt, expectedAt });
    if (this.early.length > EARLY_MAX) this.early.shift();
  }

  /**
   * Notes a result. Its picture may have been shown already.
   * @param {Result} result
   * @param {number} tolerance_ms
   */
  onResult(result, tolerance_ms) {
    const { time } = result;
    if (time === null) return;
    const index = this.early.findIndex((picture) => Math.abs(rtpElapsed_ms(picture.time, time)) <= tolerance_ms);
    if (index < 0) return;
    const [{ receivedAt, expectedAt }] = this.early.splice(index, 1);
    this.learn(Math.max(result.arrivedAt, receivedAt) - expectedAt);
  }

  /** Forgets the pictures of a connection that has ended. */
  forget() {
    this.pictures.length = this.early.length = 0;
  }

  /** @param {number} need_ms */
  learn(need_ms) {
    this.needs.push(need_ms);
    if (this.needs.length > NEEDS_MAX) this.needs.shift();
    const sorted = [...this.needs].sort((a, b) => a - b);
    const wanted = sorted[Math.floor((sorted.length - 1) * NEED_SHARE)] + HOLD_MARGIN_MS;
    const next = Math.round(Math.max(0, Math.min(HOLD_MS_MAX, wanted)));
    // Every change plays some pictures slower or faster, so it falls in larger steps than it rises.
    if (next > this.target_ms + 2 || next < this.target_ms - 15) this.target_ms = next;
  }
}
