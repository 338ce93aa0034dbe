"""Whatever bytes a reader gets, it quickly raises only emostream's own errors.

Each property has few examples here and many in ``make test-long``.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emostream.engines.bundle import BUNDLES, FACE, open_bundle
from emostream.engines.onnx import OnnxRuntime
from emostream.errors import BackendError, BundleError, ConfigError, EmostreamError
from emostream.stream.clock import SystemClock
from emostream.stream.config import Config, load_config, parse_stream
from emostream.stream.emotion import decode_emotion
from emostream.stream.messages import Codec, Pcm
from emostream.stream.profile import Profile
from emostream.stream.source_spec import SourceSpec, masked
from emostream.stream.sources import make_source
from emostream.stream.status import decode_status

FEW = settings(max_examples=15)
MANY = settings(max_examples=3000)
_MANY_S = 1800  # on a busy machine; an idle one takes a tenth
_SOON_S = 3.0
_ODD = st.one_of(st.binary(max_size=300), st.text(max_size=100).map(lambda text: text.encode(errors="surrogatepass")))


def few_and_many(test: Callable[..., None], **strategies: st.SearchStrategy) -> tuple[Callable[..., None], ...]:
    """The test with few examples, and a ``long`` one with many."""
    many = pytest.mark.timeout(_MANY_S)(pytest.mark.long(MANY(given(**strategies)(test))))
    return FEW(given(**strategies)(test)), many


# Configuration and names of sources

LONG = 100_000


@pytest.mark.parametrize(
    "change",
    [
        "audio.block_ms=" + "9" * 5000,
        "audio.block_ms=" + "[" * 5000,
        "audio.block_ms=" + "{a=" * 500 + "1" + "}" * 500,
        "a." * LONG + "b=1",
        "fusion.prior=" + "[" * LONG + "]" * LONG,
        "speech.threshold=nan",
        "\udcff.x=\udcff",
        "bus.emotion=tcp://127.0.0.1:" + "9" * 5000,
        "bus.emotion=tcp://127.0.0.1:٣",
        "streams=1",
    ],
    ids=lambda change: change[:20].encode("ascii", "replace").decode(),
)
def test_settings_that_cannot_be(change):
    begun = time.monotonic()
    with pytest.raises(ConfigError):
        load_config(changes=[change])
    assert time.monotonic() - begun < _SOON_S


@pytest.mark.parametrize(
    "content",
    [
        b"a=" + b"[" * LONG,
        b"a=" + b"9" * 5000,
        b"\0",
        b"\xff",
        b"[" + b"a." * 5000 + b"b]",
        b"[[streams]]\nsource='demo'\n" * 20_000,
    ],
    ids=["nested", "digits", "nul", "no text", "tables", "streams"],
)
def test_configurations_that_cannot_be(tmp_path, content):
    (tmp_path / "c.toml").write_bytes(content)
    begun = time.monotonic()
    with pytest.raises(ConfigError):
        load_config(tmp_path / "c.toml")
    assert time.monotonic() - begun < _SOON_S


@pytest.mark.parametrize("path", ["a\0b", "a" * 5000, "/tmp"])
def test_paths_of_configurations_that_cannot_be(path):
    with pytest.raises(ConfigError):
        load_config(path)


def test_more_streams_than_anybody_has():
    with pytest.raises(ConfigError, match="at most 256"):
        load_config(streams=[f"s{i}=demo" for i in range(20_000)])


@pytest.mark.parametrize("text", ["://", "?", "?a", "&key", "?key=", "a@b", "a=", "{", "demo,"])
def test_odd_texts_are_masked_and_parsed_soon(text):
    begun = time.monotonic()
    masked(text * LONG)
    with pytest.raises(ConfigError):
        parse_stream(text * LONG)
    assert time.monotonic() - begun < _SOON_S


def test_secrets_stay_masked_in_odd_urls():
    for url in (
        "rtsp://u:secret@h/?a?token=secret&b=1",
        "http://h/p?x=1&API_KEY=secret#f",
        "http://h/?password=secret",
    ):
        assert "secret" not in masked(url) and "***" in masked(url)
    # the value of a parameter may hold a ? and further parameters
    assert masked("http://x?a=b?key=1&Token=2#f") == "http://x?a=b?key=***&Token=***#f"


def settings_are_accepted_or_refused(change: str, stream: str) -> None:
    for options in ({"changes": [change]}, {"streams": [stream]}):
        try:
            assert isinstance(load_config(**options), Config)
        except ConfigError as error:
            assert str(error)


test_settings, test_settings_many = few_and_many(
    settings_are_accepted_or_refused,
    change=st.one_of(st.text(), st.from_regex(r"[a-z]{1,6}\.[a-z_]{1,12}=.{0,20}")),
    stream=st.one_of(st.text(), st.from_regex(r"(a=)?(file:|rtsp://|microphone:|camera:).{0,20}")),
)


@pytest.mark.parametrize(
    "text",
    [
        "file:\0",
        "file:" + "x" * 5000,
        "file:~nobody_x/a",
        "camera:\0",
        "camera:²",
        "http://[",
        "http://a:b",
        "http://{",
        "http://a:99999999999/",
        "http://℀/",
        "srt://x",
        "udp://x\0",
    ],
    ids=lambda text: text[:12].encode("ascii", "replace").decode(),
)
@pytest.mark.process
def test_sources_that_cannot_be(text):
    with pytest.raises(EmostreamError):
        make_source(
            SourceSpec.parse(text), frozenset({"audio", "video"}), SystemClock(), Config(video={"open_timeout_s": 0.3})
        ).open()


# Messages


def anything_is_a_message_or_a_decode_error(parts: list[bytes]) -> None:
    for decode in (lambda: Codec().decode(parts), lambda: decode_emotion(parts[0]), lambda: decode_status(parts[0])):
        with contextlib.suppress(msgspec.DecodeError):
            decode()


_HEADERS = st.builds(
    lambda array, fields: msgspec.msgpack.encode({"type": "Pcm", "stream": "a", "samples": array, **fields}),
    array=st.one_of(
        st.tuples(
            st.one_of(
                st.sampled_from(["<i2", "O", "V8", "i2,i4", "<f4", "S0", "U9999999", "M8[ns]", ""]), st.text(max_size=5)
            ),
            st.lists(st.one_of(st.integers(-2, 9), st.just(1 << 40)), max_size=4),
            st.integers(-3, 3),
        ),
        st.none(),
        st.text(max_size=3),
    ),
    fields=st.just({"media_start_ns": 0, "media_end_ns": 0, "captured_ns": 0}),
)

test_messages, test_messages_many = few_and_many(
    anything_is_a_message_or_a_decode_error,
    parts=st.lists(st.one_of(_HEADERS, _ODD), min_size=1, max_size=4),
)


@pytest.mark.parametrize("dtype", ["O", "V8", "i2,i4", "|S0", "U99999999", "nonsense", "i2" * 5000])
@pytest.mark.parametrize("shape", [[1], [1 << 40], [-1, -1], [0] * 100])
def test_arrays_that_cannot_be(dtype, shape):
    whole = {"type": "Pcm", "stream": "a", "media_start_ns": 0, "media_end_ns": 0, "captured_ns": 0}
    with pytest.raises(msgspec.DecodeError):
        Codec().decode([msgspec.msgpack.encode({**whole, "samples": [dtype, shape, 0]}), b"ab"])


def test_a_message_that_is_one():
    pcm = Pcm(stream="a", media_start_ns=0, media_end_ns=0, captured_ns=0, samples=np.arange(3, dtype=np.int16))
    assert Codec().decode([bytes(part) for part in Codec().encode(pcm)]).samples.tolist() == [0, 1, 2]


# Bundles, networks, profiles


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "b"
    shutil.copytree(BUNDLES / "ekman7", folder)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"audio": {"dim": 10**9, "max_rows": 5, "settings": {}}},
        {"video": {"dim": 128, "max_rows": 10**9, "settings": {}}},
        {"labels": []},
        {"labels": ["joy", "joy"]},
        {"labels": "joy"},
        {"temperature": {}},
        {"modalities": []},
        {"modalities": ["smell"]},
        {"uncertain_below": 2},
        {"rest": {"audio": [1.0]}},
        {"files": {}},
        {"labels": ["a"] * 20_000},
        {"files": {"\0": {"sha256": "", "bytes": 1}}},
        {"coordinates": {"joy": [2, 0]}},
        {"format": 3},
    ],
    ids=lambda change: str(change)[:40].replace("\0", "0"),
)
def test_manifests_that_cannot_be(copied, change):
    path = copied / "manifest.json"
    whole = path.read_bytes()
    try:
        path.write_bytes(json.dumps(json.loads(whole) | change).encode())
        with pytest.raises(BundleError):
            open_bundle(copied)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["a" * 5000, "\0", "../../etc", ""])
def test_names_of_bundles_that_cannot_be(name):
    with pytest.raises(BundleError):
        open_bundle(name)


def bytes_are_no_manifest(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "manifest.json").write_bytes(data)
        with pytest.raises(BundleError):
            open_bundle(folder)


test_manifests, test_manifests_many = few_and_many(bytes_are_no_manifest, data=st.one_of(_ODD, st.just(b"[" * 50_000)))


def a_damaged_network_is_an_error_or_runs(place: float, size: int, seed: int) -> None:
    """No crash of the process either, though ONNX Runtime is C++."""
    whole = bytearray((BUNDLES / "ekman7" / FACE).read_bytes())
    begin = int(place * len(whole))
    if seed % 2:
        del whole[begin:]
    else:
        whole[begin : begin + size] = np.random.default_rng(seed).bytes(len(whole[begin : begin + size]))
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / FACE).write_bytes(whole)
        with contextlib.suppress(BackendError):
            OnnxRuntime(path, threads=1).close()


test_networks, test_networks_many = few_and_many(
    a_damaged_network_is_an_error_or_runs,
    place=st.floats(0, 1),
    size=st.integers(1, 200),
    seed=st.integers(0, 1000),
)


def bytes_are_no_profile(data: bytes) -> None:
    bundle = open_bundle("ekman7")
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "me").write_bytes(data)
        with pytest.raises(ConfigError):
            Profile(path, bundle)


test_profiles, test_profiles_many = few_and_many(bytes_are_no_profile, data=st.one_of(_ODD, st.just(b"[" * 50_000)))


def json_is_a_message_or_a_decode_error(value: Any) -> None:
    anything_is_a_message_or_a_decode_error([json.dumps(value).encode()])


test_json, test_json_many = few_and_many(
    json_is_a_message_or_a_decode_error,
    value=st.recursive(
        st.one_of(st.none(), st.booleans(), st.floats(), st.text()),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    ),
)
