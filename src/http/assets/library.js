// The list of recordings, newest first and grouped by day: play, select, delete with undo.
//
//   GET api/recordings ──► groups of rows ── visible row ──► thumbnails.js.   Row ──► player.js
//   delete ──► the rows are hidden ── undo time ──► DELETE, or undo ──► the rows are shown again

import { $, clock, dayName, dayOf, element, setReason, size, timeName, toast, write } from "./dom.js";
import { onStatus, pathOf, request } from "./events.js";
import { isStacked, onEscape, onLayout } from "./controls.js";
import { openPlayer, wirePlayer } from "./player.js";
import { t } from "./texts.js";
import { showThumbnail } from "./thumbnails.js";

const UNDO_MS = 7000;
const ROWS = 60; // number of rows that are added at a time
const REFRESH_MS = 30_000;
const DAY_MS = 86_400_000;

/**
 * One recording as the server lists it. `labels` are the classes that its events show.
 * @typedef {{ name: string, bytes: number, duration: number | null, started_at: string | null, recording: boolean,
 *   recovered: boolean, detections: string | null, kind: "manual" | "event", labels: string[],
 *   events: { label: string, best: number }[] }} Recording
 */

const isLow = matchMedia("(orientation: landscape) and (max-height: 30rem)"); // a phone in landscape orientation
const drawer = $("drawer");
const list = $("recording-list");

/** @type {Recording[]} */
let recordings = [];
/** @type {number | null} */
let free_bytes = null;
let hasRecorder = true;
let isListed = false; // true after the first answer
let rows = ROWS;
let shown = "";
let isSelecting = false;
/** @type {string | null} */
let label = null; // only recordings with this label are shown
/** @type {Set<string>} */
const selected = new Set();
/** @type {Set<string>} */
const leaving = new Set(); // names of recordings that are deleted when the undo time is over

// ---- the list ---------------------------------------------------------------------------------------

let isAsked = false;

/** Reads the list again if it is visible. */
export async function refreshLibrary() {
  if (drawer.hidden || isAsked || !hasRecorder) return;
  isAsked = true;
  try {
    const answer = await request("GET", "api/recordings");
    recordings = answer.recordings;
    free_bytes = answer.free_bytes ?? null;
    isListed = true;
    draw();
    openLinked();
  } catch (error) {
    if (!$("login").open) toast(/** @type {Error} */ (error).message);
  } finally {
    isAsked = false;
  }
}

function draw() {
  const listed = recordings.filter((recording) => !leaving.has(recording.name));
  $("recording-none").hidden = !isListed && hasRecorder ? true : listed.length > 0;
  write($("recording-none"), t(hasRecorder ? "none" : "no_recorder"));
  $("select-button").hidden = listed.length === 0;
  const used = size(listed.reduce((sum, recording) => sum + recording.bytes, 0));
  const room = free_bytes === null ? t("room", { used }) : t("room_free", { used, free: size(free_bytes) });
  write($("room"), isListed ? room : "");
  const next = JSON.stringify([listed, rows, isSelecting, label]);
  if (next === shown) return;
  shown = next;
  drawLabels(listed);
  const passing = listed.filter((recording) => label === null || recording.labels.includes(label));
  drawDay(passing);
  const focused = document.activeElement?.closest("[data-name]")?.getAttribute("data-name");
  list.replaceChildren(...groups(passing.slice(0, rows)));
  if (passing.length > rows) {
    const more = element("div", { className: "more" });
    list.append(more);
    moreWatch.observe(more);
  }
  if (focused) list.querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus();
}

// A button for each label. The pressed one says which recordings are shown.
/** @param {Recording[]} listed */
function drawLabels(listed) {
  const labels = [...new Set(listed.flatMap((recording) => recording.labels))].sort();
  if (label !== null && !labels.includes(label)) label = null;
  const box = $("label-filter");
  const focused = box.contains(document.activeElement) ? document.activeElement?.textContent : null;
  box.hidden = labels.length === 0;
  box.replaceChildren(...[null, ...labels].map((one) => {
    const chip = element("button", { type: "button", textContent: one ?? t("all_labels") });
    chip.setAttribute("aria-pressed", String(one === label));
    chip.onclick = () => {
      [label, rows] = [one, ROWS];
      draw();
    };
    return chip;
  }));
  if (focused) [...box.children].find((chip) => chip.textContent === focused)?.focus();
}

const moreWatch = new IntersectionObserver((entries) => {
  if (!entries.some((entry) => entry.isIntersecting)) return;
  moreWatch.disconnect();
  rows += ROWS;
  draw();
});

/** @param {Recording[]} listed */
function groups(listed) {
  /** @type {Node[]} */
  const made = [];
  let title = "";
  let group = element("ul", {});
  for (const recording of listed) {
    const date = recording.started_at ? new Date(recording.started_at) : null;
    const next = date ? dayName(date) : t("earlier");
    if (next !== title) {
      title = next;
      group = element("ul", {});
      made.push(element("h3", { textContent: title }), group);
    }
    group.append(row(recording, date));
  }
  return made;
}

/**
 * @param {Recording} recording
 * @param {Date | null} date
 */
function row(recording, date) {
  const { name, duration, bytes } = recording;
  const marks = [recording.recording && t("recording_now"), recording.recovered && t("recovered")].filter(Boolean);
  const length = recording.recording || duration === null ? "" : clock(duration);
  const title = [date ? timeName(date) : name, ...recording.labels, length];
  const picture = element("canvas", { className: "thumbnail", width: 160, height: 90 });
  picture.setAttribute("aria-hidden", "true");
  showThumbnail(picture, recording);
  const clip = element("button", { type: "button", className: "clip", title: name },
    picture,
    element("span", { className: "facts" },
      element("strong", { textContent: title.filter(Boolean).join(" · ") }),
      element("span", { textContent: [size(bytes), ...marks].join(" · ") })));
  clip.dataset.name = name;
  if (isSelecting) {
    clip.setAttribute("aria-pressed", String(selected.has(name)));
    setReason(clip, recording.recording ? t("still_recording") : null);
  }
  clip.onclick = () => {
    if (isSelecting) return select(clip, name);
    openPlayer(recording, date);
    if (isLow.matches) toggleDrawer(false); // the controls of the player need the room
  };
  return element("li", {}, clip);
}

// The bar shows when there were recordings today.
/** @param {Recording[]} listed */
function drawDay(listed) {
  const start = new Date();
  start.setHours(0, 0, 0, 0);
  const today = listed.filter((recording) => recording.started_at && dayOf(new Date(recording.started_at)) === dayOf(start));
  const bar = $("day-bar");
  bar.setAttribute("aria-label", t("day_bar", { count: today.length }));
  bar.replaceChildren(...today.map((recording) => {
    const mark = element("span", {});
    mark.style.left = `${(100 * (Date.parse(recording.started_at || "") - start.getTime())) / DAY_MS}%`;
    mark.style.width = `${(100_000 * (recording.duration || 0)) / DAY_MS}%`;
    mark.dataset.kind = recording.kind;
    return mark;
  }));
}

// A link to this page may name a recording: #play=NAME.
function openLinked() {
  if (!location.hash.startsWith("#play=")) return;
  const encoded = location.hash.slice(6);
  history.replaceState(null, "", location.pathname + location.search);
  const name = decodeURIComponent(encoded);
  const recording = recordings.find((one) => one.name === name);
  if (recording) openPlayer(recording, recording.started_at ? new Date(recording.started_at) : null);
}

// ---- select and delete ------------------------------------------------------------------------------

/**
 * @param {HTMLElement} clip
 * @param {string} name
 */
function select(clip, name) {
  if (!selected.delete(name)) selected.add(name);
  clip.setAttribute("aria-pressed", String(selected.has(name)));
  showSelection();
}

function showSelection() {
  write($("selection-count"), t("selected", { count: selected.size }));
  $("delete-selected").disabled = selected.size === 0;
}

/** @param {boolean} isOn */
function selectMode(isOn) {
  isSelecting = isOn;
  selected.clear();
  $("selection").hidden = !isOn;
  $("select-button").setAttribute("aria-pressed", String(isOn));
  write($("select-button"), t(isOn ? "done" : "select"));
  showSelection();
  draw();
}

let deleteTimer = 0;

/**
 * Hides the recordings and deletes them when the undo time is over. If the page is closed before, nothing is deleted.
 * @param {string[]} names
 */
function deleteLater(names) {
  if (leaving.size) deleteNow();
  for (const name of names) leaving.add(name);
  draw();
  deleteTimer = setTimeout(deleteNow, UNDO_MS);
  const text = t("deleting", { count: names.length, seconds: UNDO_MS / 1000 });
  toast(text, () => {
    clearTimeout(deleteTimer);
    leaving.clear();
    toast(t("kept"));
    draw();
  }, UNDO_MS);
}

async function deleteNow() {
  clearTimeout(deleteTimer);
  const names = [...leaving];
  leaving.clear();
  recordings = recordings.filter((recording) => !names.includes(recording.name));
  let count = 0;
  let refused = "";
  for (const name of names) {
    await request("DELETE", pathOf(name)).then(() => (count += 1), (error) => (refused = error.message));
  }
  toast(refused || t("deleted", { count }));
  refreshLibrary();
}

// ---- the panel --------------------------------------------------------------------------------------

/** @param {boolean} isOpen */
function toggleDrawer(isOpen) {
  drawer.hidden = !isOpen;
  $("recordings-button").setAttribute("aria-expanded", String(isOpen));
  document.body.toggleAttribute("data-drawer", isOpen);
  if (isOpen) refreshLibrary();
  else if (isSelecting) selectMode(false);
}

function closeDrawer() {
  if (drawer.hidden || isStacked()) return false;
  toggleDrawer(false);
  $("recordings-button").focus();
  return true;
}

/** @param {any} status */
function onNewStatus(status) {
  if (!status) return;
  const has = status.recording.state !== "off";
  if (has === hasRecorder) return;
  hasRecorder = has;
  draw();
  refreshLibrary();
}

export function wireLibrary() {
  $("recordings-button").addEventListener("click", () => {
    if (!drawer.hidden) return closeDrawer();
    toggleDrawer(true);
    $("drawer-close").focus();
  });
  $("drawer-close").addEventListener("click", closeDrawer);
  $("select-button").addEventListener("click", () => selectMode(!isSelecting));
  $("delete-selected").addEventListener("click", () => {
    const names = [...selected];
    selectMode(false);
    $("select-button").focus();
    deleteLater(names);
  });
  onEscape(() => {
    if (!isSelecting) return closeDrawer();
    selectMode(false);
    $("select-button").focus();
    return true;
  });
  wirePlayer((name) => deleteLater([name])); // Escape closes the player before the list
  onLayout(() => toggleDrawer(isStacked()));
  onStatus(onNewStatus);
  setInterval(() => !document.hidden && refreshLibrary(), REFRESH_MS);
  document.addEventListener("visibilitychange", () => !document.hidden && refreshLibrary());
  draw();
  toggleDrawer(isStacked() || location.hash.startsWith("#play="));
}
