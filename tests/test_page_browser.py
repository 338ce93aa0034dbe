"""The page in a real browser, with labels of our own: many, what they are made of, settings and their effect; what is
there before anything is asked for; words that look like markup; colours."""

from __future__ import annotations

import re
import shutil
import threading
from importlib.resources import files
from itertools import product

import pytest
import uvicorn

from emostream.errors import ControlError
from emostream.stream.config import Config
from emostream.stream.control import Request
from emostream.stream.emotion import Latency, encode_emotion
from emostream.stream.messages import Expected, Orders
from emostream.stream.nodes.page import settings_of, sources_of
from emostream.stream.page.server import make_app
from emostream.stream.page.state import PageState
from emostream.stream.status import NodeStatus, Status, StreamStatus, encode_status
from tests.emotions import emotion_message
from tests.processes import free_port, patience

TOKEN = "a-token-of-16-letters"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def label(number: int, total_ms: float, **fields) -> str:
    latency = Latency(
        total=total_ms,
        endpoint_wait=total_ms / 2,
        recognition=0,
        queue=total_ms / 4,
        encode=total_ms / 4,
        fusion=0,
        other=0,
    )
    return encode_emotion(emotion_message(seq=number, utterance=number, latency_ms=latency, **fields)).decode()


def status(silent_s: float) -> str:
    streams = {"a": StreamStatus(state="running", heard=200, labelled=200, level_dbfs=-20.4, speech=0.87)}
    nodes = {"audio.a": NodeStatus(state="running", silent_s=silent_s, dropped=3, gaps=1, starts=1)}
    return encode_status(Status(run="r", state="running", streams=streams, nodes=nodes)).decode()


@pytest.fixture
def state() -> PageState:
    return PageState()


@pytest.fixture
def url(state):
    """The page's address; settings made there take effect, except for a threshold above 1."""
    port = free_port()

    def steer(request: Request) -> str:
        if request.value.endswith("=2"):
            raise ControlError("threshold is below 1")
        state.set_settings(settings_of(Config(), Orders(serial=1, settings=[request.value])))
        return f"set: {request.value}"

    app = make_app(state, TOKEN, frozenset({f"127.0.0.1:{port}"}), steer)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, lifespan="off", ws="websockets-sansio"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{port}/{TOKEN}/"
    server.should_exit = True
    thread.join(5)


@pytest.mark.process
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_two_hundred_utterances_and_settings_with_their_effect(state, url):
    from playwright.sync_api import sync_playwright

    state.set_settings(settings_of(Config(speech={"threshold": 0.4}, fusion={"prior": {"joy": 0.5}}), Orders()))
    state.set_status(status(0))
    for number in range(200):
        state.add(label(number, 400, text=f"sentence {number}"))
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(1000 * patience(10))
        said: list[str] = []
        sizes: list[int] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("response", lambda response: sizes.append(len(response.body())) if response.ok else None)
        page.goto(url)
        page.wait_for_function("() => document.querySelectorAll('#said li').length === 200")
        assert sum(sizes) < 150_000
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert "sentence 199" in page.inner_text("#said li >> nth=0")
        page.wait_for_function(
            "() => document.querySelector('.source').textContent === 'running · 200 labelled of 200 heard'"
        )
        page.click("#said summary >> nth=0")
        bars = page.evaluate(
            "[...document.querySelectorAll('.span .fill')].map(({ style }) => [style.marginLeft, style.width])"
        )
        assert bars[0] == ["0%", "50%"] and bars[2] == ["50%", "25%"] and bars[3] == ["75%", "25%"]
        assert bars[-1] == ["0%", "100%"]
        assert page.input_value('[data-set="speech.threshold"]') == "0.4"  # as configured
        assert page.input_value('[data-set="fusion.prior"]') == "{joy = 0.5}"
        page.fill('[data-set="speech.threshold"]', "2")
        page.keyboard.press("Tab")
        page.wait_for_function("() => document.querySelector('#answer').textContent === 'threshold is below 1'")
        page.select_option('[data-set="fusion.prior"]', "conversation")
        page.wait_for_function(
            "() => document.querySelector('#answer').textContent === 'set: fusion.prior=conversation'"
        )
        for number in range(200, 202):
            state.add(label(number, 300, uncertain=True))
        page.wait_for_function("() => document.querySelector('#effect').textContent.startsWith('Since then: 2 labels')")
        assert page.inner_text("#effect") == (
            "Since then: 2 labels, half within 300 ms, 2 of them not sure. "
            "Before: 200 labels, half within 400 ms, 0 of them not sure."
        )
        state.set_status(status(8))
        page.wait_for_function("() => document.querySelector('#trouble').textContent.includes('nothing for 8 s')")
        assert not [line for line in said if "409" not in line]  # 409 answers the setting that was refused
        browser.close()


@pytest.mark.process
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_how_things_are_is_shown_before_anything_is_asked_for_and_words_are_never_markup(state, url):
    from playwright.sync_api import sync_playwright

    markup = "</script><img src=x onerror=document.title='no'> <b>so</b> & \"happy\""
    state.set_sources({"a": "microphone, camera:0"})
    state.set_status(status(0))
    for number in range(40):
        state.add(label(number, 400, text=markup, speaker="<i>s1</i>"))
    with sync_playwright() as play:
        page = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.add_init_script("window.WebSocket = class { constructor() { window.socket = this; } }")
        page.goto(url)
        assert page.inner_text(".source") == "microphone, camera:0 · running · 200 labelled of 200 heard"
        assert page.inner_text(".words") == markup and page.locator("#said li").count() == 12
        assert [address for address in asked if not address.startswith("data:")] == [url]
        assert page.evaluate("performance.getEntriesByName('streams').length") == 1
        page.click("#said summary >> nth=0")
        assert page.inner_text("#said .text >> nth=0") == markup
        assert page.locator("#streams img, #said img, #said b, #said i").count() == 0 and page.title() == "emostream"


_FINE = {"state": "running", "heard": 1, "labelled": 1, "level_dbfs": -20.0, "speech": 0.0}
TROUBLES = [  # a stream's facts, those of one node, and what the page says
    ({}, {}, ""),
    ({}, {"audio.a": NodeStatus(state="failed")}, "audio.a has failed for good; the log of"),
    ({}, {"fusion": NodeStatus(state="away")}, "fusion: its process ended and is being started again"),
    ({}, {"audio.a": NodeStatus(state="running", silent_s=8)}, "audio.a: its source has given nothing for 8 s. Is it"),
    ({"state": "away"}, {}, "a: no labels can come; its source or a process is away, and is tried again"),
    ({"level_dbfs": -70.0}, {}, "a: silence (-70 dB). Is it muted, or another microphone? stream-doctor"),
    ({"heard": 0}, {}, "a: nobody has spoken yet; the loudest sound has -20 dB. Is it the right microphone"),
    ({"behind_s": 4.2}, {}, "a: 4 s behind; fewer streams, a lower video.fps or"),
    ({"sound_lost_s": 3.0}, {}, "a: 3.0 s of sound lost so far. If it grows, the source breaks off, or"),
    ({"unlabelled": 2}, {}, "a: 2 utterances without a label so far; the log of"),
    ({"late_video": 1}, {}, "a: 1 label did not wait for all faces; a lower video.fps helps"),
    ({"muted": True}, {}, "a is muted: its sound is not used until Unmute"),
    ({"muted": True, "paused": True}, {}, "a is paused: neither sound nor picture is used until Resume"),
    ({}, {"record": NodeStatus(state="ended")}, "record has ended: nothing is recorded any more"),
    ({}, {"record": NodeStatus(state="running", dropped=7)}, "record: 7 messages dropped, which the recording lacks"),
]


@pytest.mark.process
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_what_is_wrong_is_said_with_what_fixes_it(state, url):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        page = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page()
        page.set_default_timeout(1000 * patience(10))
        page.goto(url)
        for number, (facts, nodes, text) in enumerate(TROUBLES):
            for second in (0, 11) if facts.keys() & {"level_dbfs", "heard"} else (11,):  # said if it lasts for 10 s
                streams = {"a": StreamStatus(**(_FINE | facts))}
                now = Status(run="r", state="running", uptime_s=60 * number + second, streams=streams, nodes=nodes)
                state.set_status(encode_status(now).decode())
                page.wait_for_selector(f"#clock:text-is('· {number}:{second:02}')", state="attached")
            said = page.locator("#trouble li").all_inner_texts()
            assert len(said) == bool(text) and "".join(said).startswith(text), (said, text)


def test_sources_are_named_as_they_were_but_for_secrets():
    desk = {"name": "desk", "audio": "microphone:USB", "video": "http://cam/?token=abc"}
    both = {"name": "both", "source": "demo"}
    orders = Orders(added={"hall": Expected([], [], 0, 1, "rtsp://cam:***@hall/1")})
    assert sources_of(Config(streams=[desk, both]), orders) == {
        "desk": "microphone:USB, http://cam/?token=***", "both": "demo", "hall": "rtsp://cam:***@hall/1",
    }  # fmt: skip


def brightness(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb (WCAG 2.2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_colours_can_be_told_apart_in_light_and_in_dark():
    """Text 4.5 to 1 (AA) on what it stands on; so too a face's number beside it. Bars 3 to 1 on their track."""
    style = files("emostream.stream.page").joinpath("static/page.css").read_text("utf-8")
    schemes = [dict(re.findall(r"--([\w-]+): (#\w+);", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    assert len(schemes) == 2 and schemes[0].keys() == schemes[1].keys()
    for scheme in schemes:
        moods = [name for name in scheme if name.startswith("of-")]
        pairs = [
            *((name, ground, 4.5) for name, ground in product(["ink", "quiet", "accent", "bad"], ["ground", "card"])),
            *((name, "card", 4.5) for name in moods), *((name, "line", 3.0) for name in moods),
            ("quiet", "line", 4.5), ("accent", "line", 4.5),
        ]  # fmt: skip
        for name, ground, least in pairs:
            dark, light = sorted((brightness(scheme[name]), brightness(scheme[ground])))
            assert (light + 0.05) / (dark + 0.05) >= least, (name, ground, scheme)
