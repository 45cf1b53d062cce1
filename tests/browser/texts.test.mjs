// The page has the same texts in each language, and index.html uses only texts that exist.
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import test from 'node:test';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { TEXTS } from '../../src/http/assets/texts.js';

const ASSETS = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../../src/http/assets');
const SCRIPTS = readdirSync(ASSETS).filter((name) => name.endsWith('.js'));
const read = (name) => readFileSync(path.join(ASSETS, name), 'utf8');
const COMPRESSED_BYTES_MAX = 60_000;
const LINES_MAX = 600;

test('both languages have the same texts with the same values', () => {
  const keys = Object.keys(TEXTS.en).sort();
  assert.deepEqual(Object.keys(TEXTS.ja).sort(), keys);
  const values = (text) => (text.match(/\{\w+\}/g) ?? []).sort();
  for (const key of keys) {
    assert.deepEqual(values(TEXTS.ja[key]), values(TEXTS.en[key]), key);
    assert.equal(TEXTS.ja[key] === '', TEXTS.en[key] === '', key);
  }
});

test('every text that the page names exists, and every text is used', () => {
  const html = read('index.html');
  const inPage = [...html.matchAll(/data-(?:text|label)="(\w+)"/g)].map(([, key]) => key);
  const code = SCRIPTS.filter((name) => name !== 'texts.js').map(read).join('\n');
  const inCode = [...code.matchAll(/\bt\("(\w+)"/g)].map(([, key]) => key);
  for (const key of [...inPage, ...inCode]) assert.ok(Object.hasOwn(TEXTS.en, key), key);
  const words = new Set([...inPage, ...(code.match(/"\w+"/g) ?? []).map((word) => word.slice(1, -1))]);
  const isOfState = (key) => /^(badge|title|detail)_/.test(key);
  assert.deepEqual(Object.keys(TEXTS.en).filter((key) => !words.has(key) && !isOfState(key)), []);
});

test('the scripts of the page stay small', (t) => {
  const bytes = SCRIPTS.reduce((sum, name) => sum + gzipSync(read(name), { level: 9 }).length, 0);
  t.diagnostic(`${SCRIPTS.length} scripts, ${bytes} bytes compressed`);
  assert.ok(bytes < COMPRESSED_BYTES_MAX, `${bytes} bytes`);
  for (const name of SCRIPTS) assert.ok(read(name).split('\n').length <= LINES_MAX, name);
});
