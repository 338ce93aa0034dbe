"""Boxes behind a bad line: 200 ms there and 200 ms back, 5 % of packets lost, and an outage of a minute."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from benchmarks.bad_line import BadLine
from tests.boxes import Box, Program, check_all_kept, start_uplink, stored, until
from tests.processes import free_port

pytest.importorskip("zenoh")
pytest.importorskip("pyarrow")

pytestmark = pytest.mark.process


def test_the_line_is_as_bad_as_it_says():
    """Data arrives in order and late, and not at all while the line is away."""
    with socket.create_server(("127.0.0.1", 0)) as server, BadLine(server.getsockname()[1], delay_s=0.1) as line:
        client = socket.create_connection(("127.0.0.1", line.port))
        accepted, _ = server.accept()
        begun_s = time.monotonic()
        client.sendall(b"there")
        assert accepted.recv(100) == b"there" and 0.1 <= time.monotonic() - begun_s < 2
        accepted.sendall(b"x" * 5000)
        got = b""
        while len(got) < 5000:
            got += client.recv(5000)
        assert (line.sent, line.returned, got) == (5, 5000, b"x" * 5000)
        line.away = True
        client.sendall(b"later")
        accepted.settimeout(0.5)
        with pytest.raises(TimeoutError):
            accepted.recv(100)
        line.away = False
        accepted.settimeout(10)
        assert accepted.recv(100) == b"later"
        client.close()
        assert accepted.recv(100) == b""
        accepted.close()


Pull = Callable[[bool], None]  # pulls the cable out, or plugs it in


@contextmanager
def relayed_line() -> Iterator[tuple[list[str], str, str, Pull]]:
    """Through a relay that treats a TCP connection as such a line does."""
    port = free_port()
    with BadLine(port, delay_s=0.2, loss=0.05, resend_s=0.6) as line:

        def pull(away: bool) -> None:
            line.away = away

        yield [], f"tcp/127.0.0.1:{port}", f"tcp/127.0.0.1:{line.port}", pull
        print(f"{line.lost} packets were lost")
        assert line.lost > 0


@contextmanager
def netem_line() -> Iterator[tuple[list[str], str, str, Pull]]:
    """Between two network namespaces, by the kernel's own emulator. Skips where that is not available."""
    if os.geteuid() != 0 or shutil.which("tc") is None or shutil.which("ip") is None:
        pytest.skip("needs root, ip and tc (iproute2)")
    name, ours, theirs = f"emo{os.getpid()}", f"ema{os.getpid()}", f"emb{os.getpid()}"
    in_there = ["ip", "netns", "exec", name]
    netem = ["root", "netem", "delay", "200ms", "loss", "5%"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    with ExitStack() as stack:
        if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode != 0:
            pytest.skip("may not make a network namespace")
        stack.callback(ip, "netns", "del", name)  # also removes both ends of the pair
        ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        ip("addr", "add", "10.213.77.1/24", "dev", ours)
        ip("link", "set", ours, "up")
        ip("-n", name, "addr", "add", "10.213.77.2/24", "dev", theirs)
        ip("-n", name, "link", "set", theirs, "up")
        for prefix, device in (([], ours), (in_there, theirs)):
            added = subprocess.run(
                [*prefix, "tc", "qdisc", "add", "dev", device, *netem], capture_output=True, text=True
            )
            if added.returncode != 0:
                pytest.skip(f"this kernel has no netem ({added.stderr.strip()})")
        yield (
            in_there,
            "tcp/10.213.77.2:7447",
            "tcp/10.213.77.2:7447",
            lambda away: ip("-n", name, "link", "set", theirs, "down" if away else "up"),
        )


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("line", [relayed_line, netem_line])
def test_a_minute_without_a_line(tmp_path, line):
    """Boxes publish for two minutes, for one of which the line is down; then the hub has everything once and in
    order."""
    out = tmp_path / "out"
    with line() as (prefix, listens, link_to, pull), ExitStack() as stack:
        boxes = [Box("a"), Box("b")]
        for box in boxes:
            stack.callback(box.close)
        hub = stack.enter_context(Program(tmp_path, "stream-hub", "--listen", listens, "--out", out, prefix=prefix))
        hub.wait_for("waiting for boxes")
        for box in boxes:
            stack.enter_context(start_uplink(tmp_path, link_to, box))
        for box in boxes:
            hub.wait_for(f"lab/{box.name}: appeared", 30)
        begun_s = time.monotonic()
        away = False
        while (now_s := time.monotonic() - begun_s) < 120:
            if away != (30 < now_s < 90):
                away = not away
                pull(away)
            for box in boxes:
                box.say("desk", "door")
                box.tell()
            time.sleep(0.25)
        sent = sum(len(box.sent) for box in boxes)
        said_s = time.monotonic()
        until(lambda: len(stored(out)) >= sent, 90, lambda: f"{hub.printed}\n{len(stored(out))} of {sent}")
        print(f"{sent} labels; the last was written {time.monotonic() - said_s:.1f} s after it was said")
        assert ": behind, " in hub.printed and "has caught up" in hub.printed, hub.printed[-2000:]
        assert hub.interrupt() == 0
    check_all_kept(out, *boxes)
