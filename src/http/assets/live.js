// Shows the live picture over HTTP, for networks that WebRTC does not pass: reads live.mp4 and gives it to Media Source
// Extensions. It stays close to the newest picture, and removes old ones.
//
//   fetch live.mp4 ──► appendBuffer ──► video.   Slow network: the server skips to a newer IDR.

const TARGET_S = 0.3; // distance to the newest picture to which the playback returns
const LATE_S = 0.6; // above this distance the playback is faster
const JUMP_S = 2; // above this distance it jumps
const FASTER = 1.1;
const KEEP_S = 10; // older pictures are removed from the buffer
const HEAD_BYTES_MAX = 100_000; // the codec is known after far fewer bytes

// An iPhone has ManagedMediaSource only, from iOS 17.1 on.
const Source = window.MediaSource || /** @type {any} */ (window).ManagedMediaSource;

export const hasHttpLive = Boolean(Source);

export class HttpLive {
  /**
   * Opens the stream in this video element. Calls `onEnd(retry_ms)` once when it ends, unless `close` was called.
   * @param {HTMLVideoElement} video
   * @param {(retry_ms: number) => void} onEnd
   */
  constructor(video, onEnd) {
    this.video = video;
    /** @type {((retry_ms: number) => void) | null} */
    this.onEnd = onEnd;
    /** @type {string | null} */
    this.url = null;
    this.abort = new AbortController();
    this.pictureAt = -Infinity; // time of the last picture
    this.lag_s = 0; // distance to the newest picture
    this.watchPictures();
    this.run().then(
      () => this.end(300), // the server ends the stream when the picture size changes
      (error) => this.end(error.retry_ms || 5000, error),
    );
  }

  close() {
    this.onEnd = null;
    this.abort.abort();
    this.clear();
  }

  /** @param {number} within_ms */
  isMoving(within_ms) {
    return performance.now() - this.pictureAt < within_ms;
  }

  async run() {
    const response = await fetch("live.mp4", { cache: "no-store", signal: this.abort.signal });
    if (!response.ok) {
      const retryAfter = Number(response.headers.get("retry-after")) || 10;
      throw Object.assign(new Error(`HTTP ${response.status}`), { retry_ms: retryAfter * 1000 });
    }
    const reader = /** @type {ReadableStream<Uint8Array<ArrayBuffer>>} */ (response.body).getReader();
    let head = new Uint8Array(0);
    while (!codecOf(head)) {
      const { value, done } = await reader.read();
      if (done || head.length > HEAD_BYTES_MAX) throw new Error("the stream has no header");
      head = joined(head, value);
    }
    const buffer = await this.attach(`video/mp4; codecs="${codecOf(head)}"`);
    for (let bytes = head; ; ) {
      await this.append(buffer, bytes);
      await this.follow(buffer);
      const { value, done } = await reader.read();
      if (done) return;
      bytes = value;
    }
  }

  /**
   * @param {string} type
   * @returns {Promise<SourceBuffer>}
   */
  async attach(type) {
    if (!Source.isTypeSupported(type)) throw Object.assign(new Error(`no ${type}`), { retry_ms: 60_000 });
    const source = new Source();
    this.video.disableRemotePlayback = true; // ManagedMediaSource demands this
    const url = URL.createObjectURL(source);
    this.url = url;
    this.video.src = url;
    await occurred(source, "sourceopen");
    this.video.play().catch((error) => console.info("HTTP live does not play yet:", error.message));
    return source.addSourceBuffer(type);
  }

  /**
   * @param {SourceBuffer} buffer
   * @param {Uint8Array<ArrayBuffer>} bytes
   */
  async append(buffer, bytes) {
    try {
      buffer.appendBuffer(bytes);
    } catch (error) {
      if (/** @type {Error} */ (error).name !== "QuotaExceededError") throw error;
      await this.removeBefore(buffer, this.video.currentTime - 1);
      buffer.appendBuffer(bytes);
    }
    await occurred(buffer, "updateend");
  }

  /**
   * Keeps the playback close to the newest picture.
   * @param {SourceBuffer} buffer
   */
  async follow(buffer) {
    const { video } = this;
    const { buffered } = buffer;
    if (!buffered.length) return;
    const [start, end] = [buffered.start(buffered.length - 1), buffered.end(buffered.length - 1)];
    this.lag_s = end - video.currentTime;
    if (video.currentTime < start || this.lag_s > JUMP_S) {
      video.currentTime = Math.max(start, end - TARGET_S);
    } else if (this.lag_s > LATE_S) {
      video.playbackRate = FASTER;
    } else if (this.lag_s < TARGET_S) {
      video.playbackRate = 1;
    }
    if (video.currentTime - buffered.start(0) > KEEP_S) await this.removeBefore(buffer, video.currentTime - KEEP_S / 2);
  }

  /**
   * @param {SourceBuffer} buffer
   * @param {number} time
   */
  async removeBefore(buffer, time) {
    if (time <= 0) return;
    buffer.remove(0, time);
    await occurred(buffer, "updateend");
  }

  watchPictures() {
    const { video } = this;
    const moved = () => {
      if (!this.abort.signal.aborted) this.pictureAt = performance.now();
      return !this.abort.signal.aborted;
    };
    if (video.requestVideoFrameCallback) {
      const shown = () => void (moved() && video.requestVideoFrameCallback(shown));
      video.requestVideoFrameCallback(shown);
    } else {
      video.addEventListener("timeupdate", moved, { signal: this.abort.signal });
    }
  }

  /**
   * @param {number} retry_ms
   * @param {Error} [error]
   */
  end(retry_ms, error) {
    const { onEnd } = this;
    if (!onEnd) return;
    if (error) console.info("HTTP live ended:", error.message);
    this.close();
    onEnd(retry_ms);
  }

  // Removes the picture, so that no old one stays visible, for example after a logout.
  clear() {
    if (!this.url) return;
    URL.revokeObjectURL(this.url);
    this.url = null;
    this.video.removeAttribute("src");
    this.video.load();
  }
}

/**
 * Returns the codec as RFC 6381 writes it, from the `avcC` box of the header. Returns null if the box is not there yet.
 * @param {Uint8Array} bytes
 */
function codecOf(bytes) {
  const name = [0x61, 0x76, 0x63, 0x43]; // avcC
  const at = bytes.findIndex((_, index) => name.every((byte, offset) => bytes[index + offset] === byte));
  if (at < 0 || at + 8 > bytes.length) return null;
  return `avc1.${[...bytes.subarray(at + 5, at + 8)].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/**
 * @param {Uint8Array} first
 * @param {Uint8Array} second
 */
function joined(first, second) {
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}

/**
 * @param {EventTarget} target
 * @param {string} name
 * @returns {Promise<void>}
 */
function occurred(target, name) {
  return new Promise((resolve, reject) => {
    const settle = (/** @type {Event} */ event) => {
      target.removeEventListener(name, settle);
      target.removeEventListener("error", settle);
      if (event.type === name) resolve();
      else reject(new Error("the browser cannot decode the stream"));
    };
    target.addEventListener(name, settle);
    target.addEventListener("error", settle);
  });
}
