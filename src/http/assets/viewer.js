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
//   pc       the current RTCPeerConnection or null
// }

import { fetchWithTimeout, onStatus } from "./events.js";
import { HttpLive, hasHttpLive } from "./live.js";
import { NO_MEDIA_SOURCE, blockedPath, missingFeature, slowLink } from "./remedies.js";

const TICK_MS = 1000;
const OFFER_TIMEOUT_MS = 8000;
const SETUP_MS = 5000; // reconnect if ICE and DTLS have not finished after this long
const DISCONNECT_GRACE_MS = 2000; // wait this long before reconnecting, because ICE often recovers from "disconnected"
const BACKOFF_MS = [300, 700, 1500, 3000, 5000, 8000];
const PATH_MS = 2500; // if no datagram arrives for this long after the answer, the network blocks them
const FALLBACK_MS = 1500; // without a picture for this long, the page tries HTTP live too
const WATCH_MS = 250;
const LINK_MS = 3000; // how often the page asks what a slow connection carries
const RATES = 5; // number of seconds over which the rate of pictures is averaged
const QUIET_MS = 3500;
const LATENCY_SAMPLES = 300;

const $ = (id) => document.getElementById(id);
const video = $("video");
const canvas = $("canvas");

// ---- state ------------------------------------------------------------------------------------------

const TEXTS = {
  connecting: ["Connecting…", ""],
  live: ["Live", ""],
  idr: ["Waiting for a complete picture", ""],
  waiting: ["Waiting for the camera", "The picture starts when the camera runs."],
  away: ["Camera away", "The picture returns when the camera runs again."],
  stalled: ["The camera sends no pictures", "The picture returns when the camera sends again."],
  "server-gone": ["Server not reachable", "Trying again…"],
  full: ["The server has no free viewer slot", "Trying again…"],
  refused: ["The server refused the connection", ""],
  blocked: ["The video does not get through", ""],
  unable: ["This browser cannot show the video", ""],
  tap: ["Tap to play", "This browser plays video only after a tap."],
};

const B_FRAMES = "The camera sends B-frames, so the picture stutters: browsers over WebRTC do not reorder pictures. "
  + "Turn B-frames off in the camera's encoder. Recordings are not affected.";

let pc = null;
let state = "connecting";
let retryTimer = 0;
let graceTimer = 0;
let attempts = 0;
let connects = 0;
let refusal = null; // why the last attempt failed: { state: "full" | "refused" | "blocked" | "unable", detail }
let camera = null; // state of the camera as the server reported it; null if unknown
let missedStatus = 0;
let wasLive = false;
let isPlayBlocked = false;
let hasPath = false; // true if a datagram of the server has arrived in this attempt
let answeredAt = 0; // time of the server's answer in this attempt, or 0
let movedAt = 0; // time at which the picture last moved or the connection was started
let pictureAt = -Infinity; // time at which WebRTC last showed a picture
let missingSince = 0; // time since which WebRTC shows no picture although there should be one
let http = null; // HTTP live, beside the WebRTC connection
let httpRetryAt = 0;
let way = "webrtc";
let shownLag_s = 0; // the delay that the note of HTTP live shows
let stalledAfter_ms = 0; // how long a live camera may send nothing, as the server says; longer for slow cameras

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
  const last = age_s === null ? "none has arrived yet" : `last one ${age_s < 10 ? age_s : age_s - (age_s % 10)} s ago`;
  return `Waiting for the camera's next IDR, ${last}.`;
}

function show(now = performance.now()) {
  const next = decideState(now);
  if (next === "live") {
    wasLive = true;
    if (pc && isMoving(now)) {
      attempts = 0;
      refusal = null;
    }
  }
  const [title, text] = TEXTS[next];
  let detail = refusal && next === refusal.state ? refusal.detail || text : text;
  if (next === "idr") detail = idrDetail();
  // Only changed texts are written: the message is a live region, so a screen reader reads out every write.
  if ($("message-title").textContent !== title) $("message-title").textContent = title;
  if ($("message-detail").textContent !== detail) $("message-detail").textContent = detail;
  if (state !== next) {
    state = next;
    document.body.dataset.state = next;
  }
  sample.state = state;
  drawStatusLine();
}

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
  // The text changes in steps of 0.1 s, so that a screen reader does not read it out all the time.
  const text = next === "http" ? `Over HTTP, about ${Math.max(0.1, http.lag_s).toFixed(1)} s later` : "";
  if (note.textContent !== text && (way !== next || !note.textContent || Math.abs(http.lag_s - shownLag_s) > 0.2)) {
    note.textContent = text;
    shownLag_s = http ? http.lag_s : 0;
  }
  note.title = next === "http" && refusal ? refusal.detail : "";
  note.hidden = next !== "http";
  if (way === next) return;
  way = next;
  document.body.dataset.way = way;
  show();
}

// ---- slow connection --------------------------------------------------------------------------------

const rates = []; // the newest rates of pictures per second, at most RATES
let linkAskedAt = -Infinity;

// Asks the server what the connection carries if fewer pictures are shown than the camera sends.
async function checkLink(now) {
  const mine = pc;
  rates.push(sample.fps);
  if (rates.length > RATES) rates.shift();
  const fps = rates.reduce((sum, rate) => sum + rate, 0) / rates.length;
  const isSlow = mine && state === "live" && way === "webrtc" && camera && fps < 0.8 * camera.fps;
  if (!isSlow) return showLink("");
  if (now - linkAskedAt < LINK_MS) return;
  linkAskedAt = now;
  const viewer = await ownEntry(mine).catch(() => null);
  if (pc !== mine) return;
  const isLimited = viewer && viewer.paced && viewer.stream_kbps && viewer.link_kbps < 1.1 * viewer.stream_kbps;
  showLink(isLimited ? slowLink(viewer, fps) : "");
}

// Returns the entry of this viewer. The server's ICE user name begins with the viewer's number.
async function ownEntry(mine) {
  const [, id] = mine.remoteDescription.sdp.match(/^a=ice-ufrag:(\d+)\//m);
  const response = await fetchWithTimeout("api/viewers", LINK_MS, {});
  const viewers = response.ok ? await response.json() : [];
  return viewers.find((viewer) => viewer.id === Number(id) && !viewer.ended);
}

function showLink(text) {
  const note = $("link-note");
  if (note.textContent !== text) note.textContent = text;
  note.hidden = !text;
}

// ---- connection -------------------------------------------------------------------------------------

async function connect() {
  disconnect();
  connects += 1;
  movedAt = performance.now();
  hasPath = false;
  answeredAt = 0;
  let mine;
  try {
    mine = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
  } catch (error) {
    refusal = { state: "unable", detail: `${missingFeature("WebRTC")} (${error.message})` };
    return reconnect(BACKOFF_MS[BACKOFF_MS.length - 1]);
  }
  pc = mine;
  const transceiver = mine.addTransceiver("video", { direction: "recvonly" });
  preferLowLatency(transceiver);
  mine.ontrack = (event) => play(event.streams[0] || new MediaStream([event.track]));
  mine.onconnectionstatechange = () => pc === mine && connectionChanged(mine);
  mine.oniceconnectionstatechange = () => {
    if (pc === mine && ["connected", "completed"].includes(mine.iceConnectionState)) hasPath = true;
  };
  try {
    await mine.setLocalDescription();
    // The offer is sent without waiting for our ICE candidates: the server is ICE-lite and learns our addresses from
    // our connectivity checks.
    const { sdp } = mine.localDescription;
    if (!/^a=rtpmap:\d+ H264\//im.test(sdp)) throw new Refused(0, NO_H264, "", 0);
    const answer = await postOffer(sdp);
    if (pc !== mine) return;
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
  constructor(status, code, message, retryAfter) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

async function postOffer(sdp) {
  const response = await fetchWithTimeout("api/webrtc/offer", OFFER_TIMEOUT_MS, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ type: "offer", sdp }),
  });
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  const retryAfter = Number(response.headers.get("retry-after")) || 0;
  throw new Refused(response.status, body.code, body.error || `HTTP ${response.status}`, retryAfter);
}

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

function explain(error) {
  if (error.code === "full") return { state: "full", detail: "" };
  if (error.code === NO_H264) return { state: "unable", detail: missingFeature("H.264") };
  return { state: "refused", detail: error.message };
}

function preferLowLatency(transceiver) {
  const { receiver } = transceiver;
  if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0;
  if ("playoutDelayHint" in receiver) receiver.playoutDelayHint = 0;
  // Browsers support the RTP header extension with capture times, but offer it only if the page requests that.
  if (!transceiver.setHeaderExtensionsToNegotiate) return;
  try {
    const extensions = transceiver.getHeaderExtensionsToNegotiate();
    const captureTime = extensions.find((extension) => extension.uri.endsWith("/abs-capture-time"));
    if (captureTime) captureTime.direction = "sendrecv";
    transceiver.setHeaderExtensionsToNegotiate(extensions);
  } catch (error) {
    console.info("no capture times, so the latency is measured from the arrival:", error.message);
  }
}

function play(stream) {
  video.srcObject = stream;
  video.play().then(
    () => (isPlayBlocked = false),
    (error) => (isPlayBlocked = error.name === "NotAllowedError"),
  );
}

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
  sample = emptySample();
  latencies.length = 0;
  latencyKind = null;
  rates.length = 0;
}

function reconnect(atLeast_ms = 0) {
  const isBlocked = pc && answeredAt && !hasPath && performance.now() - answeredAt > PATH_MS;
  if (isBlocked) {
    const detail = blockedPath(pc.remoteDescription.sdp) + (hasHttpLive ? "" : ` ${NO_MEDIA_SOURCE}`);
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

function onNewStatus(status, missed) {
  const wasGone = missedStatus >= 2;
  missedStatus = missed;
  camera = status ? status.camera : null;
  if (status && document.title !== status.title) document.title = status.title;
  const note = (camera && camera.slot_fault) || (camera && camera.b_frames ? B_FRAMES : "");
  if ($("camera-note").textContent !== note) $("camera-note").textContent = note;
  $("camera-note").hidden = !note;
  showPublishing(status && status.publish);
  if (camera && camera.stalled_after_ms) stalledAfter_ms = camera.stalled_after_ms;
  if (wasGone && status) reconnectNow();
  show();
}

// Shows where the server publishes the stream. Without --whip the status has no such part.
function showPublishing(publish) {
  const note = $("publish-note");
  note.hidden = !publish;
  if (!publish) return;
  const text = publish.state === "publishing" ? `Publishing to ${publish.host}` : `Not publishing to ${publish.host}`;
  if (note.textContent !== text) note.textContent = text;
  note.title = publish.error || text;
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

// ---- measuring --------------------------------------------------------------------------------------

const latencies = []; // the newest latencies in ms, at most LATENCY_SAMPLES, all of the same kind
let latencyKind = null;
let before = null; // the previous report of the video stream, from which rates are computed
let sample = emptySample();

function emptySample() {
  before = null;
  return {
    state, fps: 0, bitrate_bps: 0, width: 0, height: 0, frames_decoded: 0, frames_dropped: 0, freezes: 0,
    packets_lost: 0, loss_percent: 0, jitter_buffer_ms: null, rtt_ms: null,
  };
}

async function takeSample() {
  const mine = pc;
  if (!mine) return;
  const report = await mine.getStats();
  if (pc !== mine) return;
  let stream = null;
  let pair = null;
  for (const entry of report.values()) {
    if (entry.type === "inbound-rtp" && entry.kind === "video") stream = entry;
    if (entry.type === "candidate-pair" && entry.nominated && entry.state === "succeeded") pair = entry;
  }
  if (!stream) return;
  const previous = sample.frames_decoded;
  sample = readStream(stream, before || {}, pair);
  if (sample.frames_decoded > previous) movedAt = pictureAt = performance.now();
  before = stream;
}

function readStream(stream, earlier, pair) {
  const since = (name) => (stream[name] || 0) - (earlier[name] || 0);
  const seconds = earlier.timestamp ? (stream.timestamp - earlier.timestamp) / 1000 : 0;
  const perSecond = (name) => (seconds > 0 ? since(name) / seconds : 0);
  const expected = since("packetsReceived") + since("packetsLost");
  const emitted = since("jitterBufferEmittedCount");
  return {
    state,
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

// Measures the latency of a picture until it is displayed. The latency is counted from the capture if the browser knows
// the capture time, otherwise from the arrival of the last packet. For the capture time, the browser estimates the
// offset between the sender's clock and its own.
function frameShown(now, frame) {
  // The browser also presents a black picture when a connection is closed.
  if (isConnected()) pictureAt = performance.now();
  const shown = frame.expectedDisplayTime || frame.presentationTime || now;
  const hasCapture = frame.captureTime !== undefined && isPlausible(shown - frame.captureTime);
  const start = hasCapture ? frame.captureTime : frame.receiveTime;
  if (start !== undefined && isPlausible(shown - start)) noteLatency(hasCapture ? "capture" : "receive", shown - start);
  video.requestVideoFrameCallback(frameShown);
}

const isPlausible = (latency_ms) => latency_ms > 0 && latency_ms < 60_000;

// Adds a latency to the statistics. Latencies from capture and from arrival are not mixed: after the first known
// capture time, only those from capture count.
function noteLatency(kind, latency_ms) {
  if (kind !== latencyKind && latencyKind === "capture") return;
  if (kind !== latencyKind) latencies.length = 0;
  latencyKind = kind;
  latencies.push(latency_ms);
  if (latencies.length > LATENCY_SAMPLES) latencies.shift();
}

function latency() {
  const sorted = [...latencies].sort((a, b) => a - b);
  const at = (share) => (sorted.length ? sorted[Math.floor((sorted.length - 1) * share)] : null);
  return {
    kind: sorted.length ? latencyKind : null,
    last_ms: latencies.length ? latencies[latencies.length - 1] : null,
    p50_ms: at(0.5),
    p95_ms: at(0.95),
    samples: sorted.length,
  };
}

// ---- status line ------------------------------------------------------------------------------------

const STATE_WORDS = { live: "live", idr: "waiting for an IDR", tap: "paused", "server-gone": "server gone", full: "full" };
let isStatusShown = readSetting("status") !== "off";

function statusParts() {
  const word = STATE_WORDS[state] || state;
  if (state !== "live" && state !== "tap") return [word]; // the figures of a frozen picture would be misleading
  if (way === "http") {
    const { videoWidth, videoHeight } = $("http-video");
    return [word, `${videoWidth}×${videoHeight}`, "over HTTP", `${http.lag_s.toFixed(1)} s behind`];
  }
  const { kind, p50_ms } = latency();
  const parts = [
    word,
    `${sample.width}×${sample.height}`,
    `${sample.fps.toFixed(0)} fps`,
    sample.bitrate_bps >= 1e6 ? `${(sample.bitrate_bps / 1e6).toFixed(1)} Mbit/s` : `${(sample.bitrate_bps / 1e3).toFixed(0)} kbit/s`,
  ];
  if (kind) parts.push(`${kind === "capture" ? "capture→shown" : "received→shown"} ${p50_ms.toFixed(0)} ms`);
  parts.push(`loss ${sample.loss_percent.toFixed(1)} %`);
  if (sample.frames_dropped) parts.push(`${sample.frames_dropped} dropped`);
  if (sample.freezes) parts.push(sample.freezes === 1 ? "1 freeze" : `${sample.freezes} freezes`);
  return parts;
}

// Joins the parts into lines that fit into `width`. A line ends only between two parts, never inside one.
function wrap(context, parts, width) {
  const lines = [];
  for (const part of parts) {
    const last = lines[lines.length - 1];
    const joined = `${last}  ·  ${part}`;
    if (last !== undefined && context.measureText(joined).width <= width) lines[lines.length - 1] = joined;
    else lines.push(part);
  }
  return lines;
}

function drawStatusLine() {
  const { clientWidth: width, clientHeight: height } = canvas;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio); // this also clears the canvas
  canvas.height = Math.round(height * ratio);
  const parts = statusParts();
  canvas.setAttribute("aria-label", parts.join(", "));
  if (!isStatusShown) return;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.font = "500 14px ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace";
  context.textBaseline = "middle";
  const [inset, lineHeight, dot] = [12, 22, 16];
  const lines = wrap(context, parts, width - 2 * inset - dot);
  const textWidth = Math.max(...lines.map((line) => context.measureText(line).width));
  context.fillStyle = "rgb(16 21 27 / 0.82)";
  context.beginPath();
  const box = [0, 0, textWidth + 2 * inset + dot, lines.length * lineHeight + 12];
  if (context.roundRect) context.roundRect(...box, 10);
  else context.rect(...box);
  context.fill();
  context.fillStyle = state === "live" ? "#7ee0a1" : "#ffc46b";
  context.beginPath();
  context.arc(inset + 5, 6 + lineHeight / 2, 4.5, 0, 2 * Math.PI);
  context.fill();
  context.fillStyle = "#f2f5f8";
  lines.forEach((line, index) => context.fillText(line, inset + dot, 6 + lineHeight * (index + 0.5) + 1));
}

// ---- controls ---------------------------------------------------------------------------------------

function readSetting(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null; // without storage, a setting lasts only until the page is closed
  }
}

function toggleStatus() {
  isStatusShown = !isStatusShown;
  $("status-button").setAttribute("aria-pressed", String(isStatusShown));
  try {
    localStorage.setItem("status", isStatusShown ? "on" : "off");
  } catch {
    // Without storage, the setting is not saved; see readSetting.
  }
  drawStatusLine();
}

function toggleFullscreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else document.documentElement.requestFullscreen().catch(() => {});
}

function tapped() {
  if (isPlayBlocked && video.srcObject) play(video.srcObject);
  else toggleStatus();
}

let quietTimer = 0;
let isWaking = false; // true from a tap that shows the hidden bar until the click that this tap causes

// A tap that shows the hidden bar does nothing else: a button that was not visible must not be pressed.
function onTap(event) {
  const isHidden = document.body.dataset.quiet !== undefined && state === "live" && !$("bar").contains(document.activeElement);
  isWaking = isHidden && Boolean(event.target.closest("#stage, #bar"));
}

// Without this, the button below the tap would get the focus, and would then keep the bar visible.
function onMouseDown(event) {
  if (isWaking) event.preventDefault();
}

function onClick(event) {
  // A click of a keyboard or a screen reader has the detail 0. It presses a button on purpose.
  if (isWaking && event.detail > 0) {
    event.preventDefault();
    event.stopPropagation();
  }
  isWaking = false;
}

function onActivity() {
  delete document.body.dataset.quiet;
  clearTimeout(quietTimer);
  quietTimer = setTimeout(() => (document.body.dataset.quiet = ""), QUIET_MS);
}

function wireControls() {
  // These see the events before all other listeners.
  window.addEventListener("pointerdown", onTap, true);
  window.addEventListener("mousedown", onMouseDown, true);
  window.addEventListener("click", onClick, true);
  $("stage").addEventListener("click", tapped);
  $("status-button").addEventListener("click", toggleStatus);
  $("status-button").setAttribute("aria-pressed", String(isStatusShown));
  $("fullscreen-button").addEventListener("click", toggleFullscreen);
  $("fullscreen-button").hidden = !document.fullscreenEnabled;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || event.target.closest("input, textarea")) return;
    if (event.key === "s") toggleStatus();
    if (event.key === "f" && document.fullscreenEnabled) toggleFullscreen();
  });
  for (const name of ["pointermove", "pointerdown", "keydown", "focusin"]) document.addEventListener(name, onActivity);
}

function wirePage() {
  window.addEventListener("resize", drawStatusLine);
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

window.__viewer = {
  get state() { return state; },
  get pc() { return pc; },
  get way() { return way; },
  stats: () => ({ ...sample, connects, latency: latency() }),
};

wireControls();
wirePage();
onActivity();
show();
if (typeof RTCPeerConnection === "undefined") {
  refusal = { state: "unable", detail: missingFeature("WebRTC") };
} else {
  if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(frameShown);
  connect();
}
onStatus(onNewStatus);
setInterval(watchWay, WATCH_MS);
tick();
