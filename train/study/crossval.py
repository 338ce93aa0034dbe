"""The grid of runs: systems × folds × seeds, here, in several processes or on a Ray cluster; interrupted, it goes on.

A finished run is one file (``train.trial``), written by the process that called ``complete``; a run whose file is
there is not made again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from emostream.errors import CorpusError, Problems
from emostream.train.model import ATTENTION, MODALITIES, build
from emostream.train.study.dataset import Folds
from emostream.train.study.examples import draw
from emostream.train.study.trial import Result, Spec, Training, path_of, run

UNIMODAL = ("a-self", "v-self", "t-self")
BIMODAL = ("av-self", "av-cross", "at-self", "at-cross", "vt-self", "vt-cross")
TRIMODAL = ("avt-self", "avt-cross")
ABLATION = ("avt-cross-nosp", "avt-cross", "avt-self-nosp", "avt-self", "avt-both")
GROUPS = {
    "unimodal": UNIMODAL,
    "bimodal": BIMODAL,
    "trimodal": TRIMODAL,
    "ablation": ABLATION,
    "paper-table": (*UNIMODAL, *BIMODAL, *TRIMODAL, *ABLATION),  # the paper's two tables of results
}
OBJECT_STORE_BYTES = 256 * 1024**2  # of a Ray started here: a corpus's features fit; more goes to disk
Outcomes = Generator[tuple[Spec, Result | str], None, None]  # of each run its result, or why there is none


def systems(names: Sequence[str]) -> list[str]:
    """Names of systems and groups of them → systems, each once. Raises ValueError for a name that is neither."""
    found = [system for name in names for system in GROUPS.get(name, (name,))]
    for name in found:
        spec_of(name, "default", 0, 0)
    return list(dict.fromkeys(found))


def spec_of(system: str, variant: str, fold: int, seed: int) -> Spec:
    """``avt-cross``, ``at-self-nosp`` → a run. Raises ValueError for a name that is not made like these."""
    letters, _, rest = system.partition("-")
    attention = rest.removesuffix("-nosp")
    modalities = tuple(m for m in MODALITIES if m[0] in letters)
    spec = Spec(variant, attention, modalities, attention == rest, fold, seed)
    if attention not in ATTENTION or not modalities or spec.system != system:
        raise ValueError(
            f"system {system!r} is unknown: it is some of the letters a, v and t in this order, then one of "
            f"{', '.join(f'-{a}' for a in ATTENTION)}, then perhaps -nosp; or one of {', '.join(GROUPS)}"
        )
    return spec


def grid(names: Sequence[str], variant: str, folds: int, seeds: int) -> list[Spec]:
    """All runs, seed by seed and fold by fold, so that a study cut short has something of every system."""
    return [spec_of(name, variant, f, s) for s in range(seeds) for f in range(folds) for name in names]


def check(specs: Sequence[Spec], folds: Folds) -> None:
    """See that every run can be made. Raises Problems with all that stands in the way."""
    problems = []
    for spec in dict.fromkeys(replace(spec, fold=0, seed=0) for spec in specs):
        try:
            build(spec.variant, spec.attention, spec.modalities, spec.pooling)
        except ValueError as error:
            problems.append(f"{spec.system}: {error}")
    if folds.folds < 2:
        problems.append("has one fold; two at least are needed to compare systems")
    needed = {m for spec in specs for m in spec.modalities}
    for fold in range(folds.folds):
        for name, part in folds.split(fold).items():
            where = f"fold {fold}, {name}"
            if not any(len(labels) for labels in part.labels.values()):
                problems.append(f"{where}: is empty")
                continue
            problems += [
                f"{where}: no item has {m}, which some systems need" for m in sorted(needed - set(part.features))
            ]
            absent = np.setdiff1d(np.arange(len(folds.label_names)), part.labels[next(iter(part.labels))])
            if name == "train" and len(absent):
                problems.append(f"{where}: nothing is labelled {', '.join(folds.label_names[k] for k in absent)}")
            try:
                draw(part, 1, np.random.default_rng(0))
            except CorpusError as error:
                problems.append(f"{where}: {error}")
    if problems:
        raise Problems(folds.name, list(dict.fromkeys(problems)))


def finished(specs: Sequence[Spec], training: Training, folds: Folds, out: Path) -> dict[Spec, Result]:
    """Those of the runs that are there. Raises CorpusError for a file that is no run."""
    paths = {spec: path_of(out, spec, training, folds) for spec in specs}
    return {spec: Result.load(path) for spec, path in paths.items() if path.is_file()}


def complete(
    specs: Sequence[Spec],
    training: Training,
    folds: Folds,
    out: Path,
    jobs: int = 1,
    ray: str | None = None,
    done: Callable[[Spec, Result | str], None] = lambda spec, outcome: None,
) -> dict[Spec, str]:
    """Make the runs that are not there yet; returns why some failed, which does not stop the others.

    ``jobs``: processes, or with ``ray`` = "local" the CPUs of a Ray started here; any other ``ray`` is the address of a
    cluster, whose machines have this package and are sent the features. ``done`` hears of each run as it ends. Raises
    CorpusError if Ray is wanted and cannot be had. Results do not depend on where runs are made, but for rounding.
    """
    todo = [spec for spec in specs if not path_of(out, spec, training, folds).is_file()]
    if not todo:
        return {}
    if ray is not None:
        outcomes = _on_ray(todo, training, folds, ray, jobs)
    elif jobs > 1:
        outcomes = _in_processes(todo, training, folds, jobs)
    else:
        outcomes = ((spec, _attempt(spec, training, folds)) for spec in todo)
    failures = {}
    try:
        for spec, outcome in outcomes:
            if isinstance(outcome, Result):
                outcome.save(path_of(out, spec, training, folds))
            else:
                failures[spec] = outcome
            done(spec, outcome)
    finally:
        outcomes.close()  # an interruption ends processes and Ray here, not when the generator is collected
    return failures


def _attempt(spec: Spec, training: Training, folds: Folds) -> Result | str:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # runs are many and small: more of them at once beats more threads in one
    try:
        return run(spec, training, folds)
    except Exception as error:  # whatever it is, it must not lose the other runs, and it is reported
        return f"{type(error).__name__}: {error}"
    finally:
        torch.set_num_threads(before)


_shared: tuple[Training, Folds] | None = None  # what each worker process gets once


def _begin(training: Training, folds: Folds) -> None:
    global _shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the caller decides
    _shared = training, folds


def _work(spec: Spec) -> Result | str:
    assert _shared is not None
    return _attempt(spec, *_shared)


def _in_processes(todo: Sequence[Spec], training: Training, folds: Folds, jobs: int) -> Outcomes:
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    pool = ProcessPoolExecutor(min(jobs, len(todo)), context, _begin, (training, folds))
    orderly = False
    try:
        futures = {pool.submit(_work, spec): spec for spec in todo}
        for future in as_completed(futures):
            error = future.exception()
            yield futures[future], future.result() if error is None else f"its process died ({error})"
        orderly = True
    finally:
        if not orderly:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
        pool.shutdown(wait=orderly, cancel_futures=True)


def _on_ray(todo: Sequence[Spec], training: Training, folds: Folds, address: str, jobs: int) -> Outcomes:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before the import: nothing is sent anywhere
    try:
        import ray
    except ImportError as error:
        raise CorpusError("Ray is not installed; get it with: pip install 'emostream[ray]'") from error
    local = {"num_cpus": jobs, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **(local if address == "local" else {}))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise CorpusError(f"Ray cannot be reached at {address!r} ({error}); start it with: ray start --head") from error
    try:
        attempt, features = ray.remote(num_cpus=1)(_attempt), ray.put(folds)
        pending = {attempt.remote(spec, training, features): spec for spec in todo}
        while pending:
            for ref in ray.wait(list(pending))[0]:
                spec = pending.pop(ref)
                try:
                    yield spec, ray.get(ref)
                except ray.exceptions.RayError as error:
                    yield spec, f"its Ray worker died ({error})"
    finally:
        ray.shutdown()
