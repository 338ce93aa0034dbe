"""What FFmpeg may open while it reads a source.

A file or a stream may be a list of others: a playlist, an ffconcat script, a session description. FFmpeg would follow
it to any file or address that it names. So a file source may only read its own file, and a URL only the few protocols
that it needs.
"""

from __future__ import annotations

import functools

import av
from av.format import ContainerFormat

# formats that list other files or addresses, or that read a second file besides their own
_LISTS = {"concat", "dash", "hls", "imf", "rtp", "rtsp", "sap", "sdp", "vobsub", "webm_dash_manifest"}
_NONE = "none"  # some versions take an empty list to mean all protocols
_PROTOCOLS = {
    "rtsp": "rtsp,rtp,tcp,udp",  # over UDP where a server has nothing else
    "rtsps": "rtsps,rtsp,rtp,tls,tcp",
    "rtp": "rtp,udp",
    "udp": "udp",
    "tcp": "tcp",
    "srt": "srt",
    "rtmp": "rtmp,tcp",
    "rtmps": "rtmps,tls,tcp",
}
_FORMATS = {"rtsp": {"rtsp"}, "rtsps": {"rtsp"}, "rtp": {"rtp"}, "http": {"dash", "hls"}, "https": {"dash", "hls"}}


def input_options(scheme: str = "") -> dict[str, str]:
    """FFmpeg's options for a source: a URL of this scheme or, without one, only the bytes that we pass to it.

    ``web.py`` fetches whatever an ``http`` or ``https`` source leads to, so FFmpeg needs no protocol for these either.
    """
    formats = _single_formats() | _FORMATS.get(scheme, set())
    return {"protocol_whitelist": _PROTOCOLS.get(scheme, _NONE), "format_whitelist": ",".join(sorted(formats))}


@functools.cache
def _single_formats() -> frozenset[str]:
    """Formats that FFmpeg reads from one file or connection."""
    return frozenset(name for name in av.formats_available if name not in _LISTS and _is_input(name))


def _is_input(name: str) -> bool:
    try:
        return bool(ContainerFormat(name).is_input)
    except ValueError:  # this FFmpeg lists the format but does not have it
        return False
