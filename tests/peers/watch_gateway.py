"""Watches through a gateway that is a WHEP client: watch_gateway.py KIND PROGRAM URL SECONDS. KIND is go2rtc or
mediamtx.

The gateway passes the video on as RTSP, and ffmpeg receives it. Then ffmpeg decodes 30 pictures of it for each second,
at least 300, and must report no error. In the same video, the stamps of the units are counted.
"""

import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from count import numbers

KIND, PROGRAM, URL, SECONDS = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
PICTURES = max(300, 30 * SECONDS)
# The GOP of the demo camera has 30 units. Up to that many may come before the first SPS.
UNITS = PICTURES + 40


def free_ports(count):
    """Returns ports that are free now. Neither gateway tells its port if the kernel chooses it."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    return [each.getsockname()[1] for each in sockets]


def command(directory, rtsp, other):
    host = URL.removeprefix("http://")
    if KIND == "go2rtc":
        config = {
            "api": {"listen": f"127.0.0.1:{other}"},
            "rtsp": {"listen": f"127.0.0.1:{rtsp}"},
            "srtp": {"listen": ""},
            "webrtc": {"listen": "", "ice_servers": [], "filters": {"loopback": True}},
            "streams": {"camera": f"webrtc:http://{host}/camera/whep"},
            "log": {"level": "warn"},
        }
        return [PROGRAM, "--config", json.dumps(config)]
    path = Path(directory, "mediamtx.yml")
    path.write_text(
        f"logLevel: warn\nrtspAddress: 127.0.0.1:{rtsp}\nrtspTransports: [tcp]\n"
        "rtmp: no\nhls: no\nwebrtc: no\nsrt: no\nmoq: no\n"
        f"paths:\n  camera:\n    source: whep://{host}/camera/whep\n"
    )
    return [PROGRAM, str(path)]


def ffmpeg(*arguments):
    return subprocess.run(
        ["ffmpeg", "-nostdin", "-y", "-v", "error", *arguments], capture_output=True, text=True, check=False
    )


def receive(rtsp, path):
    """Lets ffmpeg receive. Returns the Annex B bytes, or None if the stream is not there yet.

    The replay of the GOP has RTP times one tick apart. ffmpeg guesses a frame rate and rounds to it, so that several
    units would get the same time, which its muxer refuses. So the units get their number as their time.
    """
    source = ["-rtsp_transport", "tcp", "-i", f"rtsp://127.0.0.1:{rtsp}/camera"]
    ffmpeg(*source, "-map", "0:v", "-c", "copy", "-bsf:v", "setts=ts=N", "-frames:v", str(UNITS), "-f", "h264", str(path))
    video = path.read_bytes() if path.exists() else b""
    return video or None


def decode(video, path):
    """Lets ffmpeg decode from the first SPS on. Returns the number of pictures, and what ffmpeg says.

    The gateway asks for the video when ffmpeg connects. It drops what comes before ffmpeg has sent PLAY, so ffmpeg may
    receive the end of a GOP first.
    """
    path.write_bytes(video[max(0, video.find(b"\x00\x00\x01\x67")) :])
    run = ffmpeg("-i", str(path), "-fps_mode", "passthrough", "-frames:v", str(PICTURES), "-f", "framecrc", "-")
    return sum(1 for line in run.stdout.splitlines() if line.startswith("0,")), run.stderr.strip()


def main():
    rtsp, other = free_ports(2)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "camera.h264")
        gateway = subprocess.Popen(command(directory, rtsp, other), stdout=sys.stderr)
        try:
            deadline = time.monotonic() + 60 + SECONDS
            while (video := receive(rtsp, path)) is None and time.monotonic() < deadline and gateway.poll() is None:
                time.sleep(0.5)
        finally:
            gateway.terminate()
            gateway.wait()
        if video is None:
            print("the gateway serves no stream")
            return 1
        pictures, errors = decode(video, path)
        units = numbers(video)
        missing = max(units) - min(units) + 1 - len(units) if units else PICTURES
        missing += PICTURES - pictures
        decoded = f"{pictures} pictures decoded, errors of ffmpeg: {errors or 'none'}"
        print(f"{len(units)} units, {missing} missing, {decoded}")
        return 1 if errors else 0


sys.exit(main())
