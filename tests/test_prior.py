"""stream/prior.py, alone and at work in the classifier and the labeller."""

from __future__ import annotations

import dataclasses
import math
import re

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import emostream
from emostream.engines.bundle import SUBSETS, Bundle, Manifest
from emostream.errors import ConfigError
from emostream.stream.cores.classifier import Classifier, Features
from emostream.stream.prior import CONVERSATION, DRAMA, Prior, check, log_ratios
from emostream.stream.sources import DEMO
from tests import media

share = st.floats(0.01, 1)
mixes = st.lists(share, min_size=7, max_size=7).map(lambda shares: np.array(shares) / sum(shares))


def _manifest(bundle: Bundle, **changes: object) -> Manifest:
    """The shipped manifest, changed."""
    return msgspec.convert(msgspec.to_builtins(bundle.manifest) | changes, Manifest)


def _table(labels: list[str], mix: np.ndarray) -> dict[str, float]:
    return dict(zip(labels, mix.tolist(), strict=True))


def _trained_on(bundle: Bundle, mix: np.ndarray) -> Manifest:
    """A manifest whose network was trained with this mix of labels in all sets of modalities."""
    return _manifest(bundle, label_shares=dict.fromkeys(SUBSETS, _table(bundle.manifest.labels, mix)))


def _corrected(probabilities: np.ndarray, prior: Prior, manifest: Manifest) -> np.ndarray:
    weighted = probabilities * np.exp(log_ratios(prior, manifest)["audio"])
    return weighted / weighted.sum()


@given(mixes, mixes)
def test_the_mix_of_training_changes_nothing(bundle, probabilities, trained):
    manifest = _trained_on(bundle, trained)
    same = _table(manifest.labels, trained)
    np.testing.assert_allclose(_corrected(probabilities, same, manifest), probabilities, atol=1e-9)
    np.testing.assert_array_equal(_corrected(probabilities, "training", manifest), probabilities / probabilities.sum())


@given(mixes, mixes, mixes)
def test_correction_is_that_of_saerens_and_others(bundle, probabilities, trained, new):
    got = _corrected(probabilities, _table(bundle.manifest.labels, new), _trained_on(bundle, trained))
    joint = [p * n / t for p, n, t in zip(probabilities, new, trained, strict=True)]
    np.testing.assert_allclose(got, np.array(joint) / math.fsum(joint), rtol=1e-6)
    assert got.sum() == pytest.approx(1)


@given(mixes, mixes, mixes)
def test_there_and_back_again(bundle, probabilities, first, second):
    labels = bundle.manifest.labels
    there = _corrected(probabilities, _table(labels, second), _trained_on(bundle, first))
    back = _corrected(there, _table(labels, first), _trained_on(bundle, second))
    np.testing.assert_allclose(back, probabilities, atol=1e-6)


@given(mixes, st.permutations(range(7)))
def test_the_order_of_labels_does_not_matter(bundle, new, order):
    labels = bundle.manifest.labels
    table = _table(labels, new)
    shuffled = {labels[i]: table[labels[i]] for i in order}
    other = _manifest(bundle, labels=[labels[i] for i in order])
    for subset in SUBSETS:
        ratios = log_ratios(table, bundle.manifest)[subset]
        np.testing.assert_array_equal(log_ratios(shuffled, bundle.manifest)[subset], ratios)
        np.testing.assert_array_equal(log_ratios(table, other)[subset], ratios[list(order)])


def test_labels_left_out_of_a_table_share_the_rest(bundle):
    manifest = _manifest(bundle, label_shares={})
    ratios = log_ratios({"neutral": 0.7, "joy": 0}, manifest)["text"]
    new = dict(zip(manifest.labels, np.exp(ratios) / 7, strict=True))
    assert new["neutral"] == pytest.approx(0.7) and new["joy"] == 0
    assert [share for label, share in new.items() if label not in ("neutral", "joy")] == pytest.approx([0.06] * 5)
    np.testing.assert_array_equal(log_ratios({}, manifest)["text"], log_ratios("balanced", manifest)["text"])


def test_a_bundle_that_does_not_say_its_mix_counts_as_trained_on_equal_shares(bundle):
    old = _manifest(bundle, label_shares={})
    for ratios in log_ratios("balanced", old).values():
        np.testing.assert_allclose(ratios, 0, atol=1e-12)
    ratios = log_ratios("conversation", old)["audio"]
    assert old.labels[int(ratios.argmax())] == "neutral"


def test_the_mix_of_training_depends_on_the_modalities(bundle):
    ratios = log_ratios("balanced", bundle.manifest)
    assert set(ratios) == set(SUBSETS)
    disgust = bundle.manifest.labels.index("disgust")
    assert ratios["text"][disgust] > 1 > ratios["audio"][disgust]  # rare in words, acted as often as others


@pytest.mark.parametrize("shares", [CONVERSATION, DRAMA])
def test_published_shares_are_a_whole_and_mostly_neutral(bundle, shares):
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert set(shares) == set(bundle.manifest.labels)
    assert max(shares, key=lambda label: shares[label]) == "neutral"
    assert CONVERSATION["neutral"] > DRAMA["neutral"]


@pytest.mark.parametrize(
    "prior", ["training", "balanced", "conversation", "drama", {}, {"joy": 1}, {"joy": 0.5, "fear": 0}]
)
def test_what_can_be_a_prior(prior):
    assert check(prior) == prior


@pytest.mark.parametrize(
    ("prior", "says"),
    [
        ("even", "use one of: training, balanced, conversation, drama"),
        (0.5, "is no prior"),
        (None, "is no prior"),
        ({"joy": -0.1}, "the share of joy is -0.1"),
        ({"joy": math.nan}, "the share of joy is nan"),
        ({"joy": math.inf}, "the share of joy is inf"),
        ({"joy": True}, "the share of joy is True"),
        ({"joy": "much"}, "the share of joy is 'much'"),
        ({"joy": 0.7, "fear": 0.4}, "sum to 1.1, more than 1: joy 0.7 + fear 0.4"),
    ],
)
def test_what_cannot_be_a_prior(prior, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        check(prior)


def test_a_prior_that_does_not_fit_the_bundle(bundle):
    with pytest.raises(ConfigError, match=r"bundle ekman7 has no label hapiness, rage; it has anger, .*surprise"):
        log_ratios({"hapiness": 0.2, "rage": 0.1, "joy": 0.1}, bundle.manifest)
    with pytest.raises(ConfigError, match="every share is 0"):
        log_ratios(dict.fromkeys(bundle.manifest.labels, 0), bundle.manifest)
    other = _manifest(bundle, labels=["neutral", "bored"], label_shares={})
    with pytest.raises(ConfigError, match=r"fusion.prior = 'conversation': it has no share for bored"):
        log_ratios("conversation", other)


# At work


@pytest.fixture(scope="module")
def whole(classifier) -> Features:
    """One utterance's sound, face and words, whatever they say."""
    rng = np.random.default_rng(0)
    faces = classifier.encode_faces(rng.integers(0, 256, (10, 48, 48)).astype(np.uint8))
    return Features(rng.normal(size=(150, 168)).astype(np.float32), faces, classifier.encode_words(["so", "good"]))


def _without(item: Features, name: str) -> Features:
    return dataclasses.replace(item, **{name: getattr(item, name)[:0]})


def test_probabilities_and_contributions_are_corrected_by_the_modalities_that_are_there(bundle, classifier, whole):
    items = [whole, *(_without(whole, name) for name in ("audio", "video", "text"))]
    ratios = log_ratios("conversation", bundle.manifest)
    wanted = []
    for item, plain in zip(items, classifier.classify(items, [False] * 4), strict=True):
        weighted = plain.probabilities * np.exp(ratios["+".join(item.present())])
        wanted.append(weighted / weighted.sum())
    (got,) = Classifier(bundle, "onnxruntime", prior="conversation").classify([whole], [True])
    np.testing.assert_allclose(got.probabilities, wanted[0], atol=1e-6)
    label = int(wanted[0].argmax())
    for name, without in zip(("audio", "video", "text"), wanted[1:], strict=True):
        assert got.contributions[name] == pytest.approx(wanted[0][label] - without[label], abs=1e-5)


def test_a_label_of_share_0_is_never_given(bundle, classifier, whole):
    (plain,) = classifier.classify([whole], [False])
    best = bundle.manifest.labels[int(plain.probabilities.argmax())]
    (got,) = Classifier(bundle, "onnxruntime", prior={best: 0}).classify([whole], [True])
    assert got.probabilities[int(plain.probabilities.argmax())] == 0
    assert got.probabilities.sum() == pytest.approx(1)


@pytest.mark.long
@pytest.mark.slow
def test_a_labeller_with_a_table_corrects_its_messages():
    samples = media.speech_samples(4.0)
    messages = []
    for prior in ("training", "{anger = 0.9}"):
        config = emostream.load_config(changes=["fusion.backend=onnxruntime", f"fusion.prior={prior}"])
        with emostream.Labeller(config) as labeller:
            messages += labeller.label_arrays(samples, 16_000)
    plain, angry = messages
    assert angry.probabilities["anger"] > plain.probabilities["anger"]
    assert angry.label == max(angry.probabilities, key=lambda label: angry.probabilities[label])
    assert angry.confidence == angry.probabilities[angry.label]
    assert sum(angry.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert angry.valence is not None and plain.valence is not None and angry.valence < plain.valence


def test_a_labeller_refuses_a_label_that_its_bundle_lacks():
    config = emostream.load_config(changes=["fusion.prior={hapiness = 0.2}"])
    with pytest.raises(ConfigError, match=r"fusion.prior: bundle ekman7 has no label hapiness"):
        next(emostream.Labeller(config).label(DEMO))
