// What the server says of itself, once a second and at every change.
//
//   EventSource api/events ──► status, camera, viewers, recording ──► every listener, the newest status whole
//   silent for a while, or not to be had (a proxy, too many listeners) ──► GET api/status once a second
//
// Nothing is asked while the page is hidden: a browser gives one server six connections for all its tabs.

const TICK_MS = 1000;
const SILENCE_MS = 2500; // two of the server's seconds, and some
const ASK_TIMEOUT_MS = 3000;
const AGAIN_MS = [1000, 2000, 5000, 10000];

const listeners = [];
let source = null;
let openings = 0;
let openAgainAt = 0;
let heardAt = 0;
let missed = 0;
let status = null;

// Calls `listener(status, missed)`: the newest status, or null and how many times in a row none was to be had.
export function onStatus(listener) {
  listeners.push(listener);
}

function tell() {
  for (const listener of listeners) listener(status, missed);
}

function heard(news) {
  heardAt = performance.now();
  missed = 0;
  openings = 0;
  status = { ...status, ...news };
  tell();
}

function open() {
  source = new EventSource("api/events");
  source.addEventListener("status", (event) => heard(JSON.parse(event.data)));
  for (const part of ["camera", "viewers", "recording"]) {
    source.addEventListener(part, (event) => status && heard({ [part]: JSON.parse(event.data) }));
  }
  source.onerror = () => {
    close();
    heardAt = 0; // the next tick asks
    openAgainAt = performance.now() + AGAIN_MS[Math.min(openings, AGAIN_MS.length - 1)];
    openings += 1;
  };
}

function close() {
  if (source) source.close();
  source = null;
}

// As fetch; the time holds for the answer's body too. (AbortSignal.timeout is unknown to Safari before 16.)
export function fetchWithTimeout(path, timeout_ms, options = {}) {
  const abort = new AbortController();
  setTimeout(() => abort.abort(), timeout_ms); // nothing to abort once the body is read
  return fetch(path, { cache: "no-store", signal: abort.signal, ...options });
}

// Tells at once, for example after the page's own command.
export async function askStatus() {
  try {
    const response = await fetchWithTimeout("api/status", ASK_TIMEOUT_MS);
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    const news = await response.json();
    const opened = openings; // an answer is no sign that events come
    heard(news);
    openings = opened;
  } catch {
    missed += 1;
    status = null;
    tell();
  }
}

async function tick() {
  const now = performance.now();
  if (document.hidden) {
    close();
  } else {
    if (!source && window.EventSource && now >= openAgainAt) open();
    if (now - heardAt > SILENCE_MS) {
      const silent = source;
      await askStatus();
      // The server answers and the source is silent: it hangs, or a proxy holds its events back.
      if (silent && silent === source && missed === 0 && silent.readyState === EventSource.OPEN) silent.onerror();
    }
  }
  setTimeout(tick, TICK_MS);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) openAgainAt = 0;
});
window.addEventListener("pagehide", close);
setTimeout(tick);
