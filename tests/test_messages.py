"""stream/messages.py and stream/emotion.py"""

from __future__ import annotations

import json

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from emostream.stream.emotion import Evidence, Latency, Word, decode_emotion, emotion_json_schema, encode_emotion
from emostream.stream.messages import AudioRows, Codec, Control, End, Face, Health, Log, Pcm, SpeechEvent
from tests.emotions import emotion_message

ns = st.integers(-(2**62), 2**62)
text = st.text(max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
words = st.lists(st.builds(Word, text, finite, finite, st.floats(0, 1)), max_size=4)
COMMON = {"stream": text, "seq": st.integers(0, 2**40), "sent_ns": ns}
MEDIA = COMMON | {"media_start_ns": ns, "media_end_ns": ns, "captured_ns": ns}
pcm = st.builds(Pcm, **MEDIA, samples=arrays(np.int16, st.integers(0, 600)))
sound = st.builds(AudioRows, **MEDIA, rows=arrays(np.float32, st.tuples(st.integers(0, 3), st.just(32))))
face = st.builds(
    Face,
    **MEDIA,
    crop=st.just(np.zeros((0, 0), np.uint8)) | arrays(np.uint8, (48, 48)),
    box=st.none() | st.tuples(finite, finite, finite, finite),
    score=st.floats(0, 1),
)
speech = st.builds(
    SpeechEvent,
    **MEDIA,
    event=st.sampled_from(["started", "words", "paused", "ended", "progress"]),
    utterance=st.integers(0, 10**6),
    start_ns=ns,
    end_ns=ns,
    words=words,
    speech_captured_ns=ns,
    received_ns=ns,
    recognition_ns=ns,
)
end = st.builds(End, **COMMON, content=st.sampled_from(["pcm", "audio", "face", "speech"]), reason=text)
health = st.builds(
    Health,
    **COMMON,
    node=text,
    state=st.sampled_from(["starting", "ready", "running", "done"]),
    counters=st.dictionaries(text, st.integers(0, 2**40), max_size=4),
    queued=st.integers(0, 9),
    dropped=st.integers(0, 9),
    gaps=st.integers(0, 9),
    cpu_s=finite,
    rss_bytes=ns,
)
log = st.builds(Log, **COMMON, node=text, level=text, text=text)
control = st.builds(Control, **COMMON, command=st.sampled_from(["go", "stop"]), at_ns=ns)

_SPAN = {"stream": "a", "media_start_ns": 1, "media_end_ns": 2, "captured_ns": 3}


def _over_the_wire(message):
    """Encode as for another process: the bytes of each part, without sharing this process's memory."""
    return Codec().decode([bytes(part) for part in Codec().encode(message)])


@given(st.one_of(speech, end, health, log, control))
def test_messages_without_arrays_come_back_equal(message):
    assert _over_the_wire(message) == message


@given(st.one_of(pcm, sound, face))
def test_messages_with_arrays_come_back_equal(message):
    back = _over_the_wire(message)
    assert type(back) is type(message)
    for field in message.__struct_fields__:
        sent, received = getattr(message, field), getattr(back, field)
        if isinstance(sent, np.ndarray):
            assert received.dtype == sent.dtype
            np.testing.assert_array_equal(received, sent)
            assert not received.flags.writeable
        else:
            assert received == sent


@given(
    arrays(
        st.sampled_from([np.int16, np.float32, np.uint8, ">i4"]), array_shapes(min_dims=0, max_dims=4, max_side=4)
    ).flatmap(lambda array: st.sampled_from([array, array.T, array[..., ::-1] if array.ndim else array]))
)
def test_arrays_of_any_layout_come_back_equal(array):
    back = _over_the_wire(Pcm(**_SPAN, samples=array)).samples
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_one_codec_does_not_mix_up_messages():
    codec = Codec()
    first = codec.encode(Pcm(**_SPAN, samples=np.arange(3, dtype=np.int16)))
    second = codec.encode(Pcm(**_SPAN, samples=np.arange(5, dtype=np.int16)))
    long, short = codec.decode(second), codec.decode(first)
    assert long.samples.tolist() == [0, 1, 2, 3, 4]
    assert short.samples.tolist() == [0, 1, 2]


def test_a_message_is_a_header_and_one_plain_buffer_per_array():
    """In a form that ZeroMQ accepts, however many messages came before."""
    codec = Codec()
    for samples in (np.arange(8, dtype=np.int16), np.arange(16, dtype=np.int16)[::2], np.zeros(0, np.int16)):
        header, buffer = codec.encode(Pcm(**_SPAN, samples=samples))
        assert isinstance(header, bytes)
        assert memoryview(buffer).c_contiguous
        assert memoryview(buffer).nbytes == samples.nbytes


def test_arrays_are_not_copied_on_the_way_in_or_out():
    samples = np.arange(512, dtype=np.int16)
    parts = Codec().encode(Pcm(**_SPAN, samples=samples))
    assert np.shares_memory(np.frombuffer(parts[1], np.int16), samples)
    assert np.shares_memory(Codec().decode(parts).samples, samples)


def test_control_messages_carry_no_media_times():
    for message in (End(stream="a", content="pcm", reason=""), Health(node="a", state="done"), Control(command="go")):
        assert not {"media_start_ns", "media_end_ns", "captured_ns"} & set(message.__struct_fields__)


@pytest.mark.parametrize("missing", ["stream", "media_start_ns", "media_end_ns", "captured_ns"])
def test_media_always_says_where_it_belongs(missing):
    fields = {name: value for name, value in _SPAN.items() if name != missing}
    with pytest.raises(TypeError, match=missing):
        Pcm(**fields, samples=np.zeros(1, np.int16))
    _refused([msgspec.msgpack.encode({"type": "SpeechEvent", "event": "words", **fields})])


# Damaged messages


def _refused(parts):
    with pytest.raises(msgspec.DecodeError):  # ValidationError is one
        Codec().decode(parts)


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=3))
def test_random_bytes_raise_the_error_of_msgspec(parts):
    _refused(parts)


def test_no_parts_at_all_are_refused():
    _refused([])


@given(pcm, st.data())
def test_a_damaged_header_raises_the_error_of_msgspec_or_is_a_message(message, data):
    header, samples = (bytes(part) for part in Codec().encode(message))
    position = data.draw(st.integers(0, len(header) - 1))
    damaged = header[:position] + data.draw(st.binary(max_size=3)) + header[position + data.draw(st.integers(0, 3)) :]
    try:
        decoded = Codec().decode([damaged, samples])
    except msgspec.DecodeError:
        return
    assert decoded.topic  # all fields are present


@given(pcm.filter(lambda message: message.samples.size), st.data())
def test_a_buffer_of_another_length_is_refused(message, data):
    header, samples = (bytes(part) for part in Codec().encode(message))
    other = data.draw(st.binary(max_size=2000).filter(lambda found: len(found) != len(samples)))
    _refused([header, other])
    _refused([header])


_dtypes = st.sampled_from(["<i2", "O", "V0", "V9", "", "i2,i2", "(2)i2", "<U2", "M8[x]", "<f3"]) | st.text(max_size=4)


@given(
    _dtypes | st.none() | st.integers(-(2**63), 2**64 - 1) | st.lists(text, max_size=2),
    st.lists(st.integers(-3, 2**63) | text, max_size=3) | st.none() | text,
    st.integers(-3, 3) | st.none() | text,
)
@example("(2,", [1], 0)
def test_a_damaged_array_is_refused_or_is_an_array(dtype, shape, part):
    fields = {"type": "Pcm", **_SPAN, "samples": [dtype, shape, part]}
    try:
        message = Codec().decode([msgspec.msgpack.encode(fields), b"\1\2\3\4"])
    except msgspec.DecodeError:
        return
    assert isinstance(message.samples, np.ndarray)
    assert message.samples.nbytes <= 4


@pytest.mark.parametrize(
    "change",
    [
        {"type": "Other"},
        {"type": None},
        {"media_start_ns": "1"},
        {"stream": 5},
        {"event": "begun"},
        {"words": [{"word": "a"}]},
        {"words": "a"},
    ],
)
def test_fields_of_other_types_are_refused(change):
    fields = {"type": "SpeechEvent", **_SPAN, "event": "words"}
    assert Codec().decode([msgspec.msgpack.encode(fields)]).event == "words"
    _refused([msgspec.msgpack.encode(fields | change)])


def test_objects_cannot_be_sent():
    with pytest.raises((NotImplementedError, TypeError)):
        Codec().encode(Log(node="a", level="info", text=object()))  # type: ignore[arg-type]


# Topics


def test_topics():
    empty = np.zeros(0, np.int16)
    assert Pcm(**_SPAN, samples=empty).topic == "pcm.a"
    assert AudioRows(**_SPAN, rows=empty).topic == "audio.a"
    assert Face(**_SPAN, crop=empty).topic == "face.a"
    assert SpeechEvent(**_SPAN, event="words").topic == "speech.a"
    assert [End(stream="a", content=content, reason="").topic for content in ("pcm", "audio", "face", "speech")] == [
        "pcm.a", "audio.a", "face.a", "speech.a",
    ]  # fmt: skip
    assert Health(node="audio.a", state="ready").topic == "health.audio.a"
    assert Log(node="fusion", level="info", text="").topic == "log.fusion"
    assert Control(command="go").topic == "control"
    assert emotion_message().topic == "emotion.utterance.a"
    assert emotion_message(kind="window").topic == "emotion.window.a"


def test_a_face_is_found_if_it_has_a_crop():
    assert Face(**_SPAN, crop=np.zeros((48, 48), np.uint8)).found
    assert not Face(**_SPAN, crop=np.zeros((0, 0), np.uint8)).found


# The public message


evidence = st.builds(Evidence, st.integers(0, 1500), st.floats(0, 1), st.floats(-1, 1))
emotions = st.builds(
    emotion_message,
    kind=st.sampled_from(["utterance", "window"]),
    stream=text,
    text=st.text(max_size=40),
    words=words,
    probabilities=st.dictionaries(text, st.floats(0, 1), max_size=7),
    modalities=st.dictionaries(st.sampled_from(["audio", "video", "text"]), evidence),
    latency_ms=st.none() | st.builds(Latency, *[finite] * 7),
    start_s=finite,
    captured_ns=ns,
    uncertain=st.booleans(),
    valence=st.none() | st.floats(-1, 1),
    arousal=st.none() | st.floats(-1, 1),
)


@pytest.mark.slow
@settings(max_examples=30)
@given(emotions)
def test_an_emotion_comes_back_equal_and_fits_the_schema(message):
    data = encode_emotion(message)
    assert decode_emotion(data) == message
    jsonschema.validate(json.loads(data.decode("utf-8")), emotion_json_schema())


def test_the_json_names_its_schema_and_a_missing_latency_is_null():
    read = json.loads(encode_emotion(emotion_message(latency_ms=None)))
    assert read["schema"] == "emostream/1"
    assert read["latency_ms"] is None
    assert set(read["modalities"]) == {"audio", "video", "text"}


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(emotion_json_schema())


@pytest.mark.parametrize(
    "change",
    [{"schema": "emostream/2"}, {"kind": "word"}, {"confidence": "high"}, {"latency_ms": 5}, {"label": None}],
)
def test_decoder_and_schema_refuse_what_is_not_an_emotion(change):
    read = json.loads(encode_emotion(emotion_message())) | change
    with pytest.raises(msgspec.ValidationError):
        decode_emotion(json.dumps(read).encode())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(read, emotion_json_schema())


@pytest.mark.parametrize("field", ["schema", "label", "probabilities", "latency_ms", "published_ns"])
def test_a_missing_field(field):
    read = json.loads(encode_emotion(emotion_message()))
    del read[field]
    if field == "schema":  # the one that has a default
        assert decode_emotion(json.dumps(read).encode()) == emotion_message()
        return
    with pytest.raises(msgspec.ValidationError):
        decode_emotion(json.dumps(read).encode())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(read, emotion_json_schema())


def test_a_message_from_before_valence_and_arousal_has_neither():
    read = json.loads(encode_emotion(emotion_message(valence=0.5, arousal=0.25)))
    assert (read.pop("valence"), read.pop("arousal")) == (0.5, 0.25)
    old = decode_emotion(json.dumps(read).encode())
    assert old.valence is None and old.arousal is None
    jsonschema.validate(read, emotion_json_schema())


@given(st.binary(max_size=80))
def test_random_bytes_are_no_emotion(data):
    with pytest.raises(msgspec.DecodeError):
        decode_emotion(data)
