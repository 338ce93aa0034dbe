"""stream/topics.py"""

from __future__ import annotations

import pytest

from emostream.stream import topics


def test_names_of_nodes():
    for kind in ("audio", "video", "capture", "speech"):
        assert topics.parse_node(topics.node_name(kind, "front-door")) == (kind, "front-door")
    assert topics.node_name("speech", "a") == "speech.a"
    assert topics.parse_node(topics.FUSION) == ("fusion", "")


@pytest.mark.parametrize("name", ["", "a", "control", ".a", "Speech.a"])
def test_a_name_of_no_node(name):
    with pytest.raises(ValueError, match="is not the name of a node"):
        topics.parse_node(name)


def test_a_capture_node_publishes_the_topics_of_its_media():
    assert topics.media_topics({"audio"}, "a") == ["pcm.a", "audio.a"]
    assert topics.media_topics({"video"}, "a") == ["face.a"]
    assert topics.media_topics({"video", "audio"}, "a") == ["pcm.a", "audio.a", "face.a"]
    assert [f"{content}.a" for content in topics.PUBLISHED["capture"]] == topics.media_topics({"audio", "video"}, "a")


def test_fusion_takes_all_but_sound():
    nodes = {
        "audio.a": ["audio.a"],
        "video.a": ["face.a"],
        "capture.b": ["audio.b", "face.b"],
        "speech.a": ["speech.a"],
    }
    assert {node: topics.fused_topics(node) for node in nodes} == nodes


def test_public_topics_begin_with_the_prefix_that_subscribers_use():
    for kind in ("utterance", "window"):
        assert topics.emotion_topic(kind, "a") == f"emotion.{kind}.a"
        assert topics.emotion_topic(kind, "a").startswith(topics.EMOTION)
    assert topics.emotion_topic("utterance", "a").startswith(topics.UTTERANCE)
    assert not topics.emotion_topic("window", "a").startswith(topics.UTTERANCE)
