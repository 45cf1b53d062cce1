// Texts that say what a person can do if this browser or its network cannot show the video.

const isFirefox = /firefox\//i.test(navigator.userAgent);

// Returns what to do if the browser lacks "WebRTC" or "H.264".
export function missingFeature(feature) {
  const other = `open this page in a current Chrome, Edge${isFirefox ? "" : ", Firefox"} or Safari`;
  if (feature === "WebRTC") {
    const setting = isFirefox ? " (media.peerconnection.enabled in about:config)" : "";
    return `This browser has no WebRTC. A setting${setting}, an extension or a policy may have switched it off. Switch it on, or ${other}.`;
  }
  if (isFirefox) {
    return "This Firefox has no H.264 yet. It gets H.264 from the OpenH264 plug-in, which it downloads after its first start. " +
      "Open about:addons, then Plugins: set OpenH264 to \u201cAlways Activate\u201d and choose \u201cCheck for Updates\u201d. " +
      `The picture starts as soon as the plug-in is there. Or ${other}.`;
  }
  return `This browser has no H.264, which the camera sends. Some builds of Chromium and other browsers lack it: ${other}.`;
}

// Says that the browser cannot show the video over HTTP either.
export const NO_MEDIA_SOURCE = "This browser cannot show the video over HTTP either, because it has no Media Source " +
  "Extensions. An iPhone has them from iOS 17.1 on.";

// Returns what to do if no datagram of the server arrives. `sdp` is the server's answer, which names its ports.
export function blockedPath(sdp) {
  const candidates = [...sdp.matchAll(/^a=candidate:\S+ \d+ udp \d+ (\S+) (\d+) /gim)];
  const ports = [...new Set(candidates.map(([, , port]) => port))];
  const addresses = [...new Set(candidates.map(([, address]) => address))];
  const name = ports.length === 1 ? `UDP port ${ports[0]}` : `UDP (ports ${ports.join(", ")})`;
  const tcp = / tcptype passive/.test(sdp) ? ", and neither does TCP" : "";
  return `${name} does not get through${tcp} between this browser and the server (${addresses.join(", ")}). ` +
    "Allow it in the firewall of the server and of this network, forward it in the router or container, or name an " +
    "address that this browser can reach with --advertise. Trying again\u2026";
}

// Says what a slow connection carries. `viewer` is the entry of this viewer in api/viewers.
export function slowLink({ link_kbps, stream_kbps }, fps) {
  const [carried, needed] = [link_kbps, stream_kbps].map((kbps) => (kbps / 1000).toFixed(1));
  const pictures = fps >= 0.95 ? `${Math.round(fps)} pictures a second` : `a picture every ${Math.round(1 / Math.max(fps, 0.1))} s`;
  return `Your connection carries ${carried} of ${needed} Mbit/s: showing ${pictures}.`;
}
