"""Boxes and hubs for tests: running programs, public sockets of runs, and what a hub has stored."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from emostream.stream.bus import Context
from emostream.stream.public import EmotionPublisher
from emostream.stream.status import Status, StreamStatus, encode_status
from tests.emotions import emotion_message
from tests.processes import BIN, environment, free_port, patience

# Access control of a router: a box may write below its own name only
ONLY_ITS_OWN_KEYS: dict[str, Any] = {
    "enabled": True,
    "default_permission": "deny",
    "rules": [
        {"id": "box", "permission": "allow", "flows": ["ingress", "egress"], "key_exprs": ["emostream/lab/box/**"],
         "messages": ["put", "query", "reply", "declare_queryable", "declare_subscriber", "liveliness_token"]},
        {"id": "hub", "permission": "allow", "flows": ["egress"], "key_exprs": ["emostream/*/*/**"],
         "messages": ["declare_queryable", "declare_subscriber"]},
    ],
    "subjects": [{"id": "box", "cert_common_names": ["box"]}],
    "policies": [{"rules": ["box", "hub"], "subjects": ["box"]}],
}  # fmt: skip


class Program:
    """A running command and what it has printed. A context manager."""

    def __init__(self, folder: Path, *words: object, prefix: Sequence[str] = ()) -> None:
        self._printed = folder / f"printed-{random.randrange(1 << 40):x}"
        with self._printed.open("wb") as out:
            self.process = subprocess.Popen(
                [*prefix, BIN / str(words[0]), *map(str, words[1:])],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment(),
            )

    @property
    def printed(self) -> str:
        return self._printed.read_text()

    def wait_for(self, text: str, seconds: float = 15) -> None:
        until(lambda: text in self.printed, seconds, lambda: f"{text!r} is not in:\n{self.printed}")

    def interrupt(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(patience(15))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Box:
    """The public socket of a run, like fusion's; the test makes its labels."""

    def __init__(self, name: str, run: str = "run1") -> None:
        self.name, self.run = name, run
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self._context = Context()
        self._publisher = EmotionPublisher(self._context, self.endpoint)
        self.sent: list[tuple[str, str, int]] = []  # run, stream, seq
        self._seq: dict[str, int] = {}

    def say(self, *streams: str, text: str = "so happy") -> None:
        """Publish a label on each of the streams."""
        for stream in streams:
            seq = self._seq.get(stream, -1) + 1
            self._seq[stream] = seq
            message = emotion_message(
                stream=stream, seq=seq, utterance=seq, run=self.run, text=text, published_ns=time.time_ns()
            )
            self._publisher.send(message)
            self.sent.append((self.run, stream, seq))

    def tell(self, state: str = "running") -> None:
        self._publisher.tick()
        labelled = sum(stream == "desk" for _, stream, _ in self.sent)
        streams = {"desk": StreamStatus(state=state, labelled=labelled)}  # type: ignore[arg-type]
        status = Status(run=self.run, state="running", published_ns=time.time_ns(), streams=streams)
        self._publisher.forward("status", encode_status(status))

    @property
    def requests(self) -> int:
        """Subscriptions and unsubscriptions so far. An uplink makes two: labels, and the status."""
        self.tell()
        return self._publisher.requests

    def estimate(self, stream: str) -> None:
        self._publisher.send(emotion_message(kind="window", stream=stream, run=self.run))

    def close(self) -> None:
        self._publisher.close()
        self._context.term()


def until(reached: Callable[[], object], seconds: float, else_say: Callable[[], str] = str) -> None:
    end_s = time.monotonic() + patience(seconds)
    while not reached():
        assert time.monotonic() < end_s, else_say()[-2000:]
        time.sleep(0.03)


def start_uplink(folder: Path, router: str, box: Box, *words: object) -> Program:
    until(lambda: box.requests % 4 == 0, 5)  # an earlier uplink's have ended
    before = box.requests
    program = Program(folder, "stream-uplink", router, box.endpoint, "--site", "lab", "--box", box.name, *words)
    until(lambda: box.requests == before + 2, 15)
    return program


def stored(out: Path) -> list[dict[str, Any]]:
    """Everything that a hub has stored, first in files, then in its journal."""
    rows: list[dict[str, Any]] = []
    import pyarrow.dataset as dataset

    parts = sorted(out.glob("day=*/*.parquet"), key=lambda path: path.name)
    for path in parts:
        rows += dataset.dataset(path).to_table().to_pylist()
    for path in [*sorted(out.glob("day=*/*.jsonl"), key=lambda path: path.name), *sorted(out.glob("journal-*"))]:
        for line in path.read_bytes().splitlines():
            site, box, _, message = json.loads(line)
            rows.append(message | {"site": site, "box": box, "message": json.dumps(message)})
    return rows


def check_all_kept(out: Path, *boxes: Box) -> None:
    """Check that nothing is lost or doubled, and that each box's order is kept."""
    rows = stored(out)
    for box in boxes:
        for stream in {stream for _, stream, _ in box.sent}:
            got = [(r["run"], r["stream"], r["seq"]) for r in rows if r["box"] == box.name and r["stream"] == stream]
            assert got == [label for label in box.sent if label[1] == stream], (box.name, stream)
    assert len(rows) == sum(len(box.sent) for box in boxes)


def _make_certificates(folder: Path) -> None:
    """Certificates of an authority: a hub, a box and a listener; and a stranger's from another authority."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    ours, theirs = ("ca.pem", "ca.key"), ("other.pem", "other.key")
    for cert, key in (ours, theirs):
        openssl(*new, "-subj", "/CN=authority", "-keyout", key, "-out", cert)
    for name, (cert, key) in (("hub", ours), ("box", ours), ("listener", ours), ("stranger", theirs)):
        openssl(
            *new, "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-addext",
            "basicConstraints=critical,CA:FALSE", "-CA", cert, "-CAkey", key, "-keyout", f"{name}.key", "-out",
            f"{name}.pem",
        )  # fmt: skip


def write_tls_configs(folder: Path, hub: str, *others: str, access_control: dict[str, Any] = ONLY_ITS_OWN_KEYS) -> None:
    """Write NAME.json5, zenoh's configuration with its own certificate, for a hub or for a client of it."""
    _make_certificates(folder)
    for name in (hub, *others):
        kind = "listen" if name == hub else "connect"
        tls: dict[str, Any] = {
            "root_ca_certificate": str(folder / "ca.pem"), "enable_mtls": True,
            f"{kind}_certificate": str(folder / f"{name}.pem"), f"{kind}_private_key": str(folder / f"{name}.key"),
        }  # fmt: skip
        content: dict[str, Any] = {"transport": {"link": {"tls": tls}}}
        if name == hub:
            content["access_control"] = access_control
        (folder / f"{name}.json5").write_text(json.dumps(content))
