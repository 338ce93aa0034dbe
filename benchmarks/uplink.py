"""Many boxes on one hub: labels per second, processor time, memory, and bytes on the line.

    python benchmarks/uplink.py [--quick] [--boxes N] [--seconds S]

The hub is a ``stream-hub`` that boxes connect to; a box is the sink of ``stream-uplink`` with a zenoh session of its
own. All boxes but one share a process; the one is a real ``stream-uplink`` with a run's public socket before it, on a
line that counts its bytes. Labels are those of the demo clip, without words, under other numbers.

    paced      each box has a label every four seconds and a status each second, as a run of one stream has
    away       the hub is killed for a while, and then has to accept the waiting labels
    flood      every box has as many labels at once as fit: how fast the hub can write

A label that was lost, doubled or out of order is a fault: exit code 1.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil

from benchmarks import common
from benchmarks.bad_line import BadLine
from emostream.commands import exit_code
from emostream.errors import RunError
from emostream.stream.backlog import Backlog
from emostream.stream.boxes import make_session_config
from emostream.stream.bus import Context
from emostream.stream.emotion import Emotion
from emostream.stream.label import Labeller
from emostream.stream.public import EmotionPublisher
from emostream.stream.sink import message_json
from emostream.stream.sources import DEMO
from emostream.stream.status import Status, StreamStatus, encode_status
from emostream.stream.uplink import Uplink

STREAM = "desk"
_SITE = "bench"
_LABEL_S = 4.0
_FLOOD = 1000  # labels of each box
_PATIENCE_S = 120.0


class SimulatedBox:
    """A box whose labels the benchmark makes."""

    def __init__(self, number: int, router: str) -> None:
        self.name = f"box{number:03}"
        self.seq = 0
        config = make_session_config(None, [router])
        self._sink = Uplink(router, _SITE, self.name, config, False, Backlog(None, 100_000, 1 << 30))

    def say(self, label: Emotion) -> None:
        self._sink.send(_another(label, self.seq))
        self.seq += 1

    def tell(self) -> None:
        self._sink.set_status(_status())

    def close(self) -> None:
        self._sink.close()


class RealBox:
    """A ``stream-uplink`` behind the public socket of a run."""

    def __init__(self, router: str) -> None:
        self.name, self.seq = "real", 0
        endpoint = f"tcp://127.0.0.1:{_free_port()}"
        self._context = Context()
        self._publisher = EmotionPublisher(self._context, endpoint)
        words = ["stream-uplink", router, endpoint, "--site", _SITE, "--box", self.name]
        self.process = _start(words, None)
        _wait(self._is_heard, "the uplink subscribes to no run")

    def _is_heard(self) -> bool:
        self.tell()
        return self._publisher.requests >= 2

    def say(self, label: Emotion) -> None:
        self._publisher.send(_another(label, self.seq))
        self.seq += 1

    def tell(self) -> None:
        self._publisher.tick()
        self._publisher.forward("status", encode_status(_status()))

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait()
        self._publisher.close()
        self._context.term()


class HubProcess:
    """A ``stream-hub`` that can be restarted on the same folder."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        self.port = _free_port()
        self.router = f"tcp/127.0.0.1:{self.port}"
        self._log = folder / "hub.log"
        self.start()

    def start(self) -> None:
        self._log.write_text("")
        words = ["stream-hub", "--listen", self.router, "--out", str(self.out), "--quiet"]
        self.process = _start(words, self._log)
        _wait(lambda: "waiting for boxes" in self._log.read_text(), "the hub does not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait()

    @property
    def written(self) -> int:
        """How many labels are in its journal and its files."""
        import pyarrow.parquet as parquet

        in_files: int = sum(parquet.read_metadata(path).num_rows for path in self.out.glob("day=*/*.parquet"))
        return in_files + sum(path.read_bytes().count(b"\n") for path in self.out.glob("journal-*"))


Box = SimulatedBox | RealBox


def main() -> int:
    parser = common.make_parser(__doc__)
    parser.add_argument("--boxes", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="of the paced part (default: %(default)s)")
    options = parser.parse_args()
    seconds, flood = (8.0, 100) if options.quick else (options.seconds, _FLOOD)
    labels = [label for label in Labeller().label(DEMO) if label.final]
    with tempfile.TemporaryDirectory() as folder:
        hub = HubProcess(Path(folder))
        with BadLine(hub.port) as line:
            boxes: list[Box] = [RealBox(f"tcp/127.0.0.1:{line.port}")]
            boxes += [SimulatedBox(number, hub.router) for number in range(1, options.boxes)]
            try:
                figures = _measure(hub, line, boxes, labels, seconds, flood)
            finally:
                for box in boxes:
                    box.close()
        hub.interrupt()
        faults = _faults(hub.out, boxes)
    bias = ["Boxes, hub and benchmark share one machine and its loopback: no network is between them."]
    bias += [common.QUICK_BIAS] * options.quick
    settings: dict[str, object] = {"boxes": options.boxes, "seconds": seconds, "flood": flood}
    result = common.Result("uplink", settings, bias, figures, faults)
    rows = [[name.replace("_", " "), f"{value:,}"] for name, value in figures.items()]
    tables = common.table(["figure", "value"], rows)
    return common.finish(options.out, result, tables, lambda path: _plot(path, figures))


def _measure(
    hub: HubProcess, line: BadLine, boxes: list[Box], labels: list[Emotion], seconds: float, flood: int
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    sizes = [len(message_json(label, words=False)) for label in labels]
    figures["label_bytes"] = round(sum(sizes) / len(sizes))
    figures["status_bytes"] = len(encode_status(_status()))
    _pace(boxes, labels, 2 * _LABEL_S)  # all are connected
    _wait_for_all(hub, boxes)
    hub_process, real = psutil.Process(hub.process.pid), psutil.Process(boxes[0].process.pid)  # type: ignore[union-attr]
    before = hub_process.cpu_times(), real.cpu_times(), line.sent, line.returned, boxes[0].seq
    begun_s = time.monotonic()
    said = _pace(boxes, labels, seconds)
    _wait_for_all(hub, boxes)
    took_s = time.monotonic() - begun_s
    figures["paced_labels_per_s"] = round(said / took_s, 1)
    figures["paced_hub_cpu_percent"] = round(100 * _cpu_s(before[0], hub_process) / took_s, 2)
    figures["paced_hub_cpu_ms_per_label"] = round(1000 * _cpu_s(before[0], hub_process) / said, 2)
    figures["box_cpu_percent"] = round(100 * _cpu_s(before[1], real) / took_s, 2)
    figures["box_rss_mib"] = round(real.memory_info().rss / 2**20, 1)
    figures["hub_rss_mib"] = round(hub_process.memory_info().rss / 2**20, 1)
    of_real = boxes[0].seq - before[4]
    figures["line_bytes_per_label_up"] = round((line.sent - before[2]) / of_real)
    figures["line_bytes_per_label_down"] = round((line.returned - before[3]) / of_real)

    hub.kill()
    said = sum(box.seq for box in boxes)
    _pace(boxes, labels * 5, min(seconds, 20), every_s=_LABEL_S / 10)
    said = sum(box.seq for box in boxes) - said
    hub.start()
    begun_s = time.monotonic()
    _wait_for_all(hub, boxes)
    figures["away_labels_waiting"] = said
    figures["away_s_until_all_are_written"] = round(time.monotonic() - begun_s, 1)

    hub_process = psutil.Process(hub.process.pid)
    cpu, begun_s = hub_process.cpu_times(), time.monotonic()
    for number in range(flood):
        for box in boxes:
            box.say(labels[number % len(labels)])
    said_s = time.monotonic() - begun_s
    _wait_for_all(hub, boxes)
    took_s = time.monotonic() - begun_s
    figures["flood_labels"] = flood * len(boxes)
    figures["flood_s_to_make_them"] = round(said_s, 1)
    figures["flood_labels_per_s"] = round(flood * len(boxes) / took_s)
    figures["flood_hub_cpu_ms_per_label"] = round(1000 * _cpu_s(cpu, hub_process) / (flood * len(boxes)), 3)
    figures["flood_hub_rss_mib"] = round(hub_process.memory_info().rss / 2**20, 1)
    return figures


def _pace(boxes: list[Box], labels: list[Emotion], seconds: float, every_s: float = _LABEL_S) -> int:
    """Let boxes publish one after another, evenly. Returns the number of labels."""
    begun_s = time.monotonic()
    said = 0
    told_s = 0.0
    while (now_s := time.monotonic() - begun_s) < seconds:
        if now_s >= told_s:
            told_s += 1.0
            for box in boxes:
                box.tell()
        while said < now_s / every_s * len(boxes):
            boxes[said % len(boxes)].say(labels[said // len(boxes) % len(labels)])
            said += 1
        time.sleep(0.01)
    return said


def _wait_for_all(hub: HubProcess, boxes: list[Box]) -> None:
    _wait(lambda: hub.written >= sum(box.seq for box in boxes), "labels do not arrive")


def _wait(reached: Callable[[], object], why: str) -> None:
    until_s = time.monotonic() + _PATIENCE_S
    while not reached():
        if time.monotonic() > until_s:
            raise RunError(f"{why} in {_PATIENCE_S:.0f} s")
        time.sleep(0.05)


def _faults(out: Path, boxes: list[Box]) -> list[str]:
    """Faults: labels of a box that did not arrive exactly once and in order."""
    import pyarrow.parquet as parquet

    got: defaultdict[str, list[int]] = defaultdict(list)
    for path in sorted(out.glob("day=*/*.parquet"), key=lambda path: path.name):
        table = parquet.read_table(path, columns=["box", "seq"], partitioning=None).to_pydict()
        for box, seq in zip(table["box"], table["seq"], strict=True):
            got[box].append(seq)
    return [
        f"{box.name}: {len(got[box.name])} labels of {box.seq}, or not in order"
        for box in boxes
        if got[box.name] != list(range(box.seq))
    ]


def _another(label: Emotion, seq: int) -> Emotion:
    at_ns = time.time_ns()
    return msgspec.structs.replace(label, stream=STREAM, seq=seq, utterance=seq, run="bench", published_ns=at_ns)


def _status() -> Status:
    streams = {STREAM: StreamStatus(state="running")}
    return Status(run="bench", state="running", published_ns=time.time_ns(), streams=streams)


def _cpu_s(before: Any, process: psutil.Process) -> float:
    now = process.cpu_times()
    return float(now.user + now.system - before.user - before.system)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(words: list[str], log: Path | None) -> subprocess.Popen[bytes]:
    program = Path(sys.executable).parent / words[0]
    if log is None:
        return subprocess.Popen([program, *words[1:]], stderr=subprocess.DEVNULL)
    with log.open("ab") as out:
        return subprocess.Popen([program, *words[1:]], stdout=out, stderr=out)


def _plot(path: Path, figures: dict[str, Any]) -> None:
    with common.drawing(path, (6, 2.2)) as (_, axes):
        names = ["paced_labels_per_s", "flood_labels_per_s"]
        axes[0, 0].barh([name.split("_")[0] for name in names], [figures[name] for name in names], color=common.BLUE)
        axes[0, 0].set_xscale("log")
        axes[0, 0].set_xlabel("labels per second")


if __name__ == "__main__":
    sys.exit(exit_code(main))
