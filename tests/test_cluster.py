"""``stream-label --ray`` on real clusters of several raylets on this machine, whose processes are killed."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from emostream.errors import ClusterError, ConfigError
from emostream.stream.cluster.connect import joined
from tests import media
from tests.processes import BIN, command, environment, free_port

pytestmark = pytest.mark.process

WITHOUT_WORDS = ("--set", "speech.recognizer=none", "--set", "speech.speakers=off")
FILES = 8


def labels(path: Path) -> list[dict[str, object]]:
    """Messages without their time of publishing."""
    return [json.loads(line) | {"published_ns": 0} for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight recordings of 78 s each, which differ in what is said when."""
    folder = tmp_path_factory.mktemp("archive")
    samples = media.speech_samples(26.0)
    for n in range(FILES):
        media.write_media(folder / f"{n}.wav", speech=np.roll(np.tile(samples, 3), -16_000 * n))
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[dict[str, object]]:
    """What the command writes without a cluster."""
    out = folder.parent / "expected.jsonl"
    assert command("stream-label", folder, "--out", out, *WITHOUT_WORDS, timeout=110).returncode == 0
    assert len(labels(out)) > 3 * FILES
    return labels(out)


class Running:
    """A running ``stream-label --ray``; its output is read when it has ended."""

    def __init__(self, address: str, out: Path, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [BIN / "stream-label", *map(str, arguments), "--ray", address, "--out", out, *WITHOUT_WORDS],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip

    def end(self, seconds: float = 200) -> tuple[int, str, list[str]]:
        """Exit code, standard output, and the lines of stderr above level info."""
        output, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, output, [line for line in errors.splitlines() if not line.startswith("INFO")]


def worker_with(path: Path, seconds: float = 150) -> psutil.Process:
    """Wait for the worker that has a file open."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for process in psutil.process_iter(["name"]):
            if process.info["name"].startswith("ray::Worker"):
                try:
                    if any(file.path == str(path) for file in process.open_files()):
                        return process
                except psutil.Error:
                    continue
        time.sleep(0.005)
    raise AssertionError(f"no worker has opened {path}")


@pytest.mark.long
def test_a_cluster_gives_the_output_of_one_process(tmp_path):
    """The same notes and errors too, in the order of the files; and none of Ray's own."""
    pytest.importorskip("ray")
    names = [tmp_path / name for name in ("a.wav", "bad.wav", "c.wav", "nothing.wav", "none.wav")]
    media.audio_only(names[0])
    media.text_file(names[1])
    media.audio_only(names[2], rate=8000)
    media.silent_audio(names[3])
    arguments = [*names, *WITHOUT_WORDS]
    here = command("stream-label", *arguments, "--out", tmp_path / "here.jsonl")
    there = command("stream-label", *arguments, "--out", tmp_path / "there.jsonl", "--ray", "local", "--jobs", 1)
    assert (there.returncode, there.stdout) == (here.returncode, here.stdout) and here.stdout
    *errors, summary = there.stderr.splitlines()
    assert errors == here.stderr.splitlines() and here.returncode == 1
    assert re.fullmatch(
        r"note: 5 files, 0\.00 hours of media, in \d+\.\d minutes on at most 1 cores: "
        r"\d+\.\d hours of media per core hour",
        summary,
    )
    assert labels(tmp_path / "there.jsonl") == labels(tmp_path / "here.jsonl") != []


@pytest.mark.parametrize("address", ["nonsense", "ray://there:10001", "host:", ""])
def test_an_address_of_another_form_is_refused(address):
    with pytest.raises(ConfigError, match="neither"), joined(address, 1):
        pass


def test_nobody_at_the_address_is_an_error_at_once():
    with pytest.raises(ClusterError, match="cannot be reached at '127.0.0.1:"), joined(f"127.0.0.1:{free_port()}", 1):
        pass


def test_jobs_are_for_a_cluster():
    done = command("stream-label", "a.wav", "--jobs", 2)
    assert done.returncode == 2 and "--jobs is for --ray" in done.stderr


# Kills


@pytest.fixture
def cluster() -> Iterator[object]:
    """A head and another node, of one CPU each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=options | {"include_dashboard": False})
    cluster.add_node(**options)
    yield cluster
    cluster.shutdown()


def raylet(node: object) -> psutil.Process:
    """A node's raylet, which starts its workers."""
    return psutil.Process(dict(node.live_processes())["raylet"].pid)  # type: ignore[attr-defined]


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_worker_that_is_killed_costs_no_file_and_a_file_that_kills_workers_is_given_up(
    cluster, folder, expected, tmp_path
):
    running = Running(cluster.address, tmp_path / "out.jsonl", folder)
    worker_with(folder / "1.wav").kill()
    for _ in range(3):
        worker = worker_with(folder / "5.wav")
        worker.kill()
        psutil.wait_procs([worker], timeout=10)
    code, _, errors = running.end()
    assert code == 1 and len(errors) == 2, errors
    assert errors[0] == f"error: {folder / '5.wav'}: given up: 3 workers died of it"
    assert errors[1].endswith("; workers died 4 times with a file")
    assert labels(tmp_path / "out.jsonl") == [line for line in expected if line["stream"] != "5.wav"]


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_node_that_is_killed_costs_no_file_and_one_that_joins_is_used(cluster, folder, expected, tmp_path):
    """All processes of the node at once, as if its machine were gone."""
    running = Running(cluster.address, tmp_path / "out.jsonl", folder)
    head, other = (raylet(node) for node in cluster.list_all_nodes())
    assert any(worker_with(folder / f"{n}.wav").ppid() == other.pid for n in range(FILES))
    for process in [other, *other.children(recursive=True)]:
        process.kill()
    joined_late = raylet(cluster.add_node(num_cpus=1, object_store_memory=100 << 20))
    until = time.monotonic() + 60
    while not any("ray::Worker" in process.name() for process in joined_late.children()):
        assert time.monotonic() < until and running.process.poll() is None, "the node that joined is not used"
        time.sleep(0.05)
    code, _, errors = running.end()
    assert (code, len(errors)) == (0, 1), errors
    assert errors[0].endswith("; workers died 1 times with a file")
    assert labels(tmp_path / "out.jsonl") == expected
    assert head.is_running()


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_command_that_is_killed_goes_on_with_what_is_missing(cluster, folder, expected, tmp_path):
    out = tmp_path / "out.jsonl"
    running = Running(cluster.address, out, folder)
    worker_with(folder / "4.wav")
    running.process.kill()
    running.end()
    before = len(labels(out))
    assert 0 < before < len(expected)
    with out.open("ab") as file:
        file.write(b'{"schema":"emostream/1","kind":"utte')
    code, output, errors = Running(cluster.address, out, folder, "--resume").end()
    assert code == 0 and re.fullmatch(r"note: .* has the labels of [1-4] of them already", errors[0]), errors
    assert labels(out) == expected and 0 < len(output.splitlines()) < len(expected)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_the_end_of_the_head_is_an_error_and_what_was_written_stays(cluster, folder, expected, tmp_path):
    out = tmp_path / "out.jsonl"
    running = Running(cluster.address, out, folder)
    worker_with(folder / "4.wav")
    agents = [child for node in cluster.list_all_nodes() for child in raylet(node).children(recursive=True)]
    dict(cluster.head_node.live_processes())["gcs_server"].kill()
    code, _, errors = running.end()
    for process in agents:  # they outlive by minutes a raylet that ended because its head was gone
        with contextlib.suppress(psutil.Error):
            process.kill()
    assert code == 1 and len(errors) == 1, errors
    assert re.fullmatch(r"error: the head of the cluster, [\d.:]+, is gone", errors[0])
    written = labels(out)
    assert written and written == expected[: len(written)]


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_machine_that_does_not_see_the_files_is_told_of_and_the_others_label_them(
    cluster, folder, expected, tmp_path
):
    """A third raylet, which sees an empty folder in place of the files."""
    alone = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', folder]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("needs root and unshare for a mount namespace")
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--address", cluster.address]
    limits = ["--num-cpus", "1", "--object-store-memory", "100000000"]
    blind = psutil.Popen([*alone, *start, *limits], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 60
        while sum("raylet" in process.name() for process in blind.children(recursive=True)) < 1:
            assert time.monotonic() < until, "the raylet did not start"
            time.sleep(0.1)
        time.sleep(5)
        code, _, errors = Running(cluster.address, tmp_path / "out.jsonl", folder).end()
    finally:
        blind.send_signal(signal.SIGTERM)
        blind.wait(30)
    assert code == 0 and len(errors) == 2, errors
    assert re.fullmatch(rf"note: .* does not see {folder}/\d\.wav; another machine gets it", errors[0])
    assert labels(tmp_path / "out.jsonl") == expected
