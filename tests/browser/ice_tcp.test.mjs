// A browser whose network blocks UDP shows the picture over WebRTC all the same: over TCP.
import assert from 'node:assert/strict';
import test from 'node:test';
import { assertInOrder, openViewer, startBrowser } from './support/browser.mjs';
import { routeThrough, startRelay } from './support/relay.mjs';
import { metric, sleep, startServer, uniqueShm, waitFor } from './support/processes.mjs';

async function start(t, browserArgs = []) {
  const server = await startServer(['--demo', '--shm', uniqueShm()]);
  t.after(() => server.stop());
  const browser = await startBrowser(browserArgs);
  t.after(() => browser.close());
  return { server, browser };
}

const wayOf = (viewer) => viewer.page.evaluate(() => `${window.__viewer.state} ${window.__viewer.way}`);

const viewersOf = async (server) => (await (await fetch(`${server.url}api/viewers`)).json()).filter((one) => one.ended === null);
const requestsOf = async (server) => (await viewersOf(server)).reduce((sum, { plis, nacks }) => sum + plis + nacks, 0);

/** Waits until the picture comes over WebRTC and TCP, then checks it. */
async function watchOverTcp(server, viewer) {
  await waitFor('the viewer over TCP', async () => (await metric(server, 'tcp_viewers')) === 1);
  await waitFor('the picture over WebRTC', async () => (await wayOf(viewer)) === 'live webrtc');
  // HTTP live may have been opened meanwhile. Its pictures would be counted too.
  await waitFor('HTTP live to be closed', async () => (await metric(server, 'http_live_viewers')) === 0);
  // Units are lost while the path changes. The browser then requests an IDR, and the server sends the current GOP again.
  await waitFor('the last request for an IDR', async () => {
    const before = await requestsOf(server);
    await sleep(4000);
    return (await requestsOf(server)) === before;
  });
  await viewer.forget();
  await viewer.pictures(90);
  const units = assertInOrder(assert, await viewer.seen());
  assert.ok(units.length >= 60, `${units.length} readable pictures`);
  // Sessions over UDP that the block has cut off end after a while.
  await waitFor('the end of all sessions over UDP', async () => {
    const transports = (await viewersOf(server)).map((one) => one.transport);
    return transports.length === 1 && transports[0] === 'tcp';
  });
}

test('a browser that uses no UDP at all gets the video over TCP', { timeout: 300_000 }, async (t) => {
  const { server, browser } = await start(t, ['--force-webrtc-ip-handling-policy',
    '--webrtc-ip-handling-policy=disable_non_proxied_udp']);
  const viewer = await openViewer(browser, server.url);
  await watchOverTcp(server, viewer);
  assert.deepEqual(viewer.errors, []);
  await viewer.page.close();
  await waitFor('the connection to be closed', async () => (await metric(server, 'tcp_connections')) === 0);
});

test('a firewall that drops UDP before or during a session leaves TCP', { timeout: 300_000 }, async (t) => {
  const { server, browser } = await start(t);
  const relay = await startRelay(server.udpPort, { seed: 1, lossPercent: 0, delayMs: 0 });
  t.after(() => relay.close());
  const viewer = await openViewer(browser, server.url, routeThrough(relay, { keepsTcp: true }));
  await waitFor('the picture over WebRTC', async () => (await wayOf(viewer)) === 'live webrtc');
  relay.isBlocked = true;
  await watchOverTcp(server, viewer);
  await viewer.page.close();
  const late = await openViewer(browser, server.url, routeThrough(relay, { keepsTcp: true }));
  await watchOverTcp(server, late);
  assert.deepEqual([...viewer.errors, ...late.errors], []);
});
