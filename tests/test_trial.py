"""One run: examples, what it may see and when, the paper's protocol, its file."""

import dataclasses

import numpy as np
import pytest
import torch

from emostream.engines.bundle import MODALITIES
from emostream.errors import CorpusError
from emostream.train.bundle.features import Ragged
from emostream.train.model import PAPER_ROWS
from emostream.train.study import trial
from emostream.train.study.crossval import spec_of
from emostream.train.study.dataset import Part
from emostream.train.study.examples import Collator, batches, columns, draw, lengths, rows_of
from emostream.train.study.trial import PROTOCOL, Result, Training, path_of, run
from tests.grouped import DIMS, tiny

pytestmark = pytest.mark.slow

torch.set_num_threads(1)
SHORT = Training(max_epochs=2)


def spec(system="avt-self", fold=0, seed=0, variant="default"):
    return spec_of(system, variant, fold, seed)


# --- examples --------------------------------------------------------------------------------------------------------


def test_label_paired_examples_have_equal_labels_and_use_items_evenly():
    part = tiny().split(0)["train"]
    items, truth = draw(part, 4, np.random.default_rng(0))
    assert len(truth) == 4 * len(part.labels["audio"])
    for m in MODALITIES:
        assert (part.labels[m][items[m]] == truth).all()
        for label in range(3):
            used = np.bincount(items[m][truth == label], minlength=len(part.labels[m]))[part.labels[m] == label]
            assert used.max() - used.min() <= 1
    again = draw(part, 4, np.random.default_rng(1))[0]
    assert np.array_equal(again["audio"], items["audio"]) and not np.array_equal(again["text"], items["text"])


def test_aligned_examples_are_each_utterance_once():
    part = tiny(aligned=True).split(0)["train"]
    items, truth = draw(part, 4, np.random.default_rng(0))
    assert all(items[m].tolist() == list(range(len(truth))) for m in MODALITIES)


def test_a_label_that_a_modality_lacks_is_an_error():
    part = tiny().split(0)["train"]
    some = part.labels["text"] != 1
    lacking = dataclasses.replace(part, labels={**part.labels, "text": part.labels["text"][some]})
    with pytest.raises(CorpusError, match="text: no item .* labelled 1"):
        draw(lacking, 1, np.random.default_rng(0))


def test_batches_have_each_example_once_and_similar_lengths():
    length = np.random.default_rng(0).integers(1, 200, 1000)
    drawn = batches(length, 32, np.random.default_rng(1))
    assert sorted(np.concatenate(drawn)) == list(range(1000)) and max(map(len, drawn)) == 32
    padding = sum((length[b].max() - length[b]).sum() for b in drawn)
    assert padding < 0.2 * length.sum()  # in unsorted batches: 0.9


def test_columns_are_those_of_all_rows():
    rows = Ragged.of([np.random.default_rng(k).normal(3, 2, (k + 1, 4)) for k in range(5)])
    mean, std = columns(rows)
    assert np.allclose(mean, rows.rows.mean(0), atol=1e-5) and np.allclose(std, rows.rows.std(0), atol=1e-5)
    with pytest.raises(CorpusError, match="finite"):
        columns(Ragged.of([np.full((2, 3), np.nan)]))


def collator(part, fixed=False, **options):
    return Collator(part, MODALITIES, fixed, options.get("standardise", True), options.get("modality_dropout", 0.0))


def test_paper_variant_gets_fixed_rows_the_first_kept_and_zeros_after():
    part = tiny(aligned=True).split(0)["train"]
    numbers = np.arange(len(part.labels["audio"]))
    items = dict.fromkeys(MODALITIES, numbers)
    fixed = collator(part, fixed=True)
    longest = {m: int(n.max()) for m, n in lengths(part, MODALITIES).items()}
    assert fixed.rows == {m: min(PAPER_ROWS[m], n) for m, n in longest.items()}
    fixed.rows["audio"] = 4
    batch = fixed(part, items, numbers)
    assert set(batch) == set(MODALITIES)  # no lengths
    mean, std = fixed.columns["audio"]
    for i, row in enumerate(batch["audio"].numpy()):
        x = (part.features["audio"][i][:4] - mean) / std
        assert np.allclose(row[: len(x)], x, atol=1e-6) and not row[len(x) :].any()
    plain = collator(part, fixed=True, standardise=False)(part, items, numbers)["text"].numpy()
    assert np.allclose(plain[0, : len(part.features["text"][0])], part.features["text"][0])


def test_modality_dropout_leaves_one_at_least_and_only_in_training():
    part = tiny(aligned=True).split(0)["train"]
    numbers = np.arange(len(part.labels["audio"]))
    items = dict.fromkeys(MODALITIES, numbers)
    dropping = collator(part, modality_dropout=0.9)
    batch = dropping(part, items, numbers, np.random.default_rng(0))
    there = np.stack([batch[f"{m}_len"].numpy() > 0 for m in MODALITIES])
    assert (there.sum(0) >= 1).all() and there.mean() < 0.6 and there.any(1).all()
    assert all((dropping(part, items, numbers)[f"{m}_len"] > 0).all() for m in MODALITIES)


def test_long_recordings_give_a_part_in_training_only():
    part = tiny(aligned=True).split(0)["train"]
    long = Ragged.of([np.ones((300, 6), np.float32)] * len(part.labels["audio"]))
    part = dataclasses.replace(part, features={**part.features, "audio": long})
    numbers = np.arange(4)
    items = dict.fromkeys(MODALITIES, numbers)
    assert set(collator(part)(part, items, numbers, np.random.default_rng(0))["audio_len"].tolist()) == {256}
    assert set(collator(part)(part, items, numbers)["audio_len"].tolist()) == {300}
    assert rows_of(lengths(part, ["audio"]), items).tolist() == [300] * 4


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("aligned", [False, True])
def test_it_learns_and_the_seed_decides_everything(aligned):
    folds = tiny(aligned)
    result = run(spec("avt-cross"), Training(max_epochs=6), folds)
    assert (result.logits.argmax(1) == result.truth).mean() > 0.7
    again = run(spec("avt-cross"), Training(max_epochs=6), folds)
    assert np.array_equal(result.logits, again.logits) and result.dev == again.dev
    assert not np.array_equal(run(spec("avt-cross", seed=1), Training(max_epochs=6), folds).logits, result.logits)


def test_all_systems_and_seeds_are_tested_on_the_same_examples():
    folds = tiny()
    first = run(spec("avt-self"), SHORT, folds)
    for other in (run(spec("t-self", seed=3), SHORT, folds), run(spec("av-cross", seed=1), SHORT, folds)):
        assert np.array_equal(other.truth, first.truth)
        for m, items in other.items.items():
            assert np.array_equal(items, first.items[m])
    assert len(first.truth) == PROTOCOL["test_draws"] * first.test_items
    assert set(run(spec("t-self"), SHORT, folds).items) == {"text"}


class Watched:
    """Folds that note which part is read."""

    def __init__(self, folds):
        self.folds, self.name, self.label_names = folds.folds, folds.name, folds.label_names
        self.settings, self._folds, self.read = folds.settings, folds, []

    def split(self, fold):
        return {
            name: Part({m: self._watch(name, x) for m, x in part.features.items()}, part.labels, part.aligned)
            for name, part in self._folds.split(fold).items()
        }

    def _watch(self, name, sequences):
        outer = self

        class Sequences:
            def __len__(self):
                return len(sequences)

            def __getitem__(self, i):
                outer.read.append(name)
                return sequences[i] if name != "test" else Lengthy(sequences[i], outer)

        return Sequences()


class Lengthy(np.ndarray):
    """An array that notes when its values, not its length, are used."""

    def __new__(cls, array, watched):
        out = np.asarray(array).view(cls)
        out.watched = watched
        return out

    def __array_finalize__(self, other):
        self.watched = getattr(other, "watched", None)

    def __getitem__(self, key):
        if self.watched is not None:
            self.watched.read.append("test values")
        return np.asarray(self)[key]


def test_test_items_are_read_after_everything_is_decided():
    watched = Watched(tiny())
    run(spec(), SHORT, watched)
    first = watched.read.index("test values")
    assert "dev" in watched.read[:first] and not {"train", "dev"} & set(watched.read[first:])
    assert (
        watched.read.count("test values") == PROTOCOL["test_draws"] * len(tiny().split(0)["test"].labels["audio"]) * 3
    )


def test_normalisation_is_from_the_training_part_alone():
    folds = tiny()
    parts = folds.split(0)
    calls = []
    patched = pytest.MonkeyPatch()
    with patched.context() as patch:
        original = trial.make_model
        patch.setattr(trial, "make_model", lambda *a: calls.append(original(*a)) or calls[-1])
        run(spec(), SHORT, folds)
    for m in MODALITIES:
        part = parts["train"].features[m]
        rows = np.concatenate([part[i] for i in range(len(part))])
        assert np.allclose(calls[0].encoders[m].mean, rows.mean(0), atol=1e-4)
        assert np.allclose(calls[0].encoders[m].std, rows.std(0), atol=1e-4)


def test_it_stops_ten_epochs_after_the_best_and_keeps_the_best():
    folds = tiny()
    nothing = {m: Ragged.of([np.zeros((2, DIMS[m]), np.float32)] * len(x)) for m, x in folds.features.items()}
    result = run(spec(), Training(max_epochs=40), dataclasses.replace(folds, features=nothing))
    accuracies = [epoch["accuracy"] for epoch in result.dev]
    assert result.best_epoch == int(np.argmax(accuracies))
    assert len(result.dev) == min(40, result.best_epoch + 11) < 40


@pytest.mark.parametrize("system", ["avt-self", "avt-cross-nosp", "at-both", "v-self", "avt-none"])
def test_paper_variant_runs(system):
    result = run(spec(system, variant="paper"), SHORT, tiny())
    assert np.isfinite(result.logits).all() and result.logits.shape[1] == 3


def test_an_utterance_without_any_modality_is_tested_but_not_trained_on():
    folds = tiny(aligned=True)
    video = [np.asarray(folds.features["video"][i])[: 0 if i % 4 == 0 else None] for i in range(24)]
    folds = dataclasses.replace(folds, features={**folds.features, "video": Ragged.of(video)})
    result = run(spec("v-self"), SHORT, folds)
    assert len(result.truth) == len(folds.split(0)["test"].labels["video"]) and np.isfinite(result.logits).all()


def test_errors_say_what_is_wrong():
    with pytest.raises(CorpusError, match="no video; it has audio, text"):
        run(spec(), SHORT, tiny(without=("video",)))
    with pytest.raises(ValueError, match="masks"):
        run(spec(variant="paper"), Training(1, modality_dropout=0.2), tiny())
    folds = tiny()
    folds.features["audio"].rows[5:9] = np.nan
    with pytest.raises(CorpusError, match="finite"):
        for fold in range(3):
            run(spec(fold=fold), SHORT, folds)


# --- the file --------------------------------------------------------------------------------------------------------


def test_file_holds_everything(tmp_path):
    folds = tiny()
    result = run(spec("at-cross-nosp", 1, 2), SHORT, folds)
    path = path_of(tmp_path, result.spec, SHORT, folds)
    result.save(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.name.startswith("default-at-cross-nosp-fold1-seed2-")
    loaded = Result.load(path)
    for field in dataclasses.fields(Result):
        a, b = getattr(loaded, field.name), getattr(result, field.name)
        if field.name == "items":
            assert a.keys() == b.keys() and all(np.array_equal(a[m], b[m]) for m in a)
        else:
            assert np.array_equal(a, b) if isinstance(b, np.ndarray) else a == b
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorpusError, match="not a finished run"):
        Result.load(path)


def test_name_changes_with_whatever_changes_the_figures(tmp_path):
    folds = tiny()
    names = {
        path_of(tmp_path, s, t, f)
        for s, t, f in [
            (spec(), SHORT, folds), (spec(seed=1), SHORT, folds), (spec(fold=1), SHORT, folds),
            (spec(variant="paper"), SHORT, folds), (spec("avt-self-nosp"), SHORT, folds),
            (spec(), Training(3), folds), (spec(), Training(2, 0.1), folds), (spec(), SHORT, tiny(seed=1)),
            (spec(), SHORT, tiny(folds=4)),
        ]
    }  # fmt: skip
    assert len(names) == 9
    assert path_of(tmp_path, spec(), SHORT, folds) == path_of(tmp_path, spec(), Training(2), tiny())
