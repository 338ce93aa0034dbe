"""engines/bundle.py"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from emostream.engines.backend import BACKENDS
from emostream.engines.bundle import (
    FACE,
    FUSION,
    FUSION_CPU,
    FUSION_GPU,
    PIECES,
    SUBSETS,
    TEXT,
    VOICE,
    WEIGHTS,
    open_bundle,
    write_manifest,
)
from emostream.errors import BundleError


@pytest.fixture(scope="session")
def light(bundle, tmp_path_factory) -> Path:
    """The shipped bundle with a few bytes in place of each large file: nothing here looks into them, and copies are
    quick."""
    folder = tmp_path_factory.mktemp("light")
    for name in bundle.manifest.files:
        (folder / name).write_bytes(bundle.path(name).read_bytes()[:1000])
    write_manifest(folder, bundle.manifest)
    return folder


@pytest.fixture
def copy(light, tmp_path) -> Path:
    """A copy of the light bundle that a test may damage."""
    return Path(shutil.copytree(light, tmp_path / "copy"))


def _edit(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_shipped_bundle_is_whole_and_small(bundle):
    assert bundle.manifest.name == "ekman7"
    assert bundle.id.startswith("ekman7@")
    assert len(bundle.id) == len("ekman7@") + 12
    assert sum(path.stat().st_size for path in bundle.folder.iterdir()) < 40_000_000
    assert bundle.path(FUSION).is_file()


def test_a_bundle_is_the_same_by_name_and_by_path(bundle, tmp_path):
    copy = Path(shutil.copytree(bundle.folder, tmp_path / "copy"))
    for name in (bundle.folder, str(bundle.folder), copy, str(copy)):
        assert open_bundle(name).id == bundle.id


def test_the_id_changes_with_the_manifest(light, copy):
    _edit(copy, version="other")
    assert open_bundle(copy).id != open_bundle(light).id


@pytest.mark.parametrize("name", ["nowhere", "", "/no/such/folder"])
def test_an_unknown_bundle(name):
    with pytest.raises(BundleError, match=r"not found: there is no /.*manifest.json, and shipped are: .*ekman7"):
        open_bundle(name)


@pytest.mark.parametrize("file", [FUSION, FUSION_CPU, FUSION_GPU, VOICE, FACE, TEXT, PIECES])
def test_one_changed_bit_is_noticed(copy, file):
    data = bytearray((copy / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / file).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{file}: SHA-256 is .*restore the bundle"):
        open_bundle(copy)


def test_a_missing_file(copy):
    (copy / FACE).unlink()
    with pytest.raises(BundleError, match=rf"{FACE}: missing"):
        open_bundle(copy)


def test_a_file_that_the_manifest_does_not_list(copy):
    files = json.loads((copy / "manifest.json").read_text())["files"]
    del files[TEXT]
    _edit(copy, files=files)
    with pytest.raises(BundleError, match=rf"lists no {TEXT}"):
        open_bundle(copy)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/../../secret"])
def test_names_outside_the_bundle_are_refused(copy, name):
    (copy.parent / "secret").write_text("")
    files = json.loads((copy / "manifest.json").read_text())["files"]
    _edit(copy, files=files | {name: files[FACE]})
    with pytest.raises(BundleError, match="points outside the bundle"):
        open_bundle(copy)


def test_a_link_out_of_the_bundle_is_refused(copy):
    (copy / FACE).rename(copy.parent / FACE)
    (copy / FACE).symlink_to(copy.parent / FACE)
    with pytest.raises(BundleError, match="points outside the bundle"):
        open_bundle(copy)


def test_another_format(copy):
    _edit(copy, format="emostream-bundle/9")
    with pytest.raises(BundleError, match=r"format is 'emostream-bundle/9', this version reads 'emostream-bundle/3'"):
        open_bundle(copy)


def test_a_temperature_for_each_subset_of_the_modalities(copy):
    assert set(open_bundle(copy).manifest.temperature) == set(SUBSETS) and len(SUBSETS) == 7
    _edit(copy, temperature={"audio": 1.0})
    with pytest.raises(BundleError, match=r"temperature is for \['audio'\], expected"):
        open_bundle(copy)


def test_a_bundle_without_label_shares_opens(copy, bundle):
    path = copy / "manifest.json"
    old = json.loads(path.read_text())
    assert set(old.pop("label_shares")) == set(SUBSETS)
    path.write_text(json.dumps(old))
    assert open_bundle(copy).manifest.label_shares == {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda shares: shares.pop("text"), "label_shares is for .*, expected"),
        (lambda shares: shares["text"].pop("joy"), r"label_shares of text is for \['anger', .*, expected .*'joy'"),
        (lambda shares: shares["text"].update(rage=0.1), "label_shares of text is for .*'rage'"),
        (lambda shares: shares["text"].update(joy=0.9), r"label_shares of text sum to 1\.\d+, not 1"),
        (lambda shares: shares["text"].update(joy=0), "not a valid manifest"),
    ],
)
def test_label_shares_that_are_no_mix_of_the_labels(copy, change, says):
    shares = json.loads((copy / "manifest.json").read_text())["label_shares"]
    change(shares)
    _edit(copy, label_shares=shares)
    with pytest.raises(BundleError, match=says):
        open_bundle(copy)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"null", b"{}",
        b'{"format": "\xff"}',
    ],
)  # fmt: skip
def test_a_manifest_that_is_not_one(copy, data):
    (copy / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError, match="not a valid manifest"):
        open_bundle(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": "joy"}, {"temperature": 1.0}, {"temperature": {"audio": 0}}, {"uncertain_below": 2}, {"surprise": 1},
        {"audio": {"dim": 0}}, {"files": {FACE: "abc"}},
    ],
)  # fmt: skip
def test_a_manifest_with_bad_values(copy, changes):
    _edit(copy, **changes)
    with pytest.raises(BundleError, match="not a valid manifest"):
        open_bundle(copy)


RUN_BY = {
    "onnxruntime": FUSION_CPU, "tensorrt": FUSION_GPU, "tensorrt_rtx": FUSION_GPU, "openvino": FUSION, "torch": FUSION,
}  # fmt: skip


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "auto"])
def test_each_backend_runs_the_file_made_for_it_or_else_the_portable_one(bundle, copy, backend):
    assert bundle.path_for(FUSION, backend) == bundle.path(RUN_BY[backend])
    assert bundle.path_for(FACE, backend) == bundle.path(FACE)
    manifest = open_bundle(copy).manifest
    (copy / FUSION_CPU).unlink()
    (copy / FUSION_GPU).unlink()
    (copy / WEIGHTS).unlink(missing_ok=True)
    write_manifest(copy, manifest)
    without = open_bundle(copy)
    assert list(without.manifest.files) == [FUSION, VOICE, FACE, TEXT, PIECES]
    assert without.path_for(FUSION, backend) == without.path(FUSION)


def test_write_manifest_makes_a_bundle_that_opens(bundle, copy):
    (copy / TEXT).write_bytes(b"changed on purpose")
    write_manifest(copy, open_bundle(bundle.folder).manifest)
    opened = open_bundle(copy)
    assert opened.manifest.files[TEXT].bytes == len(b"changed on purpose")
    assert opened.manifest.labels == bundle.manifest.labels
    assert not list(copy.glob("*.part"))
