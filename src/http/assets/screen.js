// Shows the state of the page: badge, message, title and icon, and the details on demand.

import { $, clock, element, write } from "./dom.js";
import { t } from "./texts.js";

/** @typedef {"connecting" | "live" | "idr" | "waiting" | "away" | "stalled" | "server-gone" | "full" | "refused" |
 *   "blocked" | "unable" | "tap"} State */

const RETRIED = ["server-gone", "full", "refused", "blocked", "unable"]; // "Retry now" may help in these states

/** @type {State} */
let shownState = "connecting";
let cameraName = "";
let isRecording = false;

/**
 * Shows the state. `detail` replaces the explanation of the state unless it is empty.
 * @param {State} state
 * @param {string} detail
 */
export function showState(state, detail) {
  const key = state.replace("-", "_");
  write($("state-badge"), state === "live" ? `● ${t("live")}` : t(`badge_${key}`));
  write($("message-title"), t(`title_${key}`));
  write($("message-detail"), detail || t(`detail_${key}`));
  $("retry-button").hidden = !RETRIED.includes(state);
  if (shownState === state) return;
  shownState = state;
  document.body.dataset.state = state;
  showTitle();
}

/**
 * Shows what the server says about the stream: its name, how many watch it and if it is recorded.
 * @param {any} status
 */
export function showStream(status) {
  cameraName = status.title;
  write($("camera-name"), cameraName);
  const count = status.viewers + status.http_viewers;
  write($("viewer-count"), count ? t("watching", { count }) : "");
  isRecording = status.recording.recording;
  $("rec-badge").hidden = !isRecording;
  write($("rec-time"), clock(status.recording.duration || 0));
  document.body.toggleAttribute("data-recording", isRecording);
  showTitle();
}

// The title and the icon say the state in a list of tabs.
function showTitle() {
  const words = [isRecording && "● REC", shownState !== "live" && t(`badge_${shownState.replace("-", "_")}`), cameraName || t("camera")];
  const title = words.filter(Boolean).join(" · ");
  if (document.title !== title) document.title = title;
  const name = isRecording ? "icon-rec.svg" : shownState === "live" || shownState === "connecting" ? "icon.svg" : "icon-off.svg";
  if ($("icon").getAttribute("href") !== name) $("icon").href = name;
}

/** @type {[string, string][]} */
let figures = [];

/**
 * Shows the figures in the details when they are open.
 * @param {[string, string][]} next keys of the texts, and values
 */
export function showFigures(next) {
  figures = next;
  if ($("details").hidden) return;
  const parts = figures.flatMap(([key, value]) => [element("dt", { textContent: t(key) }), element("dd", { textContent: value })]);
  $("figures").replaceChildren(...parts);
}

/** @param {boolean} isOpen */
export function toggleDetails(isOpen = $("details").hidden) {
  const hadFocus = $("details").contains(document.activeElement);
  $("details").hidden = !isOpen;
  $("status-button").setAttribute("aria-expanded", String(isOpen));
  showFigures(figures);
  if (isOpen) $("details-close").focus();
  else if (hadFocus) $("status-button").focus();
}

