"""A machine of its own that notes whoever tries to reach the outside. Run as a script by ``test_telemetry``:

    unshare -nm python tests/trap.py REPORT.json HOME COMMAND …

In a network namespace whose only resolver is this process, run a command as a user's machine would (``CI`` unset, HOME
empty) and write what it asked for: names looked up, bytes sent to port 443, files left in HOME.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

names: list[str] = []
sent: list[str] = []


def resolve_all_to_us() -> None:
    """Answer each DNS query (RFC 1035, section 4) with 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 53))
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


def accept_all() -> None:
    with socket.create_server(("127.0.0.1", 443)) as server:
        while True:
            connection, _ = server.accept()
            sent.append(connection.recv(64).hex())
            connection.close()


def main() -> None:
    report, home, *command = sys.argv[1:]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    resolver = Path(report).with_suffix(".resolv")
    resolver.write_text("nameserver 127.0.0.1\n")
    subprocess.run(["mount", "--bind", resolver, "/etc/resolv.conf"], check=True)
    for target in (resolve_all_to_us, accept_all):
        threading.Thread(target=target, daemon=True).start()
    env = {name: value for name, value in os.environ.items() if name != "CI" and "proxy" not in name.lower()}
    done = subprocess.run(command, env=env | {"HOME": home, "XDG_CACHE_HOME": f"{home}/.cache"}, check=False)
    files = sorted(str(path.relative_to(home)) for path in Path(home).rglob("*") if path.is_file())
    Path(report).write_text(json.dumps({"code": done.returncode, "names": names, "sent": sent, "files": files}))


if __name__ == "__main__":
    main()
