"""Names of topics and nodes. No other module of this package builds or parses these strings.

A topic is CONTENT.STREAM, such as ``pcm.demo``; a node that serves one stream is KIND.STREAM, such as ``speech.demo``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

Medium = Literal["audio", "video"]
Content = Literal["pcm", "audio", "face", "picture", "speech", "words"]
NodeKind = Literal["audio", "video", "capture", "speech", "fusion", "page", "record"]

STREAM_NAME = "[A-Za-z0-9_-]{1,64}"  # a regular expression

LOGS = "log."  # a subscription to this prefix gets the lines of all nodes
CONTROL = "control"  # a topic, and the name of the supervisor's publisher
LABEL = "label"  # fusion's labels on their way to the supervisor
STATUS = "status"  # the public status; also carries it from the supervisor to fusion
PAGE, RECORD = "page", "record"
BESIDE = (PAGE, RECORD)  # nodes beside the run: whatever happens to them, labels go on
FUSION = "fusion"  # the one node that serves all streams
EMOTION = "emotion."  # a subscription to this prefix gets all public messages
UTTERANCE = "emotion.utterance."  # a subscription to this prefix gets labels without running estimates

PUBLISHED: Mapping[NodeKind, tuple[Content, ...]] = {
    "audio": ("pcm", "audio"),
    "video": ("face",),
    "capture": ("pcm", "audio", "face"),
    "speech": ("speech",),
    "page": (),
    "record": (),
    "fusion": (),  # publishes labels only, not on a stream's topics
}
FUSED: tuple[Content, ...] = ("speech", "audio", "face")  # what fusion subscribes to


HEARD: tuple[Content, ...] = ("pcm", "words")  # what a speech node subscribes to


def stream_topic(content: Content, stream: str) -> str:
    """Topic of one stream's samples, features or events."""
    return f"{content}.{stream}"


def emotion_topic(kind: Literal["utterance", "window"], stream: str) -> str:
    """Topic of one stream's labels or running estimates."""
    return f"{EMOTION}{kind}.{stream}"


def closed_topic(kind: Literal["utterance", "window"], stream: str) -> str:
    """The same as a closed topic: it ends in a slash, so that a subscription to ``desk`` does not match ``desk2``."""
    return f"emotion/{kind}/{stream}/"


def status_topic(stream: str) -> str:
    """Topic of one stream's status. It ends, and it does not begin with ``status``: whoever subscribes to that gets
    the status of the run alone, as before."""
    return f"stream/status/{stream}/"


def health_topic(node: str) -> str:
    """Topic of a node's heartbeats."""
    return f"health.{node}"


def log_topic(node: str) -> str:
    """Topic of a node's log lines."""
    return f"{LOGS}{node}"


def media_topics(media: Iterable[Medium], stream: str) -> list[str]:
    """What a node that captures these media publishes."""
    return [stream_topic(content, stream) for medium in sorted(media) for content in PUBLISHED[medium]]


def fused_topics(node: str) -> list[str]:
    """The topics of a node that fusion subscribes to."""
    _, stream = parse_node(node)
    return [stream_topic(content, stream) for content in fused_contents(node)]


def fused_contents(node: str) -> list[Content]:
    """The contents of a node that fusion subscribes to."""
    kind, _ = parse_node(node)
    return [content for content in PUBLISHED[kind] if content in FUSED]


def node_name(kind: NodeKind, stream: str) -> str:
    """Name of the node of this kind that serves a stream."""
    return f"{kind}.{stream}"


def parse_node(name: str) -> tuple[NodeKind, str]:
    """Kind and stream of a node; the stream of ``fusion`` is empty. Raises ValueError if it is not a node's name."""
    kind, _, stream = name.partition(".")
    if kind not in PUBLISHED:
        raise ValueError(f"{name!r} is not the name of a node")
    return kind, stream  # type: ignore[return-value]  # a key of PUBLISHED is a NodeKind
