// Shows the login form of the viewer page. Every response with status 401 opens the form. If the token is right, the
// server sets a cookie that scripts cannot read, and the page reloads. If the server has no token, the form never
// opens.

import { $, THUMBNAILS, write } from "./dom.js";
import { t, writeTexts } from "./texts.js";

const SESSION = "api/session";
const dialog = $("login");
const field = $("login-token");
const note = $("login-note");
const button = $("login-button");
const isFramed = window.top !== window; // another site's page may show this page in a frame

// Replaces window.fetch by a function that opens the form after a 401. This script is loaded first, so all requests of
// the other scripts use that function.
const originalFetch = window.fetch.bind(window);
window.fetch = async (...request) => {
  const response = await originalFetch(...request);
  if (response.status === 401) openForm();
  return response;
};

// Removes the thumbnails of recordings, so that they do not stay in the browser after a logout.
function forgetThumbnails() {
  if (window.caches) caches.delete(THUMBNAILS).catch(() => {});
}

function openForm() {
  if (dialog.open) return;
  forgetThumbnails();
  dialog.showModal();
  field.focus();
}

/** @param {Event} event */
async function logIn(event) {
  event.preventDefault();
  button.disabled = true;
  note.textContent = "";
  try {
    const response = await originalFetch(SESSION, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ token: field.value.trim(), framed: isFramed }),
    });
    if (response.ok) {
      if (await isLoggedIn()) return location.reload();
      note.textContent = loginNotKept();
      $("login-tab").hidden = !isFramed;
      button.disabled = false;
      return;
    }
    const answer = await response.json().catch(() => ({}));
    note.textContent = refusal(response, answer);
  } catch {
    note.textContent = t("server_silent");
  }
  button.disabled = false;
  field.select();
}

// The page cannot read the cookie of the login. So it asks the server if the browser sends the cookie back.
async function isLoggedIn() {
  return (await originalFetch(SESSION, { cache: "no-store" })).status !== 401;
}

function loginNotKept() {
  if (!isFramed) return t("cookie_blocked");
  return t("not_kept", { reason: t(location.protocol === "https:" ? "framed_https" : "framed_http") });
}

/**
 * @param {Response} response
 * @param {any} answer
 */
function refusal(response, answer) {
  if (response.status === 401) return t("wrong_token");
  if (response.status === 429) return t("too_many_tokens", { seconds: response.headers.get("retry-after") || "" });
  return answer.error || `HTTP ${response.status}`;
}

function toggleToken() {
  const isShown = field.type === "password";
  field.type = isShown ? "text" : "password";
  $("show-token").setAttribute("aria-pressed", String(isShown));
  write($("show-token"), t(isShown ? "hide" : "show"));
}

async function logOut() {
  forgetThumbnails();
  await originalFetch(SESSION, { method: "DELETE" }).catch(() => {});
  location.reload();
}

// Checks if the page is logged in. This runs at start, and when the page becomes visible while the form is open:
// another tab may have logged in meanwhile.
async function checkSession() {
  try {
    const response = await originalFetch(SESSION, { cache: "no-store" });
    if (response.status === 401) return openForm();
    const { token_required: isRequired } = await response.json();
    $("logout-button").hidden = !isRequired;
    if (dialog.open) location.reload();
  } catch {
    // No message is needed here: the page already shows that the server does not answer.
  }
}

writeTexts();
$("show-token").addEventListener("click", toggleToken);
$("login-form").addEventListener("submit", logIn);
$("logout-button").addEventListener("click", logOut);
dialog.addEventListener("cancel", (/** @type {Event} */ event) => event.preventDefault());
// Keys typed into the form must not trigger the keyboard shortcuts of the page.
dialog.addEventListener("keydown", (/** @type {Event} */ event) => event.stopPropagation());
document.addEventListener("visibilitychange", () => !document.hidden && dialog.open && checkSession());
checkSession();
