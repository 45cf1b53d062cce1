"""Watches with libdatachannel for some seconds: watch_libdatachannel.py URL SECONDS."""

import json
import os
import sys
import threading
import time
import urllib.request

from libdatachannel import Configuration, Description, PeerConnection, RtcpReceivingSession

from count import Count

URL, SECONDS = sys.argv[1], int(sys.argv[2])
COUNT = Count()


def on_message(message):
    if isinstance(message, (bytes, bytearray)) and len(message) > 12 and not 192 <= message[1] <= 223:
        data = bytes(message)
        COUNT.packet(int.from_bytes(data[2:4], "big"), data[12:])


viewer = PeerConnection(Configuration())
gathered = threading.Event()


def on_gathering(state):
    if state == PeerConnection.GatheringState.Complete:
        gathered.set()


viewer.on_gathering_state_change(on_gathering)
media = Description.Video("video", Description.Direction.RecvOnly)
media.add_h264_codec(96)
track = viewer.add_track(media)
track.set_media_handler(RtcpReceivingSession())
track.on_message(on_message)
viewer.set_local_description()
gathered.wait()
body = json.dumps({"type": "offer", "sdp": str(viewer.local_description())}).encode()
request = urllib.request.Request(URL + "/api/webrtc/offer", body, {"Content-Type": "application/json"})
with urllib.request.urlopen(request) as response:
    answer = json.load(response)["sdp"]
viewer.set_remote_description(Description(answer, Description.Type.Answer))
time.sleep(SECONDS)
print(COUNT.result(SECONDS), flush=True)
os._exit(0)
