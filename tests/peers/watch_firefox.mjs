// Watches with Firefox for some seconds: watch_firefox.mjs URL SECONDS. A transform reads each encoded unit before it
// is decoded, so that a slow decoder does not count as a missing unit.
import { mkdtempSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import puppeteer from 'puppeteer-core';
import { READ_UNITS, result } from './units.mjs';

const [url, seconds] = [process.argv[2], Number(process.argv[3])];

// The content security policy of the camera's pages forbids this transform, so the page comes from here.
const local = createServer(async (request, response) => {
  if (request.method !== 'POST') return response.setHeader('Content-Type', 'text/html').end('<title>watch</title>');
  const body = Buffer.concat(await request.toArray());
  const answer = await fetch(`${url}/api/webrtc/offer`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body,
  });
  return response.writeHead(answer.status).end(await answer.text());
});
await new Promise((listening) => local.listen(0, '127.0.0.1', listening));
// Firefox offers H.264 only if its OpenH264 plug-in is installed, and it would download that plug-in. To avoid the
// download, this test installs a fake plug-in: its description and an empty library. Firefox then offers H.264, but
// decodes it with FFmpeg (the preference below).
const plugins = mkdtempSync(path.join(tmpdir(), 'watch-firefox-'));
const plugin = path.join(plugins, 'gmp-gmpopenh264', '2.6.0');
mkdirSync(plugin, { recursive: true });
writeFileSync(path.join(plugin, 'gmpopenh264.info'), `Name: gmpopenh264
Description: H.264 for WebRTC
Version: 2.6.0
APIs: encode-video[h264], decode-video[h264]
`);
writeFileSync(path.join(plugin, 'libgmpopenh264.so'), '');

const browser = await puppeteer.launch({
  browser: 'firefox',
  env: { ...process.env, MOZ_GMP_PATH: plugin },
  extraPrefsFirefox: { 'media.navigator.mediadatadecoder_h264_enabled': true },
  executablePath: process.env.FIREFOX ?? '/usr/bin/firefox-esr',
  headless: true,
  timeout: 120_000,
});
try {
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${local.address().port}/`);
  const seen = await page.evaluate(watch, READ_UNITS, seconds);
  console.log(result(seen, seconds));
} finally {
  local.close();
  await browser.close();
  rmSync(plugins, { recursive: true });
}

/** Runs in the page. */
async function watch(script, duration) {
  const worker = new Worker(URL.createObjectURL(new Blob([script])));
  const units = [];
  worker.onmessage = ({ data }) => units.push(data);
  const viewer = new RTCPeerConnection();
  const video = document.createElement('video');
  viewer.ontrack = ({ receiver, track }) => {
    receiver.transform = new RTCRtpScriptTransform(worker);
    video.muted = true;
    video.srcObject = new MediaStream([track]);
    video.play();
  };
  viewer.addTransceiver('video', { direction: 'recvonly' });
  await viewer.setLocalDescription();
  while (viewer.iceGatheringState !== 'complete') await new Promise((go) => setTimeout(go, 20));
  const response = await fetch('/offer', {
    method: 'POST',
    body: JSON.stringify({ type: 'offer', sdp: viewer.localDescription.sdp }),
  });
  if (!response.ok) throw new Error(await response.text());
  await viewer.setRemoteDescription(await response.json());
  await new Promise((go) => setTimeout(go, duration * 1000));
  const stats = [...(await viewer.getStats()).values()];
  const rtp = stats.find((stat) => stat.type === 'inbound-rtp') ?? {};
  viewer.close();
  return { units, lost: rtp.packetsLost ?? 0, decoded: rtp.framesDecoded ?? 0 };
}
