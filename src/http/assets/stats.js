// Measures the video of a WebRTC connection: rates and losses once a second, and the latency of every picture. Tells the
// server the latency from the capture to the screen.

import { fetchWithTimeout } from "./events.js";

const LATENCY_SAMPLES = 300;
const REPORT_SAMPLES_MIN = 10;
const REPORT_TIMEOUT_MS = 3000;

/** @typedef {ReturnType<typeof emptySample>} Sample */

/** @type {number[]} */
const latencies = []; // the newest latencies in ms, at most LATENCY_SAMPLES, all of the same kind
/** @type {"capture" | "receive" | null} */
let latencyKind = null;
/** @type {any} */
let before = null; // the previous report of the video stream, from which rates are computed

/** Forgets the previous connection, and returns a sample without pictures. */
export function emptySample() {
  before = null;
  latencies.length = 0;
  latencyKind = null;
  return {
    state: "connecting", fps: 0, bitrate_bps: 0, width: 0, height: 0, frames_decoded: 0, frames_dropped: 0, freezes: 0,
    packets_lost: 0, loss_percent: 0, jitter_buffer_ms: /** @type {number | null} */ (null),
    rtt_ms: /** @type {number | null} */ (null),
  };
}

/**
 * Returns a sample from a report of the connection, or null if the report has no video stream.
 * @param {RTCStatsReport} report
 * @returns {Sample | null}
 */
export function sampleOf(report) {
  let stream = null;
  let pair = null;
  for (const entry of report.values()) {
    if (entry.type === "inbound-rtp" && entry.kind === "video") stream = entry;
    if (entry.type === "candidate-pair" && entry.nominated && entry.state === "succeeded") pair = entry;
  }
  if (!stream) return null;
  const sample = readStream(stream, before || {}, pair);
  before = stream;
  return sample;
}

/**
 * @param {any} stream
 * @param {any} earlier
 * @param {any} pair
 * @returns {Sample}
 */
function readStream(stream, earlier, pair) {
  const since = (/** @type {string} */ name) => (stream[name] || 0) - (earlier[name] || 0);
  const seconds = earlier.timestamp ? (stream.timestamp - earlier.timestamp) / 1000 : 0;
  const perSecond = (/** @type {string} */ name) => (seconds > 0 ? since(name) / seconds : 0);
  const expected = since("packetsReceived") + since("packetsLost");
  const emitted = since("jitterBufferEmittedCount");
  return {
    state: "",
    fps: perSecond("framesDecoded"),
    bitrate_bps: perSecond("bytesReceived") * 8,
    width: stream.frameWidth || 0,
    height: stream.frameHeight || 0,
    frames_decoded: stream.framesDecoded || 0,
    frames_dropped: stream.framesDropped || 0,
    freezes: stream.freezeCount || 0,
    packets_lost: stream.packetsLost || 0,
    loss_percent: expected > 0 ? Math.max(0, (100 * since("packetsLost")) / expected) : 0,
    jitter_buffer_ms: emitted > 0 ? (1000 * since("jitterBufferDelay")) / emitted : null,
    rtt_ms: pair && pair.currentRoundTripTime !== undefined ? pair.currentRoundTripTime * 1000 : null,
  };
}

/**
 * Measures the latency of a picture until it is displayed. The latency is counted from the capture if the browser knows
 * the capture time, otherwise from the arrival of the last packet. For the capture time, the browser estimates the
 * offset between the sender's clock and its own.
 * @param {number} now
 * @param {VideoFrameCallbackMetadata} frame
 */
export function noteFrame(now, frame) {
  const shown = frame.expectedDisplayTime || frame.presentationTime || now;
  const { captureTime, receiveTime } = frame;
  const hasCapture = captureTime !== undefined && isPlausible(shown - captureTime);
  const start = hasCapture ? captureTime : receiveTime;
  if (start !== undefined && isPlausible(shown - start)) noteLatency(hasCapture ? "capture" : "receive", shown - start);
}

const isPlausible = (/** @type {number} */ latency_ms) => latency_ms > 0 && latency_ms < 60_000;

/**
 * Adds a latency to the statistics. Latencies from capture and from arrival are not mixed: after the first known
 * capture time, only those from capture count.
 * @param {"capture" | "receive"} kind
 * @param {number} latency_ms
 */
function noteLatency(kind, latency_ms) {
  if (kind !== latencyKind && latencyKind === "capture") return;
  if (kind !== latencyKind) latencies.length = 0;
  latencyKind = kind;
  latencies.push(latency_ms);
  newSamples += 1;
  if (latencies.length > LATENCY_SAMPLES) latencies.shift();
}

let newSamples = 0; // number of latencies since the last report

/**
 * Tells the server the latency that the viewer of this session sees, if it is known from the capture on.
 * @param {string} session key of the session
 */
export async function reportLatency(session) {
  const { kind, p50_ms, p95_ms, samples } = latency();
  if (kind !== "capture" || samples < REPORT_SAMPLES_MIN || newSamples === 0) return;
  newSamples = 0;
  const body = JSON.stringify({ session, p50_ms, p95_ms, samples });
  const headers = { "content-type": "application/json" };
  // A report that fails is not repeated, because the next one follows soon.
  await fetchWithTimeout("api/viewers/report", REPORT_TIMEOUT_MS, { method: "POST", headers, body }).catch(() => {});
}

export function latency() {
  const sorted = [...latencies].sort((a, b) => a - b);
  const at = (/** @type {number} */ share) => (sorted.length ? sorted[Math.floor((sorted.length - 1) * share)] : null);
  return {
    kind: sorted.length ? latencyKind : null,
    last_ms: latencies.length ? latencies[latencies.length - 1] : null,
    p50_ms: at(0.5),
    p95_ms: at(0.95),
    samples: sorted.length,
  };
}
