"""examples/ros2: public messages as ROS4HRI messages, serialized and read back as ROS 2 does, but without ROS.

The node itself runs here against a stand-in for rclpy, which shows how its loop works and nothing about ROS."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import re
import sys
import types
from typing import Any

import pytest

from emostream.stream.bus import Context
from emostream.stream.emotion import SeenFace, encode_emotion
from emostream.stream.keys import Keys
from emostream.stream.public import EmotionPublisher
from emostream.stream.status import Status, StreamStatus, encode_status
from tests.emotions import emotion_message
from tests.processes import ROOT, free_port

rosbag2 = pytest.importorskip("rosbags.rosbag2")
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

PACKAGE = ROOT / "examples/ros2/emostream_ros"

# Fields and constants of hri_msgs 2.3 (Apache-2.0, https://github.com/ros4hri/hri_msgs), as docs.ros.org shows them
# for Humble, without the comments
DEFINITIONS = {
    "Expression": """
        std_msgs/Header header
        string NEUTRAL="neutral"
        string ANGRY="angry"
        string SAD="sad"
        string HAPPY="happy"
        string SURPRISED="surprised"
        string DISGUSTED="disgusted"
        string SCARED="scared"
        string PLEADING="pleading"
        string VULNERABLE="vulnerable"
        string DESPAIRED="despaired"
        string GUILTY="guilty"
        string DISAPPOINTED="disappointed"
        string EMBARRASSED="embarrassed"
        string HORRIFIED="horrified"
        string SKEPTICAL="skeptical"
        string ANNOYED="annoyed"
        string FURIOUS="furious"
        string SUSPICIOUS="suspicious"
        string REJECTED="rejected"
        string BORED="bored"
        string TIRED="tired"
        string ASLEEP="asleep"
        string CONFUSED="confused"
        string AMAZED="amazed"
        string EXCITED="excited"
        string expression
        float32 valence
        float32 arousal
        float32 confidence""",
    "LiveSpeech": """
        std_msgs/Header header
        string incremental
        string final
        float64 confidence
        string locale""",
    "IdsList": """
        std_msgs/Header header
        string[] ids""",
    "IdsMatch": """
        int8 UNSET=0
        int8 PERSON=1
        int8 FACE=2
        int8 BODY=3
        int8 VOICE=4
        string id1
        int8 id1_type
        string id2
        int8 id2_type
        float32 confidence""",
    "NormalizedRegionOfInterest2D": """
        std_msgs/Header header
        float32 xmin
        float32 ymin
        float32 xmax
        float32 ymax
        float32 c""",
}
STORE = get_typestore(Stores.ROS2_HUMBLE)
for name, definition in DEFINITIONS.items():
    STORE.register(get_types_from_msg(re.sub(r"^ +", "", definition.strip(), flags=re.M), f"hri_msgs/msg/{name}"))
EXPRESSIONS = {value for _, kind, value in STORE.fielddefs["hri_msgs/msg/Expression"][0]}
# https://design.ros2.org/articles/topic_and_service_names.html
TOPIC = re.compile(r"(?!.*__)(/[A-Za-z_][A-Za-z0-9_]*)+")
AT_NS = 1_700_000_000_123_456_789
STAMP = {"sec": 1_700_000_000, "nanosec": 123_456_789}


@pytest.fixture
def mapping(monkeypatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(str(PACKAGE))
    return importlib.import_module("emostream_ros.mapping")


def empty(kind: str) -> Any:
    """A message with ROS's defaults."""
    defaults: dict[str, Any] = {"string": "", "bool": False, "float32": 0.0, "float64": 0.0}
    fields = {}
    for field, (node, detail) in STORE.fielddefs[kind][1]:
        if node.name == "NAME":
            fields[field] = empty(detail)
        elif node.name == "BASE":
            fields[field] = defaults.get(detail[0], 0)
        else:
            fields[field] = []
    return STORE.types[kind](**fields)


def fill(message: Any, content: dict[str, Any]) -> None:
    """As rosidl_runtime_py.set_message_fields: a field that the message lacks is an error."""
    for field, value in content.items():
        assert hasattr(message, field), field
        if isinstance(value, dict):
            fill(getattr(message, field), value)
        else:
            assert isinstance(value, type(getattr(message, field)))
            setattr(message, field, value)


def plain(message: Any) -> Any:
    """A message as a dictionary."""
    if not hasattr(message, "__msgtype__"):
        return message
    return {field: plain(getattr(message, field)) for field, _ in STORE.fielddefs[message.__msgtype__][1]}


def through_ros(publication: Any) -> dict[str, Any]:
    """A message serialized as ROS 2 does it (CDR) and read back."""
    assert TOPIC.fullmatch(publication.topic), publication.topic
    message = empty(publication.type)
    fill(message, publication.message)
    return plain(STORE.deserialize_cdr(STORE.serialize_cdr(message, publication.type), publication.type))


def publish(humans: Any, **changes: Any) -> dict[str, dict[str, Any]]:
    """What the bridge publishes for a message, by topic."""
    text = encode_emotion(emotion_message(**({"stream": "desk", "captured_ns": AT_NS} | changes))).decode()
    published = humans.emotion(json.loads(text), text)
    messages = {one.topic: through_ros(one) for one in published}
    assert len(messages) == len(published)
    assert messages.pop(f"/emostream/{json.loads(text)['kind']}") == {"data": text}
    return messages


FACES = [
    SeenFace(3, (0.25, 0.5, 0.25, 0.75), 0.9, moves=0.625),
    SeenFace(4, (-0.25, 0.0, 0.5, 0.5), 0.5, moves=None),
]


def test_a_label_of_a_face_and_a_voice(mapping):
    messages = publish(
        mapping.Humans(locale="en_GB", frame_id="camera"), faces=FACES, face=3, speaking=3, speaker="s1",
        valence=0.75, arousal=-0.25,
    )  # fmt: skip
    header = {"stamp": STAMP, "frame_id": "camera"}
    assert messages.pop("/humans/faces/tracked") == {"header": header, "ids": ["f3_desk", "f4_desk"]}
    assert messages.pop("/humans/voices/tracked") == {"header": header, "ids": ["v_desk", "s1_desk"]}
    roi = messages.pop("/humans/faces/f3_desk/roi")
    assert roi == {"header": header, "xmin": 0.25, "ymin": 0.5, "xmax": 0.5, "ymax": 1.0, "c": pytest.approx(0.9)}
    roi = messages.pop("/humans/faces/f4_desk/roi")  # cut off at the picture's edge
    assert (roi["xmin"], roi["ymin"], roi["xmax"], roi["ymax"]) == (0.0, 0.0, 0.25, 0.5)
    assert messages.pop("/humans/faces/f3_desk/expression") == {
        "header": header, "expression": "happy", "valence": 0.75, "arousal": -0.25, "confidence": 0.75,
    }  # fmt: skip
    assert messages.pop("/humans/voices/s1_desk/speech") == {
        "header": header, "incremental": "", "final": "so happy", "confidence": pytest.approx(0.85), "locale": "en_GB",
    }  # fmt: skip
    assert messages.pop("/humans/voices/v_desk/is_speaking") == {"data": False}
    assert messages.pop("/humans/candidate_matches") == {
        "id1": "f3_desk", "id1_type": 2, "id2": "s1_desk", "id2_type": 4, "confidence": 0.625,
    }  # fmt: skip
    assert messages == {}


def test_a_running_estimate(mapping):
    humans = mapping.Humans()
    messages = publish(humans, kind="window", text="so", faces=FACES[:1], face=3, speaking=3)
    assert messages["/humans/voices/v_desk/is_speaking"] == {"data": True}
    speech = messages["/humans/voices/v_desk/speech"]
    assert (speech["incremental"], speech["final"], speech["confidence"]) == ("so", "", 0.0)
    expression = messages["/humans/faces/f3_desk/expression"]
    assert expression["expression"] == "happy"
    assert math.isnan(expression["valence"]) and math.isnan(expression["arousal"])  # the bundle has none
    assert "/humans/candidate_matches" not in messages
    again = publish(humans, kind="window", text="", words=[], faces=FACES[:1], face=3)
    assert "/humans/faces/tracked" not in again and "/humans/voices/v_desk/speech" not in again


def test_sound_alone_and_no_live_capture(mapping):
    messages = publish(mapping.Humans(), text="", words=[], captured_ns=0, published_ns=AT_NS)
    assert set(messages) == {"/humans/voices/tracked", "/humans/voices/v_desk/is_speaking"}
    assert messages["/humans/voices/tracked"]["header"]["stamp"] == STAMP


def test_what_each_face_shows_by_itself(mapping):
    faces = [
        SeenFace(3, (0.0, 0.0, 0.5, 0.5), 1.0, 0.0, "fear", {"fear": 0.625, "joy": 0.375}),
        SeenFace(4, (0.5, 0.5, 0.5, 0.5), 1.0, None, "calm", {"calm": 0.75, "joy": 0.25}),
    ]
    messages = publish(mapping.Humans(), faces=faces, face=3, speaking=3)
    shown = messages["/humans/faces/f3_desk/expression"]
    assert (shown["expression"], shown["confidence"]) == ("scared", 0.625)
    assert "/humans/faces/f4_desk/expression" not in messages  # ROS4HRI has no constant for calm
    assert "/humans/candidate_matches" not in messages  # a confidence of 0 would mean: not the same person


def test_all_expressions_are_ros4hri_s(mapping):
    assert set(mapping.EXPRESSIONS.values()) <= EXPRESSIONS and len(EXPRESSIONS) == 25
    bundle = json.loads((ROOT / "engines/bundles/ekman7/manifest.json").read_text())["labels"]
    assert len({mapping.EXPRESSIONS[label] for label in bundle}) == 7


def test_faces_that_are_gone(mapping):
    humans = mapping.Humans()
    publish(humans, faces=FACES, face=3)
    publish(humans, stream="hall", faces=FACES[:1], face=3)
    assert humans.ids == {"f3_desk", "f4_desk", "v_desk", "f3_hall", "v_hall"}

    def status(**streams: StreamStatus) -> list[dict[str, Any]]:
        content = json.loads(encode_status(Status(published_ns=AT_NS, streams=streams)))
        return [through_ros(one) for one in humans.status(content)]

    seen = StreamStatus(state="running", face=1.0)
    assert status(desk=seen, hall=seen) == []
    (tracked,) = status(desk=StreamStatus(state="running", face=0.0), hall=seen)
    assert tracked["ids"] == ["f3_hall"] and tracked["header"]["stamp"] == STAMP
    assert status(desk=StreamStatus(state="running", face=0.0), hall=seen) == []
    (tracked,) = status(desk=seen, hall=StreamStatus(state="away", face=1.0))
    assert tracked["ids"] == []
    gone = humans.gone(AT_NS)
    assert [one.topic for one in gone] == ["/humans/faces/tracked", "/humans/voices/tracked"]
    assert all(through_ros(one)["ids"] == [] for one in gone) and humans.ids == set()


@pytest.mark.parametrize("streams", [("a-b", "a_b", "a--b"), ("-", "__", "_"), ("2nd", "2-nd")])
def test_any_streams_have_topics_of_their_own(mapping, streams):
    humans = mapping.Humans()
    topics = [set(publish(humans, stream=stream, faces=FACES[:1], face=3)) for stream in streams]
    shared = {"/humans/faces/tracked", "/humans/voices/tracked"}
    assert all(one & other == shared for one, other in itertools.combinations(topics, 2))


def test_a_bag(mapping, tmp_path):
    """As ros2 bag play would read it."""
    humans, written = mapping.Humans(), []
    texts = [encode_emotion(emotion_message(stream="desk", captured_ns=AT_NS, faces=FACES, face=3, kind=kind)).decode()
             for kind in ("window", "utterance")]  # fmt: skip
    with rosbag2.Writer(tmp_path / "bag", version=9) as bag:
        connections: dict[str, Any] = {}
        for number, one in enumerate(one for text in texts for one in humans.emotion(json.loads(text), text)):
            if one.topic not in connections:
                connections[one.topic] = bag.add_connection(one.topic, one.type, typestore=STORE)
            message = empty(one.type)
            fill(message, one.message)
            bag.write(connections[one.topic], AT_NS + number, STORE.serialize_cdr(message, one.type))
            written.append((one.topic, through_ros(one)))
    with rosbag2.Reader(tmp_path / "bag") as bag:
        read = [
            (connection.topic, plain(STORE.deserialize_cdr(data, connection.msgtype)))
            for connection, _, data in bag.messages()
        ]
    assert len(read) == len(written) >= 12 and repr(read) == repr(written)  # repr: NaN is not NaN


class FakeNode:
    """A stand-in for rclpy.node.Node: parameters by name, publishers that keep what they are given."""

    parameters: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, name: str) -> None:
        self.published: list[tuple[str, Any]] = []
        self.topics: set[str] = set()
        self.lines: list[str] = []

    def declare_parameter(self, name: str, value: str) -> Any:
        text = types.SimpleNamespace(string_value=self.parameters.get(name, value))
        return types.SimpleNamespace(get_parameter_value=lambda: text)

    def get_logger(self) -> Any:
        return types.SimpleNamespace(info=self.lines.append, warning=self.lines.append)

    def create_publisher(self, kind: Any, topic: str, depth: int) -> Any:
        self.topics.add(topic)
        return types.SimpleNamespace(topic=topic, publish=lambda message: self.published.append((topic, message)))

    def destroy_publisher(self, publisher: Any) -> None:
        self.topics.remove(publisher.topic)


@pytest.mark.process
@pytest.mark.parametrize("keys", [False, True])
def test_the_node_s_loop(monkeypatch, mapping, tmp_path, keys):
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    server = None
    FakeNode.parameters = {"endpoint": endpoint}
    rosidl, utilities = types.ModuleType("rosidl_runtime_py"), types.ModuleType("rosidl_runtime_py.utilities")
    rosidl.set_message_fields, utilities.get_message = fill, lambda kind: lambda: empty(kind)
    rclpy, node = types.ModuleType("rclpy"), types.ModuleType("rclpy.node")
    node.Node = FakeNode
    for module in (rosidl, utilities, rclpy, node):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "emostream_ros.bridge", raising=False)
    if keys:
        server = Keys(str(tmp_path / "keys"))
        server.allow(server.new_client(server.new_server().public).public)
        FakeNode.parameters["key"] = str(server.client_file)
    context = Context()
    publisher = EmotionPublisher(context, endpoint, keys=server)
    bridge = importlib.import_module("emostream_ros.bridge").Bridge()
    for _ in range(200):
        publisher.tick()
        publisher.send(emotion_message(stream="desk", faces=FACES, face=3, captured_ns=AT_NS))
        bridge.step(wait_ms=20)
        if bridge.published:
            break
    assert {"/emostream/utterance", "/humans/faces/f3_desk/expression"} <= {topic for topic, _ in bridge.published}
    publisher.forward("status", b"nonsense")
    publisher.forward("status", encode_status(Status(streams={"desk": StreamStatus(state="running", face=0.0)})))
    while bridge.topics & {"/humans/faces/f3_desk/roi", "/humans/faces/f4_desk/roi"}:  # nobody is there any more
        bridge.step(wait_ms=1000)
    assert "skipped a message" in bridge.lines[-1]
    bridge._heard_s -= 6
    bridge.published.clear()
    bridge.step(wait_ms=0)
    assert [(topic, message.ids) for topic, message in bridge.published] == [
        ("/humans/faces/tracked", []),
        ("/humans/voices/tracked", []),
    ]
    bridge._socket.close()
    publisher.close()
    context.term()
