// Makes small pictures of recordings in the browser: a hidden video seeks in the file, and a canvas keeps the picture.
// One file at a time is read, and only for rows that are visible.
//
//   row becomes visible ──► memory ──► Cache Storage (HTTPS only) ──► queue ──► hidden video ──► both caches

import { THUMBNAILS } from "./dom.js";
import { pathOf } from "./events.js";

const [WIDTH, HEIGHT] = [160, 90];
const IN_MEMORY = 120; // number of pictures; each has 58 kB
const IN_STORAGE = 400;
const CONNECT_MS = 3000; // thumbnails wait at most this long for the live picture
const LOAD_MS = 15_000;

/** @typedef {{ name: string, bytes: number, duration: number | null, recording: boolean, events: { best: number }[] }} Recording */

/** @type {Map<string, ImageBitmap>} */
const pictures = new Map(); // the most recently used is the last
/** @type {{ canvas: HTMLCanvasElement, recording: Recording }[]} */
let queue = [];
let isBusy = false;

// A file that was replaced has another size.
/** @param {Recording} recording */
const keyOf = (recording) => `${pathOf(recording.name)}?thumbnail=${recording.bytes}`;

const watch = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const canvas = /** @type {HTMLCanvasElement} */ (target);
    const recording = wanted.get(canvas);
    queue = queue.filter((one) => one.canvas !== canvas);
    if (isIntersecting && recording) queue.push({ canvas, recording });
  }
  work();
});
/** @type {WeakMap<HTMLCanvasElement, Recording>} */
const wanted = new WeakMap();

/**
 * Draws the thumbnail of a recording on the canvas, at once or when the canvas is visible.
 * @param {HTMLCanvasElement} canvas
 * @param {Recording} recording
 */
export function showThumbnail(canvas, recording) {
  const known = pictures.get(keyOf(recording));
  if (known) return draw(canvas, known);
  if (recording.recording || !recording.name.endsWith(".mp4")) return; // browsers cannot play raw H.264
  wanted.set(canvas, recording);
  watch.observe(canvas);
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {CanvasImageSource} picture
 */
function draw(canvas, picture) {
  canvas.getContext("2d")?.drawImage(picture, 0, 0, canvas.width, canvas.height);
  canvas.dataset.drawn = "";
}

async function work() {
  if (isBusy) return;
  isBusy = true;
  // The live picture comes first.
  const until = performance.now() + CONNECT_MS;
  while (document.body.dataset.state === "connecting" && performance.now() < until) {
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  for (let next = queue.shift(); next; next = queue.shift()) {
    watch.unobserve(next.canvas);
    try {
      const picture = pictures.get(keyOf(next.recording)) || (await stored(next.recording)) || (await made(next.recording));
      remember(next.recording, picture);
      draw(next.canvas, picture);
    } catch (error) {
      console.info("no thumbnail:", /** @type {Error} */ (error).message);
    }
  }
  isBusy = false;
}

/**
 * @param {Recording} recording
 * @param {ImageBitmap} picture
 */
function remember(recording, picture) {
  pictures.delete(keyOf(recording));
  pictures.set(keyOf(recording), picture);
  for (const key of pictures.keys()) {
    if (pictures.size <= IN_MEMORY) break;
    pictures.delete(key);
  }
}

/** @param {Recording} recording */
async function stored(recording) {
  if (!window.caches) return null; // pages over plain HTTP have no Cache Storage
  const cache = await caches.open(THUMBNAILS);
  const response = await cache.match(keyOf(recording));
  return response ? createImageBitmap(await response.blob()) : null;
}

/** @param {Recording} recording */
async function made(recording) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [WIDTH, HEIGHT];
  const video = document.createElement("video");
  try {
    // The best picture of an event shows what happened.
    const duration = recording.duration || 0;
    const time_s = Math.min(recording.events[0]?.best ?? Math.min(1, duration / 2), Math.max(0, duration - 0.1));
    await pictureAt(video, pathOf(recording.name), time_s);
    // The middle of the picture fills the thumbnail.
    const { videoWidth, videoHeight } = video;
    const part = Math.min(videoWidth / WIDTH, videoHeight / HEIGHT);
    const [width, height] = [WIDTH * part, HEIGHT * part];
    const from = /** @type {const} */ ([(videoWidth - width) / 2, (videoHeight - height) / 2, width, height]);
    canvas.getContext("2d")?.drawImage(video, ...from, 0, 0, WIDTH, HEIGHT);
  } finally {
    video.removeAttribute("src");
    video.load(); // this ends the download
  }
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.8));
  if (blob && window.caches) store(keyOf(recording), blob).catch(() => {});
  return createImageBitmap(canvas);
}

/**
 * @param {string} key
 * @param {Blob} blob
 */
async function store(key, blob) {
  const cache = await caches.open(THUMBNAILS);
  await cache.put(key, new Response(blob));
  const keys = await cache.keys(); // the oldest first
  for (const old of keys.slice(0, Math.max(0, keys.length - IN_STORAGE))) await cache.delete(old);
}

/**
 * Loads a file and waits until the video shows the picture at this time.
 * @param {HTMLVideoElement} video
 * @param {string} path
 * @param {number} time_s
 */
function pictureAt(video, path, time_s) {
  return new Promise((resolve, reject) => {
    setTimeout(() => reject(new Error(`${path} did not load`)), LOAD_MS);
    video.muted = true;
    video.preload = "auto";
    video.onerror = () => reject(new Error(`${path} cannot be played`));
    video.playsInline = true; // an iPhone would open the video in full screen
    video.onloadedmetadata = () => (video.currentTime = time_s);
    video.onseeked = resolve;
    video.src = path;
  });
}
