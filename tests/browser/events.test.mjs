// The page hears of the server's state by events, and asks for it only where events don't come.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import test from 'node:test';
import { openViewer, startBrowser } from './support/browser.mjs';
import { sleep, startServer, uniqueShm, waitFor } from './support/house.mjs';

async function stage(t) {
  const directory = mkdtempSync(path.join(os.tmpdir(), 'ss-events-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const server = await startServer(['--demo', '--shm', uniqueShm(), '--record-path', directory]);
  t.after(() => server.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());
  const record = (what) => fetch(`${server.url}api/recording/${what}`, { method: 'POST' });
  const isShown = (viewer, shown) => waitFor(`the record button says ${shown}`, () =>
    viewer.page.evaluate((wanted) => document.getElementById('record-button').ariaPressed === wanted, String(shown)));
  return { server, browser, record, isShown };
}

test('what another client does shows without the page asking', { timeout: 300_000 }, async (t) => {
  const { server, browser, record, isShown } = await stage(t);
  const asked = [];
  const viewer = await openViewer(browser, server.url, async (page) => {
    page.on('request', (request) => asked.push(new URL(request.url()).pathname));
  });
  await viewer.pictures(10);
  await waitFor('the events are asked for', () => asked.includes('/api/events'));
  await sleep(1500);
  asked.length = 0;
  assert.equal((await record('start')).status, 200);
  await isShown(viewer, true);
  await sleep(3000);
  assert.equal((await record('stop')).status, 200);
  await isShown(viewer, false);
  assert.ok(asked.length <= 1, `asked: ${asked}`); // once more is a machine that was held up
  assert.deepEqual(viewer.errors, []);
});

test('a page whose events are held back asks instead', { timeout: 300_000 }, async (t) => {
  const { server, browser, record, isShown } = await stage(t);
  const viewer = await openViewer(browser, server.url, (page) =>
    page.route('**/api/events', (route) => route.abort()));
  await viewer.pictures(10);
  await record('start');
  await isShown(viewer, true);
  await record('stop');
  await isShown(viewer, false);
  await server.stop('SIGKILL');
  await waitFor('the page says that the server is gone', async () => /server-gone/.test(await viewer.says()));
});
