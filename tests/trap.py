"""An isolated machine that records attempts to reach the outside and files that are left behind. ``Trap`` runs it:

    unshare … python tests/trap.py FOLDER COMMAND …

Runs a command in a network namespace where every name and every address leads to this process, with empty folders for
everything that a program may write to, and otherwise as on a user's machine (without ``CI``, which silences libraries).
FOLDER is left as it is; ``needles.json`` in it, if present, has byte strings in hexadecimal. ``report.json`` is
written there:

``names``     looked up
``packets``   requests to connect, and datagrams, by protocol and address
``sent``      first bytes of each connection to ports 80 and 443
``listens``   addresses that the command listened on
``seen``      mode of each file, folder and socket that there was at any look, one every 30 ms
``left``      those of them that exist at the end
``found``     needles, by the file that ever held them
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Namespaces for mounts, network and processes, which end with the trap
UNSHARE = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
HOME, RUNTIME = Path("/tmp/home"), Path("/tmp/runtime")
WRITABLE = [Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")]
ROOT = Path(__file__).parent.parent
LOOK_S = 0.03
WAIT_S = 280
OURS = {53, 80, 443}
_LISTENS, _UNCONNECTED = "0A", "07"  # states in /proc/net

names: list[str] = []
sent: list[str] = []
packets: set[str] = set()
listens: set[str] = set()


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True)


def answer_every_address() -> None:
    """Linux's AnyIP: all addresses are local ones."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "route", "add", "local", "0.0.0.0/0", "dev", "lo")
    if Path("/proc/net/if_inet6").exists():
        run("ip", "-6", "route", "add", "local", "::/0", "dev", "lo")


def empty_folders(keep: list[Path]) -> None:
    """New file systems where programs may write. Folders to ``keep`` that lie there stay visible."""
    for folder in WRITABLE:
        run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", new := keep[0] / "new")
        for kept in keep:
            if kept.is_relative_to(folder):
                (new / kept.relative_to(folder)).mkdir(parents=True, exist_ok=True)
                run("mount", "--bind", kept, new / kept.relative_to(folder))
        run("mount", "--move", new, folder)
    HOME.mkdir()
    RUNTIME.mkdir(mode=0o700)


def answer_names(server: socket.socket) -> None:
    """Answer each DNS query (RFC 1035, section 4) with 127.0.0.1."""
    while True:
        query, client = server.recvfrom(2048)
        labels, place = [], 12
        while length := query[place]:
            labels.append(query[place + 1 : place + 1 + length].decode())
            place += length + 1
        names.append(".".join(labels))
        question = query[12 : place + 5]
        header = query[:2] + b"\x81\x80" + query[4:6] * 2 + bytes(4)
        server.sendto(header + question + b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4\x7f\0\0\1", client)


def accept_all(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        connection.settimeout(2)
        try:
            sent.append(connection.recv(64).hex())
        except TimeoutError:
            sent.append("")
        connection.close()


def note_packets(wire: socket.socket) -> None:
    while True:
        frame, (_, kind, direction, *_) = wire.recvfrom(256)
        if direction != socket.PACKET_OUTGOING:  # on lo, each comes twice
            continue
        packet = frame[14:]
        if kind == 0x0800:
            protocol, to, content = packet[9], packet[16:20], packet[4 * (packet[0] & 15) :]
        elif kind == 0x86DD:
            protocol, to, content = packet[6], packet[24:40], packet[40:]
        else:
            packets.add(f"ethertype {kind:#x}")
            continue
        from_port, to_port = struct.unpack("!HH", content[:4])
        address = ipaddress.ip_address(to)
        if protocol == socket.IPPROTO_TCP:
            if content[13] & 0x12 == 0x02:  # SYN without ACK
                packets.add(f"tcp {address} {to_port}")
        elif protocol != socket.IPPROTO_UDP:
            packets.add(f"protocol {protocol} {address}")
        elif from_port != 53:
            packets.add(f"udp {address} {to_port}")


class Trap:
    """A command in its own namespace, with a new ``folder`` that it can see; ``report`` waits for its end."""

    def __init__(self, folder: Path, *command: object, needles: Sequence[bytes] = ()) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "needles.json").write_text(json.dumps([needle.hex() for needle in needles]))
        self._report = folder / "report.json"
        self._process = subprocess.Popen(
            [*UNSHARE, sys.executable, __file__, *map(str, (folder, *command))],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.output = ""

    def report(self) -> dict[str, Any]:
        """The report, if the command ended well."""
        try:
            self.output, _ = self._process.communicate(timeout=WAIT_S)
        finally:
            self._process.kill()
        assert self._report.is_file(), self.output
        report = json.loads(self._report.read_text())
        assert report.pop("code") == 0, self.output
        return report


class Files:
    """Tracks what is in the writable folders, from look to look."""

    def __init__(self, needles: list[bytes]) -> None:
        self._needles = needles
        self._read: dict[str, tuple[int, int]] = {}
        self._before: set[str] = set()
        self.seen: dict[str, str] = {}
        self.found: dict[str, set[str]] = {}
        self._before = set(self.look())
        self.seen.clear()

    def look(self) -> dict[str, str]:
        """Modes by path."""
        there: dict[str, str] = {}
        folders = [str(folder) for folder in WRITABLE]
        devices = {os.stat(folder).st_dev for folder in folders}
        while folders:
            try:
                entries = list(os.scandir(folders.pop()))
            except OSError:
                continue
            for entry in entries:
                try:
                    what = entry.stat(follow_symlinks=False)
                except OSError:  # just removed
                    continue
                if what.st_dev not in devices:  # a folder that stays visible
                    continue
                if entry.path not in self._before:
                    there[entry.path] = oct(what.st_mode & 0o777)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    self._search(entry.path, (what.st_size, what.st_mtime_ns))
        self.seen |= there
        return there

    def _search(self, path: str, state: tuple[int, int]) -> None:
        if self._read.get(path) == state or not self._needles:
            return
        self._read[path] = state
        try:
            content = Path(path).read_bytes()
        except OSError:
            return
        if found := {needle.hex() for needle in self._needles if needle in content}:
            self.found.setdefault(path, set()).update(found)


def note_listeners() -> None:
    for protocol, state in (("tcp", _LISTENS), ("tcp6", _LISTENS), ("udp", _UNCONNECTED), ("udp6", _UNCONNECTED)):
        table = Path(f"/proc/net/{protocol}")
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            address, port = (fields := line.split())[1].split(":")
            if fields[3] == state and int(port, 16) not in OURS:
                shown = socket.inet_ntoa(bytes.fromhex(address)[::-1]) if len(address) == 8 else address
                listens.add(f"{protocol} {shown} {int(port, 16)}")


def main() -> None:
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    answer_every_address()
    (folder / "new").mkdir()
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    run("mount", "--bind", folder / "resolv.conf", "/etc/resolv.conf")
    empty_folders([folder, ROOT])
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind(("127.0.0.1", 53))
    six = socket.has_dualstack_ipv6()
    family, anywhere = (socket.AF_INET6, "::") if six else (socket.AF_INET, "0.0.0.0")
    servers = [socket.create_server((anywhere, port), family=family, dualstack_ipv6=six) for port in (80, 443)]
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
    for target, argument in (
        (answer_names, resolver),
        *((accept_all, server) for server in servers),
        (note_packets, wire),
    ):
        threading.Thread(target=target, args=(argument,), daemon=True).start()
    needles = folder / "needles.json"
    files = Files([bytes.fromhex(text) for text in json.loads(needles.read_text())] if needles.exists() else [])
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CI", "TMPDIR") and "proxy" not in name.lower() and name[:4] != "XDG_"
    }
    process = subprocess.Popen(command, env=env | {"HOME": str(HOME), "XDG_RUNTIME_DIR": str(RUNTIME)}, cwd=HOME)
    ended = False
    while not ended:
        ended = process.poll() is not None
        left = files.look()
        note_listeners()
        time.sleep(LOOK_S)
    report = {
        "code": process.returncode,
        "names": sorted(set(names)),
        "packets": sorted(packets),
        "sent": sent,
        "listens": sorted(listens),
        "seen": files.seen,
        "left": left,
        "found": {path: sorted(what) for path, what in files.found.items()},
    }
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
