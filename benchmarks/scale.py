"""Labelling on a Ray cluster against as many plain processes: hours of media per core hour.

    python -m benchmarks.scale [--what sound|words|picture|all] [--files 24] [--rounds 3] [--jobs 2]

Labels copies of the demo clip (27 s) twice in each round: in a pool of processes that each take one file at a time,
and by ``stream-label --ray local``'s own code in as many workers. It counts the time of each process from when it has
loaded until all are done and, since other work on the machine affects that, the processor time of the files. All
processes have one thread for linear algebra. Machine and versions are printed too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import wave
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks import common
from emostream.commands import exit_code
from emostream.stream.cluster.label import ClusterLabeller
from emostream.stream.config import Config, load_config
from emostream.stream.label import Labeller
from emostream.stream.sources import DEMO
from emostream.train.pool import submit, worker_pool
from emostream.train.recordings import read_samples

WORDLESS = "speech.recognizer=none"
KINDS = {"sound": (False, [WORDLESS]), "words": (False, []), "picture": (True, [WORDLESS]), "all": (True, [])}


def make_files(folder: Path, count: int, picture: bool) -> list[Path]:
    """Copies of the demo clip, or of its sound."""
    paths = [folder / f"{n}.{'mp4' if picture else 'wav'}" for n in range(count)]
    if picture:
        for path in paths:
            shutil.copy(DEMO, path)
        return paths
    samples = read_samples(DEMO)
    for path in paths:
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(samples.tobytes())
    return paths


def make_work(config: Config) -> Callable[[Path], tuple[float, float, float, float, int]]:
    """The function that a process of the pool calls with a file. It returns when the process had loaded, when the file
    was done (both monotonic), seconds of media and of processor time, and the number of labels."""
    labeller, loaded_s = Labeller(config), time.monotonic()

    def work(path: Path) -> tuple[float, float, float, float, int]:
        before_s = time.process_time()
        labels = sum(1 for _ in labeller.label(path))
        return loaded_s, time.monotonic(), labeller.media_s, time.process_time() - before_s, labels

    return work


def in_processes(config: Config, files: list[Path], jobs: int) -> tuple[float, float, int]:
    """Hours of media per core hour, and per hour of processor time; and labels."""
    with worker_pool(jobs, make_work, config) as pool:
        results = [future.result() for future in submit(pool, files)]
    loaded_s, done_s, media_s, cpu_s, labels = zip(*results, strict=True)
    core_s = sum(max(done_s) - each_s for each_s in set(loaded_s))
    return sum(media_s) / core_s, sum(media_s) / sum(cpu_s), sum(labels)


def on_cluster(config: Config, files: list[Path], jobs: int) -> tuple[float, float, int]:
    """The same by workers of a Ray cluster."""
    labeller = ClusterLabeller(config, "local", jobs)
    outcomes = [outcome for _, outcome in labeller.label(files)]
    media_s = labeller.tally.media_s
    cpu_s = sum(outcome.cpu_s for outcome in outcomes)
    return media_s / labeller.tally.core_s, media_s / cpu_s, sum(len(outcome.labels) for outcome in outcomes)


def main(arguments: list[str] | None = None) -> int:
    return exit_code(lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--what", choices=KINDS, default="sound")
    parser.add_argument("--files", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # Ray does so for its workers: the processes get the same
    picture, changes = KINDS[options.what]
    config = load_config(None, changes)
    rows = []
    with tempfile.TemporaryDirectory(prefix="eb-") as folder:
        files = make_files(Path(folder), options.files, picture)
        for n in range(options.rounds):
            here, here_cpu, labels = in_processes(config, files, options.jobs)
            there, there_cpu, labels_there = on_cluster(config, files, options.jobs)
            if labels_there != labels:
                print(f"error: {labels_there} labels on the cluster, {labels} in processes", file=sys.stderr)
                return 1
            ratios = f"{there / here:.2f}", f"{there_cpu / here_cpu:.2f}"
            rows.append((f"{n + 1}", here, there, ratios[0], here_cpu, there_cpu, ratios[1]))
    print(json.dumps({"machine": common.machine(), "versions": common.versions()}))
    print(common.table(("round", "processes", "Ray", "ratio", "… of CPU", "… of CPU, Ray", "ratio of CPU"), rows))
    medians = [median(float(row[k]) for row in rows) for k in range(1, 7)]
    print(f"\n{options.what}: medians {', '.join(f'{value:.2f}' for value in medians)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
