"""Writes the findings of tools/gpu_parts.py as gpu-report.json and gpu-report.md.

    python -m tools.gpu_report FOLDER OUT [--device cpu]      # FOLDER: a JSON file of each part

A part that was stopped, or whose process died, has a file PART.end beside it that says so.

Exit code 0: every part was done; 1: a fault, or a part took too long; 3: the machine lacks something.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from emostream.engines.bundle import open_bundle
from emostream.files import write_atomically
from emostream.machine import cpu_name, package_versions
from tools.gpu_parts import CHECKS, LACKING, Found

_PACKAGES = ("numpy", "torch", "onnxruntime", "onnxruntime-gpu", "pycuda", "tensorrt-rtx-cu13-bindings")


def report(folder: Path, out: Path, device: str) -> int:
    """Write the report; 0: every part was done, 1: a fault, 3: something was missing."""
    parts: dict[str, Found] = {}
    for part in CHECKS:
        file, end = folder / f"{part}.json", folder / f"{part}.end"
        parts[part] = json.loads(file.read_text()) if file.exists() else {"state": "not reached", "faults": []}
        if end.exists():
            said = end.read_text().strip()
            parts[part]["state"] = "timed out" if said == "stopped after its time" else "fault"
            parts[part]["faults"].append(said)
    whole = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"), "device": device, "gpu": _nvidia_smi(),
        "machine": f"{cpu_name()}, {os.cpu_count()} CPUs, {platform.platform()}", "python": platform.python_version(),
        "versions": package_versions(_PACKAGES), "bundle": open_bundle("ekman7").id, "parts": parts,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "gpu-report.json", json.dumps(whole, indent=1) + "\n")
    text = "\n".join(_page(whole)) + "\n"
    write_atomically(out / "gpu-report.md", text)
    print(text)
    states = {found["state"] for found in parts.values()}
    return 1 if states & {"fault", "timed out", "partly done", "running"} else LACKING if states != {"done"} else 0


def _nvidia_smi() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _page(whole: dict[str, Any]) -> Iterator[str]:
    on_gpu = whole["device"] == "cuda" and whole["gpu"]
    yield f"# {whole['gpu'].split(',')[0]}" if on_gpu else "# No GPU was used"
    yield ""
    yield "| part | state | s | |"
    yield "|---|---|--:|---|"
    for part, found in whole["parts"].items():
        said = "; ".join(filter(None, [*found["faults"], found.get("missing"), _sum(found)]))
        yield f"| {part} | {found['state']} | {found.get('seconds', 0):.0f} | {said.replace('|', '/')} |"
    rows = [
        (way, measured, name, timing)
        for found in whole["parts"].values()
        for way, measured in found.get("measured", {}).items()
        for name, timing in measured["timings"].items()
    ]
    if rows:
        yield ""
        yield "| one run | on | p50, ms | p99, ms | rows per s | first, s | ONNX Runtime, one CPU thread, p50, ms |"
        yield "|---|---|--:|--:|--:|--:|--:|"
    for way, measured, name, timing in rows:
        yield (
            f"| {name} | {measured['name'] if way in measured['name'] else measured['name'] + ', ' + way} "
            f"| {timing['p50_ms']:.3f} | {timing['p99_ms']:.3f} | {timing['rows_per_s']:,.0f} "
            f"| {timing['first_s']:.1f} | {timing['cpu_p50_ms']:.2f} |"
        )
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in whole["versions"].items())
    yield (
        "Times include the copies to the device and back; lengths vary by a fifth. "
        f"{whole['bundle']}; {whole['gpu'] or 'no GPU'}; {whole['machine']}; {versions}; "
        f"{whole['when']}."
    )


def _sum(found: Found) -> str:
    """The figures of a part, in a few words."""
    if "copies" in found:
        return (
            f"{found['copies']:,} copies of 1 MB there and back, {found['copy_us']:.0f} µs each, "
            f"{found['growth_bytes']:,} bytes lost"
        )
    if "builds_here" in found:
        ahead = f"; builds for SM80: {found['builds_for_SM80']}" if "builds_for_SM80" in found else ""
        return f"{found['compute']}: builds for this GPU: {found['builds_here']}{ahead}"
    if "measured" in found:
        worst = max(measured["difference"] for measured in found["measured"].values())
        streams = f"; {found['streams']} streams within each hop of 250 ms, fusion alone" if "streams" in found else ""
        left_out = f"; no time for {len(found['left_out'])} cases" if "left_out" in found else ""
        return f"within {worst:.1e} of ONNX Runtime on the CPU{streams}{left_out}"
    if "latency_ms" in found:
        parts = ", ".join(f"{name} {value:.1f}" for name, value in found["latency_ms"].items())
        return f"{len(found['labels'])} labels; latency, ms, median: {parts}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    return report(options.folder, options.out, options.device)


if __name__ == "__main__":
    sys.exit(main())
