// The camera process is killed and returns with another picture size. The page reports that the camera is away, keeps
// its connection and shows the new picture.
import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import path from 'node:path';
import test from 'node:test';
import { assertInOrder, openViewer, startBrowser } from './support/browser.mjs';
import { PICTURES, sleep, startCamera, startServer, uniqueShm, waitFor } from './support/processes.mjs';

const camera = (pattern) =>
  ['--layout', 'v1', '--pattern', pattern, '--fps', '30', '--bitrate-kbps', '2000', '--gop', '30'];

test('a camera that goes away and returns is shown by the same connection', { timeout: 300_000 }, async (t) => {
  const shm = uniqueShm();
  let source = startCamera(shm, camera('1280x720'));
  t.after(() => source.stop());
  const server = await startServer(['--shm', shm]);
  t.after(() => server.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());

  const viewer = await openViewer(browser, server.url);
  await viewer.pictures(30);
  const connections = await viewer.connectionCount();
  await source.stop();
  await waitFor('the page shows that the camera is away', async () => /away/i.test(await viewer.shownText()));
  mkdirSync(PICTURES, { recursive: true });
  await viewer.page.screenshot({ path: path.join(PICTURES, 'away.png') });

  await viewer.forget();
  source = startCamera(shm, camera('640x480'));
  await viewer.pictures(30);
  await waitFor('the page no longer shows "away"', async () => !/away/i.test(await viewer.shownText()));
  const seen = await viewer.seen();
  assertInOrder(assert, seen.filter((picture) => picture.width === 640));
  assert.equal(seen.at(-1).width, 640, 'the new size');
  assert.equal(await viewer.connectionCount(), connections, 'the page reconnected');
  assert.deepEqual(viewer.errors, []);
});

test('the page reconnects when the server is back', { timeout: 300_000 }, async (t) => {
  const first = await startServer(['--demo', '--shm', uniqueShm()]);
  const address = new URL(first.url).host;
  t.after(() => first.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());
  const viewer = await openViewer(browser, first.url);
  await viewer.pictures(20);
  await first.stop();
  const second = await startServer(['--demo', '--shm', uniqueShm(), '--http', address]);
  t.after(() => second.stop());
  await viewer.forget();
  await viewer.pictures(20);
  assert.ok((await viewer.connectionCount()) > 1);
});

test('a viewer that waits for an IDR keeps its connection and shows that IDR', { timeout: 300_000 }, async (t) => {
  const browser = await startBrowser();
  t.after(() => browser.close());
  const shm = uniqueShm();
  // The ring of six slots loses the IDR before the server starts. The next one comes 20 s after the first.
  const source = startCamera(shm, ['--layout', 'v3-6', '--pattern', '640x360', '--fps', '10', '--gop', '200']);
  t.after(() => source.stop());
  await sleep(1_000);
  const server = await startServer(['--shm', shm]);
  t.after(() => server.stop());
  const viewer = await openViewer(browser, server.url);
  await waitFor('the page says what it waits for', async () =>
    /waiting for the camera's next idr/i.test(await viewer.shownText()));
  await viewer.pictures(10);
  assert.equal(await viewer.connectionCount(), 1, 'the page reconnected');
  assert.ok((await viewer.seen())[0].unit % 200 < 20, 'the picture starts with the IDR');
  assert.deepEqual(viewer.errors, []);
});
