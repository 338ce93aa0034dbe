"""docs/page.png: the live page while the demo is labelled, in a real browser (Debian: apt-get install chromium).

python tools/page_picture.py [docs/page.png [SOURCE [SECTION.KEY=VALUE]]]
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

SHOWN_AT_S = 15.0  # time in the demo: three utterances are labelled, the fourth is about to be spoken
SIZE = {"width": 1180, "height": 760}


def main() -> int:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/page.png")
    command = [
        str(Path(sys.executable).parent / "stream-run"),
        "--stream",
        f"desk={sys.argv[2] if len(sys.argv) > 2 else 'demo'}",
        "--page",
        "--set",
        "page.port=8899",
        *(option for setting in sys.argv[3:] for option in ("--set", setting)),
    ]
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        try:
            url = next(found[0] for line in run.stderr if (found := re.search(r"http://\S+/", line)))
            with sync_playwright() as play:
                page = play.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(viewport=SIZE)
                page.goto(url)
                page.wait_for_selector("#said li")
                time.sleep(SHOWN_AT_S - 4)
                page.screenshot(path=str(target))
        finally:
            run.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
