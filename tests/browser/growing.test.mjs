// A recording plays in Chromium while it grows: the browser reads only a small part of the file before the first
// picture, and can seek.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import test from 'node:test';
import { openViewer, startBrowser } from './support/browser.mjs';
import { startCamera, startServer, uniqueShm, waitFor } from './support/processes.mjs';

/** Size of the recording when the browser opens it. */
const RECORDED_BYTES = Number(process.env.SS_GROWING_BYTES ?? 40_000_000);
/** Bytes that the browser may read before the first picture. A browser that looks for the end of the file reads all of
 *  it first. A browser that does not needs 0.2 MB, and reads ahead as fast as the link allows. */
const FIRST_PICTURE_BYTES_MAX = Number(process.env.SS_GROWING_READ ?? RECORDED_BYTES / 2);
/** Rate of the link between server and browser, in bytes per second. */
const LINK_BYTES_PER_S = Number(process.env.SS_GROWING_LINK_KBPS ?? 20_000) * 125;

/** Forwards connections to the server over a slow link, and counts the bytes that the server sends. */
async function startCounter(t, serverUrl) {
  const { hostname, port } = new URL(serverUrl);
  const counter = { bytes: 0 };
  let freeAt = 0;
  const relay = net.createServer((browser) => {
    const server = net.connect(Number(port), hostname);
    browser.pipe(server);
    server.on('data', (data) => {
      counter.bytes += data.length;
      browser.write(data);
      freeAt = Math.max(freeAt, performance.now()) + 1000 * data.length / LINK_BYTES_PER_S;
      server.pause();
      setTimeout(() => server.resume(), freeAt - performance.now());
    });
    server.on('end', () => browser.end());
    for (const [one, other] of [[browser, server], [server, browser]]) {
      one.on('error', () => other.destroy());
      one.on('close', () => other.destroy());
    }
  });
  await new Promise((resolve) => relay.listen(0, '127.0.0.1', resolve));
  t.after(() => relay.close());
  counter.url = `http://127.0.0.1:${relay.address().port}/`;
  return counter;
}

test('a growing recording plays at once and seeks', { timeout: 300_000 }, async (t) => {
  const directory = mkdtempSync(path.join(os.tmpdir(), 'ss-growing-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const shm = uniqueShm();
  const camera = startCamera(shm, ['--bitrate-kbps', process.env.SS_GROWING_KBPS ?? '40000']);
  t.after(() => camera.stop());
  const server = await startServer(['--shm', shm, '--record-path', directory]);
  t.after(() => server.stop());
  const counter = await startCounter(t, server.url);
  await waitFor('the camera', async () => (await fetch(`${server.url}ready`)).ok);
  const post = (what, body) => fetch(`${server.url}api/recording/${what}`, { method: 'POST', body });
  assert.equal((await post('start', '{"filename":"now 1"}')).status, 200);
  const recorded = async () =>
    (await (await fetch(`${server.url}api/recordings`)).json()).recordings.find((it) => it.name === 'now 1.mp4');
  await waitFor('the recording is large', async () => (await recorded())?.bytes >= RECORDED_BYTES);

  const browser = await startBrowser();
  t.after(() => browser.close());
  // The page's own scripts are not needed here. Its policy allows it to play recordings.
  const { page } = await openViewer(browser, counter.url, (it) => it.route('**/*.js', (route) => route.abort()));
  await page.evaluate(() => {
    const video = document.createElement('video');
    video.id = 'player';
    video.muted = true;
    document.body.replaceChildren(video);
  });
  counter.bytes = 0;
  const before = await recorded();
  // Resolves with the state of the video at the next presented picture, or rejects with the video's error.
  const nextPicture = (action) => page.evaluate(({ run, url }) => new Promise((resolve, reject) => {
    const video = document.getElementById('player');
    video.onerror = () => reject(new Error(video.error.message));
    const began = performance.now();
    video.requestVideoFrameCallback((now, { mediaTime }) => {
      video.pause();
      resolve({ mediaTime, duration: video.duration, ms: performance.now() - began });
    });
    if (run === 'open') {
      video.src = url;
      video.play();
    } else {
      video.currentTime = Number(run);
    }
  }), { run: String(action), url: `${counter.url}api/recordings/now%201.mp4` });

  const first = await nextPicture('open');
  const read = counter.bytes;
  t.diagnostic(`first picture after ${first.ms.toFixed()} ms and ${read} of ${before.bytes} bytes`);
  assert.ok(read < FIRST_PICTURE_BYTES_MAX, `${read} bytes were read before the first picture`);
  assert.ok(first.duration >= before.duration - 1, `duration ${first.duration}, recorded ${before.duration}`);
  assert.equal(first.mediaTime, 0);

  const middle = first.duration / 2;
  const sought = await nextPicture(middle);
  t.diagnostic(`seek to the middle: ${sought.ms.toFixed()} ms, ${counter.bytes - read} bytes`);
  assert.ok(Math.abs(sought.mediaTime - middle) < 0.2, `${sought.mediaTime} instead of ${middle}`);

  // The player read the index during the recording. The index stays valid after the recording stops, because the
  // finished file keeps every access unit at the same offset.
  assert.equal((await post('stop')).status, 200);
  const last = await nextPicture(first.duration * 0.9);
  assert.ok(Math.abs(last.mediaTime - first.duration * 0.9) < 0.2, `${last.mediaTime}`);
  const again = await nextPicture(first.duration * 0.2);
  assert.ok(Math.abs(again.mediaTime - first.duration * 0.2) < 0.2, `${again.mediaTime}`);
});
