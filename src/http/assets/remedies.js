// Says what a person can do if this browser or its network cannot show the video.

import { t } from "./texts.js";

const isFirefox = /firefox\//i.test(navigator.userAgent);

/**
 * Returns what to do if the browser lacks "WebRTC" or "H.264".
 * @param {"WebRTC" | "H.264"} feature
 */
export function missingFeature(feature) {
  const other = t(isFirefox ? "other_than_firefox" : "other_browser");
  if (feature === "WebRTC") return t("no_webrtc", { setting: isFirefox ? t("firefox_setting") : "", other });
  return t(isFirefox ? "no_openh264" : "no_h264", { other });
}

/**
 * Returns what to do if no datagram of the server arrives. `sdp` is the server's answer, which names its ports.
 * @param {string} sdp
 */
export function blockedPath(sdp) {
  const candidates = [...sdp.matchAll(/^a=candidate:\S+ \d+ udp \d+ (\S+) (\d+) /gim)];
  const ports = [...new Set(candidates.map(([, , port]) => port))];
  const addresses = [...new Set(candidates.map(([, address]) => address))];
  const name = ports.length === 1 ? t("udp_port", { port: ports[0] }) : t("udp_ports", { ports: ports.join(", ") });
  const neither = / tcptype passive/.test(sdp) ? t("nor_tcp") : "";
  return t("blocked_path", { name, neither, addresses: addresses.join(", ") });
}

/**
 * Says what a slow connection carries. `viewer` is the entry of this viewer in api/viewers.
 * @param {{ link_kbps: number, stream_kbps: number }} viewer
 * @param {number} fps pictures per second that are shown
 */
export function slowLink({ link_kbps, stream_kbps }, fps) {
  const [carried, needed] = [link_kbps, stream_kbps].map((kbps) => (kbps / 1000).toFixed(1));
  const pictures = fps >= 0.95
    ? t("pictures_a_second", { count: Math.round(fps) })
    : t("picture_every", { seconds: Math.round(1 / Math.max(fps, 0.1)) });
  return t("slow_link", { carried, needed, pictures });
}
