"""stream-uplink and stream-hub: real processes, zenoh sessions and ZeroMQ sockets on the same machine."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from emostream.errors import BusError, ConfigError
from emostream.stream.backlog import Backlog
from emostream.stream.boxes import make_session_config, open_session
from emostream.stream.emotion import encode_emotion
from emostream.stream.hub import hub
from emostream.stream.status import Status, StreamStatus
from emostream.stream.uplink import Uplink, uplink
from tests.boxes import Box, Program, check_all_kept, start_uplink, stored, until, write_tls_configs
from tests.emotions import emotion_message
from tests.processes import BIN, command, environment, free_port, patience

zenoh = pytest.importorskip("zenoh")
pytest.importorskip("pyarrow")
import pyarrow.dataset as dataset

pytestmark = pytest.mark.process

F_SETPIPE_SZ = 1031  # linux/fcntl.h


@pytest.fixture
def router() -> str:
    return f"tcp/127.0.0.1:{free_port()}"


@pytest.fixture
def boxes() -> Iterator[Callable[..., Box]]:
    with contextlib.ExitStack() as stack:

        def make(name: str, run: str = "run1") -> Box:
            box = Box(name, run)
            stack.callback(box.close)
            return box

        yield make


def test_labels_of_two_boxes_are_printed_and_kept_by_day(tmp_path, router, boxes):
    desk, hall = boxes("desk-box"), boxes("hall-box")
    with Program(tmp_path, "stream-hub", "--listen", router, "--out", tmp_path / "out") as hub:
        hub.wait_for("waiting for boxes")
        with start_uplink(tmp_path, router, desk) as first, start_uplink(tmp_path, router, hall, "--words") as second:
            hub.wait_for("lab/desk-box: appeared")
            hub.wait_for("lab/hall-box: appeared")
            for _ in range(3):
                desk.say("desk", "door")
                hall.say("hall")
            until(lambda: hub.printed.count("joy") == 9, 10, lambda: hub.printed)
            sockets = [c for p in (first, second) for c in psutil.Process(p.process.pid).net_connections("inet")]
            port = int(router.rpartition(":")[2])
            runs = [int(box.endpoint.rpartition(":")[2]) for box in (desk, hall)]
            assert all(c.raddr and c.raddr.port in (port, *runs) for c in sockets), sockets  # none listens, none is UDP
            of_hub = psutil.Process(hub.process.pid).net_connections("inet")
            assert {c.laddr for c in of_hub} == {("127.0.0.1", port)}, of_hub
            assert first.interrupt(signal.SIGTERM) == 0
            hub.wait_for("lab/desk-box: vanished; 1 there")
        assert hub.interrupt(signal.SIGHUP) == 0
    assert "lab/hall-box  hall     0.50-  3.00 s  joy" in hub.printed and "Traceback" not in hub.printed
    check_all_kept(tmp_path / "out", desk, hall)
    day = time.strftime("%Y-%m-%d", time.gmtime(stored(tmp_path / "out")[0]["published"].timestamp()))
    (part,) = (tmp_path / "out").glob("day=*/*")
    assert part == tmp_path / "out" / f"day={day}" / "part-000001.parquet"
    assert part.stat().st_mode & 0o777 == 0o600
    for row in stored(tmp_path / "out"):
        said = "so happy" if row["box"] == "hall-box" else ""
        assert (row["text"], json.loads(row["message"])["text"]) == (said, said)
        assert dict(row["probabilities"]) == {"joy": 0.75, "anger": 0.25} and row["site"] == "lab"
    table = dataset.dataset(tmp_path / "out", partitioning="hive", exclude_invalid_files=True).to_table()
    assert set(map(str, table["day"].to_pylist())) == {day}


def test_hub_uplink_and_run_are_killed_and_come_back_and_nothing_is_lost_or_doubled(tmp_path, router, boxes):
    box, other = boxes("a"), boxes("b")
    out = tmp_path / "out"
    hub_words = ("stream-hub", "--listen", router, "--out", out, "--part-labels", 7)
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(Program(tmp_path, *hub_words))
        hub.wait_for("waiting")
        link = stack.enter_context(start_uplink(tmp_path, router, box, "--store", tmp_path / "store"))
        stack.enter_context(start_uplink(tmp_path, router, other))
        for _ in range(10):
            box.say("desk", "door")
            other.say("desk")
        until(lambda: hub.printed.count("joy") == 30, 10, lambda: hub.printed)
        box.say("desk")
        hub.kill()  # perhaps it has that label, perhaps not
        for _ in range(20):
            box.say("door", "desk")
        for _ in range(300):  # more than fit into one delivery
            other.say("desk")
            time.sleep(0.001)
        link.wait_for("labels wait for the hub")
        file = tmp_path / "store/uplink.sqlite3"
        until(lambda: time.time() - file.stat().st_mtime > 0.7, 20)  # the uplink has read its socket
        link.kill()
        stack.enter_context(start_uplink(tmp_path, router, box, "--store", tmp_path / "store"))
        box.say("desk")
        hub = stack.enter_context(Program(tmp_path, *hub_words))
        until(lambda: len(stored(out)) >= 30 + 1 + 340 + 1, 25, lambda: f"{hub.printed}\n{len(stored(out))}")
        box.say("door")
        until(lambda: len(stored(out)) >= 373, 10, lambda: f"{hub.printed}\n{len(stored(out))}")
        time.sleep(0.3)
        assert hub.interrupt() == 0
    check_all_kept(out, box, other)
    assert list(out.glob("journal-*")) == [] and len(list(out.glob("day=*/*"))) > 3


def test_labels_that_never_arrive_are_counted_and_told_once(tmp_path, router, boxes):
    """An uplink without a store is killed while labels wait in it; then the run goes on without one. The hub is killed
    and comes back, too."""
    box = boxes("a")
    hub_words = ("stream-hub", "--listen", router, "--out", tmp_path / "out", "--part-labels", 4)
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(Program(tmp_path, *hub_words))
        hub.wait_for("waiting")
        link = stack.enter_context(start_uplink(tmp_path, router, box))
        for _ in range(5):
            box.say("desk")
        until(lambda: len(stored(tmp_path / "out")) == 5, 10)
        box.tell()
        hub.kill()
        for _ in range(3):
            box.say("desk")
        link.wait_for("labels wait for the hub")
        link.kill()
        for _ in range(4):
            box.say("desk")
        hub = stack.enter_context(Program(tmp_path, *hub_words))
        stack.enter_context(start_uplink(tmp_path, router, box))
        until(lambda: (box.tell(), "did not arrive" in hub.printed)[1], 20, lambda: hub.printed)
        assert "WARNING: lab/a: 7 labels of desk did not arrive, 7 in this run" in hub.printed
        for _ in range(3):
            box.say("desk")
        until(lambda: len(stored(tmp_path / "out")) == 8, 10)
        for _ in range(3):
            box.tell()
            time.sleep(0.3)
        assert hub.printed.count("did not arrive") == 1, hub.printed
        assert hub.interrupt() == 0
        again = stack.enter_context(Program(tmp_path, *hub_words))
        again.wait_for("lab/a: appeared")
        box.say("desk")
        until(lambda: (box.tell(), len(stored(tmp_path / "out")) == 9)[1], 10)
        time.sleep(0.5)
        assert "did not arrive" not in again.printed


def test_a_label_counts_from_when_it_waits_on():
    """Another thread sends the state at any moment: one that counts a label that does not wait yet would tell the hub
    that it is lost."""
    backlog = Backlog(None, 10, 10_000)
    link = Uplink("tcp/127.0.0.1:9", "lab", "a", make_session_config(None, ["tcp/127.0.0.1:9"]), False, backlog)
    keep, states = backlog.add, []

    def add(content: bytes, at_ns: int) -> None:
        states.append(link._state())
        keep(content, at_ns)
        states.append(link._state())

    backlog.add = add  # type: ignore[method-assign]
    link.set_status(Status(run="r", streams={"desk": StreamStatus()}))
    for number in range(3):
        link.send(emotion_message(stream="desk", run="r", seq=number))
        states.append(link._state())
    link.close()
    counts = [(state.published.get("r", {}).get("desk", 0), state.waiting) for state in states]
    assert counts == [(0, 0), (0, 1), (1, 1), (1, 1), (1, 2), (2, 2), (2, 2), (2, 3), (3, 3)]


def test_outputs_that_take_nothing_cost_no_label_and_no_end(tmp_path, router, boxes):
    """The hub's terminal was stopped (Ctrl-S) and the uplink's pipe is full, from before their first lines on."""
    box = boxes("a")
    reading, full = os.pipe()
    fcntl.fcntl(full, F_SETPIPE_SZ, 4096)
    os.write(full, b"x" * 4096)
    terminal, stopped = os.openpty()
    termios.tcflow(stopped, termios.TCOOFF)
    to_hub = (BIN / "stream-hub", "--listen", router, "--out", tmp_path / "out")
    to_link = (BIN / "stream-uplink", router, box.endpoint, "--box", box.name)
    programs = [
        subprocess.Popen(list(map(str, words)), stdout=output, stderr=output, env=environment())
        for words, output in ((to_hub, stopped), (to_link, full))
    ]
    try:
        until(lambda: box.requests == 2, 15)
        for _ in range(400):  # of 100 characters each: several times what a terminal or a pipe holds
            box.say("desk")
            time.sleep(0.001)
        until(lambda: len(stored(tmp_path / "out")) == 400, 20)
        for program in reversed(programs):
            program.send_signal(signal.SIGTERM)
            assert program.wait(patience(5)) == 0
    finally:
        for program in programs:
            program.kill()
            program.wait()
        for descriptor in (reading, full, terminal, stopped):
            os.close(descriptor)
    check_all_kept(tmp_path / "out", box)


@pytest.mark.long
def test_what_falls_out_is_counted_and_told_on_both_sides(tmp_path, router, boxes):
    box = boxes("small")
    with start_uplink(tmp_path, router, box, "--keep", 5) as link:
        for _ in range(12):
            box.say("desk")
        link.wait_for("the oldest labels fall out before the hub has them")
        link.wait_for("cannot be reached")
        with Program(tmp_path, "stream-hub", "--listen", router, "--out", tmp_path / "out", "--format", "jsonl") as hub:
            hub.wait_for(
                "lab/small: 7 labels of desk did not arrive, 7 in this run; 7 have fallen out of its store", 20
            )
            until(lambda: hub.printed.count("joy") == 5, 10, lambda: hub.printed)
            assert hub.interrupt() == 0
    assert [row["seq"] for row in stored(tmp_path / "out")] == [7, 8, 9, 10, 11]
    (part,) = (tmp_path / "out").glob("day=*/part-000001.jsonl")
    assert part.stat().st_mode & 0o777 == 0o600


def test_others_can_subscribe_to_labels_estimates_and_status(tmp_path, router, boxes):
    box = boxes("desk-box")
    config = make_session_config(None, [], [router])
    got: list[tuple[str, dict[str, Any]]] = []
    with open_session(config) as session:
        keep = session.declare_subscriber(
            "emostream/**", lambda sample: got.append((str(sample.key_expr), json.loads(sample.payload.to_bytes())))
        )
        with start_uplink(tmp_path, router, box, "--windows", "--words"):
            until(lambda: (box.tell(), got)[1], 15)
            box.estimate("desk")
            box.say("desk")
            box.tell("away")
            until(lambda: len({key for key, _ in got}) >= 4, 10, lambda: str(got))
            until(lambda: [m for k, m in got if k.endswith("/status")][-1]["streams"]["desk"]["state"] == "away", 5)
            statuses = [message for key, message in got if key.endswith("/status")]
        keep.undeclare()
    of = dict(got)
    assert set(of) == {
        f"emostream/lab/desk-box/{name}" for name in ("desk/utterance", "desk/window", "status", "uplink")
    }
    assert of["emostream/lab/desk-box/desk/utterance"]["text"] == "so happy"
    assert of["emostream/lab/desk-box/desk/window"]["kind"] == "window"
    assert of["emostream/lab/desk-box/uplink"]["schema"] == "emostream-uplink/1"
    assert statuses[0]["run"] == "run1" and len(statuses) <= 3  # not each second: where something changed


def test_labels_that_were_kept_with_words_leave_without_them_unless_they_are_asked_for(tmp_path, router, boxes):
    box = boxes("box")
    with start_uplink(tmp_path, router, box, "--words", "--store", tmp_path / "store"):
        box.say("desk", text="a secret")
        until(lambda: b"a secret" in (tmp_path / "store/uplink.sqlite3").read_bytes(), 10)
    with (
        start_uplink(tmp_path, router, box, "--store", tmp_path / "store") as link,
        Program(tmp_path, "stream-hub", "--listen", router, "--out", tmp_path / "out") as hub,
    ):
        link.wait_for("1 labels of an earlier uplink")
        until(lambda: hub.printed.count("joy") == 1, 15, lambda: hub.printed)
        hub.interrupt()
    assert [json.loads(row["message"])["text"] for row in stored(tmp_path / "out")] == [""]


def test_nonsense_is_refused_and_does_no_harm(tmp_path, router):
    good = encode_emotion(emotion_message(run="r", stream="s", seq=1))
    bad = [
        b"", b"nonsense", b"{}\n{", b'{"waiting":"x"}', b"{" * 100_000, b"\xff\xfe", b"{}" + b"\n" * (5 << 20),
        b"{}\n" + good.replace(b'"seq":1', b'"seq":36893488147419103232'),
        b"{}\n" + encode_emotion(emotion_message(kind="window")),
    ]  # fmt: skip
    with Program(tmp_path, "stream-hub", "--listen", router, "--out", tmp_path / "out") as hub:
        hub.wait_for("waiting")
        with open_session(make_session_config(None, [router])) as session:

            def answer(key: str, content: bytes) -> list[str]:
                replies = list(session.get(key, payload=content, timeout=5))
                return ["stored" if r.ok is not None else r.err.payload.to_string() for r in replies]

            for content in bad:
                (said,) = answer("emostream/a/b/deliver", content)
                assert said.startswith("refused"), content[:50]
            assert answer("emostream/*/b/deliver", b"{}\n" + good)[0].startswith(
                "refused: emostream/*/b/deliver: no key"
            )
            session.put("emostream/a/b/uplink", b"nonsense")
            session.put("emostream/a/*/uplink", b"{}")
            assert answer("emostream/a/b/deliver", b"{}\n" + good) == ["stored"]
            assert answer("emostream/a/b/deliver", b"{}\n" + good) == ["stored"]  # as if the answer had been lost
        assert hub.interrupt() == 0
    assert len(stored(tmp_path / "out")) == 1 and "Traceback" not in hub.printed


def test_tls_lets_in_whom_the_hub_s_authority_has_signed_and_each_box_to_its_own_keys(tmp_path, boxes):
    write_tls_configs(tmp_path, "hub", "box", "stranger")
    router = f"tls/127.0.0.1:{free_port()}"
    box, false = boxes("box"), boxes("another")
    words = ("stream-hub", "--listen", router, "--out", tmp_path / "out", "--config", tmp_path / "hub.json5")
    with Program(tmp_path, *words) as hub:
        hub.wait_for("waiting")
        for path in (tmp_path / "stranger.json5", None):
            config = make_session_config(path, [router])
            config.insert_json5("connect/timeout_ms", "700")
            with pytest.raises(BusError):
                open_session(config)
        its_own = ("--config", tmp_path / "box.json5")
        with start_uplink(tmp_path, router, false, *its_own) as liar, start_uplink(tmp_path, router, box, *its_own):
            false.say("desk")
            liar.wait_for("labels wait for the hub")
            box.say("desk")
            hub.wait_for("lab/box: appeared")
            until(lambda: hub.printed.count("joy") == 1, 15, lambda: hub.printed)
            time.sleep(0.3)
            assert "another" not in hub.printed
            assert hub.interrupt() == 0
    check_all_kept(tmp_path / "out", box)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("stream-uplink", "localhost"), "localhost: write it as tls/HOST:PORT or tcp/HOST:PORT"),
        (("stream-uplink", "tcp/a:0"), "tcp/a:0: write it as"),
        (("stream-uplink", "tcp/a:1", "--box", "a/b"), "--box 'a/b': up to 64 letters"),
        (("stream-uplink", "tcp/a:1", "--keep", "0"), "--keep and --keep-mb must be above 0"),
        (("stream-uplink", "tcp/a:1", "--config", "/nowhere"), "/nowhere: not a configuration of zenoh"),
        (("stream-hub", "--out", "OUT"), "name a router, or be one with --listen; not both"),
        (("stream-hub", "tcp/a:1", "--out", "OUT", "--part-labels", "0"), "--part-labels and --part-minutes"),
        (("stream-hub", "tcp/a:1", "--out", "/proc/out"), "/proc/out: labels cannot be kept there"),
    ],
)
def test_wrong_usage_is_said(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", list(words))
    with pytest.raises(ConfigError) as error:
        {"stream-uplink": uplink, "stream-hub": hub}[words[0]]()
    assert said in str(error.value)


def test_a_taken_address_and_a_second_hub(tmp_path, router):
    words = ("stream-hub", "--listen", router, "--out")
    with Program(tmp_path, *words, tmp_path / "out") as hub:
        hub.wait_for("waiting")
        done = command(*map(str, (*words, tmp_path / "other")))
        assert done.returncode == 1 and f"error: {router}: cannot listen there" in done.stderr
        done = command(*map(str, (*words, tmp_path / "out")))
        assert done.returncode == 2 and "another stream-hub uses it" in done.stderr


def test_scouting_is_off_unless_the_file_turns_it_on(tmp_path):
    (tmp_path / "zenoh.json5").write_text(
        "{listen: {endpoints: ['tcp/0.0.0.0:1']}, scouting: {multicast: {enabled: true}}}"
    )
    plain, asked = (make_session_config(path, ["tcp/a:1"]) for path in (None, tmp_path / "zenoh.json5"))
    names = ("mode", "scouting/multicast/enabled", "scouting/gossip/enabled", "listen/endpoints")
    assert [plain.get_json(name) for name in names] == ['"client"', "false", "false", "[]"]
    assert [asked.get_json(name) for name in names] == ['"client"', "true", "false", "[]"]


def test_the_package_is_asked_for(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zenoh", None)
    with pytest.raises(ConfigError, match=r"pip install 'emostream\[zenoh\]'"):
        make_session_config(None, ["tcp/a:1"])
