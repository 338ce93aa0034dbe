"""The model card agrees with the manifest, and the docs have the shipped bundle's card."""

import shutil
from pathlib import Path

import pytest

from emostream.engines.bundle import SUBSETS, open_bundle
from emostream.train.bundle.card import card, shown
from emostream.train.commands.main import main

CARD = Path(__file__).parent.parent / "docs/model-card.md"


@pytest.fixture(scope="module")
def bundle():
    return open_bundle("ekman7")


def test_docs_have_the_card_of_the_shipped_bundle(bundle, capsys):
    assert main(["card", "ekman7"]) == 0
    assert capsys.readouterr().out == CARD.read_text(encoding="utf-8"), (
        "python -m train card ekman7 > docs/model-card.md"
    )


def test_card_has_figures_licences_and_limits(bundle):
    text, manifest = card(bundle), bundle.manifest
    for corpus in manifest.corpora:
        assert corpus.name in text and corpus.licence in text and corpus.citation in text
    for name, figures in manifest.metrics["validation"].items():
        assert f"| {shown(name)} | {figures['items']} | {figures['accuracy']:.3f} |" in text
    for name in SUBSETS:
        assert f"| {shown(name)} | {manifest.temperature[name]:.3f} |" in text
        assert f"| {shown(name)} | {manifest.label_shares[name]['anger']:.3f} |" in text
    assert manifest.licence in text and manifest.training["command"] in text
    assert "2024/1689" in text and "synthetic" in text


def test_names_for_readers():
    assert shown("audio+video (label-paired)") == "sound + face (label-paired)"
    assert shown("text, MELD") == "words, MELD"


def test_card_of_a_bundle_without_figures_is_an_error(bundle, tmp_path, capsys):
    assert main(["card", str(tmp_path / "none")]) == 1
    assert "not found" in capsys.readouterr().err
    folder = shutil.copytree(bundle.folder, tmp_path / "bare")
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"trained_without"', '"other"'))
    assert main(["card", str(folder)]) == 1
    assert "trained_without" in capsys.readouterr().err
