// The server sends its state to the page as events. The page polls only if no events arrive.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import test from 'node:test';
import { openViewer, startBrowser } from './support/browser.mjs';
import { sleep, startServer, uniqueShm, waitFor } from './support/processes.mjs';

async function stage(t) {
  const directory = mkdtempSync(path.join(os.tmpdir(), 'ss-events-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const server = await startServer(['--demo', '--shm', uniqueShm(), '--record-path', directory]);
  t.after(() => server.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());
  const record = (what) => fetch(`${server.url}api/recording/${what}`, { method: 'POST' });
  const isShown = (viewer, shown) => waitFor(`the record button is ${shown ? '' : 'not '}pressed`, () =>
    viewer.page.evaluate((wanted) => document.getElementById('record-button').ariaPressed === wanted, String(shown)));
  return { server, browser, record, isShown };
}

test('a recording started elsewhere is shown without polling', { timeout: 300_000 }, async (t) => {
  const { server, browser, record, isShown } = await stage(t);
  const requested = [];
  const viewer = await openViewer(browser, server.url, async (page) => {
    page.on('request', (request) => {
      const { pathname } = new URL(request.url());
      // The page also shows another icon, and reports its latency.
      if (pathname.startsWith('/api/') && pathname !== '/api/viewers/report') requested.push(pathname);
    });
  });
  await viewer.pictures(10);
  await waitFor('the page opens the event stream', () => requested.includes('/api/events'));
  await sleep(1500);
  requested.length = 0;
  assert.equal((await record('start')).status, 200);
  await isShown(viewer, true);
  await sleep(3000);
  assert.equal((await record('stop')).status, 200);
  await isShown(viewer, false);
  assert.ok(requested.length <= 1, `requested: ${requested}`); // on a busy machine one poll is allowed
  assert.deepEqual(viewer.errors, []);
});

test('a page without events polls instead', { timeout: 300_000 }, async (t) => {
  const { server, browser, record, isShown } = await stage(t);
  const viewer = await openViewer(browser, server.url, (page) =>
    page.route('**/api/events', (route) => route.abort()));
  await viewer.pictures(10);
  await record('start');
  await isShown(viewer, true);
  await record('stop');
  await isShown(viewer, false);
  await server.stop('SIGKILL');
  await waitFor('the page shows that the server is gone', async () => /server-gone/.test(await viewer.shownText()));
});
