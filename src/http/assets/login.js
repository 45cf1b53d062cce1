// The login of the viewer page. Whatever the page asks for and is refused (401) brings up the form; the right token
// becomes a cookie that scripts cannot read, and the page starts afresh. Where no token is asked for, nothing shows.

const SESSION = "api/session";
const $ = (id) => document.getElementById(id);
const dialog = $("login");
const field = $("login-token");
const note = $("login-note");
const button = $("login-button");

// Loaded before the other scripts: every answer passes here.
const fetchPlainly = window.fetch.bind(window);
window.fetch = async (...request) => {
  const response = await fetchPlainly(...request);
  if (response.status === 401) ask();
  return response;
};

function ask() {
  if (dialog.open) return;
  dialog.showModal();
  field.focus();
}

async function logIn(event) {
  event.preventDefault();
  button.disabled = true;
  note.textContent = "";
  try {
    const response = await fetchPlainly(SESSION, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ token: field.value.trim() }),
    });
    if (response.ok) return location.reload();
    const answer = await response.json().catch(() => ({}));
    note.textContent = refusal(response, answer);
  } catch {
    note.textContent = "The server does not answer.";
  }
  button.disabled = false;
  field.select();
}

function refusal(response, answer) {
  if (response.status === 401) return "That is not the token.";
  if (response.status === 429) return `Too many wrong tokens. Try again in ${response.headers.get("retry-after")} s.`;
  return answer.error || `HTTP ${response.status}`;
}

async function logOut() {
  await fetchPlainly(SESSION, { method: "DELETE" }).catch(() => {});
  location.reload();
}

// Another tab may have logged in meanwhile.
async function look() {
  try {
    const response = await fetchPlainly(SESSION, { cache: "no-store" });
    if (response.status === 401) return ask();
    const { token_required: isRequired } = await response.json();
    $("logout-button").hidden = !isRequired;
    if (dialog.open) location.reload();
  } catch {
    // The page says itself that the server is gone.
  }
}

$("login-form").addEventListener("submit", logIn);
$("logout-button").addEventListener("click", logOut);
dialog.addEventListener("cancel", (event) => event.preventDefault());
// The page's keys are not for what is typed here.
dialog.addEventListener("keydown", (event) => event.stopPropagation());
document.addEventListener("visibilitychange", () => !document.hidden && dialog.open && look());
look();
