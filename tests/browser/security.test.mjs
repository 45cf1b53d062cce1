// Token and TLS in a real browser: the page asks for the token, plays over https and logs out. Pages of other origins
// or host names can neither read the status nor start a recording.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import test from 'node:test';
import { assertInOrder, openViewer, startBrowser } from './support/browser.mjs';
import { PICTURES, startServer, uniqueShm, waitFor } from './support/processes.mjs';

const TOKEN = 'correct-horse-battery';

function temporary(t) {
  const directory = mkdtempSync(path.join(tmpdir(), 'ss-security-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

const recordsTo = (directory) => ['--record-path', path.join(directory, 'recordings')];
const isRecording = async (server, headers = {}) =>
  (await (await fetch(`${server.url}api/recording/status`, { headers })).json()).recording;

async function logIn(page, token) {
  await page.waitForSelector('dialog#login[open]');
  await page.fill('#login-token', token);
  await page.click('#login-button');
}

test('over https the page asks for the token, plays, records and logs out', { timeout: 240_000 }, async (t) => {
  const directory = temporary(t);
  const server = await startServer(['--demo', '--shm', uniqueShm(), '--tls-self-signed', '--state-path', directory,
    '--token', TOKEN, ...recordsTo(directory)]);
  t.after(() => server.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());
  const url = server.url.replace('http:', 'https:');
  const viewer = await openViewer(browser, url, undefined, { ignoreHTTPSErrors: true });
  const { page } = viewer;

  await logIn(page, 'not-the-token-at-all');
  await page.waitForFunction(() => document.getElementById('login-note').textContent.includes('not the token'));
  assert.equal((await viewer.seen()).length, 0, 'no picture without the token');
  await page.screenshot({ path: path.join(PICTURES, 'login.png') });
  await logIn(page, TOKEN);
  await viewer.pictures(60);
  assertInOrder(assert, await viewer.seen());
  assert.equal(await viewer.broken(), 0);
  assert.equal(await page.evaluate(() => location.protocol), 'https:');
  assert.ok(!(await page.evaluate(() => document.querySelector('dialog#login').open)));

  const [cookie] = await page.context().cookies(url);
  assert.match(cookie.name, /^__Host-streaming-\d+-[0-9a-f]{8}$/);
  assert.deepEqual([cookie.httpOnly, cookie.secure, cookie.sameSite, cookie.path], [true, true, 'Strict', '/']);
  assert.equal(await page.evaluate(() => document.cookie), '', 'scripts must not see the cookie');
  assert.ok(!cookie.value.includes(TOKEN));

  // The whole page works with the cookie alone: events, recording commands, the list of recordings, and a download.
  await page.mouse.move(640, 300); // the page hides the bar while the pointer does not move
  await page.click('#record-button');
  await page.waitForSelector('body[data-recording]');
  await page.mouse.move(600, 320);
  await page.click('#record-button');
  await page.waitForSelector('body:not([data-recording])');
  await page.mouse.move(640, 300);
  await page.click('#recordings-button');
  await page.click('#recording-list .clip');
  await page.waitForFunction(() => document.getElementById('player').readyState >= 2);
  await page.click('#player-close');
  await page.click('#drawer-close');

  await page.reload();
  await viewer.pictures(30);
  const again = await page.context().newPage();
  await again.goto(url);
  await again.waitForSelector('#logout-button:not([hidden])');
  await again.click('#logout-button');
  await again.waitForSelector('dialog#login[open]');
  assert.deepEqual(await page.context().cookies(url), []);
  // The logout in one tab also ends the video in the other tab and opens its login form.
  await page.waitForSelector('dialog#login[open]');
  await page.waitForFunction(() => document.getElementById('video').srcObject === null);
  const open = () => window.probe.connections.filter((pc) => pc.connectionState === 'connected').length;
  assert.equal(await page.evaluate(open), 0);
  // After the logout the server refuses a copy of the cookie.
  const stolen = { cookie: `${cookie.name}=${cookie.value}` };
  const answer = await again.request.get(`${url}api/status`, { headers: stolen });
  assert.equal(answer.status(), 401, 'the server still accepts the cookie after the logout');
  const otherErrors = viewer.errors.filter((error) => !error.includes('401'));
  assert.deepEqual(otherErrors, []);
});

test('the page asks for the token again after it was changed', { timeout: 180_000 }, async (t) => {
  const directory = temporary(t);
  const start = (token, http = '127.0.0.1:0') =>
    startServer(['--demo', '--shm', uniqueShm(), '--token', token, '--http', http, ...recordsTo(directory)]);
  let server = await start(TOKEN);
  t.after(() => server.stop());
  const browser = await startBrowser();
  t.after(() => browser.close());
  const viewer = await openViewer(browser, server.url);
  await logIn(viewer.page, TOKEN);
  await viewer.pictures(10);
  await server.stop();
  server = await start('another-token-than-before', new URL(server.url).host);
  await logIn(viewer.page, 'another-token-than-before');
  await viewer.pictures(10);
});

test('no page of another origin or host name can start a recording', { timeout: 180_000 }, async (t) => {
  const directory = temporary(t);
  // The server has no token, so only its checks of Origin and Host protect it.
  const server = await startServer(['--demo', '--shm', uniqueShm(), ...recordsTo(directory)]);
  t.after(() => server.stop());
  const evil = createServer((request, response) => response.setHeader('content-type', 'text/html').end('<p>evil'));
  await new Promise((resolve) => evil.listen(0, '127.0.0.1', resolve));
  t.after(() => evil.close());
  // Both host names resolve to this machine. evil.example serves a foreign page. rebound.example is a foreign name for
  // our own server, as in a DNS rebinding attack.
  const browser = await startBrowser(['--host-resolver-rules=MAP *.example 127.0.0.1']);
  t.after(() => browser.close());
  const page = await browser.newPage();

  await page.goto(`http://evil.example:${evil.address().port}/`);
  const start = `${server.url}api/recording/start`;
  const tries = await page.evaluate(async ({ start, status }) => {
    const outcome = (promise) => promise.then((answer) => answer.type, () => 'failed');
    const form = document.createElement('form');
    Object.assign(form, { action: start, method: 'POST', target: 'frame' });
    const frame = Object.assign(document.createElement('iframe'), { name: 'frame' });
    document.body.append(frame, form);
    const framed = new Promise((resolve) => frame.addEventListener('load', resolve));
    form.submit();
    await framed;
    return {
      simple: await outcome(fetch(start, { method: 'POST', mode: 'no-cors', body: '{}' })),
      json: await outcome(fetch(start, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{}' })),
      beacon: navigator.sendBeacon(start, '{}'),
      read: await outcome(fetch(status)),
    };
  }, { start, status: `${server.url}api/status` });
  assert.equal(tries.json, 'failed');
  assert.equal(tries.read, 'failed', 'a foreign page read the status');
  assert.equal(await isRecording(server), false, JSON.stringify(tries));

  const port = new URL(server.url).port;
  const answer = await page.goto(`http://rebound.example:${port}/`);
  assert.equal(answer.status(), 403);
  assert.match(await answer.text(), /--allow-host/);
  // A script on the 403 page cannot start a recording either: the page's policy blocks its request. If the request were
  // sent, the server would answer 403.
  const inside = await page.evaluate(() =>
    fetch('/api/recording/start', { method: 'POST' }).then((answer) => answer.status, () => 403));
  assert.equal(inside, 403);
  // Send the same request without a page, so that no browser policy can block it. The server must refuse the host name.
  const asked = await page.request.post(`http://127.0.0.1:${port}/api/recording/start`,
    { headers: { host: `rebound.example:${port}` } });
  assert.equal(asked.status(), 403);
  assert.equal(await isRecording(server), false);

  // Our own page can start a recording, so the requests above failed because of their origin or host name.
  await page.goto(server.url);
  await page.mouse.move(640, 300);
  await page.click('#record-button');
  await waitFor('the recording', () => isRecording(server));
});

test('pages of other origins cannot use the login cookie', { timeout: 180_000 }, async (t) => {
  const directory = temporary(t);
  const server = await startServer(['--demo', '--shm', uniqueShm(), '--token', TOKEN, ...recordsTo(directory)]);
  t.after(() => server.stop());
  const neighbour = createServer((request, response) => response.setHeader('content-type', 'text/html').end('<p>x'));
  await new Promise((resolve) => neighbour.listen(0, '127.0.0.1', resolve));
  t.after(() => neighbour.close());
  const browser = await startBrowser();
  t.after(() => browser.close());
  const page = await browser.newPage();
  await page.goto(server.url);
  await logIn(page, TOKEN);
  await page.waitForSelector('#logout-button:not([hidden])');
  // Another port of the same host is another origin but the same site. The browser therefore sends the SameSite cookie,
  // and the server must not accept it from that origin.
  await page.goto(`http://127.0.0.1:${neighbour.address().port}/`);
  await page.evaluate((start) =>
    fetch(start, { method: 'POST', mode: 'no-cors', credentials: 'include', body: '{}' }).catch(() => {}),
  `${server.url}api/recording/start`);
  const read = await page.evaluate((status) =>
    fetch(status, { credentials: 'include' }).then(() => 'read', () => 'failed'), `${server.url}api/status`);
  assert.equal(read, 'failed');
  assert.equal(await isRecording(server, { authorization: `Bearer ${TOKEN}` }), false);
});

test('a browser that trusts the certificate shows the page without a warning', { timeout: 180_000 }, async (t) => {
  const directory = temporary(t);
  const server = await startServer(['--demo', '--shm', uniqueShm(), '--tls-self-signed', '--state-path', directory]);
  t.after(() => server.stop());
  // Chromium has no option to trust an authority. It can only trust the public key of one certificate, named by its
  // hash.
  const pem = readFileSync(path.join(directory, 'self-signed.pem'), 'latin1');
  const { X509Certificate, createHash } = await import('node:crypto');
  const spki = new X509Certificate(pem).publicKey.export({ type: 'spki', format: 'der' });
  const pin = createHash('sha256').update(spki).digest('base64');
  const browser = await startBrowser([`--ignore-certificate-errors-spki-list=${pin}`]);
  t.after(() => browser.close());
  const viewer = await openViewer(browser, server.url.replace('http:', 'https:'));
  await viewer.pictures(30);
  assert.ok(await viewer.page.evaluate(() => window.isSecureContext));
  assert.deepEqual(viewer.errors, []);
});
