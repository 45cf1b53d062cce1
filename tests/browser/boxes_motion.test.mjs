// The pure part of the boxes: which boxes belong to a picture, how they move, and how long pictures are held back.
import assert from 'node:assert/strict';
import test from 'node:test';
import { HOLD_MS_MAX, HoldBack, Results, match, readBoxes } from '../../src/http/assets/boxes.js';
import { Sidecar, parseSidecar } from '../../src/http/assets/sidecar.js';

const [WIDTH, HEIGHT] = [1280, 720];
const FRAME = 3000; // RTP time from picture to picture at 30 fps
const HALF_MS = 16;
const box = (x, y, more = {}) => ({ label: 'cat', confidence: 0.9, x, y, width: 64, height: 64, ...more });
const news = (rtp_time, boxes, more = {}) => ({ rtp_time, width: WIDTH, height: HEIGHT, expires_ms: 400, boxes, ...more });
const pixels = ({ how, boxes }) => [how, ...boxes.map(({ x, y }) => [Math.round(x * WIDTH * 100) / 100, Math.round(y * HEIGHT * 100) / 100])];

test('a picture gets the boxes of its own result, also when the RTP time wraps', () => {
  const results = new Results();
  const start = 2 ** 32 - 2 * FRAME;
  for (let index = 0; index < 5; index += 1) results.add(news((start + index * FRAME) >>> 0, [box(10 * index, 20)]), index * 33);
  for (let index = 0; index < 5; index += 1) {
    for (const off of [-1, 0, 1]) {
      assert.deepEqual(pixels(results.at((start + index * FRAME + off) >>> 0, HALF_MS)), ['exact', [10 * index, 20]]);
    }
  }
  assert.deepEqual(pixels(results.at((start - FRAME) >>> 0, HALF_MS)), ['none'], 'before the first result');
});

test('a picture without a result gets moved boxes: between two results, or on from the last', () => {
  const results = new Results();
  for (let index = 0; index < 4; index += 1) results.add(news(index * 3 * FRAME, [box(30 * index, 100)]), 0);
  assert.deepEqual(pixels(results.at(4 * FRAME, HALF_MS)), ['between', [40, 100]]);
  assert.deepEqual(pixels(results.at(11 * FRAME, HALF_MS)), ['ahead', [110, 100]]);
  const [at300, at400] = [300, 400].map((ms) => results.at(9 * FRAME + 90 * ms, HALF_MS).boxes[0].x);
  assert.equal(at300, at400, 'it moves on for a quarter of a second');
  assert.deepEqual(pixels(results.at(9 * FRAME + 90 * 401, HALF_MS)), ['none'], 'it has expired');
  // A box stays within the picture.
  for (let index = 4; index < 40; index += 1) results.add(news(index * 3 * FRAME, [box(1216 - 30 * (39 - index), 100)]), 0);
  assert.deepEqual(pixels(results.at(120 * FRAME, HALF_MS)), ['ahead', [1216, 100]]);
});

test('the motion is that of a detector with some noise', () => {
  const results = new Results();
  const noise = [1, -1, 0.5, -0.5, 1, 0];
  for (let index = 0; index < 30; index += 1) results.add(news(index * FRAME, [box(8 * index + noise[index % 6], 50)]), 0);
  const { boxes: [moved] } = results.at(32 * FRAME, HALF_MS);
  assert.ok(Math.abs(moved.x * WIDTH - 8 * 32) < 3, `${moved.x * WIDTH}`);
});

test('boxes of two animals are not mixed up, and a changed label keeps its motion', () => {
  const results = new Results();
  for (let index = 0; index < 4; index += 1) {
    const boxes = [box(100 + 10 * index, 100, { label: index < 2 ? 'cat' : 'dog' }), box(300 - 10 * index, 100)];
    results.add(news(index * FRAME, index % 2 ? boxes : boxes.reverse()), 0);
  }
  const { boxes } = results.at(4 * FRAME, HALF_MS);
  const at = Object.fromEntries(boxes.map(({ label, x }) => [label, Math.round(x * WIDTH)]));
  assert.deepEqual(at, { dog: 140, cat: 260 });
  const far = match(readBoxes(news(0, [box(1000, 600)])), readBoxes(news(0, [box(0, 0)])));
  assert.equal(far.size, 0, 'a box does not jump through the whole picture');
});

test('an empty result clears the boxes, and a step of the clock starts again', () => {
  const results = new Results();
  results.add(news(0, [box(0, 0)]), 0);
  results.add(news(FRAME, []), 33);
  assert.deepEqual(pixels(results.at(2 * FRAME, HALF_MS)), ['none']);
  results.add(news(100 * 90_000, [box(5, 5)]), 66);
  assert.equal(results.list.length, 1);
  results.add(news(50 * 90_000, [box(6, 6)]), 99);
  assert.deepEqual(pixels(results.at(50 * 90_000, HALF_MS)), ['exact', [6, 6]]);
  results.add(news(50 * 90_000, [box(7, 7)]), 99);
  assert.deepEqual(pixels(results.at(50 * 90_000, HALF_MS)), ['exact', [7, 7]], 'the newer result of one picture');
  for (let index = 0; index < 10_000; index += 1) results.add(news(index * 750, [box(1, 1)]), index);
  assert.ok(results.list.length <= 96 && results.list.every(({ boxes }) => boxes.every(({ trail }) => trail.length <= 5)));
});

test('boxes without a time are shown from their arrival until they expire', () => {
  const results = new Results();
  results.add(news(null, [box(1, 2)]), 1000);
  assert.deepEqual(pixels(results.newest(1300)), ['arrival', [1, 2]]);
  assert.deepEqual(pixels(results.newest(1401)), ['none']);
  assert.deepEqual(pixels(results.at(0, HALF_MS)), ['none']);
  assert.deepEqual([results.isIdle(1401), results.isIdle(9000)], [false, true]);
});

test('malformed results are harmless', () => {
  const results = new Results();
  for (const bad of [null, 1, 'x', [], {}, news(0, null), news(0, 'x'), news(0, [null, 1, {}, []], { width: 0 }), news(1.5, [box(NaN, 0)]),
    news('9', [box(0, 0, { width: -1 })]), news(0, [box(0, 0, { confidence: 'x' })]), news(-1, [box(1e9, 0)])]) {
    const result = results.add(bad, 0);
    assert.deepEqual(result?.boxes ?? [], [], JSON.stringify(bad));
    assert.deepEqual(results.at(FRAME, HALF_MS).boxes, []);
  }
  assert.equal(readBoxes(news(0, Array(1000).fill(box(1, 1)))).length, 10);
});

test('pictures are held back as long as their results need', () => {
  const hold = new HoldBack();
  const results = new Results();
  // At first, pictures are shown before their results. Later, results are there before.
  for (let index = 0; index < 300; index += 1) {
    const [time, receivedAt] = [index * FRAME, index * 33.3];
    const need_ms = 50 + (index % 10) * 4;
    if (index < 30) {
      hold.onPicture(time, receivedAt, null);
      hold.onResult(results.add(news(time, [box(1, 1)]), receivedAt + need_ms), HALF_MS);
    } else {
      hold.onPicture(time, receivedAt, results.add(news(time, [box(1, 1)]), receivedAt + need_ms));
    }
    if (index === 29) assert.ok(hold.target_ms >= 86, `${hold.target_ms}`);
  }
  assert.ok(hold.target_ms >= 86 && hold.target_ms <= 120, `${hold.target_ms} ms`);
  for (let index = 0; index < 300; index += 1) hold.learn(9_000);
  assert.equal(hold.target_ms, HOLD_MS_MAX);
  for (let index = 0; index < 300; index += 1) hold.learn(-90);
  assert.equal(hold.target_ms, 0);
  for (let index = 0; index < 1000; index += 1) hold.onPicture(index, 0, null);
  assert.ok(hold.early.length <= 64 && hold.needs.length <= 200 && hold.pictures.length <= 200);
});

test('pictures are held back longer if they arrive unevenly', () => {
  const hold = new HoldBack();
  for (let index = 0; index < 300; index += 1) {
    const [time, late_ms] = [index * FRAME, (index * 7) % 50];
    const result = new Results().add(news(time, [box(1, 1)]), index * 33.333 + 30);
    hold.onPicture(time, index * 33.333 + late_ms, result);
  }
  assert.ok(hold.target_ms >= 65 && hold.target_ms <= 75, `${hold.target_ms}`);
});

test('the boxes of a recording belong to exactly one picture', () => {
  const line = (t, x) => JSON.stringify({ t, frame: 1, width: WIDTH, height: HEIGHT, boxes: [box(x, 0)] });
  const text = ['{"kind":"event"}', line(0.1, 10), 'broken', line(0.2, 20), line(3, 30), line(3.0333, 40), line(3.07, 50).slice(0, 40)].join('\n');
  const sidecar = new Sidecar(parseSidecar(text));
  assert.equal(sidecar.lines.length, 4);
  const at = (time) => pixels(sidecar.at(time));
  assert.deepEqual([at(0.1), at(0.2), at(3.0), at(3.0333)], [['exact', [10, 0]], ['exact', [20, 0]], ['exact', [30, 0]], ['exact', [40, 0]]]);
  assert.deepEqual(at(0.15), ['between', [15, 0]]);
  for (const time of [0, 0.3, 1, 2.9, 3.1]) assert.deepEqual(at(time), ['none'], `${time}`);
  assert.deepEqual(parseSidecar('<!doctype html>'), []);
});
