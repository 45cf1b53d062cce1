// What the page tells a person, and what a tap does: hidden buttons, messages while the list of recordings is closed,
// and browsers or networks that cannot show the video.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import test from 'node:test';
import { openViewer, startBrowser } from './support/browser.mjs';
import { routeThrough } from './support/relay.mjs';
import { sleep, startCamera, startServer, uniqueShm, waitFor } from './support/processes.mjs';

test('a tap that shows the hidden bar presses no button', { timeout: 300_000 }, async (t) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'ss-page-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const server = await startServer(['--demo', '--shm', uniqueShm(), '--record-path', path.join(directory, 'recordings')]);
  t.after(() => server.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());
  // In portrait orientation the controls are below the picture and never hidden.
  const phone = { viewport: { width: 844, height: 390 }, hasTouch: true, isMobile: true };
  const viewer = await openViewer(browser, server.url, undefined, phone);
  const { page } = viewer;
  await viewer.pictures(10);
  const isRecording = async () => (await (await fetch(`${server.url}api/recording/status`)).json()).recording;
  const areDetailsShown = () => page.getAttribute('#status-button', 'aria-expanded');
  const hidden = () => page.waitForSelector('body[data-quiet][data-state="live"]', { state: 'attached' });
  const shown = () => page.waitForSelector('body:not([data-quiet])', { state: 'attached' });
  const centre = async (selector) => {
    const box = await page.locator(selector).boundingBox();
    return [box.x + box.width / 2, box.y + box.height / 2];
  };
  const settle = () => page.evaluate(() => new Promise((resolve) => setTimeout(resolve, 500)));

  for (const selector of ['#record-button', '#recordings-button', '#status-button', '#stage']) {
    await hidden();
    await page.touchscreen.tap(...await centre(selector));
    await shown();
    await settle();
    assert.equal(await isRecording(), false, `the tap on the hidden ${selector} started a recording`);
    assert.equal(await areDetailsShown(), 'false', `the tap on the hidden ${selector} opened the details`);
    assert.ok(await page.locator('#drawer').isHidden(), `the tap on the hidden ${selector} opened the list`);
  }
  // The second tap presses the visible button. Its message is visible although the list is closed.
  await page.touchscreen.tap(...await centre('#record-button'));
  await waitFor('the recording', isRecording);
  await waitFor('the message', async () => /^Recording .*\.mp4$/.test(await page.locator('#toast').innerText()));
  assert.ok(await page.locator('#toast').isVisible());
  await hidden();
  await page.touchscreen.tap(...await centre('#record-button'));
  await settle();
  assert.equal(await isRecording(), true, 'the tap on the hidden button stopped the recording');
  await page.touchscreen.tap(...await centre('#record-button'));
  await waitFor('the message', async () => /^Saved /.test(await page.locator('#toast').innerText()));
  assert.deepEqual(viewer.errors, []);
});

test('a recording that waits for an IDR is named when it begins', { timeout: 300_000 }, async (t) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'ss-page-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const shm = uniqueShm();
  // The ring of six slots has lost the IDR when the server starts, and the next one comes 10 s later.
  const camera = startCamera(shm, ['--layout', 'v3-6', '--pattern', '640x360', '--fps', '10', '--gop', '100']);
  t.after(() => camera.stop());
  await sleep(1_000);
  const server = await startServer(['--shm', shm, '--record-path', directory]);
  t.after(() => server.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());
  const { page } = await openViewer(browser, server.url);
  const toast = () => page.locator('#toast').innerText();
  await page.click('#record-button');
  await waitFor('what the recording waits for', async () => /waiting for the camera's first IDR/.test(await toast()));
  await waitFor('the name of the recording', async () => /^Recording .*\.mp4$/.test(await toast()));
});

test('the page says why a recording fails while the list is closed', { timeout: 180_000 }, async (t) => {
  const server = await startServer(['--shm', uniqueShm()]);
  t.after(() => server.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());
  const { page } = await openViewer(browser, server.url);
  await page.click('#record-button');
  await waitFor('the message', async () => /camera/.test(await page.locator('#toast').innerText()));
  assert.ok(await page.locator('#toast').isVisible() && await page.locator('#drawer').isHidden());
});

test('the page says what to do if the browser lacks H.264 or WebRTC', { timeout: 180_000 }, async (t) => {
  const server = await startServer(['--demo', '--shm', uniqueShm()]);
  t.after(() => server.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());
  const texts = async (script, options) => {
    const viewer = await openViewer(browser, server.url, async (page) => {
      await page.addInitScript(script);
      await page.route('**/live.mp4', (route) => route.abort());
    }, options);
    await viewer.page.waitForSelector('body[data-state="unable"]', { state: 'attached' });
    return viewer.page.locator('#message').innerText();
  };
  const withoutH264 = () => {
    const original = RTCPeerConnection.prototype.addTransceiver;
    RTCPeerConnection.prototype.addTransceiver = function (...args) {
      const transceiver = original.apply(this, args);
      const { codecs } = RTCRtpReceiver.getCapabilities('video');
      transceiver.setCodecPreferences(codecs.filter((codec) => codec.mimeType !== 'video/H264'));
      return transceiver;
    };
  };
  assert.match(await texts(withoutH264), /no H\.264.*Chrome/s);
  const firefox = { userAgent: 'Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0' };
  assert.match(await texts(withoutH264, firefox), /OpenH264 plug-in.*about:addons/s);
  assert.match(await texts(() => { delete window.RTCPeerConnection; }), /no WebRTC.*Switch it on/s);
  const forbidden = () => { window.RTCPeerConnection = class { constructor() { throw new Error('by policy'); } }; };
  assert.match(await texts(forbidden), /no WebRTC.*by policy/s);
});

test('the page says that UDP does not get through, and recovers when it does', { timeout: 300_000 }, async (t) => {
  const server = await startServer(['--demo', '--shm', uniqueShm()]);
  t.after(() => server.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());
  // Nothing listens at this port, as if a firewall dropped the datagrams to the server.
  const viewer = await openViewer(browser, server.url, async (page) => {
    await routeThrough({ port: 9 })(page);
    await page.route('**/live.mp4', (route) => route.abort());
  });
  await viewer.page.waitForSelector('body[data-state="blocked"]', { state: 'attached' });
  assert.match(await viewer.page.locator('#message').innerText(), /UDP port 9 does not get through/);
  await viewer.page.unroute('**/api/webrtc/offer');
  await viewer.pictures(10);
  await viewer.page.waitForSelector('body[data-state="live"]', { state: 'attached' });
});
