// Joining in the middle of a long GOP, in a real browser: a viewer starts with the current GOP, shows its units in
// order, and catches up with the camera. The frame rate is low so that the ring holds seconds. A busy machine then does
// not make the server miss a unit.
//
// Environment variables, with their defaults in brackets:
// SS_JOINS    joins on each ring [3]; use 30 for meaningful percentiles
// SS_LAYOUTS  rings to join on [v1 v3-6 v0]
// SS_FPS      frame rate of the camera [10; 2 on the ring of six slots]
// SS_GOP_S    seconds from one IDR to the next [50]: longer than the test, so that no viewer starts at the next IDR
// SS_CAMERA   more options of camera-sim
import assert from 'node:assert/strict';
import test from 'node:test';
import { assertInOrder, openViewer, startBrowser } from './support/browser.mjs';
import { metric, sleep, startCamera, startServer, uniqueShm, waitFor } from './support/processes.mjs';

const JOINS = Number(process.env.SS_JOINS ?? 3);
const LAYOUTS = (process.env.SS_LAYOUTS ?? 'v1 v3-6 v0').split(' ');
const MORE = (process.env.SS_CAMERA ?? '').split(' ').filter((word) => word !== '');
const GOP_S = Number(process.env.SS_GOP_S ?? 50);
/** Returns the frame rate of the camera. It is so low that the ring holds three seconds of units: a machine that is busy
 *  with the browsers may not run the server for half a second. */
const fpsOf = (layout) => Number(process.env.SS_FPS ?? (layout === 'v3-6' ? 2 : 10));
const AT_ONCE = 3;
/** Milliseconds for which a viewer is watched after it has shown the unit that was newest at its first picture. */
const WATCH_MS = 4_000;

const camera = (layout) => ['--layout', layout, '--pattern', '640x360', '--fps', `${fpsOf(layout)}`,
  '--bitrate-kbps', '1000', '--gop', `${fpsOf(layout) * GOP_S}`, ...MORE];

/** Stores the time at which the page applies the first answer of the server. The test measures the delay of the
 *  first picture from that time. Without Media Source Extensions the page does not open HTTP live, however slowly the
 *  machine sets up the connection. */
function measureWebRtc(page) {
  return page.addInitScript(() => {
    delete window.MediaSource;
    const take = RTCPeerConnection.prototype.setRemoteDescription;
    RTCPeerConnection.prototype.setRemoteDescription = function (...args) {
      window.answeredAt ??= performance.now();
      return take.apply(this, args);
    };
  });
}

/** Returns for each picture the milliseconds since the first picture, and how many units it is behind the steady
 *  pace of the pictures of the last second. */
function lags(seen, fps) {
  const settled = seen.slice(-fps).map((picture) => picture.unit - (picture.at * fps) / 1000).sort((a, b) => a - b);
  const pace = settled[Math.floor(settled.length / 2)];
  return seen.map((picture) => ({ ms: picture.at - seen[0].at, units: pace - (picture.unit - (picture.at * fps) / 1000) }));
}

async function join(browser, server, fps) {
  await sleep(Math.random() * 3_000);
  const viewer = await openViewer(browser, server.url, measureWebRtc);
  await viewer.pictures(1);
  const newest = (await metric(server, 'frames_read_total')) - 1;
  await waitFor(`unit ${newest}, the newest at the time of the first picture`, async () =>
    (await viewer.seen()).some((picture) => picture.unit >= newest));
  await sleep(WATCH_MS);
  await viewer.pictures(fps);
  const seen = await viewer.seen();
  const answeredAt = await viewer.page.evaluate(() => window.answeredAt);
  const stats = await viewer.stats();
  const connections = await viewer.connectionCount();
  await viewer.page.context().close();
  const readable = seen.filter((picture) => picture.unit !== null);
  const lag = lags(readable, fps);
  const later = lag.filter((at) => at.ms > 1_000);
  return {
    first: readable[0],
    firstMs: readable[0].at - answeredAt,
    behind: Math.round(lag[0].units),
    caughtUpMs: lag.find((at) => at.units < 2.5)?.ms ?? Number.NaN,
    late: later.filter((at) => Math.abs(at.units) > 3.5).length / Math.max(1, later.length),
    unitsPerSecond: pace(readable),
    // A new connection may start with an empty picture, so only pictures after the first readable one count as broken.
    broken: seen.filter((picture) => picture.unit === null && picture.at > readable[0].at).length,
    seen: readable, stats, connections, errors: viewer.errors,
  };
}

/** Returns how many units per second the page showed in the last observed second. */
function pace(seen) {
  const last = seen.at(-1);
  const before = seen.findLast((picture) => picture.at < last.at - 1_000) ?? seen[0];
  return (1_000 * (last.unit - before.unit)) / (last.at - before.at);
}

const percentile = (values, share) => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
};

/** Lets viewers join on one ring and returns their measurements. `missed` counts the units that the server lost
 *  because the machine stalled it for longer than the ring holds. After such a loss the server has no whole GOP, and
 *  viewers correctly wait for the next IDR. */
async function joinsOn(t, layout) {
  const shm = uniqueShm();
  const server = await startServer(['--shm', shm]);
  t.after(() => server.stop());
  const source = startCamera(shm, camera(layout));
  t.after(() => source.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());
  await waitFor('an IDR that the ring no longer holds', () =>
    metric(server, 'gop_cache_bytes').then((bytes) => bytes > 0));
  const joins = [];
  while (joins.length < JOINS) {
    const some = Array.from({ length: Math.min(AT_ONCE, JOINS - joins.length) }, () => join(browser, server, fpsOf(layout)));
    joins.push(...await Promise.all(some));
  }
  const lost = ['lapped_total', 'torn_total', 'gop_missed_total'].map((name) => metric(server, name));
  return { joins, missed: (await Promise.all(lost)).reduce((sum, count) => sum + count) };
}

function describe(t, joins) {
  for (const [index, { stats, ...one }] of joins.entries()) {
    t.diagnostic(`join ${index}: first picture after ${one.firstMs.toFixed(0)} ms, unit ${one.first.unit}, ${one.behind} `
      + `behind, caught up after ${one.caughtUpMs.toFixed(0)} ms, ${(100 * one.late).toFixed(0)} % of pictures after 1 s `
      + `out of pace, ${one.unitsPerSecond.toFixed(1)} units/s; decoded ${stats.framesDecoded}, shown ${one.seen.length}, `
      + `dropped ${stats.framesDropped}, lost ${stats.packetsLost}, NACK ${stats.nackCount}, PLI ${stats.pliCount}, `
      + `freezes ${stats.freezeCount}, unreadable ${one.broken}, connections ${one.connections}`);
  }
  const of = (get) => [0.5, 0.95].map((share) => percentile(joins.map(get), share).toFixed(0)).join(', ');
  t.diagnostic(`${joins.length} joins: first picture p50, p95 ${of((one) => one.firstMs)} ms; `
    + `caught up p50, p95 ${of((one) => one.caughtUpMs)} ms`);
}

for (const layout of LAYOUTS) {
  test(`${layout}: viewers that join in the middle of a long GOP get a picture at once`, { timeout: 900_000 }, async (t) => {
    const { joins, missed } = await joinsOn(t, layout);
    describe(t, joins);
    if (missed > 0) t.diagnostic(`the machine stalled the server: ${missed} units lost, so joins may wait for an IDR`);
    for (const one of joins) {
      assertInOrder(assert, one.seen);
      assert.deepEqual(one.errors, []);
      // Without a whole GOP a viewer starts at the next IDR, and the page connects again until it comes. A new
      // connection may start with an empty picture.
      if (missed > 0) continue;
      assert.equal(one.connections, 1, 'the page reconnected');
      assert.equal(one.broken, 0, 'pictures without a readable unit number');
      // Without the catch-up a viewer would start at the next IDR.
      if (GOP_S >= 30) assert.ok(one.first.unit < GOP_S * fpsOf(layout), `started at unit ${one.first.unit}`);
    }
  });
}
