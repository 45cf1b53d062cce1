// Controls the running recording: the record button with the elapsed time, and what the server says about it.

import { $, clock, endToast, setReason, toast, write } from "./dom.js";
import { onStatus, pollStatus, request } from "./events.js";
import { onKey } from "./controls.js";
import { refreshLibrary, wireLibrary } from "./library.js";
import { t } from "./texts.js";

const button = $("record-button");

let isRecording = false;
let isBusy = false;
/** @type {string | null} */
let waitingText = null; // what the running recording waits for, as the toast shows it
/** @type {string | null} */
let knownError = null; // the error of the last recording that was shown

/** @param {any} status */
function showStatus(status) {
  const ended = isRecording && !status.recording;
  const began = !isRecording && status.recording;
  isRecording = status.recording;
  button.setAttribute("aria-pressed", String(isRecording));
  write($("record-text"), isRecording ? t("stop", { time: clock(status.duration || 0) }) : t("record"));
  // What the recording waits for changes every second, and is replaced when the recording begins or ends.
  if (status.message) toast(status.message);
  else if (waitingText && $("toast-text").textContent === waitingText) {
    if (isRecording && status.name) toast(t("recording", { name: status.name }));
    else endToast(waitingText);
  }
  waitingText = status.message || null;
  const error = status.error ? status.error.error : null;
  // Every status repeats the error of the last recording, so an error that was shown already is not shown again.
  if (error && error !== knownError) toast(error);
  knownError = error;
  if (ended || began) refreshLibrary();
}

/**
 * @param {any} status
 * @param {number} missed
 */
function onNewStatus(status, missed) {
  if (!status) {
    if (missed >= 2) setReason(button, t("server_gone"));
    return;
  }
  setReason(button, status.recording.state === "off" ? t("no_recorder") : null);
  if (!isBusy) showStatus(status.recording);
}

async function toggleRecording() {
  if (isBusy) return;
  isBusy = true;
  button.setAttribute("aria-busy", "true");
  try {
    const answer = await request("POST", isRecording ? "api/recording/stop" : "api/recording/start");
    const { name, message, status, duration } = answer;
    if (status === "stopped") toast(message || t("saved", { name, time: clock(duration) }));
    else toast(t("recording", { name }));
  } catch (error) {
    toast(/** @type {Error} */ (error).message);
  } finally {
    isBusy = false;
    button.removeAttribute("aria-busy");
  }
  await pollStatus();
}

button.addEventListener("click", toggleRecording);
onKey("r", () => button.click());
wireLibrary();
onStatus(onNewStatus);
// The buttons are disabled in index.html, because a press before this line would be lost.
for (const control of document.querySelectorAll("#bar button")) /** @type {HTMLButtonElement} */ (control).disabled = false;
