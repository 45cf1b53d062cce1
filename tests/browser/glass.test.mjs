// Latency from capture to display. The browser can compute it only because our RTCP reports return the reference time
// of the browser (RFC 3611). The page tells it to the server.
import assert from 'node:assert/strict';
import { closeSync, openSync, readSync } from 'node:fs';
import test from 'node:test';
import { openViewer, startBrowser } from './support/browser.mjs';
import { metric, startCamera, startServer, uniqueShm, waitFor } from './support/processes.mjs';

test('the browser knows the capture time of each picture', { timeout: 180_000 }, async (t) => {
  const startedAt = Date.now();
  const server = await startServer(['--demo', '--shm', uniqueShm()]);
  t.after(() => server.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());
  const viewer = await openViewer(browser, server.url);
  await viewer.pictures(10);
  const shown = await waitFor('a capture time', () => viewer.page.evaluate(() => new Promise((resolve) => {
    document.querySelector('video').requestVideoFrameCallback((now, { captureTime, expectedDisplayTime }) =>
      resolve(captureTime === undefined ? null : {
        capturedAt: performance.timeOrigin + captureTime,
        ageMs: expectedDisplayTime - captureTime,
      }));
  })));
  t.diagnostic(`shown ${shown.ageMs.toFixed(1)} ms after the capture`);
  assert.ok(shown.ageMs > 0, `shown ${-shown.ageMs} ms before the capture`);
  // The browser estimates our clock from our RTCP reports. The capture time must not be more than a second before the
  // start of the camera.
  assert.ok(shown.capturedAt > startedAt - 1_000, `captured ${startedAt - shown.capturedAt} ms before the camera started`);
});

/** Reads the capture times of the units in a ring of the layout v3: a map from unit number to ms since 1970. */
function watchRing(t, shm) {
  const [SLOTS, FIRST, STRIDE] = [30, 192, 3110464]; // src/camera/layout.rs
  const captured = new Map();
  const file = openSync(`/dev/shm${shm}`, 'r');
  const head = Buffer.alloc(24);
  const read = () => {
    for (let slot = 0; slot < SLOTS; slot += 1) {
      readSync(file, head, 0, head.length, FIRST + slot * STRIDE);
      const [frame, s, ns] = [0, 8, 16].map((offset) => Number(head.readBigUInt64LE(offset)));
      captured.set(frame, s * 1e3 + ns / 1e6);
    }
  };
  const timer = setInterval(read, 200);
  t.after(() => { clearInterval(timer); closeSync(file); });
  return captured;
}

test('the server knows the latency of each viewer as the picture itself shows it', { timeout: 300_000 }, async (t) => {
  const shm = uniqueShm();
  const camera = startCamera(shm, ['--layout', 'v3', '--pattern', '640x360']);
  t.after(() => camera.stop());
  const server = await startServer(['--shm', shm]);
  t.after(() => server.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());
  await waitFor('the camera', async () => (await fetch(`${server.url}ready`)).ok);
  const captured = watchRing(t, shm);
  const reported = new Set();
  const viewer = await openViewer(browser, server.url, async (page) => {
    page.on('request', (request) => {
      if (request.url().endsWith('/api/viewers/report')) reported.add(request.postDataJSON().session);
    });
  });
  const entry = async () => (await (await fetch(`${server.url}api/viewers`)).json())[0];
  await viewer.pictures(330);
  await viewer.forget();
  await viewer.pictures(330);
  // The page measures its newest 300 pictures. A report that has just arrived is about the pictures seen just now.
  const { glass_ms: glass } = await waitFor('a new report', async () => {
    const own = await entry();
    return own?.glass_ms?.age_s === 0 && own.glass_ms.samples >= 300 && own;
  });
  const seen = (await viewer.seen()).filter(({ unit }) => captured.has(unit)).slice(-300);
  const ages = seen.map(({ unit, shownAt }) => shownAt - captured.get(unit)).sort((a, b) => a - b);
  const p50 = ages[Math.floor((ages.length - 1) / 2)];
  t.diagnostic(`reported ${glass.p50.toFixed(1)} ms and ${glass.p95.toFixed(1)} ms; by ${ages.length} pictures ${p50.toFixed(1)} ms`);
  assert.ok(ages.length > 200, `${ages.length} pictures with a known capture time`);
  assert.ok(Math.abs(glass.p50 - p50) < Math.max(10, p50 / 3), `${glass.p50} ms reported, ${p50} ms by the pictures`);
  assert.ok(glass.p95 >= glass.p50);
  assert.ok(await metric(server, 'viewer_glass_seconds') > 0);
  await viewer.page.keyboard.press('s');
  await waitFor('the figure', async () => /\d+ ms \(95 %: \d+ ms\)/.test(await viewer.page.locator('#figures').innerText()));
  assert.equal(reported.size, 1, 'all reports are about one session');
  assert.ok(await viewer.page.locator('#boxes').isHidden(), 'without a detector nothing is drawn');
  assert.deepEqual(viewer.errors, []);

  // Who does not know the key cannot report for the viewer.
  const report = (session) => fetch(`${server.url}api/viewers/report`, {
    method: 'POST',
    body: JSON.stringify({ session, p50_ms: 1, p95_ms: 2, samples: 3 }),
  });
  assert.equal((await report('0'.repeat(32))).status, 404);
  assert.notEqual((await entry()).glass_ms.p50, 1);
  await viewer.page.close();
  await waitFor('the metrics of the viewer end', async () => (await metric(server, 'viewer_glass_seconds')) === 0);
});
