"""Files on a cluster: one outcome for each, in order, whatever dies."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.stream.cluster.ledger import ALL_DEATHS, OWN_DEATHS, Ledger, Outcome

FILES = [Path(f"{n}.wav") for n in range(6)]
NODES = ("a", "b", "c")


def taken(ledger: Ledger) -> list[tuple[str, str]]:
    return [(path.name, outcome.error) for path, outcome in ledger.take()]


EVENTS = st.tuples(
    st.sampled_from(["take", "take", "done", "die", "unseen", "go"]), st.sampled_from(NODES), st.integers(0, 5)
)


@given(st.lists(EVENTS, max_size=100))
def test_each_file_has_one_outcome_in_order_whatever_happens(events):
    """Workers on three nodes take files, label them, do not see them, or die with them, in any order; nodes die too."""
    ledger, held, out = Ledger(FILES), [], []
    alive = set(NODES)
    for event, node, which in events:
        if event == "take":
            if (index := ledger.hand_out(node)) is not None:
                assert index not in [other for other, _ in held]
                held.append((index, node))
        elif event == "go":
            alive.discard(node)
        elif held:
            index, node = held.pop(which % len(held))
            if event == "done":
                ledger.done(index, Outcome(media_s=index))
            elif event == "die":
                ledger.died(index, node, alive)
            else:
                ledger.unseen(index, node)
        if not held:
            ledger.give_up_unseen(NODES)
        out += ledger.take()
    for index, _ in held:  # finish what is left, without failures
        ledger.done(index, Outcome(media_s=index))
    while ledger.open:
        got = [index for node in NODES if (index := ledger.hand_out(node)) is not None]
        for index in got:
            ledger.done(index, Outcome(media_s=index))
        if not got:
            ledger.give_up_unseen(NODES)
    out += ledger.take()
    assert [path for path, _ in out] == FILES
    assert all(outcome.error or outcome.media_s == FILES.index(path) for path, outcome in out)


def test_a_file_that_kills_its_workers_is_given_up():
    ledger = Ledger(FILES[:2])
    for _ in range(OWN_DEATHS):
        index = ledger.hand_out("a")
        assert index == 0  # it is the first again
        ledger.died(index, "a", {"a"})
    assert taken(ledger) == [("0.wav", f"0.wav: given up: {OWN_DEATHS} workers died of it")]
    assert ledger.open == 1 and ledger.hand_out("a") == 1 and ledger.hand_out("a") is None


def test_machines_that_went_are_not_the_files_fault_but_not_for_ever():
    ledger = Ledger(FILES[:1])
    for n in range(ALL_DEATHS):
        assert ledger.hand_out(f"node {n}") == 0
        assert ledger.open == 1
        ledger.died(0, f"node {n}", {"another"})
    [(_, error)] = taken(ledger)
    assert error == f"0.wav: given up: {ALL_DEATHS} workers that had it died, or their machines did"


def test_a_machine_that_is_found_dead_later_absolves_the_file():
    """The workers' deaths are noticed first, perhaps before it is known that the machine is gone."""
    ledger = Ledger(FILES[:1])
    for node, alive in (("a", "ab"), ("a", "ab"), ("b", "b")):
        assert ledger.hand_out(node) == 0
        ledger.died(0, node, set(alive))
    assert ledger.open == 1


def test_files_that_a_machine_does_not_see_go_to_another():
    ledger = Ledger(FILES[:2])
    ledger.unseen(ledger.hand_out("a"), "a")
    assert ledger.hand_out("a") == 1
    assert ledger.hand_out("a") is None
    ledger.give_up_unseen({"a", "b"})
    assert ledger.hand_out("b") == 0
    ledger.unseen(0, "b")
    ledger.give_up_unseen({"a", "b"})
    assert taken(ledger) == [("0.wav", "0.wav: no machine of the cluster sees it; put it where all of them do")]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_outcomes_wait_for_those_before_them(order):
    ledger = Ledger(FILES[:3])
    assert [ledger.hand_out("a") for _ in range(3)] == [0, 1, 2]
    names = []
    for n, index in enumerate(order):
        ledger.done(index, Outcome())
        names += [name for name, _ in taken(ledger)]
        assert names == [f"{i}.wav" for i in range(3) if set(range(i + 1)) <= set(order[: n + 1])]
