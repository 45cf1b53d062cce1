// Simulates a bad network: a UDP relay between viewer and server with seeded random loss and a delay in each direction,
// which is fixed, or random with jitter but without changing the order. Toward the viewer it may also have a rate and a
// queue, which drops what does not fit.
import dgram from 'node:dgram';
import { once } from 'node:events';

/** Returns a function that returns random numbers from 0 to below 1. The algorithm is SplitMix64, as in
 *  tests/support/random.rs. */
function randomOf(seed) {
  let state = BigInt(seed);
  const mask = (1n << 64n) - 1n;
  return () => {
    state = (state + 0x9e3779b97f4a7c15n) & mask;
    let z = state;
    z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & mask;
    z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & mask;
    return Number((z ^ (z >> 31n)) >> 11n) / 2 ** 53;
  };
}

const HEADER_BYTES = 28; // IPv4 and UDP

export async function startRelay(serverPort, { seed, lossPercent, delayMs, jitterMs = 0, queueBytes = Infinity }) {
  const towardViewer = dgram.createSocket({ type: 'udp4', recvBufferSize: 4 << 20 });
  const towardServer = dgram.createSocket({ type: 'udp4', recvBufferSize: 4 << 20 });
  towardViewer.bind(0, '0.0.0.0');
  towardServer.bind(0, '127.0.0.1');
  await Promise.all([once(towardViewer, 'listening'), once(towardServer, 'listening')]);
  // A test may set `isBlocked`: the relay then drops every datagram, as a firewall does. It may set `kbps`, the rate of
  // the link toward the viewer.
  const relay = { port: towardViewer.address().port, lost: 0, forwarded: 0, isBlocked: false, kbps: Infinity };
  let viewer = null;
  const pass = (random, passed, send) => {
    if (relay.isBlocked || random() * 100 < lossPercent) {
      relay.lost += 1;
      return;
    }
    relay.forwarded += 1;
    const leave = () => { try { send(); } catch { /* the socket was closed during the delay */ } };
    if (jitterMs === 0) return void setTimeout(leave, delayMs);
    const now = performance.now();
    passed.at = Math.max(passed.at, now + delayMs + random() * jitterMs);
    setTimeout(leave, passed.at - now);
  };
  // What waits for a link with a rate leaves in order, so one timer serves the whole queue.
  const waiting = [];
  let freeAt = 0;
  let timer = null;
  const leave = () => {
    timer = null;
    while (waiting.length > 0 && waiting[0].at <= performance.now()) waiting.shift().leave();
    if (waiting.length > 0) timer = setTimeout(leave, waiting[0].at - performance.now());
  };
  const queue = (bytes, done) => {
    const now = performance.now();
    const rate = relay.kbps / 8; // bytes per millisecond
    if (rate === Infinity && waiting.length === 0) return done();
    if ((freeAt - now) * rate + bytes.length > queueBytes) {
      relay.lost += 1;
      return undefined;
    }
    freeAt = Math.max(freeAt, now) + (bytes.length + HEADER_BYTES) / rate;
    waiting.push({ at: freeAt, leave: done });
    timer ??= setTimeout(leave, waiting[0].at - now);
    return undefined;
  };
  const up = randomOf(seed);
  const down = randomOf(seed + 1);
  // When the last datagram leaves in each direction.
  const [lastUp, lastDown] = [{ at: 0 }, { at: 0 }];
  towardViewer.on('message', (bytes, from) => {
    viewer = from;
    pass(up, lastUp, () => towardServer.send(bytes, serverPort, '127.0.0.1'));
  });
  towardServer.on('message', (bytes) => {
    if (!viewer) return;
    queue(bytes, () => pass(down, lastDown, () => towardViewer.send(bytes, viewer.port, viewer.address)));
  });
  relay.close = () => { clearTimeout(timer); waiting.length = 0; towardViewer.close(); towardServer.close(); };
  return relay;
}

/** Returns a function that makes a page connect through the relay. The function passes the offers of the page on to
 *  the server. In the answer it replaces the port of every IPv4 candidate over UDP by the port of the relay. It removes
 *  all other candidates, except those over TCP if `keepsTcp` is true. */
export function routeThrough(relay, { keepsTcp = false } = {}) {
  return (page) => page.route('**/api/webrtc/offer', async (route) => {
    // An offer may be under way when the test stops the server.
    const response = await route.fetch().catch(() => null);
    if (!response) return route.abort().catch(() => {});
    const answer = await response.json();
    const lines = answer.sdp.split('\r\n').flatMap((line) => {
      const parts = line.split(' ');
      if (!line.startsWith('a=candidate:')) return [line];
      if (parts[2] === 'tcp') return keepsTcp ? [line] : [];
      if (!/^\d+\.\d+\.\d+\.\d+$/.test(parts[4])) return [];
      parts[5] = String(relay.port);
      return [parts.join(' ')];
    });
    return route.fulfill({ response, json: { ...answer, sdp: lines.join('\r\n') } });
  });
}
