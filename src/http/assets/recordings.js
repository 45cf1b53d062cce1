// Controls the recordings on the viewer page: the record button with the elapsed time, and the drawer with the list.
//
//   events.js ── recording ──► button
//   drawer open ── GET api/recordings ──► list: play here, download, delete

import { fetchWithTimeout, onStatus, pollStatus } from "./events.js";

const TIMEOUT_MS = 15000; // the server answers a stop only when the file is on the disk
const CONFIRM_MS = 4000;
const TOAST_MS = 8000;

const $ = (id) => document.getElementById(id);
const recordButton = $("record-button");
const recordText = $("record-text");
const drawerButton = $("recordings-button");
const drawer = $("drawer");
const list = $("recording-list");
const note = $("recording-note");
const player = $("player");

let isRecording = false;
let isBusy = false;
let waitingText = null; // what the running recording waits for, as the note shows it
let knownError = null; // the error of the last recording that was shown
let playing = null; // name of the recording in the player, or null

async function request(method, path, body) {
  const options = { method };
  if (body) Object.assign(options, { body: JSON.stringify(body), headers: { "content-type": "application/json" } });
  const response = await fetchWithTimeout(path, TIMEOUT_MS, options);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error || `HTTP ${response.status}`);
  return answer;
}

// Shows a message in the drawer, or above the bar while the drawer is closed.
function showNote(text) {
  if (note.textContent !== text) note.textContent = text;
  if (drawer.hidden) showToast(text);
}

const toast = $("toast");
let toastTimer = 0;

function showToast(text) {
  clearTimeout(toastTimer);
  toast.textContent = text;
  toastTimer = setTimeout(() => (toast.textContent = ""), TOAST_MS);
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(bytes, 1)) / 3));
  const value = bytes / 1000 ** power;
  return `${power && value < 10 ? value.toFixed(1) : value.toFixed(0)} ${units[power]}`;
}

// ---- the button -------------------------------------------------------------------------------------

function showStatus(status) {
  const ended = isRecording && !status.recording;
  isRecording = status.recording;
  recordButton.setAttribute("aria-pressed", String(isRecording));
  recordButton.disabled = isBusy;
  recordText.textContent = isRecording ? `Stop ${clock(status.duration || 0)}` : "Record";
  // What the recording waits for changes every second, and is replaced when the recording begins or ends.
  if (status.message) showNote(status.message);
  else if (note.textContent === waitingText) showNote(isRecording && status.name ? `Recording ${status.name}` : "");
  waitingText = status.message || null;
  document.body.toggleAttribute("data-recording", isRecording);
  const error = status.error ? status.error.error : null;
  // Every status repeats the error of the last recording, so an error that was shown already is not shown again.
  if (error && error !== knownError) showNote(error);
  knownError = error;
  if (ended && !drawer.hidden) refresh();
}

// Without a status, the record button keeps its state: the live view already shows that the server is not reachable.
function onNewStatus(status) {
  if (!status || isBusy) return;
  // A server with --no-recorder cannot record and has no list, so both buttons are hidden.
  recordButton.hidden = drawerButton.hidden = status.recording.state === "off";
  showStatus(status.recording);
  if (isRecording && !drawer.hidden) refresh();
}

async function toggleRecording() {
  isBusy = true;
  recordButton.disabled = true;
  try {
    const answer = await request("POST", isRecording ? "api/recording/stop" : "api/recording/start");
    const stopped = answer.message || `Saved ${answer.name}, ${clock(answer.duration)}`;
    showNote(answer.status === "stopped" ? stopped : `Recording ${answer.name}`);
  } catch (error) {
    showNote(error.message);
  } finally {
    isBusy = false;
  }
  recordButton.disabled = false;
  await pollStatus();
  if (!drawer.hidden) refresh();
}

// ---- the drawer -------------------------------------------------------------------------------------

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const pathOf = (name) => `api/recordings/${encodeURIComponent(name)}`;

function row(recording) {
  const started = recording.started_at ? new Date(recording.started_at).toLocaleString() : "";
  const marks = [recording.recording && "recording now", recording.recovered && "recovered"].filter(Boolean);
  const facts = [started, recording.duration === null ? "" : clock(recording.duration), size(recording.bytes), ...marks];
  const play = element("button", { type: "button", textContent: "Play", onclick: () => open(recording.name) });
  play.disabled = !recording.name.endsWith(".mp4"); // browsers cannot play raw H.264
  const download = element("a", { href: pathOf(recording.name), download: recording.name, textContent: "Download" });
  const remove = element("button", { type: "button", textContent: "Delete", className: "danger" });
  remove.disabled = recording.recording;
  remove.onclick = () => confirmDelete(remove, recording.name);
  return element(
    "li", {},
    element("div", { className: "facts" },
      element("strong", { textContent: recording.name }),
      element("span", { textContent: facts.filter(Boolean).join("  ·  ") })),
    element("div", { className: "bar-group" }, play, download, remove),
  );
}

let shown = "";

async function refresh() {
  try {
    const { recordings } = await request("GET", "api/recordings");
    const next = JSON.stringify(recordings);
    if (next === shown) return;
    // The list is not replaced while one of its buttons has the focus, because the focus would be lost.
    if (list.contains(document.activeElement) && shown) return;
    shown = next;
    list.replaceChildren(...recordings.map(row));
    $("recording-none").hidden = recordings.length > 0;
  } catch (error) {
    showNote(error.message);
  }
}

function confirmDelete(button, name) {
  if (button.dataset.sure) {
    document.activeElement?.blur();
    remove(name);
    return;
  }
  button.dataset.sure = "1";
  button.textContent = "Really delete?";
  setTimeout(() => {
    delete button.dataset.sure;
    button.textContent = "Delete";
  }, CONFIRM_MS);
}

async function remove(name) {
  if (playing === name) close();
  try {
    await request("DELETE", pathOf(name));
    showNote(`Deleted ${name}`);
  } catch (error) {
    showNote(error.message);
  }
  refresh();
}

function open(name) {
  playing = name;
  player.hidden = false;
  player.src = pathOf(name);
  player.setAttribute("aria-label", `Recording ${name}`);
  player.play().catch(() => {}); // if the browser blocks autoplay, the user must press play
  player.scrollIntoView({ block: "nearest" });
}

function close() {
  playing = null;
  player.pause();
  player.removeAttribute("src");
  player.load();
  player.hidden = true;
}

function toggleDrawer() {
  drawer.hidden = !drawer.hidden;
  drawerButton.setAttribute("aria-expanded", String(!drawer.hidden));
  if (drawer.hidden) {
    close();
    return;
  }
  toast.textContent = "";
  refresh();
}

recordButton.addEventListener("click", toggleRecording);
drawerButton.addEventListener("click", toggleDrawer);
$("drawer-close").addEventListener("click", toggleDrawer);
player.addEventListener("error", () => playing && showNote("This browser cannot play the recording. Download it instead."));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  if (event.key === "Escape" && !drawer.hidden) toggleDrawer();
  if (event.key === "r" && !isBusy && !event.target.closest("input, textarea")) toggleRecording();
});
onStatus(onNewStatus);
