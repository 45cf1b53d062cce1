// Starts the real server and the camera simulator as processes for the browser tests.
import { spawn } from 'node:child_process';
import { rmSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const HERE = path.dirname(fileURLToPath(import.meta.url));
const ROOT = path.resolve(HERE, '../../..');

/** Directory of the binaries: the environment variable SS_BIN, relative to tests/browser. The default is the debug
 *  build. */
const BINARIES = path.resolve(HERE, '..', process.env.SS_BIN ?? '../../target/debug');
/** Directory in which the tests save screenshots. */
export const PICTURES = path.join(ROOT, 'target/browser');
/** Longest time that `waitFor` waits, in milliseconds. */
export const PATIENCE_MS = 120_000;

let nextName = 0;
export const uniqueShm = () => `/ss-browser-${process.pid}-${nextName++}`;

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// The page reloads after a login. A query at that moment fails with this message, and `waitFor` repeats it.
const NAVIGATED = 'Execution context was destroyed, most likely because of a navigation';
const unlessNavigated = (error) => {
  if (!String(error?.message).includes(NAVIGATED)) throw error;
};

/** Calls `poll` every 50 ms until it returns a truthy value, and returns that value. Throws an error after
 *  PATIENCE_MS. */
export async function waitFor(what, poll) {
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    const found = await Promise.resolve().then(poll).catch(unlessNavigated);
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`timed out after ${PATIENCE_MS} ms, waiting for: ${what}`);
    await sleep(50);
  }
}

function start(name, args) {
  const child = spawn(path.join(BINARIES, name), args, { stdio: ['ignore', 'pipe', 'pipe'] });
  const running = { child, log: '' };
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text) => { running.log += text; });
  }
  running.ended = new Promise((resolve) => child.on('exit', (code, signal) => resolve(code ?? signal)));
  child.on('error', (error) => { running.log += error; });
  running.stop = async (signal = 'SIGTERM') => {
    if (child.exitCode === null && child.signalCode === null) child.kill(signal);
    return running.ended;
  };
  return running;
}

/** Starts a server on ports that the kernel chooses. Returns the process; `url` is its HTTP address and `udpPort`
 *  its UDP port. */
export async function startServer(args) {
  const server = start('streaming-server', ['--http', '127.0.0.1:0', '--udp', '0.0.0.0:0', '--control', 'off', ...args]);
  const line = await waitFor('the line `listening:`', () => {
    if (server.child.exitCode !== null) throw new Error(`the server ended:\n${server.log}`);
    return /listening: http=(\S+) udp=(\S+)/.exec(server.log);
  });
  server.url = `http://${line[1]}/`;
  server.udpPort = Number(line[2].split(':').pop());
  return server;
}

/** Starts a camera that writes the ring `shm`. `stop` kills the camera and removes the ring; `kill` leaves the ring. */
export function startCamera(shm, args) {
  const camera = start('camera-sim', ['--shm', shm, ...args]);
  const stop = camera.stop;
  camera.kill = () => stop('SIGKILL');
  camera.stop = async () => {
    const code = await stop('SIGKILL');
    rmSync(`/dev/shm${shm}`, { force: true });
    return code;
  };
  return camera;
}

/** Returns the value of a metric from /metrics, summed over all its labels. */
export async function metric(server, name) {
  const text = await (await fetch(`${server.url}metrics`)).text();
  const values = text.split('\n').filter((line) => line.split(/[ {]/)[0] === name);
  return values.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' '))), 0);
}
