// The login of the viewer page. Every response with 401 opens the form. The right token sets a cookie that scripts
// cannot read, and the page reloads. Without a token on the server the form never opens.

const SESSION = "api/session";
const $ = (id) => document.getElementById(id);
const dialog = $("login");
const field = $("login-token");
const note = $("login-note");
const button = $("login-button");

// This script is loaded first, so every response of the page passes here.
const originalFetch = window.fetch.bind(window);
window.fetch = async (...request) => {
  const response = await originalFetch(...request);
  if (response.status === 401) openForm();
  return response;
};

function openForm() {
  if (dialog.open) return;
  dialog.showModal();
  field.focus();
}

async function logIn(event) {
  event.preventDefault();
  button.disabled = true;
  note.textContent = "";
  try {
    const response = await originalFetch(SESSION, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ token: field.value.trim() }),
    });
    if (response.ok) return location.reload();
    const answer = await response.json().catch(() => ({}));
    note.textContent = refusal(response, answer);
  } catch {
    note.textContent = "The server does not answer. Check that it runs, then try again.";
  }
  button.disabled = false;
  field.select();
}

function refusal(response, answer) {
  if (response.status === 401) return "This is not the token of the server.";
  if (response.status === 429) return `Too many wrong tokens. Try again in ${response.headers.get("retry-after")} s.`;
  return answer.error || `HTTP ${response.status}`;
}

async function logOut() {
  await originalFetch(SESSION, { method: "DELETE" }).catch(() => {});
  location.reload();
}

// Another tab may have logged in meanwhile.
async function checkSession() {
  try {
    const response = await originalFetch(SESSION, { cache: "no-store" });
    if (response.status === 401) return openForm();
    const { token_required: isRequired } = await response.json();
    $("logout-button").hidden = !isRequired;
    if (dialog.open) location.reload();
  } catch {
    // The status of the page already shows that the server does not answer.
  }
}

$("login-form").addEventListener("submit", logIn);
$("logout-button").addEventListener("click", logOut);
dialog.addEventListener("cancel", (event) => event.preventDefault());
// Keys typed into the form are not shortcuts of the page.
dialog.addEventListener("keydown", (event) => event.stopPropagation());
document.addEventListener("visibilitychange", () => !document.hidden && dialog.open && checkSession());
checkSession();
