// Enlarges the picture: two fingers, the wheel, a double tap, or the keys + - 0 and the arrows. One finger or the mouse
// moves the enlarged picture.

const MAX = 8;
const DOUBLE_TAP = 2.5;
const DOUBLE_TAP_MS = 300;
const DOUBLE_TAP_PX = 30;
const KEY_STEP = 1.25;
const KEY_MOVE = 0.1; // part of the picture's size

let scale = 1;
let [x, y] = [0, 0]; // shift of the picture's centre in pixels of the screen
/** @type {HTMLElement} */
let stage;
/** @type {Map<number, { x: number, y: number }>} */
const pointers = new Map();
let tapped = { at: -Infinity, x: 0, y: 0 };

function apply() {
  const [room_x, room_y] = [(stage.clientWidth * (scale - 1)) / 2, (stage.clientHeight * (scale - 1)) / 2];
  x = Math.max(-room_x, Math.min(room_x, x));
  y = Math.max(-room_y, Math.min(room_y, y));
  const transform = scale === 1 ? "" : `translate(${x}px, ${y}px) scale(${scale})`;
  for (const id of ["picture", "player", "player-boxes"]) {
    const part = document.getElementById(id);
    if (part) part.style.transform = transform;
  }
  stage.toggleAttribute("data-zoomed", scale > 1);
}

/** Shows the whole picture again. */
export function resetZoom() {
  [scale, x, y] = [1, 0, 0];
  apply();
}

/**
 * Enlarges the picture by a factor, around the point (`atX`, `atY`) of the window: what is shown there does not move.
 * @param {number} factor
 * @param {number} atX
 * @param {number} atY
 */
function zoomAt(factor, atX, atY) {
  const box = stage.getBoundingClientRect();
  const [fromX, fromY] = [atX - box.left - box.width / 2, atY - box.top - box.height / 2];
  const next = Math.max(1, Math.min(MAX, scale * factor));
  x = fromX - ((fromX - x) * next) / scale;
  y = fromY - ((fromY - y) * next) / scale;
  scale = next < 1.01 ? 1 : next;
  apply();
}

/**
 * Handles a key. Returns false if the key is none of this file.
 * @param {string} key
 */
export function zoomByKey(key) {
  const box = stage.getBoundingClientRect();
  const centre = /** @type {const} */ ([box.left + box.width / 2, box.top + box.height / 2]);
  const moves = /** @type {Record<string, [number, number]>} */ ({ ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] });
  if (key === "+" || key === "=") zoomAt(KEY_STEP, ...centre);
  else if (key === "-" && scale > 1) zoomAt(1 / KEY_STEP, ...centre);
  else if (key === "0" && scale > 1) resetZoom();
  else if (moves[key] && scale > 1) {
    x += moves[key][0] * KEY_MOVE * box.width;
    y += moves[key][1] * KEY_MOVE * box.height;
    apply();
  } else return false;
  return true;
}

/** @param {PointerEvent} event */
function down(event) {
  if (event.target instanceof Element && event.target.closest("button, input")) return;
  if (pointers.size < 2) pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
}

/** @param {PointerEvent} event */
function move(event) {
  const last = pointers.get(event.pointerId);
  if (!last) return;
  const next = { x: event.clientX, y: event.clientY };
  const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
  if (other) {
    const distance = (/** @type {typeof next} */ point) => Math.hypot(point.x - other.x, point.y - other.y) || 1;
    x += (next.x - last.x) / 2;
    y += (next.y - last.y) / 2;
    zoomAt(distance(next) / distance(last), (next.x + other.x) / 2, (next.y + other.y) / 2);
  } else if (scale > 1) {
    x += next.x - last.x;
    y += next.y - last.y;
    apply();
  }
  pointers.set(event.pointerId, next);
}

/** @param {PointerEvent} event */
function click(event) {
  if (event.target instanceof Element && event.target.closest("button, input")) return;
  const { clientX, clientY, timeStamp } = event;
  const isNear = Math.hypot(clientX - tapped.x, clientY - tapped.y) < DOUBLE_TAP_PX;
  // For a mouse, `detail` counts the clicks by the double-click time of the user's system. Not all browsers count taps.
  const isMouse = event.pointerType === "mouse";
  const isDouble = isMouse ? event.detail % 2 === 0 : timeStamp - tapped.at < DOUBLE_TAP_MS && isNear;
  tapped = { at: isDouble ? -Infinity : timeStamp, x: clientX, y: clientY };
  if (!isDouble) return;
  if (scale > 1) resetZoom();
  else zoomAt(DOUBLE_TAP, clientX, clientY);
}

/** @param {HTMLElement} element */
export function watchZoom(element) {
  stage = element;
  stage.addEventListener("pointerdown", down);
  window.addEventListener("pointermove", move);
  for (const name of ["pointerup", "pointercancel"]) {
    window.addEventListener(name, (event) => pointers.delete(/** @type {PointerEvent} */ (event).pointerId));
  }
  stage.addEventListener("click", (event) => click(/** @type {PointerEvent} */ (event)));
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomAt(Math.exp(-event.deltaY / 400), event.clientX, event.clientY);
  }, { passive: false });
  window.addEventListener("resize", apply);
}
