"""All benchmarks in one run, and the page that shows them.

    python -m benchmarks.report [--full] [--only NAME …]

Runs each benchmark as its user would, one after the other. Their tables and pictures go to docs/benchmarks.md, a line
of key figures to docs/benchmarks-history.json, and README's table between its two marks is replaced. A benchmark with
faults is shown with them; its key figures are left out. ``--full`` takes hours, of which soak.py takes one.
endpoint.py and people.py need recordings (EMOSTREAM_DATA) and are left out without them; the others play the demo
clip's sentences.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import DATA, ROOT
from emostream.commands import exit_code, make_parser

NAMES = ("latency", "endpoint", "people", "networks", "throughput", "cost", "startup", "soak")
_NEED_DATA = ("endpoint", "people")
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
_HISTORY = "benchmarks-history.json"

Results = Mapping[str, dict[str, Any]]  # benchmark → what it wrote as JSON
KEYS: dict[str, tuple[str, str, Callable[[dict[str, Any]], object]]] = {
    # key figure: (benchmark, command, its place in the benchmark's figures)
    "true end of speech → label, all modalities, p50 ms": (
        "latency", "benchmarks/latency.py", lambda f: f["all"]["total"]["p50"]),
    "confirmed end → label, all modalities, p50 ms": (
        "latency", "benchmarks/latency.py", lambda f: f["all"]["confirmed end → label"]["p50"]),
    "confirmed end → label, all modalities, p99 ms": (
        "latency", "benchmarks/latency.py", lambda f: f["all"]["confirmed end → label"]["p99"]),
    "fusion, 5 s, times faster than the published network in torch": (
        "networks", "benchmarks/networks.py", lambda f: f["faster than"]["p50"]["published, torch eager"]),
    "fusion, 5 s, times faster than the published network in ONNX Runtime": (
        "networks", "benchmarks/networks.py", lambda f: f["faster than"]["p50"]["published, onnxruntime"]),
    "processor seconds a second, nobody speaks, without picture": (
        "cost", "benchmarks/cost.py", lambda f: f["rest, sound"]["in all"]),
    "processor seconds a second, somebody speaks, sound and picture": (
        "cost", "benchmarks/cost.py", lambda f: f["speech, sound and picture"]["in all"]),
    "command → all nodes ready, warm, p50 ms": (
        "startup", "benchmarks/startup.py", lambda f: f["warm"]["all nodes ready"]["p50"]),
}  # fmt: skip


def key_figures(results: Results) -> dict[str, object]:
    """The key figures of those benchmarks of a run that had no faults."""
    return {
        key: place(results[name]["figures"])
        for key, (name, _, place) in KEYS.items()
        if name in results and not results[name]["faults"]
    }


def page(folder: Path, results: Results, history: Sequence[dict[str, Any]]) -> str:
    """docs/benchmarks.md, from the Markdown that each benchmark wrote to ``folder``."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` (quick) or `python -m benchmarks.report --full`; each part names its own command. "
        "Absolute times are those of this machine, which is shared and noisy: compare within a run. What was made "
        "faster, what was tried in vain, and which aims are not met: [performance.md](performance.md).",
        "",
    ]
    for name in results:
        text = (folder / f"{name}.md").read_text(encoding="utf-8")
        text = text.replace(f"# {name}\n", f"## {name}\n\n`python benchmarks/{name}.py`, see its `--help`.\n", 1)
        lines += [text.replace(f"]({name}.png)", f"](benchmarks/{name}.png)"), ""]
    lines += [
        "## History",
        "",
        "Key figures of runs without faults, newest first. Quick runs are too short to quote.",
        "",
    ]
    lines += ["| when | commit | processor | kind | figures |", "|---|---|---|---|---|"]
    for entry in reversed(history):
        shown = "; ".join(f"{key} {value}" for key, value in entry["figures"].items()) or "none"
        kind = "quick" if entry["quick"] else "full"
        lines.append(
            f"| {entry['when'][:16]} | {entry['commit']} | {entry['cpu']}, {entry['cores']} cores | {kind} | {shown} |"
        )
    return "\n".join(lines) + "\n"


def readme_table(figures: Mapping[str, object]) -> str:
    rows = [f"| {key} | {figures[key]} | `python {KEYS[key][1]}` |" for key in KEYS if key in figures]
    return "\n".join([BEGIN, "| what | figure | command |", "|---|---|---|", *rows, END])


def into_readme(text: str, figures: Mapping[str, object]) -> str:
    """README's text with a new table. Raises ValueError if it lacks the marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md has no {BEGIN} … {END}")
    return before + readme_table(figures) + after


def write(folder: Path, names: Sequence[str], docs: Path, readme: Path) -> None:
    """Write the page, the history and README's table from the results in ``folder``."""
    results = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in names}
    path = docs / _HISTORY
    history = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    last = results[names[-1]]
    figures = key_figures(results)
    history.append(
        {
            "when": last["when"], "commit": last["versions"].get("commit", "?"), "cpu": last["machine"]["cpu"],
            "cores": last["machine"]["cores"], "quick": any(r["settings"].get("quick") for r in results.values()),
            "figures": figures,
        }
    )  # fmt: skip
    pictures = docs / "benchmarks"
    pictures.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (folder / f"{name}.png").exists():
            shutil.copyfile(folder / f"{name}.png", pictures / f"{name}.png")
    path.write_text(json.dumps(history, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (docs / "benchmarks.md").write_text(page(folder, results, history), encoding="utf-8")
    if not history[-1]["quick"]:  # a quick run must not be quoted
        readme.write_text(into_readme(readme.read_text(encoding="utf-8"), figures), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser("benchmarks.report", __doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--full", action="store_true", help="as long as it takes; otherwise a look of a minute each")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME", help=", ".join(NAMES))
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build/benchmarks", metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--keep", action="store_true", help="run nothing; write the page from the results in DIR")
    options = parser.parse_args(arguments)
    names = [name for name in options.only if name not in _NEED_DATA or DATA in os.environ]
    for name in sorted(set(options.only) - set(names)):
        print(f"{name} is left out: set {DATA} to a folder with recordings", file=sys.stderr)
    faulty = False
    for name in () if options.keep else names:
        print(f"== {name}", file=sys.stderr)
        environment = {key: value for key, value in os.environ.items() if key != DATA or name in _NEED_DATA}
        command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--out", str(options.out)]
        code = subprocess.run(command if options.full else [*command, "--quick"], cwd=ROOT, env=environment).returncode
        faulty |= code != 0
        if code not in (0, 1):
            print(f"error: {name} ended with exit code {code}", file=sys.stderr)
            return 1
    write(options.out, names, ROOT / "docs", ROOT / "README.md")
    print(f"written: {ROOT / 'docs/benchmarks.md'}", file=sys.stderr)
    return int(faulty)


if __name__ == "__main__":
    sys.exit(exit_code(main))
