// Starts headless Chromium and reads from its pages which units they showed and which state they report.
import { chromium } from 'playwright-core';
import { waitFor } from './processes.mjs';
import { readUnitNumber, STRIP } from './unit_number.mjs';

const ARGUMENTS = [
  '--headless=new',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--disable-dev-shm-usage',
  '--disable-backgrounding-occluded-windows',
  '--disable-renderer-backgrounding',
  '--disable-background-timer-throttling',
  '--autoplay-policy=no-user-gesture-required',
];

/** Starts a browser with a new profile, which is removed when the browser is closed. */
export async function startBrowser(more = []) {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    headless: true,
    args: [...ARGUMENTS, ...more],
  });
}

// This function runs in the page before the scripts of the page. It stores every connection in window.probe. For every
// presented picture it stores the unit number, which it reads from the cells in the picture.
function probe({ read, strip }) {
  // eslint-disable-next-line no-eval
  const readUnitNumber = (0, eval)(`(${read})`);
  window.probe = { connections: [], seen: [], hasBegun: false, broken: 0 };
  const Original = window.RTCPeerConnection;
  window.RTCPeerConnection = class extends Original {
    constructor(...args) {
      super(...args);
      window.probe.connections.push(this);
    }
  };
  const canvas = document.createElement('canvas');
  const pen = canvas.getContext('2d', { willReadFrequently: true });
  const watch = (video) => {
    const onPicture = (now, metadata) => {
      const height = Math.min(strip.height, video.videoHeight);
      canvas.width = video.videoWidth;
      canvas.height = height;
      pen.drawImage(video, 0, video.videoHeight - height, video.videoWidth, height,
        0, 0, video.videoWidth, height);
      const pixels = pen.getImageData(0, 0, canvas.width, height);
      const unit = readUnitNumber(pixels.data, canvas.width, height, video.videoHeight);
      // A new connection may start with an empty picture.
      if (unit !== null) window.probe.hasBegun = true;
      else if (window.probe.hasBegun) window.probe.broken += 1;
      const shownAt = performance.timeOrigin + metadata.expectedDisplayTime;
      window.probe.seen.push({ unit, at: now, shownAt, presented: metadata.presentedFrames, width: video.videoWidth });
      if (window.probe.seen.length > 20_000) window.probe.seen.shift();
      video.requestVideoFrameCallback(onPicture);
    };
    video.requestVideoFrameCallback(onPicture);
  };
  const known = new WeakSet();
  setInterval(() => {
    for (const video of document.querySelectorAll('video')) {
      if (!known.has(video)) {
        known.add(video);
        watch(video);
      }
    }
  }, 20);
}

/** Opens `url` in a new window, because a background tab presents no pictures. Returns a viewer: its `page`, its
 *  `errors`, and functions that query the page. */
export async function openViewer(browser, url, before = async () => {}, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 720 }, ...options });
  await context.addInitScript(probe, { read: readUnitNumber.toString(), strip: STRIP });
  const page = await context.newPage();
  const errors = [];
  page.on('pageerror', (error) => errors.push(String(error)));
  page.on('console', (message) => { if (message.type() === 'error') errors.push(message.text()); });
  await before(page);
  await page.goto(url);
  const viewer = {
    page,
    errors,
    seen: () => page.evaluate(() => window.probe.seen),
    /** Returns the number of pictures without a readable unit number, after the first readable one. */
    broken: () => page.evaluate(() => window.probe.broken),
    forget: () => page.evaluate(() => { window.probe.seen = []; window.probe.broken = 0; }),
    /** Waits until the page has presented `count` pictures since the last call of `forget`. */
    pictures: (count) => waitFor(`${count} pictures in the page`, () =>
      page.evaluate((wanted) => window.probe.seen.length >= wanted, count)),
    /** Returns the inbound-rtp statistics of the newest connection, and as `unit` the number of the unit that the
     *  page showed last. */
    stats: () => page.evaluate(async () => {
      const report = await window.probe.connections.at(-1).getStats();
      const inbound = [...report.values()].find((entry) => entry.type === 'inbound-rtp' && entry.kind === 'video');
      return { ...inbound, unit: window.probe.seen.at(-1)?.unit };
    }),
    connectionCount: () => page.evaluate(() => window.probe.connections.length),
    /** Returns the state of the page and its visible text. */
    shownText: () => page.evaluate(() => `${document.body.dataset.state} ${document.body.innerText}`),
  };
  return viewer;
}

/** Asserts that the unit numbers never decrease. Returns the readable numbers. */
export function assertInOrder(assert, seen) {
  const units = seen.map((picture) => picture.unit).filter((unit) => unit !== null);
  for (let index = 1; index < units.length; index += 1) {
    assert.ok(units[index] >= units[index - 1], `unit ${units[index]} after ${units[index - 1]}`);
  }
  return units;
}
