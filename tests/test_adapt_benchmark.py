"""benchmarks/adapt.py"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.adapt import Said, conversation, converse, follow, names, orders
from emostream.engines.bundle import open_bundle
from emostream.stream.cores.classifier import Classifier

LABELS = np.repeat(np.arange(7), 20)


def test_orders_are_what_they_say():
    rng = np.random.default_rng(0)
    drawn = {order: [orders(LABELS, 4, 0, order, rng) for _ in range(40)] for order in ("random", "talk", "anger")}
    assert all(len(set(sequence)) == 25 for sequence in drawn["random"])  # none twice
    assert np.mean(LABELS[np.concatenate(drawn["talk"])] == 4) == pytest.approx(0.7, abs=0.05)
    assert (LABELS[np.concatenate(drawn["anger"])] == 0).all()


def test_the_first_utterance_is_not_corrected_and_later_ones_are():
    bundle = open_bundle("ekman7")
    classifier = Classifier(bundle, "onnxruntime")
    rng = np.random.default_rng(0)
    voice = classifier.rest["audio"] + rng.normal(0, 0.6, len(classifier.rest["audio"]))  # whose rest is off
    sounds = [(voice + rng.normal(0, 1, (20, len(voice)))).astype(np.float32) for _ in range(30)]
    sequences = [rng.permutation(30)[:25] for _ in range(4)]
    plain, adapted = (follow(classifier, sounds, sequences, adapt) for adapt in (False, True))
    assert [one[0] for one in plain] == [one[0] for one in adapted]
    neutral = list(classifier.labels).index("neutral")
    assert (np.concatenate(adapted) == neutral).mean() > (np.concatenate(plain) == neutral).mean()
    classifier.close()


@pytest.mark.slow
def test_two_whose_rest_is_off_the_other_way_are_known_by_their_voices_and_not_as_one():
    """Both get wrong labels until the resting voice is subtracted; the mean of the two is the common one."""
    classifier = Classifier(open_bundle("ekman7"), "onnxruntime")
    rng, rest = np.random.default_rng(0), classifier.rest["audio"]
    off = rng.normal(0, 0.6, len(rest))
    said = [
        Said(
            who,
            "neutral",
            (rest + sign * off + rng.normal(0, 1, (20, len(rest)))).astype(np.float32),
            voice,
            2.0,
            10**9,
        )
        for who, sign, voice in (("anna", 1, np.eye(256)[0]), ("ben", -1, np.eye(256)[1]))
        for _ in range(30)
    ]
    talks = [conversation(said, 20, "random", rng) for _ in range(2)]
    assert {name for name, _ in names(talks[0])} == {"s1", "s2"}
    right = {policy: np.mean(converse(classifier, talks, policy)) for policy in ("none", "stream", "told", "true")}
    assert right["true"] == right["told"] > max(right["none"], right["stream"])
    classifier.close()
