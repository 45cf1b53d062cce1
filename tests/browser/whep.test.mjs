// Players from npm watch by WHEP, in a page of another origin.
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import test from 'node:test';
import { assertInOrder, openViewer, startBrowser } from './support/browser.mjs';
import { PICTURES, startServer, uniqueShm, waitFor } from './support/processes.mjs';

const TOKEN = 'correct-horse-battery';
const AUTHORIZATION = { Authorization: `Bearer ${TOKEN}` };
const installed = createRequire(import.meta.url);
const text = (name) => readFileSync(installed.resolve(name), 'utf8');

// `tests/peers/run mediamtx` puts the script of mediamtx's page there.
const READER = path.join(PICTURES, '../peers/watch-mediamtx/reader.js');

// The file of @eyevinn/webrtc-player is a CommonJS module. Of the modules that it requires, only `events` is used by its
// WHEP adapter.
const PAGES = {
  '/eyevinn': `<!doctype html><video autoplay muted playsinline></video><script>
    const wrap = (text) => { const module = { exports: {} }; new Function('module', 'exports', 'require', text)(module, module.exports, window.required); return module.exports; };
    window.required = (name) => name === 'events' ? wrap(${JSON.stringify(text('events/'))}) : {};
    window.WebRTCPlayer = wrap(${JSON.stringify(text('@eyevinn/webrtc-player')).replaceAll('</', '<\\/')}).WebRTCPlayer;
  </script>`,
  '/medooze': `<!doctype html><video autoplay muted playsinline></video><script type="module">
    import { WHEPClient } from '/whep.js';
    window.WHEPClient = WHEPClient;
  </script>`,
  '/mediamtx': '<!doctype html><video autoplay muted playsinline></video><script src="/reader.js"></script>',
};
const SCRIPTS = {
  '/whep.js': () => text('whip-whep/whep.js'),
  '/reader.js': () => existsSync(READER) && readFileSync(READER, 'utf8'),
};

/** Serves the pages above. Returns the origin. */
async function servePages(t) {
  const server = createServer((request, response) => {
    const script = SCRIPTS[request.url]?.();
    const body = script || PAGES[request.url];
    response.writeHead(body ? 200 : 404, { 'Content-Type': script ? 'text/javascript' : 'text/html' });
    response.end(body || '');
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => server.close());
  return `http://127.0.0.1:${server.address().port}`;
}

const WITH_TOKEN = ['--token', TOKEN];

/** Starts a server that the pages may use, and opens one of them. */
async function open(t, page, more) {
  const origin = await servePages(t);
  const server = await startServer(['--demo', '--shm', uniqueShm(), '--allow-origin', origin, ...more]);
  t.after(() => server.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());
  const viewer = await openViewer(browser, origin + page);
  return { server, viewer };
}

async function viewers(server) {
  return (await fetch(`${server.url}api/viewers`, { headers: AUTHORIZATION })).json();
}

async function assertDeleted(server) {
  await waitFor('the end of the session', async () => (await viewers(server)).every((viewer) => viewer.ended));
  assert.equal((await viewers(server))[0].ended.reason, 'viewer_closed');
}

async function assertWatches(viewer) {
  await viewer.pictures(60);
  const units = assertInOrder(assert, await viewer.seen());
  assert.ok(units.length >= 55, `${units.length} readable pictures`);
  assert.equal(await viewer.broken(), 0, 'pictures without a readable unit number');
}

test('@eyevinn/webrtc-player watches and deletes its session', { timeout: 180_000 }, async (t) => {
  const { server, viewer } = await open(t, '/eyevinn', [...WITH_TOKEN, '--ice-server', 'stun:127.0.0.1:9']);
  await viewer.page.evaluate(async ([url, authorization]) => {
    window.player = new window.WebRTCPlayer({ video: document.querySelector('video'), type: 'whep' });
    await window.player.load(new URL(url), authorization);
  }, [`${server.url}camera/whep`, AUTHORIZATION.Authorization]);
  await assertWatches(viewer);
  await viewer.page.evaluate(() => window.player.unload());
  await assertDeleted(server);
});

test('whip-whep watches, restarts ICE and deletes its session', { timeout: 180_000 }, async (t) => {
  // One candidate, because whip-whep 1.2.0 puts commas between the candidates of a restart. No audio, because it would
  // send the credentials of the first m-line, although the server has rejected that one.
  const oneCandidate = ['--udp', '127.0.0.1:0', '--ice-tcp', 'off'];
  const { server, viewer } = await open(t, '/medooze', [...WITH_TOKEN, '--workers', '2', ...oneCandidate]);
  const { page } = viewer;
  await waitFor('the module', () => page.evaluate(() => Boolean(window.WHEPClient)));
  await page.evaluate(async ([url, token]) => {
    const pc = new RTCPeerConnection();
    pc.addTransceiver('video', { direction: 'recvonly' });
    pc.ontrack = (event) => { document.querySelector('video').srcObject = new MediaStream([event.track]); };
    window.client = new window.WHEPClient();
    await window.client.view(pc, url, token);
  }, [`${server.url}whep`, TOKEN]);
  await assertWatches(viewer);
  const ufrag = () => page.evaluate(() => /a=ice-ufrag:(\S+)/.exec(window.client.pc.remoteDescription.sdp)[1]);
  const before = await ufrag();
  const { remote } = (await viewers(server))[0];
  await page.evaluate(() => window.client.restart());
  await waitFor('the new credentials', async () => (await ufrag()) !== before);
  // The restart has new sockets, so the viewer's address changes when they are used.
  await waitFor('checks from the new address', async () => (await viewers(server))[0].remote !== remote);
  await viewer.forget();
  await assertWatches(viewer);
  assert.equal(await page.evaluate(() => window.client.pc.iceConnectionState), 'connected');
  assert.equal((await viewers(server)).filter((one) => one.ended).length, 0);
  await page.evaluate(() => window.client.stop());
  await assertDeleted(server);
});

const skip = existsSync(READER) ? false : 'SKIPPED: tests/peers/run mediamtx has not been run here';
test("the script of mediamtx's page watches and sends its candidates", { timeout: 180_000, skip }, async (t) => {
  const { server, viewer } = await open(t, '/mediamtx', [...WITH_TOKEN, '--ice-server', 'stun:127.0.0.1:9']);
  const patches = [];
  viewer.page.on('response', (response) => {
    if (response.request().method() === 'PATCH') patches.push(response.status());
  });
  await viewer.page.evaluate(([url, token]) => {
    window.failures = [];
    window.reader = new window.MediaMTXWebRTCReader({
      url,
      token,
      onError: (error) => window.failures.push(error),
      onTrack: (event) => { document.querySelector('video').srcObject = event.streams[0]; },
    });
  }, [`${server.url}camera/whep`, TOKEN]);
  await assertWatches(viewer);
  assert.deepEqual(await viewer.page.evaluate(() => window.failures), []);
  assert.ok(patches.length > 0 && patches.every((status) => status === 204), `${patches}`);
  // It closes its connection, and sends no DELETE.
  await viewer.page.evaluate(() => window.reader.close());
  await assertDeleted(server);
});
