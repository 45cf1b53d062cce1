"""Watches through a gateway that is a WHEP client: watch_gateway.py KIND PROGRAM URL SECONDS. KIND is go2rtc or
mediamtx.

The gateway passes the video on as RTSP. ffmpeg decodes 30 pictures for each second, at least 300, and must report no
error. In the same stream, the stamps of the units are counted.
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


def read(rtsp, path):
    """Lets ffmpeg decode. Returns what it says, or None if the stream is not there yet.

    The replay of the GOP has RTP times one tick apart. ffmpeg guesses a frame rate and rounds to it, so that several
    units get the same time; its muxers refuse that. So the copied units get their number as their time, and no picture
    is left out because of its time.
    """
    run = subprocess.run(
        ["ffmpeg", "-nostdin", "-y", "-v", "error", "-rtsp_transport", "tcp", "-i", f"rtsp://127.0.0.1:{rtsp}/camera"]
        + ["-map", "0:v", "-c", "copy", "-bsf:v", "setts=ts=N", "-frames:v", str(PICTURES), "-f", "h264", str(path)]
        + ["-map", "0:v", "-fps_mode", "passthrough", "-frames:v", str(PICTURES), "-f", "framecrc", "-"],
        capture_output=True,
        text=True,
        check=False,
    )
    pictures = sum(1 for line in run.stdout.splitlines() if line.startswith("0,"))
    if pictures == 0 and any(word in run.stderr for word in ("refused", "404", "400")):
        return None
    return pictures, run.stderr.strip()


def main():
    rtsp, other = free_ports(2)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "camera.h264")
        gateway = subprocess.Popen(command(directory, rtsp, other), stdout=sys.stderr)
        try:
            deadline = time.monotonic() + 60 + SECONDS
            while (said := read(rtsp, path)) is None and time.monotonic() < deadline and gateway.poll() is None:
                time.sleep(0.5)
        finally:
            gateway.terminate()
            gateway.wait()
        if said is None:
            print("the gateway serves no stream")
            return 1
        pictures, errors = said
        units = numbers(path.read_bytes())
        missing = max(units) - min(units) + 1 - len(units) if units else PICTURES
        missing += PICTURES - pictures
        said = f"{pictures} pictures decoded, errors of ffmpeg: {errors or 'none'}"
        print(f"{len(units)} units, {missing} missing, {said}")
        return 1 if errors else 0


sys.exit(main())
