"""The Python peer. aiortc sends the camera's H.264 as packets without decoding, which is the fastest way for aiortc.
A thread waits for the camera's semaphore, copies each unit out of the ring once and passes it to a relay for all viewers.

Loopback candidates are added, because the measurement uses loopback and aioice leaves it out.
"""

import argparse
import asyncio
import ctypes
import fractions
import mmap
import os
import struct
import threading
import time

import aioice.ice
import av
from aiohttp import web
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription, RTCRtpSender
from aiortc.contrib.media import MediaRelay

LAYOUTS = {  # bytes of the segment: slots at, stride, data at, semaphore at
    93313480: (40, 3110448, 48, 8),
    93314112: (192, 3110464, 60, 128),
}
SLOTS = 30
CLOCK_REALTIME = 0
TIME_BASE = fractions.Fraction(1, 90000)

aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]


class Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class Ring:
    """The camera's ring, layouts v1 and v3."""

    def __init__(self, name):
        with open("/dev/shm" + name, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            self.map = mmap.mmap(file.fileno(), size)
        self.slots_at, self.stride, self.data_at, semaphore_at = LAYOUTS[size]
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.semaphore = ctypes.c_char.from_buffer(self.map, semaphore_at)
        self.next = self.index()

    def index(self):
        return struct.unpack_from("<I", self.map, 0)[0]

    def wait(self):
        now = time.clock_gettime(CLOCK_REALTIME)
        deadline = Timespec(int(now) + 1, 0)
        self.libc.sem_timedwait(ctypes.byref(self.semaphore), ctypes.byref(deadline))

    def units(self):
        index = self.index()
        if index - self.next >= SLOTS - 1:
            self.next = index - 1
        while self.next < index:
            slot = self.slots_at + self.next % SLOTS * self.stride
            size = struct.unpack_from("<Q", self.map, slot + 40)[0]
            self.next += 1
            yield bytes(self.map[slot + self.data_at : slot + self.data_at + size])


class CameraTrack(MediaStreamTrack):
    kind = "video"

    def __init__(self, ring):
        super().__init__()
        self.queue = asyncio.Queue(maxsize=4)
        self.loop = asyncio.get_event_loop()
        self.pts = 0
        threading.Thread(target=self.read, args=(ring,), daemon=True).start()

    def read(self, ring):
        while True:
            ring.wait()
            for unit in ring.units():
                self.loop.call_soon_threadsafe(self.put, unit)

    def put(self, unit):
        self.pts += 3000
        if not self.queue.full():
            packet = av.Packet(unit)
            packet.pts = self.pts
            packet.time_base = TIME_BASE
            self.queue.put_nowait(packet)

    async def recv(self):
        return await self.queue.get()


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shm", default="/pet_camera_stream")
    parser.add_argument("--http", default="127.0.0.1:8080")
    parser.add_argument("--variant", default="passthrough")
    parser.add_argument("--record-path", default=".")
    options = parser.parse_args()
    track = CameraTrack(Ring(options.shm))
    relay = MediaRelay()
    connections = set()
    codecs = [c for c in RTCRtpSender.getCapabilities("video").codecs if c.mimeType == "video/H264"]

    async def offer(request):
        body = await request.json()
        pc = RTCPeerConnection()
        connections.add(pc)
        pc.addTrack(relay.subscribe(track, buffered=False))
        await pc.setRemoteDescription(RTCSessionDescription(body["sdp"], body["type"]))
        for transceiver in pc.getTransceivers():
            transceiver.setCodecPreferences(codecs)
        await pc.setLocalDescription(await pc.createAnswer())
        return web.json_response({"type": pc.localDescription.type, "sdp": pc.localDescription.sdp})

    async def health(_):
        return web.json_response({"status": "ok"})

    app = web.Application()
    app.router.add_post("/api/webrtc/offer", offer)
    app.router.add_get("/health", health)
    runner = web.AppRunner(app)
    await runner.setup()
    host, port = options.http.rsplit(":", 1)
    site = web.TCPSite(runner, host, int(port))
    await site.start()
    print("listening: http=%s:%d" % runner.addresses[0][:2], flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
