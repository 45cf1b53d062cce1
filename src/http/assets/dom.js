// Helpers of the page's scripts: elements, formats, messages, stored settings.

import { language, t } from "./texts.js";

/** Name of the store with the thumbnails of recordings. */
export const THUMBNAILS = "thumbnails";

const TOAST_MS = 8000;

/**
 * Returns the element with this id, which index.html contains.
 * @param {string} id
 * @returns {any}
 */
export const $ = (id) => document.getElementById(id);

/**
 * @param {string} tag
 * @param {Record<string, unknown>} properties
 * @param {...(Node | string)} children
 * @returns {any}
 */
export function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/**
 * Returns one of the icons of index.html.
 * @param {string} name
 */
export function icon(name) {
  const [svg, use] = ["svg", "use"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/**
 * Writes the text only if it changes: a screen reader reads out every write to a live region.
 * @param {HTMLElement} target
 * @param {string} text
 */
export function write(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/**
 * Writes a note, or hides it if the text is empty.
 * @param {HTMLElement} target
 * @param {string} text
 */
export function writeNote(target, text) {
  write(target, text);
  target.hidden = !text;
}

/**
 * Gives a button its name, which screen readers and the mouse pointer show.
 * @param {HTMLElement} target
 * @param {string} name
 */
export function label(target, name) {
  if (target.getAttribute("aria-label") === name) return;
  target.setAttribute("aria-label", name);
  target.title = name;
}

const reasons = new WeakMap();

/**
 * Disables a control and says why, or enables it. A disabled control keeps the focus and shows its reason when it is
 * pressed.
 * @param {HTMLElement} target
 * @param {string | null} reason
 */
export function setReason(target, reason) {
  if ((reasons.get(target) || null) === reason) return;
  reasons.set(target, reason);
  if (reason) target.setAttribute("aria-disabled", "true");
  else target.removeAttribute("aria-disabled");
  const { label: name } = target.dataset;
  target.title = reason || (name ? t(name) : "");
}

window.addEventListener("click", (event) => {
  const control = event.target instanceof Element && event.target.closest("[aria-disabled]");
  if (!control) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  toast(reasons.get(control));
}, true);

/** @type {(() => void) | null} */
let undo = null;
let toastTimer = 0;

/**
 * Shows a message for a while. With `onUndo` it has a button that calls this function.
 * @param {string} text
 * @param {(() => void) | null} [onUndo]
 * @param {number} [duration_ms]
 */
export function toast(text, onUndo = null, duration_ms = TOAST_MS) {
  clearTimeout(toastTimer);
  undo = onUndo;
  write($("toast-text"), text);
  $("toast").toggleAttribute("data-shown", Boolean(text));
  $("undo-button").hidden = !onUndo;
  if (text) toastTimer = setTimeout(() => toast(""), duration_ms);
}

/** Removes the message if it is this one.
 * @param {string | null} text */
export function endToast(text) {
  if (text !== null && $("toast-text").textContent === text) toast("");
}

$("undo-button").addEventListener("click", () => {
  const action = undo;
  toast("");
  if (action) action();
});

/**
 * Returns a duration as 0:05 or 1:00:05.
 * @param {number} seconds
 */
export function clock(seconds) {
  const whole = Math.floor(seconds);
  const two = (/** @type {number} */ number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

/**
 * Returns a size as 12 kB or 1.2 MB.
 * @param {number} bytes
 */
export function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(bytes, 1)) / 3));
  const value = bytes / 1000 ** power;
  return `${power && value < 10 ? value.toFixed(1) : value.toFixed(0)} ${units[power]}`;
}

/**
 * Returns a number that names the local day of a time.
 * @param {Date} date
 */
export const dayOf = (date) => date.getFullYear() * 10000 + (date.getMonth() + 1) * 100 + date.getDate();

/**
 * Returns "Today", "Yesterday" or the date.
 * @param {Date} date
 */
export function dayName(date) {
  const yesterday = new Date();
  yesterday.setDate(yesterday.getDate() - 1);
  if (dayOf(date) === dayOf(new Date())) return t("today");
  if (dayOf(date) === dayOf(yesterday)) return t("yesterday");
  return date.toLocaleDateString(language, { weekday: "short", day: "numeric", month: "short", year: "numeric" });
}

/** @param {Date} date */
export const timeName = (date) => date.toLocaleTimeString(language, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

/**
 * Returns a stored setting, or null.
 * @param {string} name
 */
export function readSetting(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null; // without storage, a setting lasts only until the page is closed
  }
}

/**
 * @param {string} name
 * @param {string} value
 */
export function writeSetting(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // Without storage, the setting is not saved; see readSetting.
  }
}

/**
 * Saves a file of the browser's own as a download.
 * @param {Blob} blob
 * @param {string} name
 */
export function saveBlob(blob, name) {
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // a browser may read it some time after the click
}
