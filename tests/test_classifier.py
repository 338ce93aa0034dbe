"""stream/cores/classifier.py, with the shipped bundle."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emostream.errors import BundleError
from emostream.stream.cores.classifier import MODALITIES, Classifier, Features
from emostream.stream.features.face import CROP, HaarCascade, crop_face, find_faces
from emostream.stream.features.logmel import logmel
from emostream.stream.features.voice import DIM
from tests import media

_ROWS = logmel(media.speech_samples(4.0)[8000:48000])


@pytest.fixture(scope="module")
def whole(classifier) -> Features:
    """Sound, faces and words of the demo's first sentence."""
    detector = HaarCascade()
    images = [media.gray(image) for image in media.face_frames(75)[12::3]]
    crops = np.stack([crop_face(image, find_faces(detector, image)[0]) for image in images])
    return Features(
        classifier.voice_encoder().encode(_ROWS),
        classifier.encode_faces(crops),
        classifier.encode_words(["this", "is", "the", "best", "day", "of", "my", "life"]),
    )


def _part(item: Features, names: set[str]) -> Features:
    """Only these modalities of an item."""
    return Features(*(getattr(item, name)[: None if name in names else 0] for name in MODALITIES))


SUBSETS = [set(names) for names in (["audio"], ["video"], ["text"], ["audio", "text"], ["video", "text"], MODALITIES)]


@pytest.mark.parametrize("names", SUBSETS, ids=lambda names: "+".join(sorted(names)))
def test_any_modalities_give_probabilities(classifier, whole, names):
    (result,) = classifier.classify([_part(whole, names)], [True])
    assert result.probabilities.shape == (len(classifier.labels),)
    assert (result.probabilities > 0).all()
    assert result.probabilities.sum() == pytest.approx(1, abs=1e-9)
    assert {name for name, share in result.contributions.items() if share} <= names
    assert set(result.contributions) == set(MODALITIES)


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(st.sampled_from(SUBSETS), st.integers(1, 250), st.integers(1, 20), st.integers(1, 8), st.booleans()),
        min_size=2,
        max_size=4,
    )
)
def test_results_do_not_depend_on_batch_and_padding(classifier, whole, wanted):
    items, asked = [], []
    for names, a, v, t, contributions in wanted:
        items.append(_part(Features(whole.audio[:a], whole.video[:v], whole.text[:t]), names))
        asked.append(contributions)
    together = classifier.classify(items, asked)
    for item, wish, result in zip(items, asked, together, strict=True):
        (alone,) = classifier.classify([item], [wish])
        np.testing.assert_allclose(result.probabilities, alone.probabilities, atol=1e-5)
        for name in MODALITIES:
            assert result.contributions[name] == pytest.approx(alone.contributions[name], abs=1e-5)


def test_a_contribution_is_the_loss_of_the_label_without_the_modality(classifier, whole):
    (result,) = classifier.classify([whole], [True])
    label = result.probabilities.argmax()
    for name in MODALITIES:
        (without,) = classifier.classify([_part(whole, set(MODALITIES) - {name})], [False])
        lost = result.probabilities[label] - without.probabilities[label]
        assert result.contributions[name] == pytest.approx(lost, abs=1e-5)
    assert any(abs(share) > 1e-4 for share in result.contributions.values())


def test_a_modality_alone_contributes_its_excess_over_chance(classifier, whole):
    (result,) = classifier.classify([_part(whole, {"audio"})], [True])
    assert result.contributions["audio"] == pytest.approx(result.probabilities.max() - 1 / len(classifier.labels))
    assert result.contributions["video"] == result.contributions["text"] == 0


def test_contributions_not_asked_for_are_zero(classifier, whole):
    asked, not_asked = classifier.classify([whole, whole], [True, False])
    assert set(not_asked.contributions.values()) == {0.0}
    np.testing.assert_allclose(asked.probabilities, not_asked.probabilities, atol=1e-5)


def test_every_modality_matters(classifier, whole):
    (before,) = classifier.classify([whole], [False])
    changed = [
        Features(whole.audio + 3, whole.video, whole.text),
        Features(whole.audio, -whole.video[::-1] + 1, whole.text),
        Features(whole.audio, whole.video, classifier.encode_words(["terrible", "awful", "hate"])),
    ]
    for result in classifier.classify(changed, [False] * 3):
        assert np.abs(result.probabilities - before.probabilities).max() > 1e-5


def test_only_the_newest_rows_that_fit_are_used(classifier, bundle, whole):
    most = bundle.manifest.audio.max_rows
    long = np.tile(whole.audio, (most // len(whole.audio) + 2, 1))
    cut = Features(long[-most:], whole.video, whole.text)
    long_one, cut_one = classifier.classify([Features(long, whole.video, whole.text), cut], [False, False])
    np.testing.assert_allclose(long_one.probabilities, cut_one.probabilities, atol=1e-6)


def test_words_beyond_the_window_are_left_out(classifier, bundle):
    words = ["word"] * (bundle.manifest.text.max_rows + 10)
    encoded = classifier.encode_words(words)
    assert encoded.shape[1] == bundle.manifest.text.dim and len(encoded) <= bundle.manifest.text.max_rows
    assert classifier.encode_words([]).shape == (0, bundle.manifest.text.dim)


@pytest.mark.parametrize("n", [0, 1, 63, 65, 130])
def test_a_face_is_encoded_alike_in_any_number_of_faces(classifier, bundle, n):
    crops = np.random.default_rng(n).integers(0, 256, (n, CROP, CROP)).astype(np.uint8)
    vectors = classifier.encode_faces(crops)
    assert vectors.shape == (n, bundle.manifest.video.dim)
    assert vectors.dtype == np.float32
    if n:
        np.testing.assert_allclose(vectors[-1:], classifier.encode_faces(crops[-1:]), atol=1e-5)


def test_warm_up_runs(bundle):
    Classifier(bundle, "onnxruntime").warm_up()


def test_the_classifier_describes_its_bundle(classifier, bundle):
    assert classifier.labels == bundle.manifest.labels
    assert classifier.bundle_id == bundle.id
    assert classifier.backend == "onnxruntime/cpu"
    assert classifier.voice_encoder().encode(_ROWS).shape[1] == bundle.manifest.audio.dim == DIM


@pytest.mark.parametrize(
    ("modality", "key", "value"),
    [("audio", "n_mels", 80), ("audio", "level", 3.0), ("video", "crop", 64), ("video", "eye_left", [0.3, 0.3])],
)
def test_a_bundle_made_for_other_features_is_refused(bundle, modality, key, value):
    manifest = msgspec.convert(msgspec.to_builtins(bundle.manifest), type(bundle.manifest))
    getattr(manifest, modality).settings[key] = value
    with pytest.raises(BundleError, match=f"made for {modality} {key} = .*this version computes"):
        Classifier(dataclasses.replace(bundle, manifest=manifest), "onnxruntime")
    del getattr(manifest, modality).settings[key]
    with pytest.raises(BundleError, match=f"{modality} {key} = None"):
        Classifier(dataclasses.replace(bundle, manifest=manifest), "onnxruntime")


def test_the_temperature_flattens_the_probabilities(bundle, classifier, whole):
    manifest = msgspec.convert(msgspec.to_builtins(bundle.manifest), type(bundle.manifest))
    manifest.temperature["+".join(whole.present())] *= 10  # and only if exactly these are present
    heated = Classifier(dataclasses.replace(bundle, manifest=manifest), "onnxruntime")
    (hot,) = heated.classify([whole], [False])
    (usual,) = classifier.classify([whole], [False])
    assert hot.probabilities.argmax() == usual.probabilities.argmax()
    ratio = np.log(usual.probabilities / usual.probabilities[0]) / 10
    np.testing.assert_allclose(np.log(hot.probabilities / hot.probabilities[0]), ratio, atol=1e-5)
    words = Features(whole.audio[:0], whole.video[:0], whole.text)
    (hot,), (usual,) = (c.classify([words], [False]) for c in (heated, classifier))
    np.testing.assert_array_equal(hot.probabilities, usual.probabilities)
