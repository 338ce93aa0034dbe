"""The live page: who is let in, what it shows, and a real browser that displays it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from emostream.errors import ConfigError, ControlError
from emostream.stream.config import Config
from emostream.stream.control import Control, Request
from emostream.stream.emotion import encode_emotion
from emostream.stream.messages import Face, Pcm, Picture
from emostream.stream.page.server import make_app
from emostream.stream.page.state import KEPT, PageState
from emostream.stream.status import NodeStatus, Status, StreamStatus, encode_status
from tests.emotions import emotion_message
from tests.processes import Pipeline, free_port, patience

TOKEN = "a-token-of-16-letters"
HOST = "127.0.0.1:8800"
SOCKET = f"ws://{HOST}/{TOKEN}"


def payload(**changes) -> str:
    return encode_emotion(emotion_message(**changes)).decode()


def status(**changes) -> str:
    streams = {"a": StreamStatus(state="running", heard=3, labelled=2, unlabelled=1, sound_lost_s=1.5)}
    nodes = {"fusion": NodeStatus(state="running", dropped=4, cpu_s=2.5, rss_bytes=1000, starts=2)}
    return encode_status(
        Status(**({"run": "r1", "state": "running", "streams": streams, "nodes": nodes} | changes))
    ).decode()


@pytest.fixture
def state() -> PageState:
    state = PageState()
    state.set_status(status())
    return state


@pytest.fixture
def asked() -> list[Request]:
    return []


@pytest.fixture
def client(state, asked) -> Iterator[TestClient]:
    def steer(request: Request) -> str:
        asked.append(request)
        if request.value == "bad=1":
            raise ControlError("bad cannot be changed")
        return f"{request.command} done"

    with TestClient(make_app(state, TOKEN, frozenset({HOST}), steer), base_url=f"http://{HOST}") as client:
        yield client


# Who is let in


@pytest.mark.parametrize(
    "path", ["/", "/page.js", "/ws", "/metrics", "/api/utterances", "/api/labels.csv", "/x/", f"/{TOKEN}x/"]
)
def test_without_the_token_there_is_nothing(client, path):
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "evil.example:8800"}, {"Origin": "https://evil.example"}, {"Origin": "null"}],
)
def test_other_hosts_and_pages_are_not_let_in(client, headers):
    assert client.get(f"/{TOKEN}/", headers=headers).status_code == 403
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(f"{SOCKET}/ws", headers=headers):
        pass


def test_a_socket_without_the_token(client):
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(f"ws://{HOST}/ws"):
        pass


def test_the_page_is_one_piece_with_how_things_are_and_no_script_but_its_own(client, state):
    state.set_sources({"a": "microphone, rtsp://cam:***@host/1"})
    for number in range(30):
        state.add(payload(utterance=number, text="</script><script>alert(1)</script>"))
    answer = client.get(f"/{TOKEN}/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert len(answer.content) < 150_000 and "https://" not in answer.text  # nothing of another host
    now, script = re.findall(r"<script[^>]*>(.*?)</script>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in answer.headers["content-security-policy"]
    news = json.loads(now)
    assert [label["utterance"] for label in news["labels"]] == list(range(18, 30))
    assert news["labels"][0]["text"] == "</script><script>alert(1)</script>"
    assert news["status"]["run"] == "r1" and news["sources"] == {"a": "microphone, rtsp://cam:***@host/1"}
    assert state.is_watched and not state.viewers  # sound and faces are fetched while it loads


def test_its_address_without_the_last_slash(client):
    """Leads to the one with it, by whatever path a proxy has put before it."""
    answer = client.get(f"/{TOKEN}", follow_redirects=False)
    assert answer.status_code == 307 and answer.headers["location"] == f"{TOKEN}/"


def test_health(client, state):
    assert client.get("/healthz").status_code == 200
    state.set_status(status(streams={"a": StreamStatus(state="away")}))
    assert client.get("/healthz").status_code == 503
    assert client.get("/healthz", headers={"Host": "evil.example"}).status_code == 403


# What it says


def test_utterances_since(client, state):
    for number in range(1, 4):
        state.add(payload(utterance=number))
        state.add(payload(kind="window", utterance=number))
    first = client.get(f"/{TOKEN}/api/utterances").json()
    assert [one["utterance"] for one in first["utterances"]] == [1, 2, 3] and first["next"] == 3
    assert client.get(f"/{TOKEN}/api/utterances?since=3").json() == {"next": 3, "utterances": []}
    state.add(payload(utterance=4))
    assert [one["utterance"] for one in client.get(f"/{TOKEN}/api/utterances?since=3").json()["utterances"]] == [4]
    assert client.get(f"/{TOKEN}/api/utterances?since=x").status_code == 400


def test_no_more_than_five_hundred_are_kept(client, state):
    for number in range(KEPT + 20):
        state.add(payload(utterance=number))
    answer = client.get(f"/{TOKEN}/api/utterances").json()
    assert len(answer["utterances"]) == KEPT and answer["next"] == KEPT + 20


def test_exports(client, state):
    state.add(payload(text='=cmd|"x", a\nb', uncertain=True))
    state.add(payload(text="so <b> --> happy", start_s=3661.5, end_s=3662.25))
    csv = client.get(f"/{TOKEN}/api/labels.csv")
    assert "attachment" in csv.headers["content-disposition"] and "'=cmd" in csv.text and csv.text.count(",joy,") == 2
    vtt = client.get(f"/{TOKEN}/api/labels.vtt").text
    assert vtt.startswith("WEBVTT\n") and "01:01:01.500 --> 01:01:02.250\n<v a>[joy] so &lt;b> → happy" in vtt
    assert "[joy?]" in vtt
    lines = client.get(f"/{TOKEN}/api/labels.jsonl").text.splitlines()
    assert [json.loads(line)["label"] for line in lines] == ["joy", "joy"]
    assert client.get(f"/{TOKEN}/api/labels.exe").status_code == 404


def test_public_messages_as_they_are_and_of_estimates_the_newest_alone(client, state):
    state.add(payload(utterance=1))
    with client.websocket_connect(f"{SOCKET}/ws") as socket:
        assert json.loads(socket.receive_text())["schema"] == "emostream-status/1"
        for number in range(50):
            state.add(payload(kind="window", seq=number))
        first = json.loads(socket.receive_text())
        state.add(payload(utterance=2))
        seen = [first, json.loads(socket.receive_text())]
        while seen[-1]["kind"] != "utterance":
            seen.append(json.loads(socket.receive_text()))
    assert seen[-1]["utterance"] == 2 and len(seen) < 10
    assert len([one for one in seen if one["kind"] == "window"]) < 5


def test_events(client, state):
    with client.websocket_connect(f"{SOCKET}/ws?format=events") as socket:
        assert json.loads(socket.receive_text())["type"] == "health"
        state.add(payload(kind="window", utterance=7, text="so"))
        events = [json.loads(socket.receive_text()) for _ in range(3)]
        state.add(payload(utterance=7, text="so happy"))
        events += [json.loads(socket.receive_text()) for _ in range(3)]
    assert [event["type"] for event in events] == [
        "utterance.start", "words", "measurement", "words", "measurement", "utterance.end",
    ]  # fmt: skip
    assert events[-1]["label"] == "joy" and events[-2]["final"] and not events[2]["final"]
    assert events[2]["emotions"] == [{"name": "joy", "score": 0.75}, {"name": "anger", "score": 0.25}]


def test_sound_and_faces_come_only_while_somebody_looks(client, state):
    block = Pcm(stream="a", media_start_ns=0, media_end_ns=1, captured_ns=0, samples=np.full(512, 8192, np.int16))
    face = Face(stream="a", media_start_ns=0, media_end_ns=0, captured_ns=0, crop=np.full((48, 48), 7, np.uint8))
    assert state.viewers == 0
    with client.websocket_connect(f"{SOCKET}/ws?format=page") as socket:
        socket.receive_text()
        assert state.viewers == 1
        for _ in range(200):
            state.hear(block)
        state.see(face)
        news = json.loads(socket.receive_text())
        while not news["senses"]:
            news = json.loads(socket.receive_text())
        assert (
            news["senses"]["a"]["envelope"][-1] == 50
            and len(news["senses"]["a"]["faces"][0]["crop"]) == 4 * 48 * 48 // 3
        )
    until = time.monotonic() + 5
    while state.viewers:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_pictures_come_once_each_and_only_while_somebody_looks(client, state):
    picture = Picture(
        stream="a",
        media_start_ns=0,
        media_end_ns=0,
        captured_ns=0,
        jpeg=np.arange(9, dtype=np.uint8),
        width=64,
        height=48,
    )
    with client.websocket_connect(f"{SOCKET}/ws?format=page") as socket:
        assert socket.receive_json()["pictures"] == {}
        state.show(picture)
        shown = [pictures for _ in range(5) if (pictures := socket.receive_json()["pictures"])]
        assert shown == [{"a": {"width": 64, "height": 48, "jpeg": base64.b64encode(bytes(range(9))).decode()}}]
    state.forget_senses()
    assert state.pictures() == {}


def test_metrics_are_what_prometheus_reads(client, state):
    for _ in range(3):
        state.add(payload())
    text = client.get(f"/{TOKEN}/metrics").text
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["emostream_utterances_total", ("stream", "a")] == 2
    assert samples["emostream_lost_total", ("stream", "a"), ("why", "unlabelled")] == 1
    assert samples["emostream_dropped_total", ("node", "fusion")] == 4
    assert samples["emostream_source_up", ("stream", "a")] == 1
    assert samples["emostream_label_latency_seconds_count", ("part", "total"), ("stream", "a")] == 3
    within = {key: value for key, value in samples.items() if key[0].endswith("_bucket") and ("part", "total") in key}
    assert [value for key, value in sorted(within.items(), key=lambda item: float(dict(item[0][1:])["le"]))][-6:] == [
        3.0
    ] * 6
    assert samples["emostream_coverage", ("modality", "audio"), ("stream", "a")] == pytest.approx(
        emotion_message().modalities["audio"].coverage
    )
    assert "joy" not in text


def test_labels_are_counted_by_name_if_that_is_asked_for(state):
    app = make_app(state, TOKEN, frozenset({HOST}), None, count_labels=True)
    for label in ("joy", "joy", "anger"):
        state.add(payload(label=label))
    text = TestClient(app, base_url=f"http://{HOST}").get(f"/{TOKEN}/metrics").text
    counted = {
        sample.labels["label"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "emostream_labels_total"
    }
    assert counted == {"joy": 2, "anger": 1}


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ({"command": "mute", "for_s": 2}, 200, "mute done"), ({"command": "set", "value": "bad=1"}, 409, "bad cannot"),
        ({"command": "add", "value": "x=file:/etc/passwd"}, 400, "no such"), ({"command": "explode"}, 400, "no such"),
        ([], 400, "no such"), ({}, 400, "no such"), ({"command": "mute", "streams": 3}, 400, "no such"),
    ],
)  # fmt: skip
def test_steering(client, asked, body, code, text):
    answer = client.post(f"/{TOKEN}/api/control", json=body)
    assert answer.status_code == code and text in answer.json()["text"]
    assert len(asked) == (code in (200, 409))


def test_a_form_of_another_page_cannot_steer(client, asked):
    data = json.dumps({"command": "mute"})
    assert client.post(f"/{TOKEN}/api/control", content=data, headers={"Content-Type": "text/plain"}).status_code == 415
    headers = {"Content-Type": "application/json", "Origin": "http://evil.example"}
    assert client.post(f"/{TOKEN}/api/control", content=data, headers=headers).status_code == 403
    assert not asked


@pytest.mark.parametrize("page", [{"host": "0.0.0.0"}, {"host": "192.168.1.2"}, {"token": "short"}, {"port": 0}])
def test_it_is_for_this_machine_alone(page):
    with pytest.raises(ConfigError, match="page"):
        Config(page=page)


# In a run


# gray levels in the middle of the picture, and in its corner
SHADES = """() => { const scene = document.querySelector(".scene"), draw = scene.getContext("2d");
  return [[scene.width / 2, scene.height / 2], [4, 4]].map(([x, y]) => draw.getImageData(x, y, 1, 1).data[0]); }"""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def address(run: Pipeline) -> str:
    until = time.monotonic() + 30
    while not (found := re.search(r"http://127\.0\.0\.1:\d+/[\w-]{16,}/", run.output)):
        assert time.monotonic() < until and run.process.poll() is None, run.output
        time.sleep(0.1)
    return found[0]


@pytest.mark.process
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_the_demo_and_comes_back_when_the_page_does(tmp_path):
    from playwright.sync_api import sync_playwright

    port = free_port()
    options = ("--config", "config.toml", "--page", "--set", f"page.port={port}", "--record", tmp_path / "r")
    options += ("--set", "page.picture=true")
    with (
        sync_playwright() as play,
        play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
        browser.new_page(viewport={"width": 390, "height": 844}) as page,  # before the demo runs: it takes seconds
        Pipeline(*options) as run,
    ):
        url = address(run)
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: faults.append(request.url) if f":{port}/" not in request.url else None)
        begun = time.monotonic()
        page.goto(url)
        page.wait_for_selector("live-stream h2")
        assert time.monotonic() - begun < 20  # beside other tests; tools/page_load.py measures it
        page.wait_for_selector("#said li", timeout=30_000)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert "joy" in page.inner_text("#said li >> nth=-1")  # the first label, below those that came meanwhile
        assert page.inner_text(".facing") == "a face"
        page.wait_for_selector(".scene.whole")
        middle, corner = page.evaluate(SHADES)
        assert abs(middle - corner) > 20  # the drawn face, and what is behind it
        assert page.inner_text("#recording:not([hidden])") == "● recording"
        page.keyboard.press("Tab")
        for _ in range(12):  # to the utterance, by keyboard
            if page.evaluate("document.activeElement.tagName") == "SUMMARY":
                break
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector(".detail")
        detail = page.inner_text(".detail")
        assert re.search("happy|angry|afraid", detail) and "endpoint wait" in detail, detail
        os.kill(run.node("page"), signal.SIGKILL)  # labels continue, and the page comes back
        page.wait_for_selector("#state.bad", timeout=10_000)
        page.wait_for_selector("#state:not(.bad)", timeout=20_000)
        count = len(run.subscriber.of("utterance"))
        run.subscriber.wait_for("utterance", count + 1, 20)
        run.interrupt()
        assert run.process.returncode == 0, run.output
    assert not faults


@pytest.mark.long
@pytest.mark.process
def test_a_port_that_is_taken_costs_the_page_alone():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Pipeline("--config", "config.toml", "--page", "--set", f"page.port={port}") as run:
            run.subscriber.wait_for("utterance", 1, 30)
            run.interrupt()
    assert f"the page cannot have 127.0.0.1:{port}" in run.output and run.process.returncode == 0


@pytest.mark.long
@pytest.mark.process
def test_a_fixed_token_lets_a_scraper_in_and_streams_that_are_added_are_seen():
    from websockets.sync.client import connect

    port, endpoint = free_port(), f"tcp://127.0.0.1:{free_port()}"
    page = ("--page", "--set", f"page.port={port}", "--set", f"page.token={TOKEN}")
    with Pipeline("--config", "config.toml", *page, endpoint=endpoint) as run, Control(endpoint) as control:
        assert TOKEN in address(run)
        run.subscriber.wait_for("window", 1, 30)
        with connect(f"ws://127.0.0.1:{port}/{TOKEN}/ws?format=page") as socket:
            until = time.monotonic() + patience(20)
            control.add("hall=demo")
            while not (sensed := json.loads(socket.recv(5))["senses"].get("hall", {})).get("envelope"):
                assert time.monotonic() < until, sensed
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{TOKEN}/metrics", timeout=5) as answer:
            assert b"emostream_source_up" in answer.read()
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)
        run.interrupt()
