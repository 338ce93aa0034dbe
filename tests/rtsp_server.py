"""An RTSP server that plays a recording at its own pace, for whoever asks: GStreamer's, as many cameras have it.

Run by the system's Python, which has GObject introspection: python3 rtsp_server.py PORT FILE [--transport udp]
[--user NAME --password WORD [--digest]]. It prints ``ready`` when it can be asked.
"""

from __future__ import annotations

import argparse
import sys

import gi

for _name in ("Gst", "GstRtsp", "GstRtspServer"):
    gi.require_version(_name, "1.0")

from gi.repository import GLib, Gst, GstRtsp, GstRtspServer

# by what FFmpeg calls the codec: how its packets leave a file, and how they go into RTP
_VIDEO = {"h264": "h264parse ! rtph264pay config-interval=1", "hevc": "h265parse ! rtph265pay config-interval=1",
          "mjpeg": "jpegparse ! rtpjpegpay"}  # fmt: skip
_AUDIO = {"aac": "aacparse ! rtpmp4gpay", "pcm_mulaw": "rtppcmupay", "opus": "opusparse ! rtpopuspay"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port")
    parser.add_argument("file", help="Matroska, with a picture track and then a sound track")
    parser.add_argument("--video", choices=_VIDEO, default="h264")
    parser.add_argument("--audio", choices=_AUDIO, default="aac")
    parser.add_argument("--transport", choices=("tcp", "udp"), default="tcp", help="the only one")
    parser.add_argument("--user")
    parser.add_argument("--password")
    parser.add_argument("--digest", action="store_true")
    options = parser.parse_args()
    Gst.init(None)

    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_shared(True)
    factory.set_protocols(getattr(GstRtsp.RTSPLowerTrans, options.transport.upper()))
    factory.set_launch(
        f"( filesrc location={options.file} ! matroskademux name=file "
        f"file.video_0 ! queue ! {_VIDEO[options.video]} name=pay0 pt=96 "
        f"file.audio_0 ! queue ! {_AUDIO[options.audio]} name=pay1 {'pt=97' if options.audio != 'pcm_mulaw' else ''} )"
    )
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(options.port)
    if options.user is not None:
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "viewer")
        auth = GstRtspServer.RTSPAuth()
        if options.digest:
            auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
            auth.add_digest(options.user, options.password, token)
        else:
            auth.add_basic(GstRtspServer.RTSPAuth.make_basic(options.user, options.password), token)
        server.set_auth(auth)
        permissions = GstRtspServer.RTSPPermissions()
        for what in ("media.factory.access", "media.factory.construct"):
            permissions.add_permission_for_role("viewer", what, True)
        factory.set_permissions(permissions)
    server.get_mount_points().add_factory("/cam", factory)
    if not server.attach(None):
        sys.exit(f"port {options.port} is taken")
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
