"""stream/profile.py, and runs that keep one."""

from __future__ import annotations

import json
import os
import stat
import subprocess

import numpy as np
import pytest

from emostream import Config, Labeller
from emostream.engines.bundle import open_bundle
from emostream.errors import ConfigError
from emostream.stream.cores.adapt import Baseline, VoiceBaseline
from emostream.stream.profile import FORMAT, Profile
from emostream.stream.sources import DEMO
from tests.processes import BIN, environment

BUNDLE = open_bundle("ekman7")
DIMS = {"audio": BUNDLE.manifest.audio.dim, "video": BUNDLE.manifest.video.dim}
RNG = np.random.default_rng(0)


def baselines(*learnt: str) -> dict[str, dict[str, Baseline]]:
    """Of one stream; those of ``learnt`` know somebody."""
    voice, face = VoiceBaseline(np.zeros(DIMS["audio"]), None), Baseline(np.zeros(DIMS["video"]), None)
    known = {"audio": voice, "video": face}
    for m in learnt:
        for weight in (0.9, 0.4, 1.0):
            known[m].update(RNG.normal(size=(5, DIMS[m])), weight)
    if "audio" in learnt:
        voice.judge(0.5, 0.7)  # moved, answers were surer
    return {"desk": known}


def test_what_is_kept_corrects_as_before(tmp_path):
    path = tmp_path / "me.profile"
    before = baselines("audio", "video")
    Profile(path, BUNDLE).save(before)
    after = baselines()
    Profile(path, BUNDLE).restore(after)
    for m, dim in DIMS.items():
        vectors = RNG.normal(size=(4, dim)).astype(np.float32)
        assert after["desk"][m].known == pytest.approx(before["desk"][m].known, abs=1e-4)
        np.testing.assert_allclose(after["desk"][m].correct(vectors), before["desk"][m].correct(vectors), atol=1e-4)
        assert np.abs(after["desk"][m].correct(vectors) - vectors).max() > 0.1


def test_it_is_its_owners_and_holds_numbers_only(tmp_path):
    path = tmp_path / "me.profile"
    Profile(path, BUNDLE).save(baselines("audio"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = json.loads(path.read_text())
    assert set(kept) == {"format", "networks", "streams"} and set(kept["streams"]) == {"desk"}
    assert set(kept["streams"]["desk"]) == {"audio"}
    assert set(kept["streams"]["desk"]["audio"]) == {"mean", "weight", "tried", "surer"}


def test_streams_that_are_not_in_the_run_stay(tmp_path):
    path = tmp_path / "us.profile"
    Profile(path, BUNDLE).save({"door": baselines("video")["desk"]})
    Profile(path, BUNDLE).save(baselines("audio"))
    assert set(json.loads(path.read_text())["streams"]) == {"door", "desk"}


def test_nothing_is_written_where_nothing_is_new(tmp_path):
    path = tmp_path / "me.profile"
    profile, known = Profile(path, BUNDLE), baselines("audio")
    profile.save(known)
    path.unlink()
    profile.save(known)
    assert not path.exists()


def test_another_encoders_vectors_are_not_used(tmp_path, caplog):
    path = tmp_path / "me.profile"
    Profile(path, BUNDLE).save(baselines("audio", "video"))
    kept = json.loads(path.read_text())
    kept["networks"]["audio"] = "0" * 64
    path.write_text(json.dumps(kept))
    after = baselines()
    Profile(path, BUNDLE).restore(after)
    assert after["desk"]["audio"].known == 0 < after["desk"]["video"].known
    assert "desk, audio: was learnt with another bundle's encoder" in caplog.text


_REST = {"mean": [0.0] * DIMS["audio"], "weight": 1.0}
_GOOD = {
    "format": FORMAT,
    "networks": {"audio": BUNDLE.manifest.files["voice.onnx"].sha256},
    "streams": {"desk": {"audio": _REST}},
}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no profile"),
        (b"\xff\xfe\x00", "is no profile"),
        (b"[" * 100_000, "is no profile"),
        (b"{}", "is no profile"),
        (json.dumps(_GOOD | {"format": "emostream-profile/9"}).encode(), "format is 'emostream-profile/9'"),
        (json.dumps(_GOOD | {"streams": {"desk": {"audio": _REST | {"mean": [1.0]}}}}).encode(), "has 1 numbers"),
        (json.dumps(_GOOD | {"streams": {"desk": {"audio": _REST | {"weight": -1}}}}).encode(), "is no profile"),
        (json.dumps(_GOOD | {"streams": {"desk": {"audio": _REST | {"mean": [1e30]}}}}).encode(), "is no profile"),
        (json.dumps(_GOOD).replace("1.0", "NaN").encode(), "is no profile"),
        (b" " * 10_000_001, "larger than"),
    ],
    ids=["empty", "binary", "nested", "nothing", "format", "short", "negative", "huge", "nan", "large"],
)
def test_a_file_that_is_no_profile_is_an_error(tmp_path, content, says):
    path = tmp_path / "bad.profile"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as raised:
        Profile(path, BUNDLE)
    assert str(path) in str(raised.value)


def test_a_folder_and_a_place_that_cannot_be_written_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        Profile(tmp_path, BUNDLE)
    with pytest.raises(ConfigError, match="cannot be written"):
        Profile(tmp_path / "missing/me.profile", BUNDLE).check_writable()
    Profile(tmp_path / "me.profile", BUNDLE).check_writable()
    assert os.listdir(tmp_path) == []  # the check leaves no file


def test_it_needs_adapt():
    with pytest.raises(ConfigError, match="set adapt = true"):
        Config(fusion={"profile": "me.profile", "adapt": False})


@pytest.mark.long
@pytest.mark.slow
def test_the_labeller_reads_it_and_does_not_write(tmp_path):
    path = tmp_path / "me.profile"
    first = {"array": baselines("audio", "video")["desk"]} | {"demo.mp4": baselines("audio", "video")["desk"]}
    Profile(path, BUNDLE).save(first)
    before = path.read_bytes()
    with Labeller(Config(fusion={"profile": str(path)})) as labeller:
        label = next(iter(labeller.label(DEMO)))
    assert label.adapted > 0.5 and path.read_bytes() == before


@pytest.mark.long
@pytest.mark.process
def test_a_second_run_knows_the_person_of_the_first(tmp_path):
    path, adapted = tmp_path / "me.profile", []
    for run in ("first", "second"):
        out = tmp_path / f"{run}.jsonl"
        done = subprocess.run(
            [BIN / "stream-run", "--stream", "demo", "--pace", "fast", "--quiet", "--profile", path, "--jsonl", out,
             "--set", f"bus.emotion=ipc://{tmp_path}/bus", "--set", "speech.recognizer=none"],
            env=environment(), capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        adapted.append([json.loads(line)["adapted"] for line in out.read_text().splitlines()])
    assert len(adapted[0]) == len(adapted[1]) == 5
    assert adapted[1][0] >= adapted[0][-1] - 0.01 > adapted[0][0]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.process
def test_a_run_without_a_place_for_it_does_not_begin(tmp_path):
    done = subprocess.run(
        [BIN / "stream-run", "--stream", "demo", "--profile", tmp_path / "no/me.profile"],
        env=environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot be written" in done.stderr, done.stderr
