// Watches a room of LiveKit with its own client in Chromium: watch_livekit.mjs URL TOKEN SECONDS. The time begins with
// the first picture. A transform reads each encoded unit before it is decoded, so that a slow decoder does not count as
// a missing unit.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import puppeteer from 'puppeteer-core';
import { READ_UNITS, result } from './units.mjs';

const [url, token, seconds] = [process.argv[2], process.argv[3], Number(process.argv[4])];
const PAGE = '<title>watch</title><video muted></video><script src="client.js"></script>';
const CLIENT = new URL('node_modules/livekit-client/dist/livekit-client.umd.js', import.meta.url);

const local = createServer((request, response) => {
  const isClient = request.url === '/client.js';
  response.setHeader('Content-Type', isClient ? 'text/javascript' : 'text/html');
  response.end(isClient ? readFileSync(CLIENT) : PAGE);
});
await new Promise((listening) => local.listen(0, '127.0.0.1', listening));
const profile = mkdtempSync(path.join(tmpdir(), 'watch-livekit-'));
const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--headless=new', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync',
    '--autoplay-policy=no-user-gesture-required'],
  ignoreDefaultArgs: ['--enable-automation'],
  userDataDir: profile,
  timeout: 120_000,
  protocolTimeout: (seconds + 120) * 1000,
});
try {
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${local.address().port}/`);
  const seen = await page.evaluate(watch, READ_UNITS, url.replace('http', 'ws'), token, seconds);
  console.log(`${result(seen, seconds)}, ${seen.presented} presented, the first ${seen.first} ms after joining`);
} finally {
  local.close();
  await browser.close();
  rmSync(profile, { recursive: true, force: true });
}

/** Runs in the page. */
async function watch(script, server, permit, duration) {
  const { Room, RoomEvent } = window.LivekitClient;
  const worker = new Worker(URL.createObjectURL(new Blob([script])));
  const units = [];
  worker.onmessage = ({ data }) => units.push(data);
  const video = document.querySelector('video');
  let presented = 0;
  const pictures = new Promise((first) => {
    const onPicture = (_, { presentedFrames }) => {
      presented = presentedFrames;
      first(performance.now());
      video.requestVideoFrameCallback(onPicture);
    };
    video.requestVideoFrameCallback(onPicture);
  });
  // The transform must be set while the event `track` is dispatched. LiveKit's client reports the track later.
  let receiver;
  window.RTCPeerConnection = class extends RTCPeerConnection {
    constructor(...options) {
      super(...options);
      this.addEventListener('track', (event) => {
        receiver = event.receiver;
        receiver.transform = new RTCRtpScriptTransform(worker);
      });
    }
  };
  // In the mode with a single connection, Chromium gives the transform no units.
  const room = new Room({ singlePeerConnection: false });
  room.on(RoomEvent.TrackSubscribed, (track) => track.attach(video));
  const began = performance.now();
  await room.connect(server, permit);
  const first = Math.round((await pictures) - began);
  await new Promise((go) => setTimeout(go, duration * 1000));
  const stats = [...(await receiver.getStats()).values()];
  const rtp = stats.find((stat) => stat.type === 'inbound-rtp') ?? {};
  await room.disconnect();
  return { units, presented, first, lost: rtp.packetsLost ?? 0, decoded: rtp.framesDecoded ?? 0 };
}
