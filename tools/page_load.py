"""How soon the live page shows something, in a real browser, while the demo is labelled (Debian: chromium).

    python tools/page_load.py [LOADS]

Milliseconds from the begin of each load: first paint, the streams with how they are, sound and faces; on this machine,
and with the browser made four times slower. Each load is the first in six seconds: nothing is fetched already.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from playwright.sync_api import Browser, sync_playwright

PORT = 8899
_APART_S = 6.0
_CLIP_S = 22.0  # of the clip, from the first sight of it
_TIMES = """() => Object.fromEntries(["first-contentful-paint", "streams", "senses"].map(
  (name) => [name, performance.getEntriesByName(name)[0].startTime]))"""


def load(browser: Browser, url: str, slower: int) -> dict[str, float]:
    """The times of one load."""
    page = browser.new_page(viewport={"width": 1180, "height": 760})
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": slower})
    page.goto(url, wait_until="commit")
    page.wait_for_function(
        "() => ['first-contentful-paint', 'senses'].every((name) => performance.getEntriesByName(name).length)"
    )
    times: dict[str, float] = page.evaluate(_TIMES)
    page.close()
    return times


def loads_of(count: int, slower: int) -> list[dict[str, float]]:
    """The times of at most so many loads in one run of the clip."""
    command = [Path(sys.executable).parent / "stream-run", "--stream", "desk=demo", "--page"]
    times: list[dict[str, float]] = []
    with (
        subprocess.Popen(
            [*command, "--set", f"page.port={PORT}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as run,
        sync_playwright() as play,
    ):
        assert run.stderr is not None
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
        )
        try:
            url = next(found[0] for line in run.stderr if (found := re.search(r"http://\S+/", line)))
            load(browser, url, 1)  # the browser's own first time
            ends_s = time.monotonic() + _CLIP_S
            while len(times) < count and time.monotonic() + _APART_S < ends_s:
                time.sleep(_APART_S)
                times.append(load(browser, url, slower))
        finally:
            run.terminate()
    return times


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    for slower in (1, 4):
        times: list[dict[str, float]] = []
        while len(times) < count:
            times += loads_of(count - len(times), slower)
        for name in times[0]:
            each = sorted(one[name] for one in times)
            print(
                f"browser slowed {slower} times, {name}: median {median(each):.0f} ms, {each[0]:.0f} to {each[-1]:.0f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
