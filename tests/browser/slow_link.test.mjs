// The page says that a connection carries less than the stream, and takes it back when the connection carries more.
import assert from 'node:assert/strict';
import test from 'node:test';
import { openViewer, startBrowser } from './support/browser.mjs';
import { startCamera, startServer, uniqueShm, waitFor } from './support/processes.mjs';
import { routeThrough, startRelay } from './support/relay.mjs';

const NOTE = /^Your connection carries (\d+\.\d) of (\d+\.\d) Mbit\/s: showing (\d+ pictures a second|a picture every \d+ s)\.$/;

test('the page says what a slow connection carries, until it carries the stream again', { timeout: 600_000 }, async (t) => {
  const shm = uniqueShm();
  const camera = startCamera(shm, ['--layout', 'lease', '--pattern', '640x480', '--bitrate-kbps', '3000']);
  t.after(() => camera.stop());
  const server = await startServer(['--shm', shm, '--no-recorder']);
  t.after(() => server.stop());
  const relay = await startRelay(server.udpPort, { seed: 3, lossPercent: 0, delayMs: 10, queueBytes: 60_000 });
  t.after(() => relay.close());
  const browser = await startBrowser();
  t.after(() => browser.close());

  const viewer = await openViewer(browser, server.url, routeThrough(relay));
  const note = viewer.page.locator('#link-note');
  const way = () => viewer.page.evaluate(() => window.__viewer.way);
  await viewer.pictures(60);
  await waitFor('the picture over WebRTC', async () => (await way()) === 'webrtc');

  relay.kbps = 1_200;
  const text = await waitFor('the note', async () => {
    const shown = (await note.isVisible()) ? await note.innerText() : '';
    const found = NOTE.exec(shown);
    return found && Number(found[1]) < Number(found[2]) ? shown : null;
  });
  t.diagnostic(text);
  const [, carried, needed] = NOTE.exec(text).map(Number);
  assert.ok(needed > 1.5 && carried < 3, text);

  relay.kbps = Infinity;
  await waitFor('the end of the note', async () => !(await note.isVisible()) && (await note.innerText()) === '');
  await viewer.forget();
  await viewer.pictures(60);
  assert.deepEqual(viewer.errors, []);
});
