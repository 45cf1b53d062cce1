// The C camera from the comment of pet_camera_ring.h, watched in a real browser. The browser must show the access units
// in the order in which the encoder of the camera writes them. The camera plays a recording of the simulator.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import test from 'node:test';
import { fileURLToPath } from 'node:url';
import { assertInOrder, openViewer, startBrowser } from './support/browser.mjs';
import { sleep, startCamera, startServer, uniqueShm } from './support/processes.mjs';

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const HEADER = path.join(ROOT, 'src/camera/pet_camera_ring.h');

/** Compiles the example in the comment of the header, changed to write the ring `shm`. Returns the path of the
 *  program. */
function compileExample(directory, shm) {
  const text = readFileSync(HEADER, 'utf8').split(' * EXAMPLE\n')[1].split(' * The numbers below')[0];
  const lines = text.split('\n').filter((line) => line.startsWith(' *     ')).map((line) => line.slice(7)).slice(1);
  const source = path.join(directory, 'example.c');
  writeFileSync(source, lines.join('\n').replace('/pet_camera_stream', shm));
  const program = path.join(directory, 'example');
  execFileSync('cc', ['-std=c11', '-O2', '-Wall', '-Wextra', '-Werror', '-pedantic', '-I', path.dirname(HEADER),
    '-I', path.join(ROOT, 'tests/support/c'), '-o', program, source, '-lrt'], { stdio: 'inherit' });
  return program;
}

/** Records 12 seconds of numbered pictures at 120 fps and returns the path of the file. The C camera plays it at 30
 *  fps, so it lasts more than half a minute. */
async function makeFilm(directory) {
  const shm = uniqueShm();
  const camera = startCamera(shm, ['--layout', 'lease', '--pattern', '640x480', '--fps', '120', '--gop', '30']);
  const server = await startServer(['--shm', shm, '--record-path', directory, '--record-format', 'h264']);
  const post = (what) => fetch(`${server.url}api/recording/${what}`, { method: 'POST' });
  while ((await fetch(`${server.url}ready`)).status !== 200) await sleep(50);
  const started = await (await post('start')).json();
  await sleep(12_000);
  const stopped = await (await post('stop')).json();
  await server.stop();
  await camera.stop();
  assert.ok(stopped.frame_count > 600, JSON.stringify(stopped));
  return path.join(directory, started.name);
}

test('a C camera on the lease ring is shown', { timeout: 300_000 }, async (t) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'ss-c-camera-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const film = await makeFilm(directory);
  const shm = uniqueShm();
  const program = compileExample(directory, shm);
  const browser = await startBrowser();
  t.after(() => browser.close());
  const server = await startServer(['--shm', shm]);
  t.after(() => server.stop());
  const camera = spawn(program, { env: { ...process.env, CAMERA_FILE: film }, stdio: 'inherit' });
  t.after(() => camera.kill('SIGKILL'));
  const viewer = await openViewer(browser, server.url);
  await viewer.pictures(150);
  const units = assertInOrder(assert, await viewer.seen());
  assert.equal(await viewer.broken(), 0, 'pictures without a readable unit number');
  assert.ok(units.at(-1) > units[0] + 100, `units ${units[0]} to ${units.at(-1)}`);
  assert.equal((await viewer.stats()).packetsLost, 0);
  assert.deepEqual(viewer.errors, []);
  camera.kill('SIGTERM');
});
