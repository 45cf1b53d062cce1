"""Watches with aiortc for some seconds: watch_aiortc.py URL SECONDS."""

import asyncio
import json
import sys
import urllib.request

from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaBlackhole
from aiortc.rtcrtpreceiver import RTCRtpReceiver

from count import Count

URL, SECONDS = sys.argv[1], int(sys.argv[2])
COUNT = Count()
handle = RTCRtpReceiver._handle_rtp_packet


async def handle_and_count(self, packet, *args, **kwargs):
    COUNT.packet(packet.sequence_number, packet.payload)
    return await handle(self, packet, *args, **kwargs)


RTCRtpReceiver._handle_rtp_packet = handle_and_count


def post(offer):
    body = json.dumps({"type": "offer", "sdp": offer}).encode()
    request = urllib.request.Request(URL + "/api/webrtc/offer", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)["sdp"]


async def main():
    viewer = RTCPeerConnection()
    viewer.addTransceiver("video", direction="recvonly")
    sink = MediaBlackhole()
    viewer.on("track", sink.addTrack)
    await viewer.setLocalDescription(await viewer.createOffer())
    answer = await asyncio.get_running_loop().run_in_executor(None, post, viewer.localDescription.sdp)
    await viewer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    await sink.start()
    await asyncio.sleep(SECONDS)
    print(COUNT.result(SECONDS))
    await viewer.close()


asyncio.run(main())
