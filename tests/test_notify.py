"""stream/notify.py"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from emostream.stream.notify import Notifier

SECOND_NS = 1_000_000_000


class Manager:
    """The service manager's end of the protocol."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)

    def states(self) -> list[str]:
        """The states received since the last call."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found

    def wait_for(self, state: str, seconds: float) -> list[str]:
        """All states received up to and including ``state``."""
        until, found = time.monotonic() + seconds, []
        while state not in found:
            assert time.monotonic() < until, f"no {state} after {seconds} s, but {found}"
            found += self.states()
            time.sleep(0.02)
        return found

    def environment(self, **more: str) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address, **more}


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, short_path: Path):
    manager = Manager(f"@emostream-test-{os.getpid()}" if request.param == "abstract" else f"{short_path}/notify")
    yield manager
    manager.socket.close()


def test_states_reach_the_socket_once_each(manager):
    notifier = Notifier(manager.environment())
    for _ in range(2):
        notifier.ready()
    for _ in range(2):
        notifier.stopping()
    notifier.close()
    notifier.stopping()
    assert manager.states() == ["READY=1", "STOPPING=1"]


def test_the_watchdog_hears_at_half_its_time_and_the_status_is_told_when_it_changes(manager):
    notifier = Notifier(manager.environment(WATCHDOG_USEC="4000000", WATCHDOG_PID=str(os.getpid())))
    for tenth in range(61):  # six seconds
        notifier.tick(tenth * SECOND_NS // 10, f"{tenth // 25} labels")
    states = manager.states()
    assert states.count("WATCHDOG=1") == 4  # at 0, 2, 4 and 6 s
    assert [state for state in states if "STATUS" in state] == [f"STATUS={n} labels" for n in range(3)]


def test_a_status_that_changes_often_is_told_once_a_second(manager):
    notifier = Notifier(manager.environment())
    for tenth in range(20):
        notifier.tick(tenth * SECOND_NS // 10, str(tenth))
    assert manager.states() == ["STATUS=0", "STATUS=10"]


def test_another_processs_watchdog_and_an_unreadable_time_are_left_alone(manager):
    for watchdog in ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {}):
        notifier = Notifier(manager.environment(**watchdog))
        notifier.tick(SECOND_NS, "")
    assert manager.states() == []


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234", "/nowhere/notify"])
def test_without_a_manager_nothing_happens(address):
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000"})
    notifier.ready()
    notifier.tick(SECOND_NS, "status")
    notifier.close()


def test_a_manager_that_does_not_read_delays_nothing_and_hears_of_the_beginning_later(manager):
    notifier = Notifier(manager.environment(WATCHDOG_USEC="2"))
    begun = time.monotonic()
    for n in range(2000):
        notifier.tick(n * SECOND_NS, str(n))
        notifier.ready() if n > 1000 else None
    assert time.monotonic() - begun < 5
    assert "READY=1" not in manager.states()
    notifier.ready()
    assert manager.states() == ["READY=1"]


def test_children_do_not_inherit_it(manager):
    variables = {**manager.environment(WATCHDOG_USEC="1000000", WATCHDOG_PID="1"), "PATH": "/bin"}
    Notifier(variables)
    assert variables == {"PATH": "/bin"}
