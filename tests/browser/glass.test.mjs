// Latency from capture to display. The browser can compute it only because our RTCP reports return the reference time
// of the browser (RFC 3611).
import assert from 'node:assert/strict';
import test from 'node:test';
import { openViewer, startBrowser } from './support/browser.mjs';
import { startServer, uniqueShm, waitFor } from './support/processes.mjs';

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
