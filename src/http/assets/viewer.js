// Shows the live picture of the viewer page over one WebRTC connection, and reconnects automatically.
//
//   events.js ── state of camera and server ─────────────────────┐
//   tick (once a second) ── getStats ──► does the picture move? ──┴──► state ──► page
//   connect ── POST api/webrtc/offer ──► video.   Every end of the connection ──► reconnect with backoff.
//   watchWay (four times a second) ── no picture for 1.5 s although the camera is live ──► live.js: HTTP live beside
//   the connection.   The connection shows a picture ──► HTTP live is closed.
//
// Stable interface for tests: window.__viewer = {
//   state    "connecting" | "live" | "idr" | "waiting" | "away" | "stalled" | "server-gone" | "full" | "refused" |
//            "blocked" | "unable" | "tap",
//   way      "webrtc" | "http": how the picture comes,
//   stats()  the last sample: { state, fps, bitrate_bps, width, height, frames_decoded, frames_dropped,
//            freezes, packets_lost, loss_percent, jitter_buffer_ms, rtt_ms, connects,
//            latency: { kind: "capture" | "receive" | null, last_ms, p50_ms, p95_ms, samples } },
//   boxes()  how the boxes of the detector are shown: { mode, hold_ms, shown, playerShown, counts },
//   pc       the current RTCPeerConnection or null
// }

import { $, writeNote } from "./dom.js";
import { fetchWithTimeout, onStatus, pollStatus } from "./events.js";
import { HttpLive, hasHttpLive } from "./live.js";
import { boxesState, onPlayoutDelay, playoutDelayMax_ms, seenText, setReceiver } from "./overlay.js";
import { blockedPath, missingFeature, slowLink } from "./remedies.js";
import { showFigures, showState, showStream } from "./screen.js";
import { emptySample, latency, noteFrame, reportLatency, sampleOf } from "./stats.js";
import { t } from "./texts.js";

const TICK_MS = 1000;
const OFFER_TIMEOUT_MS = 8000;
const SETUP_MS = 5000; // reconnect if ICE and DTLS have not finished after this long
const DISCONNECT_GRACE_MS = 2000; // wait this long before reconnecting, because ICE often recovers from "disconnected"
const BACKOFF_MS = [300, 700, 1500, 3000, 5000, 8000];
const PATH_MS = 2500; // if no datagram arrives for this long after the answer, the network blocks them
const FALLBACK_MS = 1500; // without a picture for this long, the page tries HTTP live too
const WATCH_MS = 250;
const REPORT_MS = 5000; // how often the page tells the server its latency
const LINK_MS = 3000; // how often the page asks what a slow connection carries
const RATES = 5; // number of seconds over which the rate of pictures is averaged

/** @typedef {import("./screen.js").State} State */

/** @type {HTMLVideoElement} */
const video = $("video");

// ---- state ------------------------------------------------------------------------------------------

/** @type {RTCPeerConnection | null} */
let pc = null;
/** @type {string | null} */
let session = null; // key of the session on the server
/** @type {State} */
let state = "connecting";
let sample = emptySample();
let retryTimer = 0;
let graceTimer = 0;
let attempts = 0;
let connects = 0;
/** @type {{ state: "full" | "refused" | "blocked" | "unable", detail: string } | null} */
let refusal = null; // why the last attempt failed
/** @type {any} */
let camera = null; // state of the camera as the server reported it; null if unknown
let missedStatus = 0;
let wasLive = false;
let isPlayBlocked = false;
let hasPath = false; // true if a datagram of the server has arrived in this attempt
let answeredAt = 0; // time of the server's answer in this attempt, or 0
let movedAt = 0; // time at which the picture last moved or the connection was started
let pictureAt = -Infinity; // time at which WebRTC last showed a picture
let missingSince = 0; // time since which WebRTC shows no picture although there should be one
/** @type {HttpLive | null} */
let http = null; // HTTP live, beside the WebRTC connection
let httpRetryAt = 0;
/** @type {"webrtc" | "http"} */
let way = "webrtc";
let shownLag_s = 0; // the delay that the note of HTTP live shows
let stalledAfter_ms = 0; // how long a live camera may send nothing, as the server says; longer for slow cameras

/**
 * @param {number} now
 * @returns {State}
 */
function decideState(now) {
  if (pc && isMoving(now)) return isPlayBlocked ? "tap" : "live";
  if (isHttpMoving()) return "live";
  if (missedStatus >= 2) return "server-gone";
  if (camera && camera.state === "away") return wasLive ? "away" : "waiting";
  if (camera && camera.state === "stalled") return "stalled";
  if (isConnected() && camera && camera.notice) return "idr";
  if (refusal) return refusal.state;
  return "connecting";
}

const isConnected = () => pc !== null && pc.connectionState === "connected"; // ICE and DTLS are up

/** @param {number} now */
function isMoving(now) {
  // The pictures are counted once per tick.
  return sample.frames_decoded > 0 && now - movedAt < stalledAfter_ms + 1.5 * TICK_MS;
}

// How long WebRTC or HTTP live may show no new picture; longer for slow cameras.
const patience_ms = () => Math.max(FALLBACK_MS, stalledAfter_ms);

const isHttpMoving = () => http !== null && http.isMoving(patience_ms() + TICK_MS);

// Says what the connected viewer waits for. The seconds are rounded, so that a screen reader does not read them out
// every second.
function idrDetail() {
  const age_s = camera.last_idr_s;
  if (age_s === null) return t("idr_none");
  return t("idr_age", { age: age_s < 10 ? age_s : age_s - (age_s % 10) });
}

function show(now = performance.now()) {
  state = decideState(now);
  if (state === "live") {
    wasLive = true;
    if (pc && isMoving(now)) {
      attempts = 0;
      refusal = null;
    }
  }
  const detail = state === "idr" ? idrDetail() : refusal && state === refusal.state ? refusal.detail : "";
  showState(state, detail);
  sample.state = state;
  showFigures(figures());
}

/** @returns {[string, string][]} */
function figures() {
  // The figures of a frozen picture would be misleading.
  if (state !== "live" && state !== "tap") return [["figure_state", t(`badge_${state.replace("-", "_")}`)]];
  if (way === "http" && http) {
    const { videoWidth, videoHeight } = $("http-video");
    return [["figure_way", "HTTP"], ["figure_size", `${videoWidth}×${videoHeight}`], ["figure_delay", `${http.lag_s.toFixed(1)} s`], ...seen()];
  }
  const { kind, p50_ms, p95_ms } = latency();
  const rate = sample.bitrate_bps;
  const ms = (/** @type {number | null} */ value) => (value === null ? "–" : `${value.toFixed(0)} ms`);
  return [
    ["figure_way", "WebRTC"],
    ["figure_size", `${sample.width}×${sample.height}`],
    ["figure_pictures", `${sample.fps.toFixed(0)} fps`],
    ["figure_rate", rate >= 1e6 ? `${(rate / 1e6).toFixed(1)} Mbit/s` : `${(rate / 1e3).toFixed(0)} kbit/s`],
    [kind === "capture" ? "figure_capture" : "figure_receive", `${ms(p50_ms)} (95 %: ${ms(p95_ms)})`],
    ["figure_loss", `${sample.loss_percent.toFixed(1)} %`],
    ["figure_rtt", ms(sample.rtt_ms)],
    ["figure_dropped", String(sample.frames_dropped)],
    ["figure_freezes", String(sample.freezes)],
    ...seen(),
  ];
}

/** @returns {[string, string][]} */
const seen = () => (seenText() ? [["figure_seen", seenText()]] : []);

// ---- HTTP live --------------------------------------------------------------------------------------

// Opens HTTP live if WebRTC shows no picture although it should. Neither is closed before the other shows a picture.
function watchWay() {
  const now = performance.now();
  const isWebRtcMoving = now - pictureAt < patience_ms();
  if (isWebRtcMoving) closeHttp();
  if (isWebRtcMoving || !isPictureExpected()) missingSince = now;
  else if (!http && hasHttpLive && now - missingSince > patience_ms() && now >= httpRetryAt) openHttp();
  showWay();
}

function isPictureExpected() {
  if (document.hidden || missedStatus >= 2 || !camera || camera.state !== "live") return false;
  // The camera's next IDR reaches a connected viewer as soon as it would reach one over HTTP.
  if (isConnected() && camera.notice) return false;
  return !refusal || refusal.state === "blocked" || refusal.state === "unable";
}

function openHttp() {
  http = new HttpLive($("http-video"), (retry_ms) => {
    http = null;
    httpRetryAt = performance.now() + retry_ms;
    showWay();
  });
}

function closeHttp() {
  if (http) http.close();
  http = null;
}

function showWay() {
  const next = isHttpMoving() ? "http" : "webrtc";
  const note = $("way-note");
  const lag_s = http ? http.lag_s : 0;
  // The text changes in steps of 0.2 s, so that a screen reader does not read it out all the time.
  if (way !== next || Math.abs(lag_s - shownLag_s) > 0.2) {
    shownLag_s = lag_s;
    writeNote(note, next === "http" ? t("over_http", { lag: Math.max(0.1, lag_s).toFixed(1) }) : "");
  }
  note.title = next === "http" && refusal ? refusal.detail : "";
  if (way === next) return;
  way = next;
  document.body.dataset.way = way;
  show();
}

// ---- slow connection --------------------------------------------------------------------------------

/** @type {number[]} */
const rates = []; // the newest rates of pictures per second, at most RATES
let linkAskedAt = -Infinity;

// Asks the server what the connection carries if fewer pictures are shown than the camera sends.
/** @param {number} now */
async function checkLink(now) {
  const mine = pc;
  rates.push(sample.fps);
  if (rates.length > RATES) rates.shift();
  const fps = rates.reduce((sum, rate) => sum + rate, 0) / rates.length;
  const isSlow = state === "live" && way === "webrtc" && camera && fps < 0.8 * camera.fps;
  if (!mine || !isSlow) return writeNote($("link-note"), "");
  if (now - linkAskedAt < LINK_MS) return;
  linkAskedAt = now;
  const viewer = await ownEntry(mine).catch(() => null);
  if (pc !== mine) return;
  const isLimited = viewer && viewer.paced && viewer.stream_kbps && viewer.link_kbps < 1.1 * viewer.stream_kbps;
  writeNote($("link-note"), isLimited ? slowLink(viewer, fps) : "");
}

/**
 * Returns the entry of this viewer. The server's ICE user name begins with the viewer's number, in hexadecimal.
 * @param {RTCPeerConnection} mine
 */
async function ownEntry(mine) {
  const [, id] = mine.remoteDescription?.sdp.match(/^a=ice-ufrag:([0-9a-f]+)\//m) || [];
  const response = await fetchWithTimeout("api/viewers", LINK_MS, {});
  const viewers = response.ok ? await response.json() : [];
  return viewers.find((/** @type {any} */ viewer) => viewer.id === parseInt(id, 16) && !viewer.ended);
}

// ---- connection -------------------------------------------------------------------------------------

async function connect() {
  disconnect();
  connects += 1;
  movedAt = performance.now();
  hasPath = false;
  answeredAt = 0;
  /** @type {RTCPeerConnection} */
  let mine;
  try {
    mine = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
  } catch (error) {
    refusal = { state: "unable", detail: `${missingFeature("WebRTC")} (${/** @type {Error} */ (error).message})` };
    return reconnect(BACKOFF_MS[BACKOFF_MS.length - 1]);
  }
  pc = mine;
  const transceiver = mine.addTransceiver("video", { direction: "recvonly" });
  preferLowLatency(transceiver);
  setReceiver(transceiver.receiver);
  mine.ontrack = (event) => play(event.streams[0] || new MediaStream([event.track]));
  mine.onconnectionstatechange = () => pc === mine && connectionChanged(mine);
  mine.oniceconnectionstatechange = () => {
    if (pc === mine && ["connected", "completed"].includes(mine.iceConnectionState)) hasPath = true;
  };
  try {
    await mine.setLocalDescription();
    // The offer is sent without waiting for our ICE candidates: the server is ICE-lite and learns our addresses from
    // our connectivity checks.
    const sdp = mine.localDescription?.sdp || "";
    if (!/^a=rtpmap:\d+ H264\//im.test(sdp)) throw new Refused(0, NO_H264, "", 0);
    const answer = await postOffer(sdp);
    if (pc !== mine) return;
    session = answer.session;
    await mine.setRemoteDescription(answer);
    answeredAt = performance.now();
    const dtls = transceiver.receiver.transport;
    if (dtls) {
      dtls.onstatechange = () => {
        if (pc === mine && (dtls.state === "closed" || dtls.state === "failed")) reconnect();
      };
    }
  } catch (error) {
    if (pc === mine) offerFailed(error);
  }
}

const NO_H264 = "no_common_codec"; // the server's code for an offer without a format that it has

class Refused extends Error {
  /**
   * @param {number} status
   * @param {string} code
   * @param {string} message
   * @param {number} retryAfter in seconds
   */
  constructor(status, code, message, retryAfter) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** @param {string} sdp */
async function postOffer(sdp) {
  const response = await fetchWithTimeout("api/webrtc/offer", OFFER_TIMEOUT_MS, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ type: "offer", sdp, playout_delay_max_ms: playoutDelayMax_ms() }),
  });
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  const retryAfter = Number(response.headers.get("retry-after")) || 0;
  throw new Refused(response.status, body.code, body.error || `HTTP ${response.status}`, retryAfter);
}

/** @param {unknown} error */
function offerFailed(error) {
  refusal = null;
  let wait_ms = 0;
  if (error instanceof Refused) {
    if (error.status === 401) video.srcObject = null; // after a logout the last picture must not stay visible
    refusal = explain(error);
    wait_ms = error.status === 503 ? error.retryAfter * 1000 : BACKOFF_MS[BACKOFF_MS.length - 1];
  }
  reconnect(wait_ms);
}

/**
 * @param {Refused} error
 * @returns {NonNullable<typeof refusal>}
 */
function explain(error) {
  if (error.code === "full") return { state: "full", detail: "" };
  if (error.code === NO_H264) return { state: "unable", detail: missingFeature("H.264") };
  return { state: "refused", detail: error.message };
}

/** @param {RTCRtpTransceiver} transceiver */
function preferLowLatency(transceiver) {
  const receiver = /** @type {any} */ (transceiver.receiver);
  if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0;
  if ("playoutDelayHint" in receiver) receiver.playoutDelayHint = 0;
  // Browsers support the RTP header extension with capture times, but offer it only if the page requests that.
  const negotiable = /** @type {any} */ (transceiver);
  if (!negotiable.setHeaderExtensionsToNegotiate) return;
  try {
    const extensions = negotiable.getHeaderExtensionsToNegotiate();
    const captureTime = extensions.find((/** @type {any} */ extension) => extension.uri.endsWith("/abs-capture-time"));
    if (captureTime) captureTime.direction = "sendrecv";
    negotiable.setHeaderExtensionsToNegotiate(extensions);
  } catch (error) {
    console.info("no capture times, so the latency is measured from the arrival:", /** @type {Error} */ (error).message);
  }
}

/** @param {MediaStream} stream */
function play(stream) {
  // A video without a picture delays the event `load`, without which the browser shows a page that is still loading.
  if (document.readyState !== "complete") {
    window.addEventListener("load", () => setTimeout(play, 0, stream), { once: true });
    return;
  }
  video.srcObject = stream;
  video.play().then(
    () => (isPlayBlocked = false),
    (error) => (isPlayBlocked = error.name === "NotAllowedError"),
  );
}

/** @param {RTCPeerConnection} mine */
function connectionChanged(mine) {
  clearTimeout(graceTimer);
  if (mine.connectionState === "failed" || mine.connectionState === "closed") {
    reconnect();
  } else if (mine.connectionState === "disconnected") {
    graceTimer = setTimeout(() => mine.connectionState === "disconnected" && reconnect(), DISCONNECT_GRACE_MS);
  }
}

// Closes the connection. This also closes DTLS, so the server can end the session at once.
function disconnect() {
  clearTimeout(retryTimer);
  clearTimeout(graceTimer);
  retryTimer = 0;
  if (pc) {
    pc.onconnectionstatechange = pc.oniceconnectionstatechange = pc.ontrack = null;
    pc.close();
  }
  pc = null;
  setReceiver(null);
  session = null;
  sample = emptySample();
  rates.length = 0;
}

function reconnect(atLeast_ms = 0) {
  const isBlocked = answeredAt && !hasPath && performance.now() - answeredAt > PATH_MS;
  if (pc && isBlocked) {
    const detail = blockedPath(pc.remoteDescription?.sdp || "") + (hasHttpLive ? "" : ` ${t("no_media_source")}`);
    refusal = { state: "blocked", detail };
  }
  disconnect();
  const backoff_ms = BACKOFF_MS[Math.min(attempts, BACKOFF_MS.length - 1)] * (0.75 + Math.random() / 2);
  attempts += 1;
  retryTimer = setTimeout(connect, Math.max(backoff_ms, atLeast_ms));
  show();
}

// Reconnects without backoff, because the network or the server is back, or because the page is visible again.
function reconnectNow() {
  attempts = 0;
  if (!pc || !isMoving(performance.now())) connect();
}

// ---- once a second ----------------------------------------------------------------------------------

/**
 * @param {any} status
 * @param {number} missed
 */
function onNewStatus(status, missed) {
  const wasGone = missedStatus >= 2;
  missedStatus = missed;
  camera = status ? status.camera : null;
  if (status) showStream(status);
  writeNote($("camera-note"), (camera && camera.slot_fault) || (camera && camera.b_frames ? t("b_frames") : ""));
  showPublishing(status && status.publish);
  if (camera && camera.stalled_after_ms) stalledAfter_ms = camera.stalled_after_ms;
  if (wasGone && status) reconnectNow();
  show();
}

/**
 * Shows where the server publishes the stream. Without --whip the status has no such part.
 * @param {any} publish
 */
function showPublishing(publish) {
  const text = publish ? t(publish.state === "publishing" ? "publishing" : "not_publishing", { host: publish.host }) : "";
  writeNote($("publish-note"), text);
  $("publish-note").title = (publish && publish.error) || text;
}

async function tick() {
  // A hidden page keeps its connection, but its picture is not measured.
  if (!document.hidden) {
    await takeSample();
    const now = performance.now();
    const isCameraLive = camera && camera.state === "live";
    if (!isCameraLive) {
      movedAt = Math.max(movedAt, now - SETUP_MS / 2);
    } else if (pc && !isConnected() && now - movedAt > SETUP_MS) {
      // A connection that is up is kept, even if no picture moves: it shows the camera's next IDR at once.
      reconnect();
    }
    show(now);
    await checkLink(now);
  }
  setTimeout(tick, TICK_MS);
}

async function takeSample() {
  const mine = pc;
  if (!mine) return;
  const report = await mine.getStats();
  if (pc !== mine) return;
  const previous = sample.frames_decoded;
  sample = sampleOf(report) || sample;
  if (sample.frames_decoded > previous) movedAt = pictureAt = performance.now();
}

/** @type {VideoFrameRequestCallback} */
function frameShown(now, frame) {
  // The browser also presents a black picture when a connection is closed.
  if (isConnected()) pictureAt = performance.now();
  noteFrame(now, frame);
  video.requestVideoFrameCallback(frameShown);
}

// ---- the page ---------------------------------------------------------------------------------------

function wirePage() {
  $("stage").addEventListener("click", () => isPlayBlocked && video.srcObject && play(/** @type {MediaStream} */ (video.srcObject)));
  $("retry-button").addEventListener("click", () => {
    httpRetryAt = 0;
    reconnectNow();
    pollStatus();
  });
  window.addEventListener("online", reconnectNow);
  window.addEventListener("pagehide", () => {
    disconnect();
    closeHttp();
  });
  window.addEventListener("pageshow", (event) => event.persisted && reconnectNow());
  document.addEventListener("visibilitychange", () => {
    movedAt = performance.now(); // the stall time starts again, because a hidden page is not measured
    if (!document.hidden && (!pc || pc.connectionState === "disconnected")) reconnectNow();
  });
}

Object.assign(window, { __viewer: {
  get state() { return state; },
  get pc() { return pc; },
  get way() { return way; },
  stats: () => ({ ...sample, connects, latency: latency() }),
  boxes: boxesState,
} });

wirePage();
show();
if (typeof RTCPeerConnection === "undefined") {
  refusal = { state: "unable", detail: missingFeature("WebRTC") };
} else {
  if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(frameShown);
  connect();
}
onStatus(onNewStatus);
onPlayoutDelay(connect);
setInterval(watchWay, WATCH_MS);
setInterval(() => session && state === "live" && reportLatency(session), REPORT_MS);
tick();
// These scripts are loaded last, so that they do not delay the picture.
window.addEventListener("load", () => import("./recordings.js"));
