// Tests of the test support: the relay drops the configured share and delivers the rest. The reader of unit numbers
// reads the number in a picture, and refuses it if a cell is wrong.
import assert from 'node:assert/strict';
import dgram from 'node:dgram';
import { once } from 'node:events';
import test from 'node:test';
import { sleep } from './support/processes.mjs';
import { startRelay } from './support/relay.mjs';
import { readUnitNumber, STRIP } from './support/unit_number.mjs';

test('the relay drops the configured share and delivers the rest', async (t) => {
  const server = dgram.createSocket('udp4');
  server.bind(0, '127.0.0.1');
  await once(server, 'listening');
  const relay = await startRelay(server.address().port, { seed: 1, lossPercent: 50, delayMs: 5 });
  const viewer = dgram.createSocket('udp4');
  t.after(() => { server.close(); relay.close(); viewer.close(); });
  let arrived = 0;
  server.on('message', () => { arrived += 1; });
  for (let number = 0; number < 200; number += 1) viewer.send(Buffer.from([number]), relay.port, '127.0.0.1');
  while (relay.lost + relay.forwarded < 200) await sleep(10);
  while (arrived < relay.forwarded) await sleep(10);
  assert.ok(relay.lost > 60 && relay.lost < 140, `${relay.lost} of 200`);
});

/** Returns the bottom lines of a test card as RGBA pixels. They are black except for the white cells of `number`. */
function card(number, width, pictureHeight) {
  const height = Math.min(STRIP.height, pictureHeight);
  const rgba = new Uint8ClampedArray(4 * width * height);
  const columns = Math.floor(width / 16);
  const cell = 16 * Math.floor(columns / 18);
  const left = 16 * Math.floor((columns - (18 * cell) / 16) / 2);
  const top = 16 * Math.floor(pictureHeight / 16) - 2 * cell - (pictureHeight - height);
  const gray = (number ^ (number >>> 1)) >>> 0;
  const bits = gray.toString(2).padStart(32, '0');
  const ones = [...bits].filter((bit) => bit === '1').length;
  const cells = `1${bits}${ones % 2}01`;
  const flip = (index) => {
    const x0 = left + (index % 18) * cell;
    const y0 = top + Math.floor(index / 18) * cell;
    for (let y = y0; y < y0 + cell; y += 1) {
      for (let x = x0; x < x0 + cell; x += 1) rgba[4 * (y * width + x) + 1] ^= 255;
    }
  };
  [...cells].forEach((value, index) => { if (value === '1') flip(index); });
  return { read: () => readUnitNumber(rgba, width, height, pictureHeight), flip };
}

test('the number in the picture is read at every size', () => {
  for (const [width, height] of [[1280, 720], [640, 480], [1920, 1080], [320, 240]]) {
    for (const number of [0, 1, 2, 1234567, 2 ** 31, 2 ** 32 - 1]) {
      assert.equal(card(number, width, height).read(), number, `${number} at ${width}x${height}`);
    }
  }
});

test('a picture with one wrong cell is refused', () => {
  for (let index = 0; index < 36; index += 1) {
    const broken = card(987654, 1280, 720);
    broken.flip(index);
    assert.equal(broken.read(), null, `cell ${index}`);
  }
});
