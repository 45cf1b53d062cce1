// Plays a recording in place of the live picture: speed, single pictures, seek with a preview, save, share, delete.

import { $, clock, dayName, icon, label, readSetting, setReason, timeName, toast, write, writeSetting } from "./dom.js";
import { onEscape, onKey } from "./controls.js";
import { pathOf } from "./events.js";
import { readBoxesOf } from "./overlay.js";
import { share } from "./share.js";
import { t } from "./texts.js";
import { resetZoom } from "./zoom.js";

const SPEEDS = [1, 2, 4, 0.25, 0.5];
const PICTURE_S = 1 / 30; // length of a step until the length of a picture is known
const SEEK_KEY_S = 5;

/** @typedef {{ name: string, bytes: number, duration: number | null, recording: boolean, detections: string | null }}
 *   Recording */

/** @type {HTMLVideoElement} */
const player = $("player");
/** @type {HTMLInputElement} */
const seek = $("seek");
/** @type {HTMLCanvasElement} */
const preview = $("seek-preview");

/** @type {Recording | null} */
let playing = null;
/** @type {HTMLElement | null} */
let openedBy = null; // gets the focus back
let speed = Number(readSetting("speed")) || 1;
let picture_s = PICTURE_S;
let lastMediaTime = -1;

/**
 * @param {Recording} recording
 * @param {Date | null} date
 */
export function openPlayer(recording, date) {
  const { name } = recording;
  if (!name.endsWith(".mp4")) toast(t("raw_file"));
  playing = recording;
  openedBy = /** @type {HTMLElement} */ (document.activeElement);
  resetZoom();
  picture_s = PICTURE_S;
  player.src = pathOf(name);
  player.setAttribute("aria-label", t("player", { name: date ? `${dayName(date)} ${timeName(date)}` : name }));
  player.playbackRate = player.defaultPlaybackRate = speed;
  $("save-link").href = pathOf(name);
  $("save-link").download = name;
  setReason($("delete-button"), recording.recording ? t("still_recording") : null);
  setReason($("share-button"), recording.recording ? t("still_recording") : null);
  show(true);
  readBoxesOf(recording.detections || "");
  player.play().catch(() => {}); // if the browser blocks autoplay, the user must press play
  $("play-button").focus();
}

export function closePlayer() {
  if (!playing) return false;
  playing = null;
  resetZoom();
  player.pause();
  player.removeAttribute("src");
  player.load();
  previewed.removeAttribute("src");
  previewed.load();
  show(false);
  readBoxesOf("");
  if (openedBy?.isConnected) openedBy.focus();
  else $("recordings-button").focus();
  return true;
}

/** @param {boolean} isShown */
function show(isShown) {
  player.hidden = !isShown;
  $("player-bar").hidden = !isShown;
  $("bar").hidden = isShown;
  document.body.toggleAttribute("data-playing", isShown);
  showTime();
}

function togglePlay() {
  if (player.paused) player.play().catch((error) => toast(error.message));
  else player.pause();
}

function showPlaying() {
  const button = $("play-button");
  const name = player.paused ? "play" : "pause";
  if (button.dataset.label === name) return;
  button.dataset.label = name;
  button.replaceChildren(icon(name));
  label(button, t(name));
}

function showTime() {
  const duration = Number.isFinite(player.duration) ? player.duration : playing?.duration || 0;
  seek.max = String(duration);
  seek.value = String(player.currentTime);
  seek.setAttribute("aria-valuetext", `${clock(player.currentTime)} / ${clock(duration)}`);
  write($("player-time"), clock(player.currentTime));
  write($("player-duration"), clock(duration));
}

function nextSpeed() {
  speed = SPEEDS[(SPEEDS.indexOf(speed) + 1) % SPEEDS.length];
  player.playbackRate = player.defaultPlaybackRate = speed;
  writeSetting("speed", String(speed));
  showSpeed();
}

function showSpeed() {
  write($("speed-button"), `${speed}×`);
  label($("speed-button"), t("speed", { speed: `${speed}×` }));
}

/** @param {number} direction */
function step(direction) {
  player.pause();
  player.currentTime = Math.max(0, player.currentTime + direction * picture_s);
}

// Learns the length of a picture while the recording plays.
/** @type {VideoFrameRequestCallback} */
function pictureShown(now, { mediaTime }) {
  const since = mediaTime - lastMediaTime;
  if (!player.paused && since > 0.001 && since < 1) picture_s = Math.min(picture_s * 1.5, since);
  lastMediaTime = mediaTime;
  player.requestVideoFrameCallback(pictureShown);
}

// ---- preview ----------------------------------------------------------------------------------------

const previewed = document.createElement("video"); // seeks to the position below the pointer
previewed.muted = true;
previewed.preload = "auto";
let wanted_s = 0;

/** @param {PointerEvent} event */
function showPreview(event) {
  if (!playing) return;
  const box = seek.getBoundingClientRect();
  const part = Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
  if (!previewed.src) previewed.src = pathOf(playing.name);
  preview.hidden = false;
  preview.style.left = `${Math.max(0, Math.min(box.width - preview.offsetWidth, part * box.width - preview.offsetWidth / 2))}px`;
  wanted_s = part * Number(seek.max);
  if (!previewed.seeking) previewed.currentTime = wanted_s;
}

function drawPreview() {
  const height = Math.round((preview.width * previewed.videoHeight) / previewed.videoWidth);
  if (preview.height !== height) preview.height = height;
  preview.getContext("2d")?.drawImage(previewed, 0, 0, preview.width, preview.height);
  if (Math.abs(previewed.currentTime - wanted_s) > 0.05 && !preview.hidden) previewed.currentTime = wanted_s;
}

// ---- the page ---------------------------------------------------------------------------------------

/** @param {(name: string) => void} onDelete */
export function wirePlayer(onDelete) {
  for (const name of ["play", "pause", "ended"]) player.addEventListener(name, showPlaying);
  for (const name of ["timeupdate", "durationchange", "seeked"]) player.addEventListener(name, showTime);
  player.addEventListener("error", () => playing && toast(t("cannot_play")));
  if (player.requestVideoFrameCallback) player.requestVideoFrameCallback(pictureShown);
  $("play-button").addEventListener("click", togglePlay);
  $("step-back").addEventListener("click", () => step(-1));
  $("step-forward").addEventListener("click", () => step(1));
  $("speed-button").addEventListener("click", nextSpeed);
  $("player-close").addEventListener("click", closePlayer);
  $("share-button").addEventListener("click", () => playing && share(playing).catch((error) => toast(error.message)));
  $("delete-button").addEventListener("click", () => {
    const name = playing?.name;
    closePlayer();
    if (name) onDelete(name);
  });
  seek.addEventListener("input", () => (player.currentTime = Number(seek.value)));
  seek.addEventListener("keydown", (event) => {
    const direction = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (!direction) return;
    event.preventDefault(); // the browser's own step of this slider is too small
    player.currentTime = Math.max(0, player.currentTime + direction * SEEK_KEY_S);
  });
  seek.addEventListener("pointermove", showPreview);
  seek.addEventListener("pointerdown", showPreview);
  for (const name of ["pointerleave", "pointerup", "pointercancel"]) seek.addEventListener(name, () => (preview.hidden = true));
  previewed.addEventListener("seeked", drawPreview);
  previewed.addEventListener("loadeddata", drawPreview);
  onKey("k", () => playing && togglePlay());
  onKey(",", () => playing && step(-1));
  onKey(".", () => playing && step(1));
  onEscape(closePlayer);
  showSpeed();
}
