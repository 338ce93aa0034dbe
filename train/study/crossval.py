"""The grid of runs: systems × folds × seeds, in this process, in several, or on a Ray cluster.

A finished run is one file (``train.study.trial``), written by the process that called ``complete``; a run whose file
exists is not repeated, so an interrupted study continues.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from emostream.engines.bundle import MODALITIES
from emostream.errors import ConfigError, CorpusError, Problems
from emostream.stream.cluster.connect import joined
from emostream.train.model import ATTENTION, build
from emostream.train.pool import submit, worker_pool
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
Outcomes = Generator[tuple[Spec, Result | str], None, None]  # each run's result, or why it has none


def systems(names: Sequence[str]) -> list[str]:
    """Names of systems and of groups → systems, each once. Raises ConfigError for a name that is neither."""
    expanded = [system for name in names for system in GROUPS.get(name, (name,))]
    for system in expanded:
        spec_of(system, "default", 0, 0)
    return list(dict.fromkeys(expanded))


def spec_of(system: str, variant: str, fold: int, seed: int) -> Spec:
    """A run of a system named like ``avt-cross`` or ``at-self-nosp``. Raises ConfigError for a name of another form."""
    letters, _, rest = system.partition("-")
    attention = rest.removesuffix("-nosp")
    modalities = tuple(m for m in MODALITIES if m[0] in letters)
    spec = Spec(variant, attention, modalities, attention == rest, fold, seed)
    if attention not in ATTENTION or not modalities or spec.system != system:
        raise ConfigError(
            f"system {system!r} is unknown: it is some of the letters a, v and t in this order, then one of "
            f"{', '.join(f'-{a}' for a in ATTENTION)}, then perhaps -nosp; or one of {', '.join(GROUPS)}"
        )
    return spec


def grid(names: Sequence[str], variant: str, folds: int, seeds: int) -> list[Spec]:
    """All runs, seed by seed and fold by fold, so that a study cut short has some runs of every system."""
    return [spec_of(name, variant, f, s) for s in range(seeds) for f in range(folds) for name in names]


def _fitting(there: Collection[str]) -> str:
    """The option to type for the systems that the available modalities allow."""
    fit = [name for name in GROUPS["paper-table"] if set(spec_of(name, "default", 0, 0).modalities) <= set(there)]
    if len(there) == 1:  # then only self-attention and none can be compared
        fit += [name.replace("-self", "-none") for name in fit]
    return f"what there is fits: --systems {','.join(dict.fromkeys(fit))}"


def check(specs: Sequence[Spec], folds: Folds) -> None:
    """Check that every run can be made. Raises Problems with everything that prevents one."""
    problems = []
    for spec in dict.fromkeys(replace(spec, fold=0, seed=0) for spec in specs):
        try:
            build(spec.variant, spec.attention, spec.modalities, spec.pooling)
        except ValueError as error:
            problems.append(f"{spec.system}: {error}")
    if folds.folds < 2:
        problems.append("has one fold; two at least are needed to compare systems")
    needed = {m for spec in specs for m in spec.modalities}
    there = {m for fold in range(folds.folds) for part in folds.split(fold).values() for m in part.features}
    if missing := sorted(needed - there):
        problems.append(f"no item has {' or '.join(missing)}; {_fitting(there)}")
    for fold in range(folds.folds):
        for name, part in folds.split(fold).items():
            where = f"fold {fold}, {name}"
            if not any(len(labels) for labels in part.labels.values()):
                problems.append(f"{where}: is empty")
                continue
            problems += [
                f"{where}: no item has {m}, which some systems need"
                for m in sorted(needed & there - set(part.features))
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
    """The results of those runs whose files exist. Raises CorpusError for a file that is not a run."""
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
    """Make the missing runs; returns why some failed, which does not stop the others.

    ``jobs``: number of processes, or with ``ray`` = "local" of CPUs of a Ray started here; any other ``ray`` is the
    address of a cluster, whose machines have this package and are sent the features. ``done`` is called with each run
    as it ends. Raises ClusterError if Ray is asked for and not available. Up to rounding, results do not depend on
    where runs are made.
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
        outcomes.close()  # so that an interruption ends processes and Ray here, not at garbage collection
    return failures


def _attempt(spec: Spec, training: Training, folds: Folds) -> Result | str:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # there are many small runs: more runs at once beat more threads in one
    try:
        return run(spec, training, folds)
    except Exception as error:  # any fault is reported and must not lose the other runs
        return f"{type(error).__name__}: {error}"
    finally:
        torch.set_num_threads(before)


def _in_processes(todo: Sequence[Spec], training: Training, folds: Folds, jobs: int) -> Outcomes:
    others = set(multiprocessing.active_children())
    pool = worker_pool(min(jobs, len(todo)), partial, _attempt, training=training, folds=folds)
    orderly = False
    try:
        futures = submit(pool, todo)
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
    with joined(address, jobs) as ray:
        attempt, features = ray.remote(num_cpus=1)(_attempt), ray.put(folds)
        pending = {attempt.remote(spec, training, features): spec for spec in todo}
        while pending:
            for ref in ray.wait(list(pending))[0]:
                spec = pending.pop(ref)
                try:
                    yield spec, ray.get(ref)
                except ray.exceptions.RayError as error:
                    yield spec, f"its Ray worker died ({error})"
