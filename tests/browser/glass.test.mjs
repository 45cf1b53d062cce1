// Latency from capture to display. The browser can compute it only if our reports return its clock (RFC 3611).
import assert from 'node:assert/strict';
import test from 'node:test';
import { openViewer, startBrowser } from './support/browser.mjs';
import { startServer, uniqueShm, waitFor } from './support/processes.mjs';

test('the browser knows the capture time of each picture', { timeout: 180_000 }, async (t) => {
  const server = await startServer(['--demo', '--shm', uniqueShm()]);
  t.after(() => server.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());
  const viewer = await openViewer(browser, server.url);
  await viewer.pictures(10);
  const age_ms = await waitFor('a capture time', () => viewer.page.evaluate(() => new Promise((resolve) => {
    document.querySelector('video').requestVideoFrameCallback((now, frame) =>
      resolve(frame.captureTime === undefined ? 0 : frame.expectedDisplayTime - frame.captureTime));
  })));
  t.diagnostic(`shown ${age_ms.toFixed(1)} ms after the capture`);
  assert.ok(age_ms > 0 && age_ms < 5_000, `${age_ms} ms`);
});
