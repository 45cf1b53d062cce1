"""Watches with GStreamer's webrtcbin for some seconds: watch_gstreamer.py URL SECONDS. The certificate is an ECDSA one,
because the server's DTLS does not know RSA; everything else is webrtcbin's default."""

import hashlib
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import urllib.request

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstWebRTC", "1.0")
gi.require_version("GstSdp", "1.0")
from gi.repository import GLib, Gst, GstSdp, GstWebRTC  # noqa: E402

from count import Count  # noqa: E402

URL, SECONDS = sys.argv[1], int(sys.argv[2])
COUNT = Count()


def certificate():
    """Returns an ECDSA certificate as PEM text, and its key."""
    with tempfile.TemporaryDirectory() as folder:
        key, made = os.path.join(folder, "key"), os.path.join(folder, "certificate")
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=viewer"
        subprocess.run(command.split() + ["-keyout", key, "-out", made], check=True, capture_output=True)
        return open(made).read(), open(key).read()


CERTIFICATE, KEY = certificate()


def on_element(_bin, _parent, element):
    factory = element.get_factory()
    if factory and factory.get_name() == "dtlssrtpdec":
        element.set_property("pem", CERTIFICATE + KEY)


def on_rtp(pad, info):
    ok, mapped = info.get_buffer().map(Gst.MapFlags.READ)
    if ok:
        data = bytes(mapped.data)
        info.get_buffer().unmap(mapped)
        COUNT.packet(int.from_bytes(data[2:4], "big"), data[12:])
    return Gst.PadProbeReturn.OK


def on_list(pad, info):
    packets = info.get_buffer_list()
    for index in range(packets.length()):
        data = packets.get(index).extract_dup(0, packets.get(index).get_size())
        COUNT.packet(int.from_bytes(data[2:4], "big"), data[12:])
    return Gst.PadProbeReturn.OK


def on_pad(viewer, pad):
    if pad.get_direction() != Gst.PadDirection.SRC:
        return
    pad.add_probe(Gst.PadProbeType.BUFFER, on_rtp)
    pad.add_probe(Gst.PadProbeType.BUFFER_LIST, on_list)
    sink = Gst.ElementFactory.make("fakesink")
    pipeline.add(sink)
    sink.sync_state_with_parent()
    pad.link(sink.get_static_pad("sink"))


def on_gathered(viewer, _property):
    if viewer.get_property("ice-gathering-state") != GstWebRTC.WebRTCICEGatheringState.COMPLETE:
        return
    offer = viewer.get_property("local-description").sdp.as_text()
    # GStreamer 1.22 hashes the certificate together with the key.
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(CERTIFICATE)).hexdigest().upper()
    octets = ":".join(digest[at : at + 2] for at in range(0, 64, 2))
    offer = re.sub("a=fingerprint:sha-256 [0-9A-F:]+", "a=fingerprint:sha-256 " + octets, offer)
    body = json.dumps({"type": "offer", "sdp": offer}).encode()
    request = urllib.request.Request(URL + "/api/webrtc/offer", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        answer = json.load(response)["sdp"]
    _, message = GstSdp.SDPMessage.new_from_text(answer)
    description = GstWebRTC.WebRTCSessionDescription.new(GstWebRTC.WebRTCSDPType.ANSWER, message)
    viewer.emit("set-remote-description", description, None)


def on_offer(promise, viewer):
    promise.wait()
    reply = promise.get_reply()
    offer = reply.get_value("offer")
    viewer.emit("set-local-description", offer, None)


Gst.init(None)
pipeline = Gst.Pipeline.new("watch")
viewer = Gst.ElementFactory.make("webrtcbin")
pipeline.add(viewer)
viewer.connect("deep-element-added", on_element)
viewer.connect("pad-added", on_pad)
viewer.connect("notify::ice-gathering-state", on_gathered)
pipeline.set_state(Gst.State.PLAYING)
caps = Gst.Caps.from_string("application/x-rtp,media=video,encoding-name=H264,payload=96,clock-rate=90000")
viewer.emit("add-transceiver", GstWebRTC.WebRTCRTPTransceiverDirection.RECVONLY, caps)
created = Gst.Promise.new_with_change_func(on_offer, viewer)
viewer.emit("create-offer", None, created)
loop = GLib.MainLoop()
GLib.timeout_add_seconds(SECONDS, loop.quit)
loop.run()
print(COUNT.result(SECONDS), flush=True)
os._exit(0)
