// Joining in the middle of a long GOP, in a real browser: the first picture is there at once, every later one in
// order, and the picture runs at the camera's pace as soon as it has caught up.
//
// SS_JOINS   joins on each ring [3]; with 30 the percentiles mean something
// SS_LAYOUTS rings to join on [v1 v3-6 v0]
// SS_CAMERA  more options of camera-sim
import assert from 'node:assert/strict';
import test from 'node:test';
import { assertInOrder, openViewer, startBrowser } from './support/browser.mjs';
import { metric, sleep, startCamera, startServer, uniqueShm, waitFor } from './support/house.mjs';

const JOINS = Number(process.env.SS_JOINS ?? 3);
const LAYOUTS = (process.env.SS_LAYOUTS ?? 'v1 v3-6 v0').split(' ');
const MORE = (process.env.SS_CAMERA ?? '').split(' ').filter((word) => word !== '');
const FPS = 30;
const GOP_S = 10;
/** How long a viewer is watched after its first picture. */
const WATCH_MS = 4_000;

const camera = (layout) => ['--layout', layout, '--pattern', '1280x720', '--fps', `${FPS}`,
  '--bitrate-kbps', '2000', '--gop', `${FPS * GOP_S}`, ...MORE];

/** Notes when the page takes an answer: the clock starts there. */
function noteAnswer(page) {
  return page.addInitScript(() => {
    const take = RTCPeerConnection.prototype.setRemoteDescription;
    RTCPeerConnection.prototype.setRemoteDescription = function (...args) {
      window.answeredAt ??= performance.now();
      return take.apply(this, args);
    };
  });
}

/** Units between what a viewer shows and what it will show once settled, by time since its first picture: how far it
 *  still has to run. */
function lags(seen) {
  const settled = seen.slice(-FPS).map((picture) => picture.unit - (picture.at * FPS) / 1000).sort((a, b) => a - b);
  const pace = settled[Math.floor(settled.length / 2)];
  return seen.map((picture) => ({ ms: picture.at - seen[0].at, units: pace - (picture.unit - (picture.at * FPS) / 1000) }));
}

async function join(browser, server) {
  const viewer = await openViewer(browser, server.url, noteAnswer);
  await viewer.pictures(1);
  await waitFor('the watched time', () => viewer.page.evaluate(
    (ms) => window.probe.seen.at(-1).at - window.probe.seen[0].at > ms, WATCH_MS));
  const seen = (await viewer.seen()).filter((picture) => picture.unit !== null);
  const answeredAt = await viewer.page.evaluate(() => window.answeredAt);
  const stats = await viewer.stats();
  const broken = await viewer.broken();
  await viewer.page.context().close();
  const lag = lags(seen);
  const caughtUp = lag.findIndex((at) => at.units < 2.5);
  return {
    firstMs: seen[0].at - answeredAt,
    caughtUpMs: lag[caughtUp].ms,
    behind: Math.round(lag[0].units),
    late: lag.filter((at) => at.ms > 1_000 && Math.abs(at.units) > 3.5).length,
    rest: lag.filter((at) => at.ms > 1_000).length,
    seen, stats, broken, errors: viewer.errors,
  };
}

const percentile = (values, share) => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
};

for (const layout of LAYOUTS) {
  test(`${layout}: a viewer that joins in the middle of a long GOP`, { timeout: 900_000 }, async (t) => {
    const shm = uniqueShm();
    const source = startCamera(shm, camera(layout));
    t.after(() => source.stop());
    const server = await startServer(['--shm', shm]);
    t.after(() => server.stop());
    const browser = await startBrowser();
    t.after(() => browser.close());
    await waitFor('an IDR that the ring no longer holds', () =>
      metric(server, 'gop_cache_bytes').then((bytes) => bytes > 0));
    const joins = [];
    while (joins.length < JOINS) {
      const some = Array.from({ length: Math.min(3, JOINS - joins.length) }, async () => {
        await sleep(Math.random() * 3_000);
        return join(browser, server);
      });
      joins.push(...await Promise.all(some));
    }
    for (const [index, one] of joins.entries()) {
      t.diagnostic(`join ${index}: first picture after ${one.firstMs.toFixed(0)} ms, ${one.behind} units behind, `
        + `caught up after ${one.caughtUpMs.toFixed(0)} ms, ${one.late} of ${one.rest} out of pace, `
        + `decoded ${one.stats.framesDecoded}, shown ${one.seen.length}, dropped ${one.stats.framesDropped}, `
        + `lost ${one.stats.packetsLost}, NACK ${one.stats.nackCount}, PLI ${one.stats.pliCount}, `
        + `freezes ${one.stats.freezeCount}`);
    }
    const first = joins.map((one) => one.firstMs);
    t.diagnostic(`first picture p50 ${percentile(first, 0.5).toFixed(0)} ms, p95 ${percentile(first, 0.95).toFixed(0)} ms; `
      + `caught up p95 ${percentile(joins.map((one) => one.caughtUpMs), 0.95).toFixed(0)} ms`);
    for (const one of joins) {
      assertInOrder(assert, one.seen);
      assert.equal(one.broken, 0, 'pictures without a readable unit number');
      assert.deepEqual(one.errors, []);
    }
  });
}
