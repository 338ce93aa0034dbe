"""stream-listen and emostream.listen on boxes: real processes and zenoh sessions on the same machine."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import islice
from typing import Any

import psutil
import pytest

import emostream
from emostream.errors import ConfigError
from emostream.stream import listen_boxes
from emostream.stream.boxes import make_session_config, open_session
from emostream.stream.emotion import encode_emotion
from emostream.stream.listen import listen, listen_raw, listen_status
from emostream.stream.listen_boxes import Address, BoxEmotion, is_router, parse_address
from tests.boxes import ONLY_ITS_OWN_KEYS, Box, Program, start_uplink, until, write_tls_configs
from tests.emotions import emotion_message
from tests.processes import free_port

pytest.importorskip("zenoh")


class Heard:
    """What a listener in this process yields. A context manager; the iteration must end."""

    def __init__(self, messages: Any) -> None:
        self.got: list[Any] = []
        self._messages = messages
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        for message in self._messages:
            self.got.append(message)

    def __enter__(self) -> list[Any]:
        self._thread.start()
        return self.got

    def __exit__(self, *_: object) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


def until_away(statuses: Any) -> Iterator[Any]:
    for raw, status in statuses:
        yield raw, status
        if status.streams["desk"].state == "away":
            return


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def boxes():
    with ExitStack() as stack:
        yield lambda name, run="run1": stack.enter_context(closing(Box(name, run)))


@pytest.mark.long
@pytest.mark.process
def test_the_last_label_comes_first_then_each_once_whoever_goes_and_comes_back(tmp_path, port, boxes):
    router, address = f"tcp/127.0.0.1:{port}", f"zenoh://127.0.0.1:{port}"
    box, other = boxes("desk-box"), boxes("hall-box")
    with ExitStack() as stack:
        there = stack.enter_context(ExitStack())
        there.enter_context(open_session(make_session_config(None, [], [router])))
        uplink = stack.enter_context(start_uplink(tmp_path, router, box))
        uplink.wait_for("connected")
        box.say("desk", "desk", "door")
        time.sleep(0.5)  # the uplink has read its socket
        every = stack.enter_context(Program(tmp_path, "stream-listen", address, "--json"))
        named = stack.enter_context(Program(tmp_path, "stream-listen", f"{address}/lab/hall-box"))

        def seqs(name: str, stream: str) -> list[int]:
            lines = [json.loads(line) for line in every.printed.splitlines() if line.startswith("{")]
            return [
                line["seq"] for line in lines if (line["site"], line["box"], line["stream"]) == ("lab", name, stream)
            ]

        every.wait_for("lab/desk-box: appeared; 1 there")
        until(lambda: (seqs("desk-box", "desk"), seqs("desk-box", "door")) == ([1], [0]), 10, lambda: every.printed)
        named.wait_for(f"{address}/lab/hall-box: no box is there yet; waiting")
        stack.enter_context(start_uplink(tmp_path, router, other))
        named.wait_for("lab/hall-box: appeared; 1 there")
        box.say("desk")
        other.say("hall")
        until(lambda: seqs("hall-box", "hall") == [0], 10, lambda: every.printed)
        named.wait_for("lab/hall-box  hall     0.50-  3.00 s  joy")
        until(lambda: seqs("desk-box", "desk") == [1, 2], 10, lambda: every.printed)
        for listener in (every, named):
            sockets = psutil.Process(listener.process.pid).net_connections("inet")
            assert sockets and all(c.raddr and c.raddr.port == port for c in sockets), (
                sockets
            )  # no listening socket, no UDP

        uplink.kill()
        every.wait_for("lab/desk-box: vanished; 1 there")
        uplink = stack.enter_context(start_uplink(tmp_path, router, box))
        until(lambda: every.printed.count("lab/desk-box: appeared") == 2, 15, lambda: every.printed)
        box.say("desk")
        until(lambda: seqs("desk-box", "desk") == [1, 2, 3], 10, lambda: every.printed)

        there.close()
        every.wait_for("went away; waiting")
        every.wait_for("lab/hall-box: vanished")
        other.say("hall", "hall")  # nobody forwards them; the uplink remembers the last one
        time.sleep(0.5)
        stack.enter_context(open_session(make_session_config(None, [], [router])))
        every.wait_for("is there again", 20)
        until(lambda: seqs("hall-box", "hall") == [0, 2], 20, lambda: every.printed)
        other.say("hall")
        until(lambda: seqs("hall-box", "hall") == [0, 2, 3], 10, lambda: every.printed)
        time.sleep(0.3)
        assert seqs("desk-box", "desk") == [1, 2, 3] and seqs("desk-box", "door") == [0]
        assert (every.interrupt(), named.interrupt()) == (0, 0)
    assert "desk-box" not in named.printed and "Traceback" not in every.printed + named.printed


@pytest.mark.process
def test_labels_estimates_and_status_of_boxes_in_a_program(tmp_path, port, boxes, caplog):
    caplog.set_level(logging.INFO, logger="emostream")
    router, address = f"tcp/127.0.0.1:{port}", f"zenoh://127.0.0.1:{port}"
    box, other = boxes("desk-box"), boxes("hall-box", "run2")
    with (
        open_session(make_session_config(None, [], [router])) as session,
        start_uplink(tmp_path, router, box, "--windows", "--words") as first,
        start_uplink(tmp_path, router, other) as second,
    ):
        for program in (first, second):
            program.wait_for("connected")
        box.tell()
        with (
            Heard(islice(emostream.listen(f"{address}/lab/*/desk", estimates=True, timeout_s=20), 3)) as heard,
            Heard(until_away(listen_status(f"{address}/*/desk-box", timeout_s=20))) as told,
        ):
            until(lambda: caplog.text.count("lab/hall-box: appeared") == 1, 15, lambda: caplog.text)
            until(lambda: told, 10)
            session.put("emostream/lab/x/desk/utterance", b"nonsense")
            session.put("emostream/lab/x/desk/utterance", encode_emotion(emotion_message(stream="another")))
            box.estimate("desk")
            box.say("desk", "door")
            other.say("desk")
            box.tell("away")
    kinds = [(e.site, e.box, e.stream, e.kind, e.seq, e.text) for e in heard]
    assert all(isinstance(e, emostream.Emotion) for e in heard)
    assert sorted(kinds) == [
        ("lab", "desk-box", "desk", "utterance", 0, "so happy"), ("lab", "desk-box", "desk", "window", 3, "so happy"),
        ("lab", "hall-box", "desk", "utterance", 0, ""),
    ]  # fmt: skip
    for raw, status in told:
        assert (json.loads(raw)["box"], status.run, status.box) == ("desk-box", "run1", "desk-box")
    assert told[-1][1].streams["desk"].state == "away"
    times = [status.published_ns for _, status in told]
    assert times == sorted(set(times))
    assert caplog.text.count("skipped a message that is not emostream's") == 2


@pytest.mark.process
def test_the_router_may_come_later_and_waiting_has_an_end(port, caplog):
    caplog.set_level(logging.INFO, logger="emostream")
    address = f"zenoh://127.0.0.1:{port}/lab"
    begun_s = time.monotonic()
    assert list(listen(address, timeout_s=0.2)) == [] and time.monotonic() - begun_s < 8
    assert "cannot be reached, trying again" in caplog.text
    with Heard(islice(listen_raw(address, timeout_s=20), 2)) as heard:
        time.sleep(0.5)
        with open_session(make_session_config(None, [], [f"tcp/127.0.0.1:{port}"])) as session:
            label = encode_emotion(emotion_message(stream="desk", run="r", seq=7))
            until(lambda: "no box is there yet; waiting" in caplog.text, 15)
            publisher = session.declare_publisher("emostream/lab/b/desk/utterance")
            until(lambda: publisher.matching_status.matching, 10)
            for seq in (7, 7, 6, 9):
                publisher.put(label.replace(b'"seq":7', b'"seq":%d' % seq))
            until(lambda: len(heard) == 2, 10)
    assert [emotion.seq for _, emotion in heard] == [7, 9]
    assert heard[0][0] == label[:-1] + b',"site":"lab","box":"b"}'  # unchanged, plus its box


LISTENER = [
    {"id": "ask", "permission": "allow", "flows": ["ingress"], "messages": ["query"],
     "key_exprs": ["emostream/*/*/*/utterance", "emostream/*/*/status", "emostream/*/*/uplink"]},
    {"id": "hear", "permission": "allow", "flows": ["ingress"], "key_exprs": ["emostream/*/*/**"],
     "messages": ["declare_subscriber", "declare_liveliness_subscriber", "liveliness_query"]},
    {"id": "get", "permission": "allow", "flows": ["egress"], "key_exprs": ["emostream/*/*/**"],
     "messages": ["put", "reply", "declare_queryable", "liveliness_token"]},
]  # fmt: skip


@pytest.mark.process
def test_tls_and_access_control_let_a_listener_listen_and_do_nothing_else(tmp_path, port, boxes):
    may_listen = ONLY_ITS_OWN_KEYS | {
        "rules": [*ONLY_ITS_OWN_KEYS["rules"], *LISTENER],
        "subjects": [*ONLY_ITS_OWN_KEYS["subjects"], {"id": "listener", "cert_common_names": ["listener"]}],
        "policies": [*ONLY_ITS_OWN_KEYS["policies"], {"rules": ["ask", "hear", "get"], "subjects": ["listener"]}],
    }
    write_tls_configs(tmp_path, "hub", "box", "listener", access_control=may_listen)
    router, address = f"tls/127.0.0.1:{port}", f"zenoh+tls://127.0.0.1:{port}"
    box, config = boxes("box"), tmp_path / "listener.json5"
    with (
        Program(
            tmp_path, "stream-hub", "--listen", router, "--out", tmp_path / "out", "--config", tmp_path / "hub.json5"
        ),
        start_uplink(tmp_path, router, box, "--config", tmp_path / "box.json5") as uplink,
    ):
        uplink.wait_for("connected")
        box.say("desk")
        time.sleep(0.5)
        with Program(tmp_path, "stream-listen", address, "--config", config) as listener:
            listener.wait_for("lab/box: appeared; 1 there")
            until(lambda: listener.printed.count("lab/box  desk ") == 1, 10, lambda: listener.printed)
            box.say("desk")
            until(lambda: listener.printed.count("lab/box  desk ") == 2, 10, lambda: listener.printed)
            with open_session(make_session_config(config, [router])) as session:  # it may not send in a box's name
                label = encode_emotion(emotion_message(stream="desk", run="forged", seq=900))
                session.put("emostream/lab/box/desk/utterance", label)
                replies = list(session.get("emostream/lab/box/deliver", payload=b"{}\n" + label, timeout=1))
                assert not any(reply.ok for reply in replies)
            time.sleep(0.3)
            assert listener.printed.count("lab/box  desk ") == 2
    assert "forged" not in "".join(path.read_text() for path in (tmp_path / "out").rglob("*.jsonl"))


def test_addresses():
    assert parse_address("zenoh://hub:7447") == Address("tcp/hub:7447", "*", "*", "*")
    assert parse_address("zenoh+tls://[::1]:7447/north/") == Address("tls/[::1]:7447", "north", "*", "*")
    assert parse_address("zenoh://h:1/*/b/desk") == Address("tcp/h:1", "*", "b", "desk")
    for wrong in (
        "zenoh://hub",
        "zenoh://hub:0/a",
        "zenoh:h:1",
        "zenoh+udp://h:1",
        "zenoh://h:1/a/b/c/d",
        "zenoh://h:1/**",
    ):
        assert is_router(wrong)
        with pytest.raises(ConfigError, match="write it as zenoh"):
            next(listen(wrong))
    with pytest.raises(ConfigError, match="a key file is for tcp://"):
        next(listen("zenoh://h:1", key="client.key"))
    with pytest.raises(ConfigError, match="is for zenoh://"):
        next(listen("tcp://127.0.0.1:5556", config="zenoh.json5"))


def test_what_is_known_of_runs_is_bounded(monkeypatch):
    monkeypatch.setattr(listen_boxes, "_MOST_MARKS", 2)
    fields = {name: getattr(emotion_message(), name) for name in emotion_message().__struct_fields__}
    marks = listen_boxes._Marks()

    def is_new(run: str, seq: int, **changes: str) -> bool:
        return marks.is_new(BoxEmotion(**(fields | {"site": "s", "box": "b", "run": run, "seq": seq} | changes)))

    assert [is_new("a", 1), is_new("a", 1), is_new("a", 0), is_new("a", 1, box="c")] == [True, False, False, True]
    assert is_new("b", 5, kind="window") and is_new("a", 1)  # forgotten


def test_a_listener_that_does_not_read_loses_the_oldest_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(listen_boxes, "_WAITING", 3)

    class Session:
        """A session without a router or a box."""

        class info:
            routers_zid = staticmethod(lambda: [1])

        def liveliness(self) -> Any:
            return self

        def get(self, *_: object, **__: object) -> list[Any]:
            return []

        def declare_subscriber(self, *_: object, **__: object) -> Any:
            return self

        def undeclare(self) -> None:
            return

    class Sample:
        def __init__(self, n: int) -> None:
            self.key_expr, self._n = f"k{n}", n
            self.payload = self

        def to_bytes(self) -> bytes:
            return b"%d" % self._n

    inbox = listen_boxes._Inbox(
        "zenoh://h:1", Session(), parse_address("zenoh://h:1"), ["*/utterance"], ["*/utterance"]
    )
    for n in range(5):
        inbox._take(Sample(n))
    end_s = time.monotonic() + 0.05
    got = []
    while (message := inbox.receive(end_s)) is not None:
        got.append(message[1])
    inbox.close()
    assert got == [b"2", b"3", b"4"]
    assert "2 messages were dropped" in caplog.text
