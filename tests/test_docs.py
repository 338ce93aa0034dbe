"""What the documents say about the code is true."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import jsonschema
import pytest
import zmq

from emostream.stream.config import Config, load_config
from emostream.stream.emotion import Emotion, Evidence, Word, decode_emotion, emotion_json_schema, encode_emotion
from emostream.stream.public import EmotionPublisher
from emostream.stream.status import status_json_schema
from tests.emotions import emotion_message

ROOT = Path(__file__).parent.parent
DEFAULT_PORT = 5556


@pytest.mark.process
@pytest.mark.parametrize(
    ("module", "file", "schema"),
    [("emotion", "emotion.schema.json", emotion_json_schema), ("status", "status.schema.json", status_json_schema)],
)
def test_schemas_in_docs_are_those_of_the_messages(module, file, schema):
    """Write them again with: python -m emostream.stream.emotion > docs/emotion.schema.json, and likewise status"""
    assert json.loads((ROOT / "docs" / file).read_text()) == schema()
    done = subprocess.run(
        [sys.executable, "-m", f"emostream.stream.{module}"], capture_output=True, text=True, check=True
    )
    assert done.stdout == (ROOT / "docs" / file).read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "docs/schemas").glob("emotion-*.json")), ids=lambda path: path.stem)
def test_todays_messages_are_those_of_each_released_version_and_more(path):
    """A reader of that version relies on its schema: today's messages are valid by it too."""
    released = json.loads(path.read_text())
    for message in (emotion_message(source="a.wav", run="r"), emotion_message(kind="window", latency_ms=None)):
        jsonschema.validate(json.loads(encode_emotion(message)), released)
    today = emotion_json_schema()["$defs"]
    for name, definition in released["$defs"].items():
        assert set(definition["properties"]) <= set(today[name]["properties"])
        assert set(today[name]["required"]) <= set(definition["properties"])  # old messages can still be read
    old = {
        name: json.loads(encode_emotion(emotion_message()))[name] for name in released["$defs"]["Emotion"]["properties"]
    }
    assert decode_emotion(json.dumps(old).encode()).label == "joy"


def test_every_public_field_is_explained():
    page = (ROOT / "docs/messages.md").read_text()
    for schema in (emotion_json_schema(), status_json_schema()):
        for definition in schema["$defs"].values():
            assert [name for name in definition["properties"] if f"`{name}`" not in page] == []


def test_config_toml_shows_every_key_with_its_default():
    written = tomllib.loads((ROOT / "config.toml").read_text())
    defaults = Config().model_dump(exclude_none=True)
    assert load_config(ROOT / "config.toml") == Config()
    assert written == defaults


@pytest.mark.process
def test_python_example_prints_a_label():
    message = Emotion(
        kind="utterance", stream="demo", seq=0, utterance=1, start_s=1.5, end_s=2.25, label="joy", confidence=0.75,
        uncertain=False, probabilities={"joy": 0.75, "anger": 0.25}, text="how nice", latency_ms=None,
        words=[Word("how", 1.5, 1.7, 0.9), Word("nice", 1.7, 2.2, 0.8)], captured_ns=1, published_ns=2,
        modalities={"audio": Evidence(75, 1.0, 0.2)}, bundle="ekman7@0", backend="onnxruntime/cpu",
    )  # fmt: skip
    with zmq.Context() as context:
        try:
            publisher = EmotionPublisher(context, f"tcp://127.0.0.1:{DEFAULT_PORT}")
        except Exception as error:
            pytest.skip(f"the example's port is taken: {error}")
        example = subprocess.Popen([sys.executable, ROOT / "examples/subscribe.py"], stdout=subprocess.PIPE, text=True)
        try:
            until = time.monotonic() + 10
            while not publisher.requests:
                publisher.tick()
                assert time.monotonic() < until, "the example did not subscribe"
                time.sleep(0.02)
            publisher.send(message)
            assert example.stdout is not None
            line = example.stdout.readline()
        finally:
            example.kill()
            example.wait()
            publisher.close()
    assert line.split() == ["1.50", "2.25", "joy", "0.75", "how", "nice"]
