"""Known vulnerabilities of the locked dependencies: pip-audit on a lock file, in an environment of its own.

    python tools/audit.py requirements.lock

PyPI's service knows them. A mirror or a closed network does not, and pip-audit would then report that it found nothing;
so the service is first asked about a release that is known to be vulnerable. If it does not know that one, the audit is
skipped with a line that says so, and exit code 0. Exit code 1 if anything is found.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOL = "pip-audit==2.10.1"
KNOWN = "https://pypi.org/pypi/requests/2.19.0/json"  # CVE-2018-18074
REACH_S = 5
TOTAL_S = 300


def missing(url: str = KNOWN) -> str:
    """Why the service cannot be asked; empty if it can."""
    try:
        with urllib.request.urlopen(url, timeout=REACH_S) as answer:
            known = json.load(answer).get("vulnerabilities")
    except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
        return f"{url} gives no answer ({error})"
    return "" if known else f"{url} knows of no vulnerabilities, though there are some"


def audit(lock: Path, folder: Path) -> int:
    """Run pip-audit, which is installed into ``folder`` if it is not there; returns its exit code."""
    tool = folder / "bin" / "pip-audit"
    if not tool.exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", TOOL], check=True, timeout=TOTAL_S)
    command = [tool, "--requirement", lock, "--no-deps", "--disable-pip", "--progress-spinner", "off"]
    return subprocess.run(command, check=False, timeout=TOTAL_S).returncode


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lock", type=Path, help="file of pinned requirements")
    parser.add_argument("--service", default=KNOWN, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    why = missing(options.service)
    if not why:
        try:
            return 1 if audit(options.lock, ROOT / "build" / "audit") else 0
        except (subprocess.SubprocessError, OSError) as error:
            why = f"pip-audit cannot be installed or run ({error})"
    print(f"audit of {options.lock.name} SKIPPED: {why}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
