// The picture comes over HTTP if WebRTC does not get through, and over WebRTC again when it does.
import assert from 'node:assert/strict';
import test from 'node:test';
import { assertInOrder, openViewer, startBrowser } from './support/browser.mjs';
import { routeThrough, startRelay } from './support/relay.mjs';
import { metric, sleep, startCamera, startServer, uniqueShm, waitFor } from './support/processes.mjs';

const NO_LOSS = { seed: 1, lossPercent: 0, delayMs: 0 };

/** Watches through a network that drops all UDP and TCP of the server's media port. */
const openBlocked = (browser, server, before = async () => {}) => openViewer(browser, server.url, async (page) => {
  await before(page);
  await routeThrough({ port: 9 })(page);
});

async function start(t, args = ['--demo', '--shm', uniqueShm()], browserArgs = []) {
  const server = await startServer(args);
  t.after(() => server.stop());
  const browser = await startBrowser(browserArgs);
  t.after(() => browser.close());
  return { server, browser };
}

const wayOf = (viewer) => viewer.page.evaluate(() => `${window.__viewer.state} ${window.__viewer.way}`);
const reaches = (viewer, way) => waitFor(`the picture over ${way}`, async () => (await wayOf(viewer)) === `live ${way}`);
const httpViewers = async (server) => (await (await fetch(`${server.url}api/status`)).json()).http_viewers;

test('a browser without UDP shows the picture over HTTP, close to the newest picture', { timeout: 300_000 }, async (t) => {
  // Chromium then uses no UDP at all, only TCP.
  const { server, browser } = await start(t, ['--demo', '--shm', uniqueShm(), '--ice-tcp', 'off'], ['--force-webrtc-ip-handling-policy',
    '--webrtc-ip-handling-policy=disable_non_proxied_udp']);
  const requests = [];
  const viewer = await openViewer(browser, server.url, (page) => page.on('request', (request) => requests.push(request.url())));
  await reaches(viewer, 'http');
  await viewer.forget();
  await viewer.pictures(150);
  const seen = await viewer.seen();
  const units = assertInOrder(assert, seen);
  assert.ok(units.length >= 100, `${units.length} readable pictures`);
  assert.equal(await viewer.page.locator('#way-note').isVisible(), true);
  assert.match(await viewer.page.locator('#way-note').innerText(), /^Over HTTP, about \d+\.\d s later$/);
  assert.equal(await httpViewers(server), 1);
  // Old pictures are removed, and the playback catches up after a pause of the page.
  const video = (body) => viewer.page.evaluate(`(() => { const video = document.querySelector('#http-video'); return ${body}; })()`);
  await video('video.pause()');
  await sleep(3000);
  await video('video.play()');
  await waitFor('the newest picture', async () => (await video('video.buffered.end(video.buffered.length - 1) - video.currentTime')) < 1);
  await waitFor('a time after which old pictures were removed', async () => (await video('video.currentTime')) > 20);
  assert.ok(await video('video.buffered.end(video.buffered.length - 1) - video.buffered.start(0)') < 15);
  // The page goes on trying WebRTC. This does not disturb the picture.
  const count = (name) => requests.filter((url) => url.endsWith(name)).length;
  await waitFor('three attempts of WebRTC', () => count('/offer') >= 3);
  await viewer.forget();
  await viewer.pictures(30);
  assert.equal(count('/live.mp4'), 1);
  assert.equal(await wayOf(viewer), 'live http');
  assert.deepEqual(viewer.errors, []);
  await viewer.page.close();
  await waitFor('the viewer to leave', async () => (await httpViewers(server)) === 0);
});

test('UDP that is dropped and comes back: HTTP and WebRTC take turns', { timeout: 300_000 }, async (t) => {
  const { server, browser } = await start(t);
  const relay = await startRelay(server.udpPort, NO_LOSS);
  t.after(() => relay.close());
  const viewer = await openViewer(browser, server.url, routeThrough(relay));
  // A machine that takes long to connect shows the first pictures over HTTP.
  await reaches(viewer, 'webrtc');
  await waitFor('no use of HTTP', async () => (await httpViewers(server)) === 0);
  const unitsBefore = await metric(server, 'http_live_units_sent_total');
  await viewer.forget();
  await viewer.pictures(30);
  assert.equal(await metric(server, 'http_live_units_sent_total'), unitsBefore, 'HTTP is not used beside WebRTC');
  relay.isBlocked = true;
  await reaches(viewer, 'http');
  await viewer.forget();
  await viewer.pictures(30);
  relay.isBlocked = false;
  await reaches(viewer, 'webrtc');
  await waitFor('HTTP live to be closed', async () => (await httpViewers(server)) === 0);
  assert.equal(await viewer.page.locator('#way-note').isVisible(), false);
  await viewer.forget();
  await viewer.pictures(30);
  assert.deepEqual(viewer.errors, []);
});

test('new parameter sets and a restarted camera are shown over HTTP', { timeout: 300_000 }, async (t) => {
  const shm = uniqueShm();
  const camera = startCamera(shm, ['--layout', 'v3', '--pattern', '640x480', '--change-resolution', '150:320x240']);
  t.after(() => camera.stop());
  const { server, browser } = await start(t, ['--shm', shm]);
  const viewer = await openBlocked(browser, server);
  for (const width of [640, 320, 640]) {
    await waitFor(`a picture of ${width} pixels over HTTP`, async () => {
      const seen = await viewer.seen();
      return (await wayOf(viewer)) === 'live http' && seen.length > 0 && seen.at(-1).width === width;
    });
  }
  await camera.kill();
  await viewer.page.waitForSelector('body[data-state="stalled"], body[data-state="away"]', { state: 'attached' });
  const again = startCamera(shm, ['--layout', 'v3', '--pattern', '640x480']);
  t.after(() => again.stop());
  await viewer.forget();
  await reaches(viewer, 'http');
  await viewer.pictures(30);
});

test('the page says that a browser without Media Source Extensions cannot use HTTP', { timeout: 300_000 }, async (t) => {
  const { server, browser } = await start(t);
  const viewer = await openBlocked(browser, server, (page) => page.addInitScript(() => {
    delete window.MediaSource;
    delete window.ManagedMediaSource;
  }));
  await viewer.page.waitForSelector('body[data-state="blocked"]', { state: 'attached' });
  assert.match(await viewer.page.locator('#message').innerText(), /UDP port 9.*no Media Source Extensions/s);
  assert.equal(await metric(server, 'http_live_units_sent_total'), 0);
});

test('a connected viewer that waits for an IDR does not use HTTP', { timeout: 300_000 }, async (t) => {
  const shm = uniqueShm();
  const camera = startCamera(shm, ['--layout', 'v3', '--pattern', '320x240', '--gop', '100000']);
  t.after(() => camera.stop());
  await sleep(3000); // the ring of a second then holds no IDR
  const { server, browser } = await start(t, ['--shm', shm]);
  const requests = [];
  const viewer = await openViewer(browser, server.url, (page) => page.on('request', (request) => requests.push(request.url())));
  await viewer.page.waitForSelector('body[data-state="idr"]', { state: 'attached' });
  await waitFor('no use of HTTP', async () => (await httpViewers(server)) === 0);
  requests.length = 0; // a machine that takes long to connect tries HTTP first
  await sleep(5000);
  assert.equal(await viewer.page.evaluate(() => window.__viewer.state), 'idr');
  assert.deepEqual(requests.filter((url) => url.endsWith('live.mp4')), []);
});
