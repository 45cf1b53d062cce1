// The boxes of the detector over the picture. The simulator draws a moving square, and its detector writes where the square
// is 16 to 40 ms after each picture. The test reads the picture's number, the square and the box from the canvas.
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import test from 'node:test';
import { openViewer, startBrowser } from './support/browser.mjs';
import { PICTURES, sleep, startCamera, startServer, uniqueShm, waitFor } from './support/processes.mjs';
import { routeThrough, startRelay } from './support/relay.mjs';
import { readUnitNumber, STRIP } from './support/unit_number.mjs';

const WATCHED = Number(process.env.SS_TEST_SECONDS ?? 30) * 30; // pictures
const TOLERANCE = 2; // pixels
// The colours of boxes, as in overlay.js.
const COLOURS = ['7ee0a1', '8fd0ff', 'ffc46b', 'ff9d97', 'd6b4ff', 'f5f07a', '8ff0e6', 'ffb0dc'].map((text) =>
  [0, 2, 4].map((at) => parseInt(text.slice(at, at + 2), 16)));
const READ = { read: readUnitNumber.toString(), strip: STRIP, colours: COLOURS };

// This function runs in the page before its scripts: it keeps the newest result that has arrived, for the comparison with
// a page that draws boxes on arrival.
function keepNewest() {
  window.newest = null;
  const Original = window.EventSource;
  window.EventSource = class extends Original {
    constructor(...args) {
      super(...args);
      this.addEventListener('detections', (event) => { window.newest = JSON.parse(event.data); });
    }
  };
}

// This function runs in the page after its scripts, so its callback follows theirs: at every picture, it reads what the
// page has just drawn. With `isLive`, the canvas has only the boxes, so the picture and the square are read from the video.
//
// The lines of a box hide the edges of a square that differ by up to 2 pixels. A larger difference is seen: pixels of the
// square's colour then end before the line, or there are some beyond it.
function collect({ read, strip, colours, videoId, canvasId, isLive }) {
  // eslint-disable-next-line no-eval
  const readUnitNumber = (0, eval)(`(${read})`);
  const [video, canvas] = [videoId, canvasId].map((id) => document.getElementById(id));
  const pens = [0, 1].map(() => document.createElement('canvas').getContext('2d', { willReadFrequently: true }));
  const [REACH, GAP, INSIDE] = [300, 8, 8]; // the lines of a box hide 4 pixels
  const isSquare = (r, g, b) => r > 225 && g > 225 && b > 225;
  const isLine = (r, g, b) => colours.some((colour) => Math.abs(r - colour[0]) + Math.abs(g - colour[1]) + Math.abs(b - colour[2]) < 12);
  const pixelsOf = (pen, source) => {
    const [width, height] = [video.videoWidth, video.videoHeight];
    [pen.canvas.width, pen.canvas.height] = [width, height];
    pen.drawImage(source, 0, 0, width, height);
    const { data } = pen.getImageData(0, 0, width, height);
    const is = (x, y, kind) => {
      const at = 4 * (y * width + x);
      return x >= 0 && y >= 0 && x < width && y < height && kind(data[at], data[at + 1], data[at + 2]);
    };
    return { data, width, height, is };
  };
  // Returns the position after the last pixel of the square on the way from a point. A gap is bridged.
  const outermost = ({ is }, x, y, dx, dy) => {
    let last = 0;
    for (let step = 1; step - last <= GAP; step += 1) if (is(x + dx * step, y + dy * step, isSquare)) last = step;
    return (dx ? x : y) + (dx + dy) * last + (dx + dy > 0 ? 1 : 0);
  };
  // Each edge is found from a point that the label of a box hides in no case.
  const squareIn = (picture) => {
    for (let y = 4; y < picture.height - strip.height; y += 8) {
      for (let x = 4; x < picture.width; x += 8) {
        if (!picture.is(x, y, isSquare)) continue;
        const [right, bottom] = [outermost(picture, x, y, 1, 0), outermost(picture, x, y, 0, 1)];
        const [left, top] = [outermost(picture, x, bottom - INSIDE, -1, 0), outermost(picture, right - INSIDE, y, 0, -1)];
        return { left, right, top, bottom };
      }
    }
    return null;
  };
  // Returns the middle of the lines around the square's lower right part. The dark line inside of them is left out.
  const boxIn = ({ is }, square) => {
    const [x, y] = [square.right - INSIDE, square.bottom - INSIDE];
    const way = (dx, dy) => {
      for (let step = 1; step <= REACH; step += 1) {
        if (is(x + dx * step, y + dy * step, isLine)) return (dx ? x : y) + (dx + dy) * step + (dx + dy > 0 ? 1 : 0);
      }
      return NaN;
    };
    return { left: way(-1, 0), right: way(1, 0), top: way(0, -1), bottom: way(0, 1) };
  };
  window.drawn = [];
  const onPicture = (now, { mediaTime, presentedFrames, rtpTimestamp }) => {
    video.requestVideoFrameCallback(onPicture);
    const shown = { presented: presentedFrames, time: rtpTimestamp ?? mediaTime, unit: null, square: null, box: null, arrived: null };
    window.drawn.push(shown);
    if (canvas.hidden && !isLive) return;
    const picture = pixelsOf(pens[0], isLive ? video : canvas);
    const { data, width, height } = picture;
    shown.unit = readUnitNumber(data.subarray(4 * width * (height - strip.height)), width, strip.height, height);
    shown.square = squareIn(picture);
    if (shown.square && !canvas.hidden) shown.box = boxIn(isLive ? pixelsOf(pens[1], canvas) : picture, shown.square);
    const [box] = window.newest?.boxes ?? [];
    if (box) shown.arrived = { left: box.x, right: box.x + box.width, top: box.y, bottom: box.y + box.height };
  };
  video.requestVideoFrameCallback(onPicture);
}

const SIDES = ['left', 'right', 'top', 'bottom'];
const error = (square, box) => {
  const worst = square && box ? Math.max(...SIDES.map((side) => Math.abs(square[side] - box[side]))) : NaN;
  return Number.isNaN(worst) ? Infinity : worst;
};
const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];

/** Starts a server and opens its page in this mode. `options` are those of the server; the default is a demo. */
async function open(t, mode, { before, options = [], source = ['--demo', '--shm', uniqueShm()] } = {}) {
  const server = await startServer([...source, ...options]);
  t.after(() => server.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());
  const viewer = await openViewer(browser, server.url, async (page) => {
    await page.addInitScript(keepNewest);
    await page.addInitScript((chosen) => localStorage.setItem('boxes', chosen), mode);
    await before?.(page, server);
  });
  const decoded = async () => (await viewer.stats()).framesDecoded;
  const watch = async (pictures, isLive = false) => {
    await viewer.page.evaluate(collect, { ...READ, videoId: 'video', canvasId: 'boxes', isLive });
    const start = await decoded();
    await waitFor(`${pictures} pictures`, () => viewer.page.evaluate((wanted) => window.drawn.length >= wanted, pictures));
    const decodedPictures = (await decoded()) - start;
    return { drawn: await viewer.page.evaluate(() => window.drawn), decodedPictures };
  };
  return { server, browser, viewer, watch };
}

function assertInStep(t, { drawn, decodedPictures }) {
  const errors = drawn.map(({ square, box }) => error(square, box));
  const share = (values) => values.filter((value) => value <= TOLERANCE).length / values.length;
  const onArrival = drawn.map(({ square, arrived }) => error(square, arrived));
  t.diagnostic(`${drawn.length} pictures drawn of ${decodedPictures} decoded; box within ${TOLERANCE} pixels in `
    + `${(100 * share(errors)).toFixed(1)} %, drawn on arrival in ${(100 * share(onArrival)).toFixed(1)} %`);
  assert.equal(drawn.filter(({ square, unit }) => square && unit === null).length, 0, 'pictures without a readable number');
  // On a machine that is busy, some results arrive too late, so only SS_STRICT demands 95 %.
  assert.ok(share(errors) >= (process.env.SS_STRICT ? 0.95 : 0.8), `${share(errors)} of the pictures have their box`);
  assert.ok(share(onArrival) < share(errors) - 0.1, `${share(onArrival)} even with the boxes that arrived last`);
  // A machine that is busy may not draw all pictures, so only SS_STRICT checks their number.
  if (process.env.SS_STRICT) assert.ok(drawn.length >= 0.95 * decodedPictures, `${drawn.length} of ${decodedPictures}`);
}

test('exact: the box is on the picture that it belongs to', { timeout: 300_000 }, async (t) => {
  const { viewer, watch } = await open(t, 'exact');
  await waitFor('pictures are held back', () => viewer.page.evaluate(() => window.__viewer.boxes().counts.exact > 100));
  assertInStep(t, await watch(WATCHED));
  const { hold_ms: held } = await viewer.page.evaluate(() => window.__viewer.boxes());
  t.diagnostic(`held back for ${held} ms`);
  mkdirSync(PICTURES, { recursive: true });
  await viewer.page.screenshot({ path: path.join(PICTURES, 'boxes.png') });
  assert.deepEqual(viewer.errors, []);
});

test('exact: also with 3 % loss and 50 ms jitter', { timeout: 300_000 }, async (t) => {
  const before = async (page, server) => {
    const relay = await startRelay(server.udpPort, { seed: 7, lossPercent: 3, delayMs: 5, jitterMs: 50 });
    t.after(() => relay.close());
    await routeThrough(relay)(page);
  };
  const { viewer, watch } = await open(t, 'exact', { before });
  await waitFor('pictures are held back', () => viewer.page.evaluate(() => window.__viewer.boxes().counts.exact > 150));
  assertInStep(t, await watch(WATCHED));
});

test('live: moved boxes are nearer than those drawn on arrival', { timeout: 300_000 }, async (t) => {
  // With a slow detector, a picture is shown before its own result arrives, also on a busy machine.
  const [shm, detections] = [uniqueShm(), uniqueShm()];
  const detector = ['--detections', detections, '--detection-delay-ms', '80-110'];
  const camera = startCamera(shm, ['--pattern', '1280x720', ...detector]);
  t.after(() => camera.stop());
  const { viewer, watch } = await open(t, 'live', { source: ['--shm', shm, '--detections', detections] });
  await waitFor('boxes', () => viewer.page.evaluate(() => window.__viewer.boxes().counts.ahead > 30));
  const { drawn } = await watch(300, true);
  const errors = drawn.map(({ square, box }) => error(square, box));
  const onArrival = drawn.map(({ square, arrived }) => error(square, arrived));
  t.diagnostic(`median error ${median(errors)} pixels, drawn on arrival ${median(onArrival)}`);
  assert.ok(median(onArrival) > TOLERANCE, 'the square moves');
  assert.ok(median(errors) <= median(onArrival) / 3);
  assert.deepEqual(viewer.errors, []);
});

/** Returns where the square is in a picture of 1280x720. The geometry is documented at `Square` in
 *  src/simulator/picture.rs. */
function squareAt(unit) {
  const [side, room] = [96, 416];
  const backAndForth = (span) => Math.min(unit % (2 * span), 2 * span - (unit % (2 * span)));
  return { x: 6 * backAndForth(Math.floor((1280 - side) / 6)), y: 2 * backAndForth(Math.floor((room - side) / 2)), width: side, height: side };
}

/** Makes a recording of some seconds. Returns its name. */
async function record(server, seconds) {
  const post = async (what) => (await fetch(`${server.url}api/recording/${what}`, { method: 'POST' })).json();
  await waitFor('the recording', async () => (await post('start')).name);
  await sleep(1000 * seconds);
  return (await post('stop')).name;
}

test('a recording shows its boxes on exactly their pictures', { timeout: 300_000 }, async (t) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'ss-boxes-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  let sidecar; // content of the detection log instead of the server's, or null for a log that is missing
  let asked = 0;
  const before = (page) => page.route(/\/api\/recordings\/[^/]*\.json$/, (route) => {
    asked += 1;
    if (sidecar === undefined) return route.continue();
    return sidecar === null ? route.fulfill({ status: 404, json: {} }) : route.fulfill({ body: sidecar });
  });
  const { server, viewer } = await open(t, 'live', { before, options: ['--record-path', directory] });
  const { page } = viewer;
  // The controls hide after a while, and each movement shows them.
  let moves = 0;
  const press = async (selector) => {
    moves += 1;
    await page.mouse.move(400 + 3 * moves, 300);
    await page.click(selector);
  };
  // The recording begins up to a second before its start. Results from then are known if a page was open.
  await waitFor('boxes for two seconds', () => page.evaluate(() => window.__viewer.boxes().counts.exact
    + window.__viewer.boxes().counts.ahead > 60));
  const name = await record(server, 3);
  await viewer.pictures(10);
  await press('#recordings-button');
  // With the log of the server, every picture has its boxes, except the last ones: their results came after the end.
  const play = async () => {
    await press('.clip');
    await press('#drawer-close'); // the picture then has the size of the window, so lines have their usual width
    await page.evaluate(collect, { ...READ, videoId: 'player', canvasId: 'player-boxes', isLive: false });
    await page.waitForFunction(() => document.getElementById('player').ended);
    const drawn = await page.evaluate(() => window.drawn);
    const withBoxes = drawn.filter(({ square }) => square);
    const errors = withBoxes.map(({ square, box }) => error(square, box));
    t.diagnostic(`${drawn.length} pictures, ${withBoxes.length} with boxes, greatest error ${Math.max(...errors)} pixels`);
    assert.ok(Math.max(...errors) <= TOLERANCE, `${errors}`);
    return { drawn, withBoxes };
  };
  const logged = await play();
  assert.ok(logged.withBoxes.length >= 0.9 * logged.drawn.length, `${logged.withBoxes.length} of ${logged.drawn.length}`);
  await press('#player-close');
  await press('#recordings-button');
  // Without a log, the recording plays without boxes.
  [sidecar, asked] = [null, 0];
  const toast = () => page.locator('#toast-text').innerText();
  const toastBefore = await toast(); // about the recording that was made
  await press('.clip');
  await page.waitForFunction(() => document.getElementById('player').currentTime > 0.5);
  assert.equal(asked, 1);
  assert.match(viewer.errors.splice(0).join(), /^Failed to load resource: .* 404/, 'the browser reports the missing log');
  assert.ok(await page.locator('#player-boxes').isHidden());
  assert.ok(['', toastBefore].includes(await toast()), 'no message about the missing log');
  const first = await page.evaluate(async ({ read, strip, name: file }) => {
    // The page's policy forbids this after the first wait.
    // eslint-disable-next-line no-eval
    const readNumber = (0, eval)(`(${read})`);
    const video = Object.assign(document.createElement('video'), { muted: true, src: `api/recordings/${file}` });
    const time = await new Promise((resolve) => {
      video.requestVideoFrameCallback((now, { mediaTime }) => resolve(mediaTime));
      video.onloadeddata = () => (video.currentTime = 0.001);
    });
    const pen = document.createElement('canvas').getContext('2d');
    [pen.canvas.width, pen.canvas.height] = [1280, strip.height];
    pen.drawImage(video, 0, 720 - strip.height, 1280, strip.height, 0, 0, 1280, strip.height);
    const { data } = pen.getImageData(0, 0, 1280, strip.height);
    return { time, unit: readNumber(data, 1280, strip.height, 720) };
  }, { ...READ, name });
  await press('#player-close');

  // The second half of the recording has a result for each fourth picture only, and the last second has none.
  const lines = [];
  for (let index = 0; index < 60; index += 1) {
    if (index >= 30 && index % 4) continue;
    const boxes = [{ label: 'cat', confidence: 0.9, ...squareAt(first.unit + index) }];
    lines.push(JSON.stringify({ t: first.time + index / 30, frame: first.unit + index, width: 1280, height: 720, boxes }));
  }
  sidecar = `${lines.join('\n')}\n{"t":`;
  const { drawn, withBoxes } = await play();
  assert.ok(withBoxes.length > 20 && drawn.length - withBoxes.length > 5, `${withBoxes.length} of ${drawn.length}`);
  for (const { square, unit } of withBoxes) {
    const { x, y } = squareAt(unit);
    assert.ok(Math.abs(square.left - x) <= TOLERANCE && Math.abs(square.top - y) <= TOLERANCE, `picture ${unit}`);
  }
  // A snapshot has the boxes that are shown.
  await page.evaluate(() => { document.getElementById('player').currentTime = 0.5; });
  await page.waitForSelector('#player-boxes:not([hidden])');
  await page.mouse.move(640, 300);
  const [download] = await Promise.all([page.waitForEvent('download'), press('#player-snapshot')]);
  const png = readFileSync(await download.path()).toString('base64');
  const coloured = await page.evaluate(async ({ data, colours }) => {
    const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
    const picture = await createImageBitmap(new Blob([bytes], { type: 'image/png' }));
    const pen = new OffscreenCanvas(picture.width, picture.height).getContext('2d');
    pen.drawImage(picture, 0, 0);
    const pixels = pen.getImageData(0, 0, picture.width, picture.height).data;
    let count = 0;
    for (let at = 0; at < pixels.length; at += 4) {
      if (colours.some((colour) => colour.every((value, index) => Math.abs(pixels[at + index] - value) < 4))) count += 1;
    }
    return count;
  }, { data: png, colours: COLOURS });
  assert.ok(coloured > 500, `${coloured} pixels of the colour of the box`);
  assert.deepEqual(viewer.errors, []);
});

test('the boxes follow the picture in every layout, and the key b switches them', { timeout: 300_000 }, async (t) => {
  const { browser, server } = await open(t, 'live');
  for (const options of [
    { viewport: { width: 1280, height: 720 } },
    { viewport: { width: 390, height: 844 }, deviceScaleFactor: 3, hasTouch: true, isMobile: true },
    { viewport: { width: 844, height: 390 }, deviceScaleFactor: 2 },
    { viewport: { width: 700, height: 700 } },
  ]) {
    const viewer = await openViewer(browser, server.url, undefined, options);
    const { page } = viewer;
    const where = `at ${options.viewport.width}x${options.viewport.height}`;
    await page.waitForSelector('#boxes:not([hidden])');
    await page.setViewportSize({ width: options.viewport.height, height: options.viewport.width });
    await page.setViewportSize(options.viewport);
    for (const zoom of ['', '+']) {
      if (zoom) for (let press = 0; press < 5; press += 1) await page.keyboard.press(zoom);
      const fits = () => page.evaluate(() => {
        const [video, canvas] = ['video', 'boxes'].map((id) => document.getElementById(id));
        const [place, own] = [video, canvas].map((element) => JSON.stringify(element.getBoundingClientRect()));
        const fit = [video, canvas].map((element) => getComputedStyle(element).objectFit).join();
        const ratio = canvas.width / canvas.height / (video.videoWidth / video.videoHeight);
        const rect = video.getBoundingClientRect();
        const shown = Math.min(rect.width, (rect.height * video.videoWidth) / video.videoHeight) * devicePixelRatio;
        const isSharp = Math.abs(canvas.width - Math.min(shown, 2560)) <= 2;
        return place === own && fit === 'contain,contain' && Math.abs(ratio - 1) < 0.005 && isSharp;
      });
      await waitFor(`the canvas fits ${where} ${zoom}`, fits);
    }
    await page.context().close();
  }
  const viewer = await openViewer(browser, server.url);
  const { page } = viewer;
  await page.waitForSelector('#boxes:not([hidden])');
  const mode = () => page.evaluate(() => window.__viewer.boxes().mode);
  const connects = () => page.evaluate(() => window.__viewer.stats().connects);
  const offers = [];
  page.on('request', (request) => {
    if (request.url().endsWith('/api/webrtc/offer')) offers.push(request.postDataJSON().playout_delay_max_ms);
  });
  await page.keyboard.press('s');
  await waitFor('what is seen', async () => /(cat|dog), \d+ %/.test(await page.locator('#figures').innerText()));
  assert.deepEqual([await mode(), await connects()], ['live', 1]);
  await page.keyboard.press('b');
  assert.equal(await mode(), 'exact');
  assert.equal(await page.locator('#toast-text').innerText(), 'Boxes: Exact, up to 0.5 s later');
  await waitFor('pictures are held back', () => page.evaluate(() => window.__viewer.boxes().counts.exact > 30));
  await page.keyboard.press('b');
  assert.equal(await mode(), 'off');
  await waitFor('no boxes', () => page.locator('#boxes').isHidden());
  await page.selectOption('#boxes-mode', 'live');
  await page.waitForSelector('#boxes:not([hidden])');
  assert.deepEqual(offers, [500, 0], 'the connection is new if pictures may be held back, or no longer');
  await page.selectOption('#boxes-mode', 'off');
  await page.reload();
  await viewer.pictures(30);
  assert.equal(await mode(), 'off');
  assert.equal(await page.inputValue('#boxes-mode'), 'off');
  assert.deepEqual(viewer.errors, []);
});

test('over HTTP the newest boxes are shown', { timeout: 300_000 }, async (t) => {
  const { viewer } = await open(t, 'exact', { before: routeThrough({ port: 9 }) });
  await viewer.page.waitForSelector('body[data-way="http"]');
  await viewer.page.waitForSelector('#boxes:not([hidden])');
  const { shown, counts } = await viewer.page.evaluate(() => window.__viewer.boxes());
  assert.equal(shown.how, 'arrival');
  assert.equal(counts.exact, 0);
});
