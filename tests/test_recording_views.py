"""Viewers of recordings: the layout for Foxglove and the example for Rerun, on a recording made here; and pictures."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import io
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from mcap.reader import make_reader
from rich.console import Console

from emostream.engines.bundle import open_bundle
from emostream.stream.config import Config, Record
from emostream.stream.cores.picture import LONG_SIDE, PER_S, PictureCore
from emostream.stream.emotion import Word
from emostream.stream.messages import Codec, Log, SpeechEvent
from emostream.stream.nodes import capture
from emostream.stream.recording import Recorder
from emostream.stream.sources.base import VideoFrame
from emostream.stream.status import NodeStatus, Status, StreamStatus, encode_status
from emostream.stream.view import LiveView
from tests.emotions import emotion_message
from tests.processes import ROOT
from tests.test_recording import FACTS, face, pcm

_MS = 1_000_000
LABELS = open_bundle("ekman7").manifest.labels
_T0_NS = 10**18
LAYOUT = ROOT / "examples/foxglove/emostream.json"
PANELS = {  # the schemas that a panel of Foxglove shows; None: any
    "Audio": {"foxglove.RawAudio"}, "Image": {"foxglove.RawImage", "foxglove.CompressedImage"},
    "RosOut": {"foxglove.Log"}, "Plot": None, "StateTransitions": None, "RawMessages": None,
}  # fmt: skip
REQUIRED = {  # foxglove-sdk, schemas/jsonschema: what each message must have
    "foxglove.CompressedImage": {"timestamp", "frame_id", "data", "format"},
    "foxglove.ImageAnnotations": {"circles", "points", "texts"},
    "foxglove.Log": {"timestamp", "level", "message", "name", "file", "line"},
}
POINTS = {"timestamp", "type", "points", "outline_color", "outline_colors", "fill_color", "thickness", "metadata"}
TEXTS = {"timestamp", "position", "text", "font_size", "text_color", "background_color", "metadata"}


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A recording with something on each channel."""
    one = Recorder(Record(folder=str(tmp_path_factory.mktemp("r"))), FACTS, lambda at_ns: at_ns)
    pictures = PictureCore()
    for i in range(20):
        one.hear(pcm(i))
        seen = face(i, people=i % 3)
        one.see(seen)
        if (picture := pictures.push(image(i), seen)) is not None:
            one.look(picture)
        estimate = emotion_message(stream="desk", valence=0.5, arousal=-0.2, probabilities=dict.fromkeys(LABELS, 1 / 7))
        estimate.published_ns = _T0_NS + 100 * _MS * i
        one.label(msgspec.structs.replace(estimate, kind="window"))
    event = SpeechEvent(
        stream="desk",
        media_start_ns=0,
        media_end_ns=_MS,
        captured_ns=_T0_NS,
        event="ended",
        words=[Word("hi", 0, 1, 1)],
    )
    one.note(event, keep_text=True)
    one.label(emotion_message(stream="desk", text="hi there", speaker="s1", published_ns=_T0_NS + 10**9))
    senses = StreamStatus(state="running", level_dbfs=-20.0, speech=0.5, face=1.0)
    one.status(encode_status(Status(streams={"desk": senses})).decode(), _T0_NS)
    one.log(Log(node="fusion", level="warning", text="something", at_ns=_T0_NS))
    one.close()
    return one.path


def image(i: int, height: int = 720, width: int = 1280) -> np.ndarray:
    """A picture with a gradient, and a square that moves."""
    picture = np.tile(np.linspace(0, 200, width, dtype=np.uint8), (height, 1))
    picture[100:200, 10 * i : 10 * i + 100] = 255
    return picture


def channels(path: Path) -> dict[str, tuple[str, list[Any]]]:
    """By topic: the name of the schema, and the messages."""
    found: dict[str, tuple[str, list[Any]]] = {}
    with path.open("rb") as file:
        for schema, channel, message in make_reader(file).iter_messages():
            assert schema is not None
            found.setdefault(channel.topic, (schema.name, []))[1].append(json.loads(message.data))
    return found


# Pictures


def test_pictures_are_few_small_and_like_what_was_seen():
    core = PictureCore()
    made = [core.push(image(i), face(i)) for i in range(40)]  # ten a second, for four seconds
    pictures = [picture for picture in made if picture is not None]
    assert len(pictures) == 4 * PER_S
    for picture in pictures:
        assert (picture.width, picture.height) == (LONG_SIDE, LONG_SIDE * 720 // 1280)
        assert picture.jpeg.size < 60_000
        seen = cv2.imdecode(picture.jpeg, cv2.IMREAD_UNCHANGED)
        assert seen.shape == (picture.height, picture.width)
        was = cv2.resize(image(picture.media_start_ns // (100 * _MS)), seen.shape[::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(seen.astype(int) - was).mean() < 3
    small = PictureCore().push(image(0, 240, 320), face(0))
    assert small is not None and (small.width, small.height) == (320, 240)  # never made larger
    (again,) = [Codec().decode([bytes(part) for part in Codec().encode(small)])]
    np.testing.assert_array_equal(again.jpeg, small.jpeg)


class Asked:
    """The part of a node's runtime that sends pictures."""

    def __init__(self, recorded: bool, heard: bool) -> None:
        record = {"folder": "r", "video": True} if recorded else {"folder": "r"}
        self.spec = type("Spec", (), {
            "config": Config(record=record), "realtime": True, "media": {"video"}, "stream": "desk",
        })  # fmt: skip
        self.publisher, self.heard, self.sent = self, heard, []

    def has_subscribers(self, topics: list[str]) -> bool:
        assert topics == ["picture.desk"]
        return self.heard

    def send(self, message: Any) -> None:
        self.sent.append(message)


@pytest.mark.parametrize(("recorded", "heard", "count"), [(True, True, 1), (True, False, 0), (False, True, 0)])
def test_pictures_travel_while_they_are_recorded_alone(recorded, heard, count):
    runtime = Asked(recorded, heard)
    send = capture._pictures(runtime)
    if send is not None:
        send(VideoFrame(image(0), 0), face(0))
    assert len(runtime.sent) == count and (send is None) is not recorded


def test_boxes_are_where_the_faces_are(path):
    found = channels(path)
    pictures, boxes = found["/desk/picture"][1], found["/desk/boxes"][1]
    assert len(pictures) == len(boxes) == 10
    for picture, shown in zip(pictures, boxes, strict=True):
        seen = cv2.imdecode(np.frombuffer(base64.b64decode(picture["data"]), np.uint8), cv2.IMREAD_UNCHANGED)
        people = picture["media_ns"] // (100 * _MS) % 3
        assert [text["text"] for text in shown["texts"]] == [str(n + 1) for n in range(people)]
        assert shown["timestamp"] == picture["timestamp"]
        for points in shown["points"]:  # the box is (0.1, 0.2, 0.3, 0.4)
            height, width = seen.shape
            assert points["points"][0] == pytest.approx({"x": 0.1 * width, "y": 0.2 * height})
            assert points["points"][2] == pytest.approx({"x": 0.4 * width, "y": 0.6 * height})


def test_messages_have_what_foxglove_asks_for(path):
    found = channels(path)
    for schema, messages in found.values():
        assert all(REQUIRED.get(schema, set()) <= message.keys() for message in messages)
    assert {schema for schema, _ in found.values()} >= REQUIRED.keys()
    for shown in found["/desk/boxes"][1]:
        assert all(points.keys() == POINTS for points in shown["points"])
        assert all(texts.keys() == TEXTS for texts in shown["texts"])
    assert found["/log"][1][0]["level"] == 3


# Foxglove


def as_protobuf(value: Any) -> Any:
    """A message of ours as protobuf's JSON has it: another form of times, and without the field that is ours."""
    if isinstance(value, list):
        return [as_protobuf(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"sec", "nsec"}:
        return f"{datetime.fromtimestamp(value['sec'], UTC):%Y-%m-%dT%H:%M:%S}.{value['nsec']:09}Z"
    return {key: as_protobuf(each) for key, each in value.items() if key != "media_ns"}


def test_foxgloves_own_schemas_read_every_message(path):
    """As it publishes them: no field is unknown or of another type."""
    pytest.importorskip("foxglove_schemas_protobuf", reason="pip install foxglove-schemas-protobuf")
    from google.protobuf.json_format import ParseDict

    seen = set()
    for schema, messages in channels(path).values():
        origin, _, name = schema.partition(".")
        if origin == "foxglove":
            published = getattr(importlib.import_module(f"foxglove_schemas_protobuf.{name}_pb2"), name)
            for message in messages:
                ParseDict(as_protobuf(message), published())
            seen.add(name)
    assert seen == {"RawAudio", "RawImage", "CompressedImage", "ImageAnnotations", "Log"}


def topics_and_paths(layout: Any) -> list[tuple[str, str]]:
    """What the panels of a layout refer to: the panel's type, and a topic or a message path."""
    asked = []
    for name, settings in layout["configById"].items():
        kind = name.partition("!")[0]
        mode = settings.get("imageMode", {})
        wanted = [settings.get(key) for key in ("topic", "topicPath", "topicToRender")] + [mode.get("imageTopic")]
        asked += [(kind, text) for text in wanted if text]
        asked += [("annotations", text) for text in mode.get("annotations", {})]
        asked += [(kind, series["value"]) for series in settings.get("paths", [])]
    return asked


def leaves(layout: Any) -> list[str]:
    return [layout] if isinstance(layout, str) else leaves(layout["first"]) + leaves(layout["second"])


def test_the_layout_asks_for_what_a_recording_has(path):
    layout, found = json.loads(LAYOUT.read_text()), channels(path)
    assert sorted(leaves(layout["layout"])) == sorted(layout["configById"])
    asked = topics_and_paths(layout)
    assert len(asked) >= 20 and {kind for kind, _ in asked} == {*PANELS, "annotations"}
    for kind, text in asked:
        topic, _, fields = text.partition(".")
        schema, messages = found[topic]
        if kind == "annotations":
            assert schema == "foxglove.ImageAnnotations"
        elif PANELS[kind] is not None:
            assert schema in PANELS[kind] and not fields
        values = []
        for value in messages:
            for field in filter(None, fields.split(".")):
                value = value[field]
            values.append(value)
        if kind == "Plot":
            assert all(isinstance(value, int | float) for value in values), text
        elif kind == "StateTransitions":
            assert all(isinstance(value, str | int | bool) for value in values), text
    labels = {text.rpartition(".")[2] for _, text in asked if ".probabilities." in text}
    assert labels == set(LABELS)
    assert {"/desk/sound", "/desk/face", "/desk/picture", "/log"} <= {text for _, text in asked}


# Rerun


@pytest.mark.process
def test_rerun_shows_a_recording(path, tmp_path):
    if importlib.util.find_spec("rerun") is None:
        pytest.skip("rerun-sdk is not installed: pip install rerun-sdk==0.41.0 (170 MB, so it is not in the lock)")
    script, file = ROOT / "examples/rerun/view.py", tmp_path / "out.rrd"
    subprocess.run([sys.executable, script, path, "--save", file], check=True, timeout=60)
    rrd = [sys.executable, "-m", "rerun", "rrd"]
    shown = subprocess.run([*rrd, "print", file], check=True, timeout=60, capture_output=True, text=True).stdout
    rows: dict[str, int] = {}
    for count, place in re.findall(r"with (\d+) rows.*? - (/\S+) - ", shown):
        rows[place] = rows.get(place, 0) + int(count)
    assert rows["/desk/window/joy"] == 20 and rows["/desk/utterance/joy"] == rows["/desk/label"] == 1
    assert rows["/desk/picture"] == rows["/desk/picture/boxes"] == 10
    assert rows["/desk/face"] == 13 and rows["/desk/sound/peak"] == 64 and rows["/desk/sound/audio"] == 1
    assert rows["/desk/words"] == rows["/desk/said"] == rows["/log"] == 1


# That it is on


def test_the_screen_says_that_it_records():
    console = Console(file=io.StringIO(), width=100, height=40, force_terminal=True)
    view = LiveView(console, ["desk"], "emostream")
    try:
        for state, marked in [("running", True), ("failed", False)]:
            view.status(Status(nodes={"record": NodeStatus(state=state)}))
            shown = Console(file=io.StringIO(), width=100)
            shown.print(view.render())
            assert ("● recording" in shown.file.getvalue()) is marked
    finally:
        view.close()
