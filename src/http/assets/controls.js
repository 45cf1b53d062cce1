// The controls of the picture: when they are visible, full screen, picture in picture, snapshot, details, keyboard.

import { $, readSetting, saveBlob, setReason, toast, writeSetting } from "./dom.js";
import { drawShownBoxes, nextMode } from "./overlay.js";
import { toggleDetails } from "./screen.js";
import { t } from "./texts.js";
import { watchZoom, zoomByKey } from "./zoom.js";

const QUIET_MS = 3500;
const PICTURE_MS = 500; // how often the buttons that need a picture are checked

// On a phone in portrait orientation the controls are below the picture and always visible. viewer.css has the same query.
const stacked = matchMedia("(orientation: portrait) and (max-width: 60rem)");

/** Returns true if the controls are below the picture. */
export const isStacked = () => stacked.matches && !document.fullscreenElement;

/**
 * Calls the function when the layout changes between a phone in portrait orientation and all others.
 * @param {() => void} listener
 */
export function onLayout(listener) {
  stacked.addEventListener("change", listener);
  document.addEventListener("fullscreenchange", listener);
}

/**
 * Returns the video that a person sees.
 * @returns {HTMLVideoElement}
 */
export function shownVideo() {
  if (!$("player").hidden) return $("player");
  return document.body.dataset.way === "http" ? $("http-video") : $("video");
}

// ---- visible or hidden ------------------------------------------------------------------------------

let quietTimer = 0;
let isWaking = false; // true from a tap that shows the hidden controls until the click that this tap causes

const isQuiet = () => document.body.matches('[data-quiet]:is([data-state="live"], [data-playing])') && !isStacked() &&
  !document.querySelector(":is(#bar, #top, #player-bar) :focus-visible");

// A tap that shows the hidden controls does nothing else: a button that was not visible must not be pressed.
/** @param {PointerEvent} event */
function onTap(event) {
  isWaking = isQuiet() && event.target instanceof Element && Boolean(event.target.closest("#stage, #bar, #top, #player-bar"));
}

// Without this, the button below the tap would get the focus, and would then keep the controls visible.
/** @param {MouseEvent} event */
function onMouseDown(event) {
  if (isWaking) event.preventDefault();
}

/** @param {MouseEvent} event */
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

// ---- full screen, picture in picture, snapshot ------------------------------------------------------

async function toggleFullscreen() {
  if (document.fullscreenElement) return document.exitFullscreen();
  if (!document.fullscreenEnabled) {
    // An iPhone shows only videos in full screen.
    const video = /** @type {any} */ (shownVideo());
    return video.webkitEnterFullscreen?.();
  }
  try {
    await document.documentElement.requestFullscreen();
    await /** @type {any} */ (screen.orientation)?.lock?.("landscape");
  } catch {
    // Desktops and some phones cannot turn the screen.
  }
}

async function togglePip() {
  const video = /** @type {any} */ (shownVideo());
  try {
    if (document.pictureInPictureElement) await document.exitPictureInPicture();
    else if (video.requestPictureInPicture) await video.requestPictureInPicture();
    else video.webkitSetPresentationMode(video.webkitPresentationMode === "inline" ? "picture-in-picture" : "inline");
  } catch (error) {
    toast(/** @type {Error} */ (error).message);
  }
}

/** Saves the picture that is shown in its full resolution, with the boxes that are shown. */
export function takeSnapshot() {
  const video = shownVideo();
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  const pen = canvas.getContext("2d");
  pen?.drawImage(video, 0, 0);
  if (pen) drawShownBoxes(video, pen);
  const two = (/** @type {number} */ number) => String(number).padStart(2, "0");
  const now = new Date();
  const date = `${now.getFullYear()}${two(now.getMonth() + 1)}${two(now.getDate())}`;
  const name = `snapshot_${date}_${two(now.getHours())}${two(now.getMinutes())}${two(now.getSeconds())}.png`;
  canvas.toBlob((blob) => {
    if (!blob) return toast(t("no_picture"));
    saveBlob(blob, name);
    toast(t("snapshot_saved", { name }));
  });
}

function checkPicture() {
  const video = /** @type {any} */ (shownVideo());
  const reason = video.videoWidth ? null : t("no_picture");
  setReason($("snapshot-button"), reason);
  setReason($("player-snapshot"), reason);
  const hasPip = document.pictureInPictureEnabled || video.webkitSupportsPresentationMode?.("picture-in-picture");
  setReason($("pip-button"), hasPip ? reason : t("no_pip"));
  const hasFullscreen = document.fullscreenEnabled || video.webkitEnterFullscreen;
  for (const id of ["fullscreen-button", "player-full"]) setReason($(id), hasFullscreen ? null : t("no_full_screen"));
}

// ---- keyboard ---------------------------------------------------------------------------------------

/** @type {Record<string, () => void>} */
const keys = {
  s: () => toggleDetails(),
  f: () => $("fullscreen-button").click(),
  c: () => $("snapshot-button").click(),
  b: nextMode,
};

/**
 * Adds a keyboard shortcut of one key.
 * @param {string} key
 * @param {() => void} action
 */
export const onKey = (key, action) => (keys[key] = action);

/** @type {(() => boolean)[]} */
const closers = [() => {
  if ($("details").hidden) return false;
  toggleDetails(false);
  return true;
}];

/**
 * Adds a function that Escape calls. It closes something and returns true, or returns false.
 * @param {() => boolean} closer
 */
export const onEscape = (closer) => closers.unshift(closer);

/** @param {KeyboardEvent} event */
function onKeyDown(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || $("login").open) return;
  if (event.key === "Escape" && !document.fullscreenElement) return void closers.find((close) => close());
  const target = /** @type {Element} */ (event.target);
  if (target.closest("input:not([type=checkbox]), textarea") || !$("shortcuts-box").checked) return;
  if (zoomByKey(event.key)) return event.preventDefault();
  if (!event.repeat && Object.hasOwn(keys, event.key)) keys[event.key]();
}

function wire() {
  // These see the events before all other listeners.
  window.addEventListener("pointerdown", onTap, true);
  window.addEventListener("mousedown", onMouseDown, true);
  window.addEventListener("click", onClick, true);
  document.addEventListener("keydown", onKeyDown);
  for (const name of ["pointermove", "pointerdown", "keydown", "focusin"]) document.addEventListener(name, onActivity);
  $("fullscreen-button").addEventListener("click", toggleFullscreen);
  $("player-full").addEventListener("click", toggleFullscreen);
  $("pip-button").addEventListener("click", togglePip);
  for (const id of ["snapshot-button", "player-snapshot"]) $(id).addEventListener("click", takeSnapshot);
  $("status-button").addEventListener("click", () => toggleDetails());
  $("details-close").addEventListener("click", () => toggleDetails(false));
  for (const name of ["enterpictureinpicture", "leavepictureinpicture"]) {
    document.addEventListener(name, () => $("pip-button").setAttribute("aria-pressed", String(name[0] === "e")), true);
  }
  const box = $("shortcuts-box");
  box.checked = readSetting("shortcuts") !== "off";
  box.addEventListener("change", () => writeSetting("shortcuts", box.checked ? "on" : "off"));
}

wire();
watchZoom($("stage"));
onActivity();
checkPicture();
setInterval(checkPicture, PICTURE_MS);
