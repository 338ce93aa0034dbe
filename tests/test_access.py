"""A source cannot lead elsewhere: neither to a file's neighbours nor to other servers."""

from __future__ import annotations

import base64
import contextlib
import http.server
import itertools
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest

from emostream.errors import SourceError
from emostream.stream.clock import SystemClock
from emostream.stream.source_spec import SourceSpec
from emostream.stream.sources import DEMO, web
from emostream.stream.sources.base import AudioChunk
from emostream.stream.sources.file import FileSource
from emostream.stream.sources.network import LiveSource
from emostream.stream.sources.web import Body, Web
from tests import media
from tests.processes import command

LISTS = {
    "talk.mp4": "ffconcat version 1.0\nfile demo.mp4\n",
    "talk.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:30\n#EXTINF:30,\ndemo.mp4\n#EXT-X-ENDLIST\n",
    "talk.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 50004 RTP/AVP 0\n",
    "talk.idx": "# VobSub index file, v7 (do not modify this line!)\nid: en, index: 0\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(DEMO, tmp_path / "demo.mp4")
    for name, text in LISTS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", LISTS)
def test_a_file_that_lists_others_is_not_followed(folder: Path, name: str):
    with pytest.raises(SourceError, match=f"{name}: not a media file"):
        FileSource(folder / name, frozenset({"audio"}), 10).open()


@pytest.mark.process
def test_stream_label_does_not_follow_a_list(folder: Path):
    done = command("stream-label", folder / "talk.mp4")
    assert done.returncode == 1 and done.stdout == ""
    assert "talk.mp4: not a media file" in done.stderr and "Traceback" not in done.stderr


# Servers


Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Server:
    """Serves ``files`` by path: bytes, an address to redirect to, or a function. ``asked``: the requests that came."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | str | Answer] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                answer = outer.files.get(self.path)
                with contextlib.suppress(ConnectionError):
                    if callable(answer):
                        answer(self)
                    elif isinstance(answer, str):
                        self.send_response(302)
                        self.send_header("Location", answer)
                        self.end_headers()
                    elif answer is None:
                        self.send_error(404)
                    else:
                        self.send_response(200)
                        self.send_header("Content-Length", str(len(answer)))
                        self.end_headers()
                        self.wfile.write(answer)

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Server]]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    both = Server(), Server()
    yield both
    for server in both:
        server.close()


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The demo's first two seconds of sound as an MPEG transport stream."""
    path = tmp_path_factory.mktemp("made") / "sound.ts"
    with av.open(str(DEMO)) as demo, av.open(str(path), "w", format="mpegts") as out:
        track = out.add_stream_from_template(demo.streams.audio[0])
        for packet in demo.demux(demo.streams.audio[0]):
            if packet.dts is not None and packet.dts * packet.time_base < 2:
                packet.stream = track
                out.mux(packet)
    return path.read_bytes()


def playlist(*addresses: str) -> bytes:
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n"
    return (head + "".join(f"#EXTINF:2.0,\n{address}\n" for address in addresses) + "#EXT-X-ENDLIST\n").encode()


def opened(url: str, *allowed: str, timeout_s: float = 3) -> LiveSource:
    source = LiveSource(SourceSpec.parse(url), frozenset({"audio"}), 10, SystemClock(), timeout_s, allowed)
    source.open()
    return source


def is_heard(url: str, monkeypatch: pytest.MonkeyPatch, *allowed: str) -> bool:
    """Whether sound comes from ``url``."""
    monkeypatch.setattr("emostream.stream.sources.network._SETTLE_NS", 0)  # this server's data is never stale
    source = opened(url, *allowed)
    try:
        return any(isinstance(item, AudioChunk) for item in itertools.islice(source.items(), 20))
    finally:
        source.close()


process = pytest.mark.process


@process
def test_a_redirect_to_another_server_is_refused(servers, segment, monkeypatch):
    one, other = servers
    one.files["/live"] = f"{other.url}/sound.ts"
    other.files["/sound.ts"] = segment
    with pytest.raises(SourceError, match=r"leads to http://127.0.0.1:\d+, another server.*network.allowed_hosts"):
        opened(f"{one.url}/live")
    assert one.asked == ["/live"] and other.asked == []
    assert is_heard(f"{one.url}/live", monkeypatch, other.host)


@process
def test_a_redirect_on_the_same_server_is_followed(servers, segment, monkeypatch):
    one, _ = servers
    one.files |= {"/live": "/there", "/there": f"{one.url}/sound.ts", "/sound.ts": segment, "/loop": "/loop"}
    assert is_heard(f"{one.url}/live", monkeypatch)
    with pytest.raises(SourceError, match="too many redirects"):
        opened(f"{one.url}/loop")


@process
@pytest.mark.parametrize("scheme", ["http", "file", "crypto+http", "data", "ftp", "tcp"])
def test_a_playlist_that_names_another_server_is_refused(servers, segment, scheme):
    one, other = servers
    other.files["/sound.ts"] = segment
    address = {"file": f"file://{DEMO}", "data": "data:video/mp2t;base64," + base64.b64encode(segment).decode()}
    one.files["/live.m3u8"] = playlist(address.get(scheme, f"{scheme}://{other.host}/sound.ts"))
    with pytest.raises(SourceError, match=r"leads to|cannot be opened \(Invalid data") as raised:
        opened(f"{one.url}/live.m3u8")
    assert "leads to" in str(raised.value) or scheme != "http"  # FFmpeg itself refuses some of the others
    assert set(one.asked) == {"/live.m3u8"} and other.asked == []


@process
def test_a_master_playlist_and_a_redirect_of_a_segment_are_refused_too(servers, segment):
    one, other = servers
    other.files |= {"/sound.ts": segment, "/live.m3u8": playlist("sound.ts")}
    one.files["/master.m3u8"] = f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{other.url}/live.m3u8\n".encode()
    one.files["/live.m3u8"], one.files["/sound.ts"] = playlist("sound.ts"), f"{other.url}/sound.ts"
    for name in ("master", "live"):
        with pytest.raises(SourceError):
            opened(f"{one.url}/{name}.m3u8")
    assert other.asked == []


@process
def test_a_playlist_of_the_same_server_plays(servers, segment, monkeypatch):
    one, _ = servers
    one.files |= {"/a/live.m3u8": playlist("sound.ts", f"{one.url}/a/sound.ts"), "/a/sound.ts": segment}
    assert is_heard(f"{one.url}/a/live.m3u8", monkeypatch)
    assert "/a/sound.ts" in one.asked


@process
def test_a_recording_in_which_nothing_can_be_decoded_is_an_error(servers, tmp_path):
    one, _ = servers
    one.files["/x.mkv"] = media.undecodable(tmp_path / "x.mkv").read_bytes()
    with pytest.raises(SourceError, match=r"/x.mkv: reading ended early \(nothing in it can be decoded"):
        list(opened(f"{one.url}/x.mkv").items())


@process
def test_an_allowed_host_plays(servers, segment, monkeypatch):
    one, other = servers
    one.files["/live.m3u8"] = playlist(f"{other.url}/sound.ts")
    other.files["/sound.ts"] = segment
    assert is_heard(f"{one.url}/live.m3u8", monkeypatch, "127.0.0.1")


@process
@pytest.mark.parametrize("text", ["talk.mp4", "talk.sdp"])
def test_other_lists_from_a_server_are_refused(servers, text):
    one, _ = servers
    one.files[f"/{text}"] = LISTS[text].encode()
    with pytest.raises(SourceError, match="cannot be opened"):
        opened(f"{one.url}/{text}")
    assert set(one.asked) == {f"/{text}"}


@process
def test_a_user_and_a_password_are_told_to_the_source_alone(servers, segment, monkeypatch):
    one, other = servers
    seen: dict[str, list[str | None]] = {one.host: [], other.host: []}

    def guarded(handler: http.server.BaseHTTPRequestHandler) -> None:
        told = handler.headers["Authorization"]
        seen[f"127.0.0.1:{handler.server.server_port}"].append(told)
        if told is None:
            handler.send_response(401)
            handler.send_header("WWW-Authenticate", 'Basic realm="x"')
            handler.end_headers()
        else:
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(segment)

    one.files["/sound.ts"] = other.files["/sound.ts"] = guarded
    assert is_heard(f"http://me:p%40ss@{one.host}/sound.ts", monkeypatch)
    assert seen[one.host][-1] == "Basic " + base64.b64encode(b"me:p@ss").decode()
    one.files["/away"] = f"{other.url}/sound.ts"
    with pytest.raises(SourceError, match="HTTP status 401"):
        opened(f"http://me:p%40ss@{one.host}/away", other.host)
    assert set(seen[other.host]) == {None}


@process
@pytest.mark.parametrize(
    ("first", "again"), [(playlist()[:-15], b"#EXTINF:2.0,\nsound.ts\n" * 4000), (playlist()[:-15], b""), (b"", b"")]
)
def test_an_answer_without_end_ends(servers, first: bytes, again: bytes):
    """An endless playlist, and one that arrives byte by byte, cost neither memory nor time."""

    def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(first)
        while True:
            handler.wfile.write(again or b"#")
            time.sleep(0 if again else 0.05)

    one, _ = servers
    one.files["/live.m3u8"] = endless
    begun = time.monotonic()
    with pytest.raises(SourceError, match="larger than|takes too long"):
        opened(f"{one.url}/live.m3u8", timeout_s=0.5)
    assert time.monotonic() - begun < 5


@process
def test_answers_that_are_not_http(servers):
    def nonsense(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"\0\1\2\r\n\r\n")

    one, _ = servers
    one.files |= {"/x": nonsense, "/bad": "http://[", "/odd": "http://127.0.0.1:99999/", "/none": "gopher://x/"}
    for path in one.files:
        with pytest.raises(SourceError):
            opened(one.url + path)


@process
def test_a_file_is_read_by_parts_where_the_server_serves_them(servers):
    data = bytes(range(256)) * 10

    def ranges(handler: http.server.BaseHTTPRequestHandler) -> None:
        begin, _, end = handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = data[int(begin) : int(end) + 1 if end else None]
        handler.send_response(206 if "Range" in handler.headers else 200)
        handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("Content-Length", str(len(part)))
        handler.end_headers()
        handler.wfile.write(part)

    one, _ = servers
    one.files["/x"] = ranges
    file = Body(Web(f"{one.url}/x", "x", (), 2), f"{one.url}/x")
    assert file.seekable() and file.read(10) == data[:10]
    assert file.seek(-5, 2) == len(data) - 5 and file.read(10) == data[-5:] and file.read(10) == b""
    assert file.seek(-1) == file.seek(len(data) + 1) == -1
    part = Web(f"{one.url}/x", "x", (), 2).open(f"{one.url}/x", 0, {"offset": "100", "end_offset": "110"})
    assert part.read(100) == data[100:110]


@process
def test_a_name_that_moves_into_the_own_network_is_refused(servers, segment, monkeypatch):
    one, _ = servers
    one.files["/x"] = segment
    public = iter([True, False])
    monkeypatch.setattr(web, "_is_public", lambda address: next(public))
    source = Web(f"{one.url}/x", "x", (), 2)
    Body(source, f"{one.url}/x").close()
    with pytest.raises(SourceError, match="is now an address of this machine or its network"):
        Body(source, f"{one.url}/x")
    assert one.asked == ["/x"]


@process
@pytest.mark.parametrize(
    ("scheme", "says"),
    [("rtsp", b"OPTIONS rtsp://"), ("rtsps", b"\x16\x03"), ("rtmp", b"\x03"), ("rtmps", b"\x16\x03")],
)
def test_the_protocols_of_other_urls_are_enough(scheme: str, says: bytes):
    """Sends the first bytes of each; the server does not answer."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                heard.append(connection.recv(100))

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(SourceError, match="cannot be opened"):
            opened(f"{scheme}://127.0.0.1:{server.getsockname()[1]}/x", timeout_s=1)
        thread.join(2)
    assert heard and heard[0].startswith(says)


@process
def test_sound_over_tcp_and_a_list_over_tcp(segment: bytes, monkeypatch: pytest.MonkeyPatch):
    for data, is_sound in ((segment, True), (LISTS["talk.mp4"].encode(), False)):
        with socket.create_server(("127.0.0.1", 0)) as server:

            def answer(server: socket.socket = server, data: bytes = data) -> None:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(data)

            threading.Thread(target=answer, daemon=True).start()
            with contextlib.nullcontext() if is_sound else pytest.raises(SourceError, match="Invalid argument"):
                assert is_heard(f"tcp://127.0.0.1:{server.getsockname()[1]}", monkeypatch)


@pytest.mark.parametrize(
    ("source", "target", "is_allowed"),
    [
        ("http://cam/a", "http://cam/b", True),
        ("http://cam/a", "https://CAM/b", True),
        ("https://cam/a", "http://cam:80/b", True),
        ("http://cam/a", "http://cam:8080/b", False),
        ("http://cam:8080/a", "http://cam/b", False),
        ("http://cam/a", "http://cam@evil/b", False),
        ("http://cam/a", "http://cam.evil/b", False),
        ("http://cam/a", "http://localhost/", False),
        ("http://cam/a", "http://2130706433/", False),
        ("http://cam/a", "http://[::1]/", False),
        ("http://cam/a", "file:///etc/passwd", False),
        ("http://cam/a", "http://ok/", True),
        ("http://cam/a", "http://part:81/", True),
        ("http://cam/a", "http://part:82/", False),
        ("http://cam/a", "http://cam/\r\nHost: evil", False),
    ],
)
def test_where_a_source_may_lead(source: str, target: str, is_allowed: bool):
    checked = Web(source, source, ("OK", "part:81"), 1)
    with contextlib.nullcontext() if is_allowed else pytest.raises(SourceError, match="leads to"):
        checked.check(target)


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("::1", False),
        ("fe80::1%lo", False),
        ("::ffff:192.168.1.1", False),
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
    ],
)
def test_addresses_of_the_own_network(address: str, is_public: bool):
    assert web._is_public(address) is is_public
