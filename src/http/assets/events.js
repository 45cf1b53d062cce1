// Keeps the page informed of the state of the server: once a second and at every change.
//
//   EventSource api/events ──► status, camera, viewers, recording, publish ──► every listener gets the complete status
//                          └─► detections ──► the listener of the boxes
//   no event for a while, or no event stream (proxy, too many listeners) ──► GET api/status once a second
//
// A hidden page closes its event stream and polls nothing, because a browser opens at most six connections to one
// server for all its tabs.

import { t } from "./texts.js";

const TICK_MS = 1000;
const SILENCE_MS = 2500; // if no event arrives for this long, the page polls; the server sends an event every second
const POLL_TIMEOUT_MS = 3000;
const REOPEN_MS = [1000, 2000, 5000, 10000];

/** @typedef {(status: any, missed: number) => void} Listener */

/** @type {Listener[]} */
const listeners = [];
/** @type {(text: string) => void} */
let detectionsListener = () => {};
/** @type {EventSource | null} */
let source = null;
let failedOpenings = 0;
let reopenAt = 0;
let updatedAt = 0;
let missed = 0;
/** @type {any} */
let status = null;

/**
 * Adds a listener. Every update calls `listener(status, missed)` with the newest status and 0, or with null and the
 * number of consecutive failed polls.
 * @param {Listener} listener
 */
export function onStatus(listener) {
  listeners.push(listener);
}

/**
 * Calls the function with the data of every result of the detector, as text.
 * @param {(text: string) => void} listener
 */
export const onDetections = (listener) => (detectionsListener = listener);

function notify() {
  for (const listener of listeners) listener(status, missed);
}

/** @param {object} news */
function update(news) {
  updatedAt = performance.now();
  missed = 0;
  failedOpenings = 0;
  status = { ...status, ...news };
  notify();
}

function open() {
  source = new EventSource("api/events");
  source.addEventListener("status", (event) => update(JSON.parse(event.data)));
  for (const part of ["camera", "viewers", "recording", "publish"]) {
    source.addEventListener(part, (event) => status && update({ [part]: JSON.parse(event.data) }));
  }
  source.addEventListener("detections", (event) => detectionsListener(event.data));
  source.onerror = streamFailed;
}

function streamFailed() {
  close();
  updatedAt = 0; // the next tick then polls the status
  reopenAt = performance.now() + REOPEN_MS[Math.min(failedOpenings, REOPEN_MS.length - 1)];
  failedOpenings += 1;
}

function close() {
  if (source) source.close();
  source = null;
}

/**
 * Calls fetch with a timeout that also covers reading the body. AbortSignal.timeout is not used, because Safari before
 * version 16 does not have it.
 * @param {string} path
 * @param {number} timeout_ms
 * @param {RequestInit} options
 */
export function fetchWithTimeout(path, timeout_ms, options = {}) {
  const abort = new AbortController();
  setTimeout(() => abort.abort(), timeout_ms); // an abort has no effect after the body was read
  return fetch(path, { cache: "no-store", signal: abort.signal, ...options });
}

const COMMAND_MS = 15000; // the server answers a stop only when the file is on the disk

/**
 * Sends a command and returns its answer. Throws an error with the server's text if the server refuses it.
 * @param {string} method
 * @param {string} path
 */
export async function request(method, path) {
  const response = await fetchWithTimeout(path, COMMAND_MS, { method }).catch(() => {
    throw new Error(t("server_silent"));
  });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error || `HTTP ${response.status}`);
  return answer;
}

/**
 * Returns the address of a recording.
 * @param {string} name
 */
export const pathOf = (name) => `api/recordings/${encodeURIComponent(name)}`;

// Requests the status at once, for example after a command of this page.
export async function pollStatus() {
  try {
    const response = await fetchWithTimeout("api/status", POLL_TIMEOUT_MS);
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    const news = await response.json();
    // An answered poll does not prove that events work. So failedOpenings keeps its value, which update() sets to 0.
    const failures = failedOpenings;
    update(news);
    failedOpenings = failures;
  } catch {
    missed += 1;
    status = null;
    notify();
  }
}

async function tick() {
  const now = performance.now();
  if (document.hidden) {
    close();
  } else {
    if (!source && window.EventSource && now >= reopenAt) open();
    if (now - updatedAt > SILENCE_MS) {
      const silent = source;
      await pollStatus();
      // If the server answers polls but sends no events, the stream hangs or a proxy buffers it. The stream is then
      // closed, and opened again later.
      if (silent && silent === source && missed === 0 && silent.readyState === EventSource.OPEN) streamFailed();
    }
  }
  setTimeout(tick, TICK_MS);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) reopenAt = 0;
});
window.addEventListener("pagehide", close);
setTimeout(tick);
