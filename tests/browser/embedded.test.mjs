// A page of another site uses the camera: it frames the page with a token, and shows and reads recordings. Only a site
// that --allow-origin lists may do so.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import test from 'node:test';
import { startBrowser } from './support/browser.mjs';
import { startServer, uniqueShm, waitFor } from './support/processes.mjs';

const TOKEN = 'correct-horse-battery';

/** Starts a web server for the other sites, and a browser for which every name below .example is this machine. */
async function start(t, options) {
  const directory = mkdtempSync(path.join(tmpdir(), 'ss-embedded-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const site = createServer((request, response) => response.setHeader('content-type', 'text/html').end('<p>home'));
  await new Promise((resolve) => site.listen(0, '127.0.0.1', resolve));
  t.after(() => site.close());
  const home = `http://home.example:${site.address().port}`;
  const server = await startServer(['--demo', '--shm', uniqueShm(), '--state-path', directory, '--allow-origin', home,
    '--record-path', path.join(directory, 'recordings'), ...options]);
  t.after(() => server.stop());
  const browser = await startBrowser(['--host-resolver-rules=MAP *.example 127.0.0.1']);
  t.after(() => browser.close());
  const context = await browser.newContext({ ignoreHTTPSErrors: true });
  const url = options.includes('--tls-self-signed') ? server.url.replace('http:', 'https:') : server.url;
  const open = async (origin) => {
    const page = await context.newPage();
    await page.goto(`${origin}/`);
    return page;
  };
  return { url, home, evil: home.replace('home.', 'evil.'), open };
}

async function frame(page, url) {
  await page.evaluate((src) => document.body.append(Object.assign(document.createElement('iframe'), { src })), url);
  const element = await page.waitForSelector('iframe');
  return element.contentFrame();
}

async function logIn(inside) {
  await inside.waitForSelector('dialog#login[open]');
  await inside.fill('#login-token', TOKEN);
  await inside.click('#login-button');
}

test('a listed site frames the page over TLS and stays logged in', { timeout: 180_000 }, async (t) => {
  const { url, home, evil, open } = await start(t, ['--token', TOKEN, '--tls-self-signed']);
  const page = await open(home);
  await logIn(await frame(page, url));
  await waitFor('the picture in the frame', async () => {
    const inside = await (await page.waitForSelector('iframe')).contentFrame();
    return inside.evaluate(() => window.__viewer?.state === 'live');
  });
  // The login belongs to this site: another one has no login, and may not frame the page at all.
  const other = await open(evil);
  const status = await other.evaluate((address) =>
    fetch(address, { credentials: 'include' }).then(() => 'read', () => 'failed'), `${url}api/status`);
  assert.equal(status, 'failed');
});

test('over plain HTTP the framed page says why the login is not kept', { timeout: 180_000 }, async (t) => {
  const { url, home, open } = await start(t, ['--token', TOKEN]);
  const page = await open(home);
  const inside = await frame(page, url);
  await logIn(inside);
  await waitFor('the explanation', async () => /HTTPS/.test(await inside.locator('#login-note').innerText()));
  const link = inside.locator('#login-tab');
  assert.ok(await link.isVisible());
  const [tab] = await Promise.all([page.context().waitForEvent('page'), link.click()]);
  await logIn(tab);
  await tab.waitForFunction(() => window.__viewer?.state === 'live');
});

test('a listed site shows and reads recordings and events', { timeout: 240_000 }, async (t) => {
  const { url, home, evil, open } = await start(t, ['--token', TOKEN, '--tls-self-signed']);
  const page = await open(home);
  const made = await page.evaluate(async ({ url, token }) => {
    const send = (where, options) => fetch(url + where, { credentials: 'include', ...options });
    const post = (where, body) => send(where, { method: 'POST', body: JSON.stringify(body) });
    const session = await post('api/session', { token });
    while (!(await send('ready')).ok) await new Promise((resolve) => setTimeout(resolve, 100));
    const start = await (await post('api/recording/start', {})).json();
    await new Promise((resolve) => setTimeout(resolve, 1500));
    const stop = await post('api/recording/stop', {});
    const file = `api/recordings/${start.name}`;
    const range = await send(file, { headers: { range: 'bytes=4-7', 'if-none-match': '"other"' } });
    const event = await new Promise((resolve, reject) => {
      const source = new EventSource(`${url}api/events`, { withCredentials: true });
      source.addEventListener('status', () => { source.close(); resolve('status'); });
      source.onerror = () => reject(new Error('no events'));
    });
    return { session: session.status, stop: stop.status, file, event, range: [range.status, await range.text(),
      range.headers.get('content-range'), range.headers.get('accept-ranges'), range.headers.get('etag') !== null] };
  }, { url, token: TOKEN });
  assert.deepEqual([made.session, made.stop, made.event], [200, 200, 'status']);
  assert.deepEqual([made.range[0], made.range[1], ...made.range.slice(3)], [206, 'ftyp', 'bytes', true]);
  assert.match(made.range[2], /^bytes 4-7\/\d+$/);
  const play = (where, crossOrigin) => where.evaluate(({ src, crossOrigin }) => new Promise((resolve) => {
    const video = Object.assign(document.createElement('video'), { muted: true, src });
    if (crossOrigin) video.crossOrigin = crossOrigin;
    video.onloadeddata = () => resolve('plays');
    video.onerror = () => resolve('fails');
  }), { src: url + made.file, crossOrigin });
  assert.equal(await play(page, 'use-credentials'), 'plays');
  assert.equal(await play(page, null), 'plays', 'a video element without crossorigin');
  const other = await open(evil);
  assert.equal(await play(other, 'use-credentials'), 'fails');
  assert.equal(await play(other, null), 'fails');
});
