// The page for a person with a phone: from opening it to a shared recording in few taps, undo of a deletion, zoom, focus,
// no layout shift, and the rules of WCAG 2.2 AA as axe-core checks them.
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import test from 'node:test';
import { openViewer, startBrowser } from './support/browser.mjs';
import { PICTURES, sleep, startServer, uniqueShm, waitFor } from './support/processes.mjs';

// The browser's time zone is one in which it is noon, so that recordings of now are of one day.
const AHEAD_H = 12 - new Date().getUTCHours();
const timezoneId = AHEAD_H === 0 ? 'Etc/GMT' : `Etc/GMT${AHEAD_H > 0 ? '-' : '+'}${Math.abs(AHEAD_H)}`;
const PHONE = { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true, timezoneId };
const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

/** Starts a demo with this number of recordings, and a browser. */
async function start(t, recordings, options = []) {
  const directory = mkdtempSync(path.join(tmpdir(), 'ss-sofa-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const server = await startServer(['--demo', '--shm', uniqueShm(), '--record-path', directory, ...options]);
  t.after(() => server.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());
  await waitFor('the camera', async () => (await fetch(`${server.url}ready`)).ok);
  const post = async (what) => (await fetch(`${server.url}api/recording/${what}`, { method: 'POST' })).json();
  for (let index = 0; index < recordings; index += 1) {
    await post('start');
    await sleep(1500);
    await post('stop');
  }
  const names = async () => (await (await fetch(`${server.url}api/recordings`)).json()).recordings.map(({ name }) => name);
  mkdirSync(PICTURES, { recursive: true });
  return { server, browser, names };
}

const isDrawn = (page, count) => waitFor(`${count} thumbnails`, () =>
  page.evaluate((wanted) => document.querySelectorAll('.thumbnail[data-drawn]').length >= wanted, count));

test('on a phone, one finds, watches, saves and shares a recording of today with three taps', { timeout: 300_000 }, async (t) => {
  const { server, browser, names } = await start(t, 2);
  const viewer = await openViewer(browser, server.url, (page) => page.addInitScript(() => {
    window.shared = [];
    navigator.canShare = () => true;
    navigator.share = async (data) => window.shared.push(data.files.map((file) => [file.name, file.type, file.size]));
  }), PHONE);
  const { page } = viewer;
  await viewer.pictures(5);
  await isDrawn(page, 2);
  assert.equal(await page.locator('#recording-list h3').innerText(), 'Today');
  assert.match(await page.locator('.clip').first().innerText(), /^\d\d:\d\d · 0:0\d\n\d+ kB$/);
  assert.match(await page.locator('#room').innerText(), /^\d.* used, \d.* free$/);
  await page.screenshot({ path: path.join(PICTURES, 'phone-list.png') });
  const [newest] = await names();
  let taps = 0;
  const tap = async (selector) => {
    taps += 1;
    await page.tap(selector);
  };
  await tap('.clip');
  await page.waitForFunction(() => document.getElementById('player').currentTime > 0.3);
  await page.screenshot({ path: path.join(PICTURES, 'phone-player.png') });
  const [download] = await Promise.all([page.waitForEvent('download'), tap('#save-link')]);
  assert.equal(download.suggestedFilename(), newest);
  await tap('#share-button');
  const [[file]] = await waitFor('the shared file', () => page.evaluate(() => window.shared.length && window.shared));
  assert.deepEqual(file.slice(0, 2), [newest, 'video/mp4']);
  assert.ok(file[2] > 10_000, `${file[2]} bytes`);
  assert.ok(taps <= 5, `${taps} taps`);
  await page.tap('#player-close');
  await viewer.pictures(10);
  assert.deepEqual(viewer.errors, []);
});

test('a link to a recording opens it, and a device that shares no files gets that link', { timeout: 300_000 }, async (t) => {
  const { server, browser, names } = await start(t, 1);
  const [name] = await names();
  const viewer = await openViewer(browser, `${server.url}#play=${name}`);
  const { page } = viewer;
  await page.waitForFunction(() => document.getElementById('player').currentTime > 0);
  await page.click('#share-button');
  await waitFor('the message', async () => (await page.locator('#toast').innerText()).includes(`${server.url}#play=${name}`));
  assert.deepEqual(viewer.errors, []);
});

test('a deletion can be undone, and happens when the time for that is over', { timeout: 300_000 }, async (t) => {
  const { server, browser, names } = await start(t, 3);
  const viewer = await openViewer(browser, server.url, undefined, PHONE);
  const { page } = viewer;
  const [first, second, third] = await names();
  const shown = () => page.locator('.clip').count();
  await waitFor('the list', async () => (await shown()) === 3);
  await page.tap('#select-button');
  assert.equal(await page.locator('#delete-selected').isDisabled(), true);
  await page.tap(`[data-name="${first}"]`);
  await page.tap(`[data-name="${second}"]`);
  assert.equal(await page.locator('#selection-count').innerText(), '2 selected');
  await page.tap('#delete-selected');
  assert.equal(await shown(), 1);
  assert.deepEqual(await names(), [first, second, third], 'nothing is deleted while undo is possible');
  await page.tap('#undo-button');
  await waitFor('the list', async () => (await shown()) === 3);
  await page.tap('#select-button');
  await page.tap(`[data-name="${first}"]`);
  await page.tap(`[data-name="${third}"]`);
  await page.tap('#delete-selected');
  await waitFor('the deletion', async () => (await names()).join() === second);
  await waitFor('the message', async () => (await page.locator('#toast').innerText()) === 'Deleted 2');
  // The recording in the player is deleted in the same way.
  await page.tap('.clip');
  await page.tap('#delete-button');
  await waitFor('the empty list', async () => (await names()).length === 0);
  await page.waitForSelector('#recording-none:not([hidden])');
  assert.deepEqual(viewer.errors, []);
});

test('the player shows single pictures, other speeds and a preview', { timeout: 300_000 }, async (t) => {
  const { server, browser } = await start(t, 1);
  const viewer = await openViewer(browser, server.url);
  const { page } = viewer;
  await page.mouse.move(640, 300);
  await page.click('#recordings-button');
  await page.click('.clip');
  const time = () => page.evaluate(() => document.getElementById('player').currentTime);
  await waitFor('the recording plays', async () => (await time()) > 0.5);
  await page.click('#play-button');
  const paused = await time();
  await page.click('#step-forward');
  await waitFor('the next picture', async () => (await time()) > paused);
  assert.ok((await time()) - paused < 0.15, `${paused} to ${await time()}`);
  await page.keyboard.press(',');
  await page.keyboard.press(',');
  await waitFor('the picture before', async () => (await time()) < paused);
  await page.click('#speed-button');
  assert.equal(await page.evaluate(() => document.getElementById('player').playbackRate), 2);
  const seek = await page.locator('#seek').boundingBox();
  await page.mouse.move(seek.x + seek.width * 0.7, seek.y + seek.height / 2);
  await waitFor('the preview', () => page.evaluate(() => {
    const canvas = document.getElementById('seek-preview');
    return !canvas.hidden && canvas.getContext('2d').getImageData(10, 10, 1, 1).data[3] === 255;
  }));
  const [download] = await Promise.all([page.waitForEvent('download'), page.click('#player-snapshot')]);
  assert.match(download.suggestedFilename(), /^snapshot_\d{8}_\d{6}\.png$/);
  const png = readFileSync(await download.path());
  assert.deepEqual([png.readUInt32BE(16), png.readUInt32BE(20)], [1280, 720]);
  await page.keyboard.press('Escape');
  assert.ok(await page.locator('#player').isHidden());
  assert.equal(await page.evaluate(() => document.activeElement.className), 'clip', 'the focus returns to the row');
  await page.keyboard.press('Escape');
  assert.ok(await page.locator('#drawer').isHidden());
  assert.equal(await page.evaluate(() => document.activeElement.id), 'recordings-button');
  assert.deepEqual(viewer.errors, []);
});

test('the picture is enlarged by wheel, double tap and keys, and keys can be switched off', { timeout: 300_000 }, async (t) => {
  const { server, browser } = await start(t, 0);
  const viewer = await openViewer(browser, server.url);
  const { page } = viewer;
  await viewer.pictures(5);
  await page.waitForSelector('#record-button:enabled');
  const scale = () => page.evaluate(() => new DOMMatrix(getComputedStyle(document.getElementById('picture')).transform).a);
  await page.mouse.move(300, 300);
  await page.mouse.wheel(0, -400);
  await waitFor('a larger picture', async () => (await scale()) > 2);
  const left = () => page.evaluate(() => document.getElementById('picture').getBoundingClientRect().left);
  const before = await left();
  await page.mouse.down();
  await page.mouse.move(250, 300);
  await page.mouse.up();
  assert.ok((await left()) < before - 40, 'the picture follows the pointer');
  await page.mouse.wheel(0, 4000);
  await waitFor('the whole picture', async () => (await scale()) === 1);
  await page.keyboard.press('+');
  assert.ok((await scale()) > 1);
  await page.keyboard.press('0');
  await page.mouse.dblclick(600, 300);
  assert.equal(await scale(), 2.5);
  await page.mouse.dblclick(600, 300);
  assert.equal(await scale(), 1);
  await page.keyboard.press('s');
  assert.ok(await page.locator('#details').isVisible());
  await waitFor('the figures', async () => /WebRTC/.test(await page.locator('#figures').innerText()));
  await page.click('#shortcuts-box');
  await page.keyboard.press('Escape');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'status-button');
  await page.keyboard.press('s');
  await page.keyboard.press('+');
  assert.ok(await page.locator('#details').isHidden(), 'the shortcut is switched off');
  assert.equal(await scale(), 1);
  assert.deepEqual(viewer.errors, []);
});

test('nothing moves while the page loads', { timeout: 300_000 }, async (t) => {
  const { server, browser } = await start(t, 2);
  for (const options of [PHONE, { viewport: { width: 1280, height: 720 } }]) {
    const viewer = await openViewer(browser, server.url, (page) => page.addInitScript(() => {
      window.shifts = [];
      new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) {
          const nodes = entry.sources.map(({ node }) => node?.id || node?.nodeName);
          if (!entry.hadRecentInput) window.shifts.push([entry.value, nodes]);
        }
      }).observe({ type: 'layout-shift', buffered: true });
    }), options);
    if (options.isMobile) await isDrawn(viewer.page, 2);
    await viewer.pictures(60);
    const shifts = await viewer.page.evaluate(() => window.shifts);
    assert.deepEqual(shifts.map(String), [], `at ${options.viewport.width} pixels`);
  }
});

test('two fingers enlarge the picture of a phone, and the page below it stays', { timeout: 180_000 }, async (t) => {
  const { server, browser } = await start(t, 0);
  const viewer = await openViewer(browser, server.url, undefined, PHONE);
  const { page } = viewer;
  await viewer.pictures(5);
  await page.waitForSelector('#record-button:enabled');
  const devtools = await page.context().newCDPSession(page);
  const touch = (type, distance) => devtools.send('Input.dispatchTouchEvent', {
    type,
    touchPoints: type === 'touchEnd' ? [] : [{ x: 195 - distance, y: 150, id: 0 }, { x: 195 + distance, y: 150, id: 1 }],
  });
  await touch('touchStart', 30);
  for (let distance = 35; distance <= 90; distance += 5) await touch('touchMove', distance);
  await touch('touchEnd');
  const scale = await page.evaluate(() => new DOMMatrix(getComputedStyle(document.getElementById('picture')).transform).a);
  assert.ok(scale > 2 && scale < 4, `${scale}`);
  assert.equal(await page.evaluate(() => window.visualViewport.scale), 1);
  const stage = await page.locator('#stage').boundingBox();
  assert.deepEqual([stage.x, stage.width], [0, 390]);
  assert.deepEqual(viewer.errors, []);
});

/** Returns the faults that axe-core finds, as text. */
async function faults(page) {
  await page.evaluate(AXE);
  return page.evaluate(async () => {
    const tags = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'];
    const { violations } = await window.axe.run(document, { runOnly: { type: 'tag', values: tags } });
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html.slice(0, 120)).join(' | ')}`);
  });
}

test('axe-core finds no fault in any state', { timeout: 300_000 }, async (t) => {
  const { server, browser } = await start(t, 2);
  for (const options of [PHONE, { viewport: { width: 1280, height: 720 } }, { ...PHONE, locale: 'ja-JP' }]) {
    const where = `at ${options.viewport.width} pixels, ${options.locale ?? 'English'}`;
    const { page } = await openViewer(browser, server.url, undefined, options);
    await page.waitForSelector('body[data-state="live"]', { state: 'attached' });
    if (await page.locator('#recordings-button').isVisible()) await page.click('#recordings-button');
    await isDrawn(page, 2);
    assert.deepEqual(await faults(page), [], `live, ${where}`);
    await page.click('#select-button');
    await page.click('.clip');
    await page.click('#status-button');
    assert.deepEqual(await faults(page), [], `selection and details, ${where}`);
    await page.click('#select-button');
    await page.click('.clip');
    await page.waitForFunction(() => document.getElementById('player').currentTime > 0);
    assert.deepEqual(await faults(page), [], `player, ${where}`);
    await page.context().close();
  }
  await server.stop();
  const locked = await startServer(['--demo', '--shm', uniqueShm(), '--token', 'correct-horse-battery']);
  t.after(() => locked.stop());
  const { page } = await openViewer(browser, locked.url, undefined, PHONE);
  await page.waitForSelector('dialog#login[open]');
  await page.fill('#login-token', 'shown');
  await page.click('#show-token');
  assert.equal(await page.getAttribute('#login-token', 'type'), 'text');
  assert.deepEqual(await faults(page), [], 'login');
});

test('the page is Japanese in a Japanese browser', { timeout: 180_000 }, async (t) => {
  const { server, browser } = await start(t, 0);
  const { page } = await openViewer(browser, server.url, undefined, { ...PHONE, locale: 'ja-JP' });
  await page.waitForSelector('body[data-state="live"]', { state: 'attached' });
  assert.equal(await page.locator('html').getAttribute('lang'), 'ja');
  assert.equal(await page.locator('#state-badge').innerText(), '● ライブ');
  assert.equal(await page.locator('#record-text').innerText(), '録画');
});

test('a server without a recorder says so at the disabled button', { timeout: 180_000 }, async (t) => {
  const { server, browser } = await start(t, 0, ['--no-recorder']);
  const { page } = await openViewer(browser, server.url, undefined, PHONE);
  await page.waitForSelector('#record-button[aria-disabled="true"]');
  await page.tap('#record-button', { force: true }); // Playwright waits for a disabled button, a person does not
  await waitFor('the reason', async () => /without a recorder/.test(await page.locator('#toast').innerText()));
  assert.match(await page.locator('#recording-none').innerText(), /without a recorder/);
  const answer = await page.goto(`${server.url}nothing/here`);
  assert.equal(answer.status(), 404);
  await page.click('a');
  await page.waitForSelector('body[data-state="live"]', { state: 'attached' });
});
