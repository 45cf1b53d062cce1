// Runs in every page of the measured browser, before the scripts of the page. It plays a stream, and stores for each
// picture that the browser presents when it was shown, the number that the picture shows, and a checksum of its luma.
// The harness reads the results over the DevTools protocol, which does not use the measured link.
(() => {
  const HASH_FIRST_ROW = 3;
  const HASH_ROW_STEP = 8;
  const TICK_MS = 20;
  const probe = { pictures: [], connections: [], errors: [], longestTick_ms: 0 };
  window.linkProbe = probe;

  const Original = window.RTCPeerConnection;
  window.RTCPeerConnection = class extends Original {
    constructor(...args) {
      super(...args);
      probe.connections.push(this);
    }
  };

  // Reads the unit number from the cells of the picture, see `NumberBlocks` in src/simulator/picture.rs. Returns null
  // if it is not readable.
  function readNumber(luma, stride, width, height) {
    const cell = 16 * Math.floor(Math.floor(width / 16) / 18);
    const left = 16 * Math.floor((Math.floor(width / 16) - (18 * cell) / 16) / 2);
    const top = 16 * Math.floor(height / 16) - 2 * cell;
    const isSet = (index) => {
      const x = left + (index % 18) * cell + cell / 2;
      const y = top + Math.floor(index / 18) * cell + cell / 2;
      return luma[y * stride + x] >= 126;
    };
    let gray = 0;
    let parity = 0;
    for (let index = 1; index <= 32; index += 1) {
      const bit = isSet(index) ? 1 : 0;
      gray = gray * 2 + bit;
      parity ^= bit;
    }
    if (!isSet(0) || isSet(33) !== (parity === 1) || isSet(34) || !isSet(35)) return null;
    let number = gray >>> 0;
    for (const shift of [1, 2, 4, 8, 16]) number = (number ^ (number >>> shift)) >>> 0;
    return number;
  }

  // Every macroblock of the picture is in two of the rows. The same as `hash_of_luma` in stream.rs.
  function hashOf(luma, stride, width, height) {
    let hash = 0x811c9dc5;
    for (let y = HASH_FIRST_ROW; y < height; y += HASH_ROW_STEP) {
      const row = luma.subarray(y * stride, y * stride + width);
      for (let x = 0; x + 3 < width; x += 4) {
        const word = row[x] | (row[x + 1] << 8) | (row[x + 2] << 16) | (row[x + 3] << 24);
        hash = Math.imul(hash ^ word, 0x01000193);
      }
    }
    return hash >>> 0;
  }

  const buffers = [];
  async function inspect(video, picture) {
    let frame = null;
    try {
      frame = new VideoFrame(video);
      const { width, height } = frame.visibleRect;
      const size = frame.allocationSize();
      let buffer = buffers.pop();
      if (!buffer || buffer.length !== size) buffer = new Uint8Array(size);
      const [plane] = await frame.copyTo(buffer);
      const luma = buffer.subarray(plane.offset);
      picture.number = readNumber(luma, plane.stride, width, height);
      picture.hash = hashOf(luma, plane.stride, width, height);
      picture.width = width;
      buffers.push(buffer);
    } catch (error) {
      if (probe.errors.length < 20) probe.errors.push(`picture: ${error}`);
    }
    if (frame) frame.close();
    picture.isDone = true;
  }

  function watch(video) {
    const onPicture = (now, metadata) => {
      video.requestVideoFrameCallback(onPicture);
      const picture = {
        shown_ms: metadata.expectedDisplayTime,
        presented: metadata.presentedFrames,
        number: null,
        hash: null,
        width: 0,
        isDone: false,
      };
      probe.pictures.push(picture);
      inspect(video, picture);
    };
    video.requestVideoFrameCallback(onPicture);
  }

  const known = new WeakSet();
  let ticked = performance.now();
  setInterval(() => {
    const now = performance.now();
    probe.longestTick_ms = Math.max(probe.longestTick_ms, now - ticked);
    ticked = now;
    for (const video of document.querySelectorAll('video')) {
      if (!known.has(video)) {
        known.add(video);
        watch(video);
      }
    }
  }, TICK_MS);

  // Plays from a server that answers offers: as JSON, or as plain SDP with WHEP.
  probe.play = async (path, isWhep) => {
    const video = document.createElement('video');
    Object.assign(video, { muted: true, autoplay: true, width: 320, height: 180 });
    document.body.replaceChildren(video);
    const connection = new RTCPeerConnection({ bundlePolicy: 'max-bundle' });
    const transceiver = connection.addTransceiver('video', { direction: 'recvonly' });
    transceiver.receiver.jitterBufferTarget = 0;
    connection.ontrack = (event) => {
      video.srcObject = new MediaStream([event.track]);
      video.play().catch((error) => probe.errors.push(`play: ${error}`));
    };
    await connection.setLocalDescription();
    if (connection.iceGatheringState !== 'complete') {
      await new Promise((resolve) => {
        connection.onicegatheringstatechange = () => connection.iceGatheringState === 'complete' && resolve();
        setTimeout(resolve, 1000);
      });
    }
    const { sdp } = connection.localDescription;
    const response = await fetch(path, {
      method: 'POST',
      headers: { 'content-type': isWhep ? 'application/sdp' : 'application/json' },
      body: isWhep ? sdp : JSON.stringify({ type: 'offer', sdp }),
    });
    if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
    const answer = isWhep ? await response.text() : (await response.json()).sdp;
    await connection.setRemoteDescription({ type: 'answer', sdp: answer });
    return answer;
  };

  // Returns the results since the last call, in the order of presentation, and the statistics of the connection.
  probe.take = async () => {
    let count = 0;
    while (count < probe.pictures.length && probe.pictures[count].isDone) count += 1;
    const pictures = probe.pictures.splice(0, count);
    const { longestTick_ms, errors } = probe;
    Object.assign(probe, { longestTick_ms: 0, errors: [] });
    const connection = probe.connections.at(-1);
    let stats = null;
    if (connection && connection.connectionState !== 'closed') {
      const report = [...(await connection.getStats()).values()];
      stats = report.find((entry) => entry.type === 'inbound-rtp' && entry.kind === 'video') || null;
    }
    return {
      pictures: pictures.map((p) => [p.shown_ms, p.presented, p.number, p.hash, p.width]),
      stats,
      errors,
      longest_tick_ms: longestTick_ms,
      connections: probe.connections.length,
      answer: connection && connection.remoteDescription ? connection.remoteDescription.sdp : '',
      state: document.body && document.body.dataset ? document.body.dataset.state || '' : '',
      now_ms: performance.now(),
    };
  };
})();
