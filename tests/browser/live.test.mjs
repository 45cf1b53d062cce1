// The demo in a real browser: the picture moves, units are in order, and the page reports no error.
import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import path from 'node:path';
import test from 'node:test';
import { assertInOrder, openViewer, startBrowser } from './support/browser.mjs';
import { PICTURES, startServer, uniqueShm } from './support/processes.mjs';

const VIEWERS = Number(process.env.SS_VIEWERS ?? 3);

test('the demo shows a moving picture', { timeout: 180_000 }, async (t) => {
  const server = await startServer(['--demo', '--shm', uniqueShm()]);
  t.after(() => server.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());

  const viewer = await openViewer(browser, server.url);
  await viewer.pictures(60);
  const grab = () => viewer.page.evaluate(() => {
    const video = document.querySelector('video');
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext('2d').drawImage(video, 0, 0);
    return canvas.toDataURL('image/png');
  });
  const first = await grab();
  const before = await viewer.seen();
  await viewer.pictures(before.length + 30);
  assert.notEqual(await grab(), first, 'the picture is frozen');
  const units = assertInOrder(assert, await viewer.seen());
  assert.equal(await viewer.broken(), 0, 'pictures without a readable unit number');
  assert.ok(units.at(-1) > units[0] + 60, `units ${units[0]} to ${units.at(-1)}`);
  const stats = await viewer.stats();
  assert.equal(stats.packetsLost, 0);
  const bufferedMs = (1000 * stats.jitterBufferDelay) / stats.jitterBufferEmittedCount;
  t.diagnostic(`fps ${stats.framesPerSecond}, jitter buffer ${bufferedMs.toFixed(1)} ms`);
  mkdirSync(PICTURES, { recursive: true });
  await viewer.page.screenshot({ path: path.join(PICTURES, 'viewer.png') });
  assert.deepEqual(viewer.errors, []);
  await viewer.page.setViewportSize({ width: 390, height: 844 });
  await viewer.pictures(units.length + 60);
  await viewer.page.screenshot({ path: path.join(PICTURES, 'phone.png') });
});

test(`${VIEWERS} viewers at once miss no unit`, { timeout: 300_000 }, async (t) => {
  const server = await startServer(['--demo', '--shm', uniqueShm()]);
  t.after(() => server.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());

  const viewers = [];
  for (let index = 0; index < VIEWERS; index += 1) viewers.push(await openViewer(browser, server.url));
  for (const viewer of viewers) await viewer.pictures(30);
  const begin = await Promise.all(viewers.map((viewer) => viewer.stats()));
  await Promise.all(viewers.map((viewer) => viewer.forget()));
  for (const viewer of viewers) await viewer.pictures(90);
  const end = await Promise.all(viewers.map((viewer) => viewer.stats()));

  for (const [index, viewer] of viewers.entries()) {
    const seen = await viewer.seen();
    const units = assertInOrder(assert, seen);
    const grown = (name) => end[index][name] - begin[index][name];
    t.diagnostic(`viewer ${index}: units ${units[0]} to ${units.at(-1)}, ${units.length} presented, `
      + `${grown('framesDecoded')} decoded, ${grown('framesDropped')} dropped by the browser, fps ${end[index].framesPerSecond}`);
    assert.equal(await viewer.broken(), 0, `viewer ${index}: pictures without a readable unit number`);
    assert.equal(end[index].packetsLost, 0, `viewer ${index}: packets lost`);
    assert.equal(end[index].nackCount, 0, `viewer ${index}: retransmissions requested`);
    // If the unit number grew by as many units as the browser decoded, no unit was missing. The two may differ by a few
    // pictures between decoder and screen, and by pictures that a busy machine did not present.
    const skipped = Math.max(0, grown('framesDecoded') - units.length);
    const difference = Math.abs(grown('unit') - grown('framesDecoded'));
    assert.ok(difference <= 10 + skipped, `viewer ${index}: ${grown('unit')} units, ${grown('framesDecoded')} decoded`);
  }
  await viewers[0].page.screenshot({ path: path.join(PICTURES, 'crowd.png') });
});
