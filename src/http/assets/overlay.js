// Draws the boxes of the detector over the picture: live, over HTTP and in recordings.
//
//   off     nothing is drawn
//   live    a transparent canvas over the video shows the newest boxes, moved on to the time of the picture
//   exact   pictures are held back until their boxes are there, and both are drawn into the canvas, which covers the video.
//           A picture whose result comes too late is drawn with boxes that are moved on from the results before it.
//
// A recording has its boxes in a file beside it, so it is always exact. While no results come, the canvas is hidden.

import { HOLD_MS_MAX, HoldBack, NONE, Results } from "./boxes.js";
import { $, readSetting, toast, writeSetting } from "./dom.js";
import { fetchWithTimeout, onDetections, pathOf } from "./events.js";
import { t } from "./texts.js";

/** @typedef {import("./boxes.js").Shown} Shown */
/** @typedef {import("./boxes.js").Box} Box */
/** @typedef {"off" | "live" | "exact"} Mode */

/** @type {Mode[]} */
const MODES = ["off", "live", "exact"];
const COLOURS = ["#7ee0a1", "#8fd0ff", "#ffc46b", "#ff9d97", "#d6b4ff", "#f5f07a", "#8ff0e6", "#ffb0dc"];
const SIDE_MAX = 2560; // pixels of the canvas, unless the video is larger
const LINE = 2; // in CSS pixels, as the two below
const FONT = 14;
const PAD = 4;
const PICTURE_MS = 1000 / 30; // time from picture to picture until it is known
const SIDECAR_TIMEOUT_MS = 30_000;
const SIDECAR_CHARACTERS_MAX = 30_000_000;
const HELD_MS = 500; // how often the time for which pictures are held back is set, at most

// ---- mode -------------------------------------------------------------------------------------------

const stored = /** @type {Mode} */ (readSetting("boxes"));
/** @type {Mode} */
let mode = MODES.includes(stored) ? stored : "live";
/** @type {() => void} */
let onHolding = () => {};

/** Returns the time in ms for which the page may have to hold pictures back. */
export const playoutDelayMax_ms = () => (mode === "exact" ? HOLD_MS_MAX : 0);

/**
 * Calls the function when `playoutDelayMax_ms` changes.
 * @param {() => void} listener
 */
export const onPlayoutDelay = (listener) => (onHolding = listener);

/** @param {Mode} next */
function setMode(next) {
  const before = playoutDelayMax_ms();
  mode = next;
  writeSetting("boxes", mode);
  $("boxes-mode").value = mode;
  if (mode === "off") results.clear();
  for (const layer of layers) layer.redraw();
  readBoxesOf(recording);
  if (playoutDelayMax_ms() !== before) onHolding();
}

/** Switches to the next mode, and says so. */
export function nextMode() {
  setMode(MODES[(MODES.indexOf(mode) + 1) % MODES.length]);
  toast(t("boxes_set", { mode: t(`boxes_${mode}`) }));
}

// ---- results ----------------------------------------------------------------------------------------

const results = new Results();
const hold = new HoldBack();
/** @type {RTCRtpReceiver | null} */
let receiver = null;
let heldAt = -Infinity;
let picture_ms = PICTURE_MS; // time from picture to picture
let lastRtp = 0;
const counts = { exact: 0, between: 0, ahead: 0, arrival: 0, none: 0 }; // pictures drawn, by the origin of their boxes

/**
 * The receiver of the current connection, whose pictures are held back in the mode "exact".
 * @param {RTCRtpReceiver | null} next
 */
export function setReceiver(next) {
  receiver = next;
  hold.forget();
  heldAt = -Infinity;
  holdBack(performance.now());
}

/** @param {number} now */
function holdBack(now) {
  if (mode !== "exact" || !receiver || now - heldAt < HELD_MS) return;
  const target = /** @type {any} */ (receiver);
  if (!("jitterBufferTarget" in target) || target.jitterBufferTarget === hold.target_ms) return;
  heldAt = now;
  target.jitterBufferTarget = hold.target_ms;
}

/** @param {string} text the data of the event */
function onNews(text) {
  if (mode === "off") return;
  const now = performance.now();
  const result = results.add(JSON.parse(text), now);
  if (!result) return;
  hold.onResult(result, picture_ms / 2);
  holdBack(now);
  if ($("video").requestVideoFrameCallback || !isLiveShown()) return;
  live.video = $(isOverHttp() ? "http-video" : "video");
  live.show(results.newest(now));
}

const isLiveShown = () => !document.body.hasAttribute("data-playing");
const isOverHttp = () => document.body.dataset.way === "http";

/**
 * Returns the boxes of a picture of the live video.
 * @param {number} now
 * @param {VideoFrameCallbackMetadata} frame
 */
function livePicture(now, { rtpTimestamp, receiveTime }) {
  if (rtpTimestamp === undefined) return results.newest(now);
  const step_ms = ((rtpTimestamp - lastRtp) | 0) / 90;
  lastRtp = rtpTimestamp;
  if (step_ms > 1 && step_ms < 1000) picture_ms = Math.min(picture_ms * 1.1, step_ms);
  if (receiveTime !== undefined) hold.onPicture(rtpTimestamp, receiveTime, results.of(rtpTimestamp, picture_ms / 2));
  const last = results.list[results.list.length - 1];
  if (last && last.time === null) return results.newest(now);
  return results.at(rtpTimestamp, picture_ms / 2);
}

// ---- recordings -------------------------------------------------------------------------------------

/** @type {import("./sidecar.js").Sidecar | null} */
let sidecar = null;
let recording = ""; // detection log of the recording in the player
let readOf = ""; // detection log that was read, or is being read

/**
 * Reads the boxes of the recording that the player shows from its detection log. An empty name means that there is none.
 * @param {string} name
 */
export async function readBoxesOf(name) {
  if (recording !== name) {
    player.hide();
    player.frame = null; // it is a picture of another recording
  }
  recording = name;
  if (mode === "off" || readOf === name) return;
  readOf = name;
  sidecar = null;
  const read = name ? await readSidecar(name) : null;
  if (readOf !== name) return;
  sidecar = read;
  player.redraw();
}

/**
 * Returns the boxes of a recording, or null if the file beside it is missing or broken.
 * @param {string} name
 */
async function readSidecar(name) {
  try {
    const { Sidecar, parseSidecar } = await import("./sidecar.js");
    const response = await fetchWithTimeout(pathOf(name), SIDECAR_TIMEOUT_MS);
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    const text = await response.text();
    const lines = text.length > SIDECAR_CHARACTERS_MAX ? [] : parseSidecar(text);
    if (!lines.length) throw new Error(`no results in ${text.length} characters`);
    return new Sidecar(lines);
  } catch (error) {
    console.info(`no boxes for ${name}:`, /** @type {Error} */ (error).message);
    return null;
  }
}

// ---- canvas -----------------------------------------------------------------------------------------

/** @param {Box} box */
const textOf = ({ label, confidence }) => `${label} ${Math.round(100 * confidence)} %`;

/** @param {string} label */
function colourOf(label) {
  let sum = 0;
  for (const character of label) sum = (sum * 31 + (character.codePointAt(0) || 0)) >>> 0;
  return COLOURS[sum % COLOURS.length];
}

/**
 * Returns the picture that the video shows now, or null. In a busy page it may be newer than that of the callback. Browsers
 * have VideoFrame only for pages over HTTPS or from this machine.
 * @param {HTMLVideoElement} video
 */
function pictureOf(video) {
  try {
    return new VideoFrame(video);
  } catch {
    return null;
  }
}

/**
 * Returns what is known of this picture. `frame` is the picture of the callback.
 * @param {VideoFrame} picture
 * @param {VideoFrameCallbackMetadata} frame
 * @returns {VideoFrameCallbackMetadata}
 */
function describe(picture, frame) {
  const { rtpTimestamp } = /** @type {any} */ (picture).metadata?.() || {};
  if (frame.rtpTimestamp === undefined) return { ...frame, mediaTime: picture.timestamp / 1e6 };
  if (rtpTimestamp === undefined || rtpTimestamp === frame.rtpTimestamp) return frame;
  return { ...frame, rtpTimestamp, receiveTime: undefined };
}

/** A canvas over a video. It has the size and the place of the picture, by `object-fit`. */
class Layer {
  /**
   * @param {string} id of the canvas
   * @param {(now: number, frame: VideoFrameCallbackMetadata) => Shown} boxesOf
   * @param {(now: number) => boolean} hasResults
   * @param {() => boolean} isOpaque true if the canvas shows the picture too
   */
  constructor(id, boxesOf, hasResults, isOpaque) {
    /** @type {HTMLCanvasElement} */
    this.canvas = $(id);
    this.boxesOf = boxesOf;
    this.hasResults = hasResults;
    this.isOpaque = isOpaque;
    /** @type {HTMLVideoElement | null} */
    this.video = null;
    this.shown = NONE;
    /** @type {VideoFrameCallbackMetadata | null} */
    this.frame = null;
  }

  /**
   * Draws boxes at every picture of this video while `isShown` returns true.
   * @param {HTMLVideoElement} video
   * @param {() => boolean} isShown
   */
  watch(video, isShown) {
    if (!video.requestVideoFrameCallback) return;
    /** @type {VideoFrameRequestCallback} */
    const onPicture = (now, frame) => {
      video.requestVideoFrameCallback(onPicture);
      if (!isShown()) return;
      this.video = video;
      this.draw(now, frame);
    };
    video.requestVideoFrameCallback(onPicture);
  }

  /**
   * Draws the boxes of a picture, and the picture itself if the canvas is opaque.
   * @param {number} now
   * @param {VideoFrameCallbackMetadata} frame
   */
  draw(now, frame) {
    this.frame = frame;
    if (mode === "off" || !this.hasResults(now)) return this.hide();
    const picture = this.video && this.isOpaque() ? pictureOf(this.video) : null;
    try {
      this.show(this.boxesOf(now, picture ? describe(picture, frame) : frame), picture);
    } finally {
      picture?.close();
    }
  }

  /** Draws the picture that is shown again, for example in another mode. */
  redraw() {
    if (this.frame) this.draw(performance.now(), this.frame);
    else this.hide();
  }

  hide() {
    this.shown = NONE;
    this.canvas.hidden = true;
  }

  /**
   * @param {Shown} shown
   * @param {VideoFrame | null} picture
   */
  show(shown, picture = null) {
    const { canvas, video } = this;
    this.shown = shown;
    if (this === live) counts[shown.how] += 1;
    const isNeeded = shown.boxes.length > 0 || (this.isOpaque() && shown.how !== "none");
    const pen = isNeeded && canvas.getContext("2d");
    if (!pen || !video || !video.videoWidth) return void (canvas.hidden = true);
    canvas.hidden = false;
    const unit = this.fit(video);
    if (this.isOpaque()) pen.drawImage(picture || video, 0, 0, canvas.width, canvas.height);
    else pen.clearRect(0, 0, canvas.width, canvas.height);
    for (const box of shown.boxes) drawBox(pen, box, unit);
  }

  /**
   * Gives the canvas as many pixels as the screen has for the picture, and returns the number of them per CSS pixel. A
   * canvas that shows the picture has at least the pixels of the video, so that an enlarged picture stays sharp.
   * @param {HTMLVideoElement} video
   */
  fit(video) {
    const { videoWidth, videoHeight } = video;
    const place = video.getBoundingClientRect();
    const perPixel = Math.min(place.width / videoWidth, place.height / videoHeight) || 1; // CSS pixels
    const least = this.isOpaque() ? 1 : 0;
    const most = Math.max(1, SIDE_MAX / Math.max(videoWidth, videoHeight));
    const scale = Math.min(most, Math.max(least, perPixel * devicePixelRatio));
    const [width, height] = [Math.round(videoWidth * scale), Math.round(videoHeight * scale)];
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
    return scale / perPixel;
  }
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {Box} box
 * @param {number} unit pixels of the canvas per CSS pixel
 */
function drawBox(pen, box, unit) {
  const { width, height } = pen.canvas;
  const [x, y, w, h] = [box.x * width, box.y * height, box.width * width, box.height * height];
  const colour = colourOf(box.label);
  // The dark line below makes the box visible on a bright picture.
  for (const [style, line] of /** @type {[string, number][]} */ ([["rgb(0 0 0 / 0.5)", 2 * LINE], [colour, LINE]])) {
    pen.strokeStyle = style;
    pen.lineWidth = line * unit;
    pen.strokeRect(x, y, w, h);
  }
  pen.font = `600 ${FONT * unit}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  const text = textOf(box);
  const [tagWidth, tagHeight] = [pen.measureText(text).width + 2 * PAD * unit, (FONT + 2 * PAD) * unit];
  // Above the box, else below it, or inside it if there is no room.
  const left = Math.max(0, Math.min(x - (LINE / 2) * unit, width - tagWidth));
  const top = y >= tagHeight ? y - tagHeight : y + h + tagHeight <= height ? y + h : Math.max(0, y);
  pen.fillStyle = colour;
  pen.fillRect(left, top, tagWidth, tagHeight);
  pen.fillStyle = "#0b0e12";
  pen.fillText(text, left + PAD * unit, top + tagHeight / 2);
}

const live = new Layer(
  "boxes",
  (now, frame) => (isOverHttp() ? results.newest(now) : livePicture(now, frame)),
  (now) => !results.isIdle(now),
  () => mode === "exact" && !isOverHttp(),
);
const player = new Layer(
  "player-boxes",
  (now, { mediaTime }) => (sidecar ? sidecar.at(mediaTime) : NONE),
  () => sidecar !== null,
  () => true,
);
const layers = [live, player];

/** Returns what the boxes on the screen say, such as "cat, 91 %". */
export function seenText() {
  const { boxes } = isLiveShown() ? live.shown : player.shown;
  return boxes.map(({ label, confidence }) => `${label}, ${Math.round(100 * confidence)} %`).join("; ");
}

/**
 * Draws the boxes that are shown over this video, for a snapshot of it.
 * @param {HTMLVideoElement} video
 * @param {CanvasRenderingContext2D} pen
 */
export function drawShownBoxes(video, pen) {
  const layer = layers.find((one) => one.video === video && !one.canvas.hidden);
  if (layer) pen.drawImage(layer.canvas, 0, 0, pen.canvas.width, pen.canvas.height);
}

/** What the tests see of this file. */
export const boxesState = () => ({ mode, hold_ms: hold.target_ms, shown: live.shown, playerShown: player.shown, counts: { ...counts } });

$("boxes-mode").value = mode;
$("boxes-mode").addEventListener("change", () => setMode($("boxes-mode").value));
live.watch($("video"), () => isLiveShown() && !isOverHttp());
live.watch($("http-video"), () => isLiveShown() && isOverHttp());
player.watch($("player"), () => !isLiveShown());
onDetections(onNews);
