"""The example board and alert rules ask for metrics that exist; Prometheus' own promtool, where it is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from emostream.stream.emotion import encode_emotion
from emostream.stream.page.metrics import RunMetrics
from emostream.stream.page.state import KEPT, PageState
from emostream.stream.status import NodeStatus, Status, StreamStatus, encode_status
from tests.emotions import emotion_message
from tests.processes import ROOT

FOLDER = ROOT / "examples/monitoring"


PROMTOOL = shutil.which("promtool")
with_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool: Debian's package prometheus has it")


def promtool(*arguments: object, stdin: bytes | None = None) -> None:
    done = subprocess.run([PROMTOOL, *map(str, arguments)], input=stdin, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()


def metrics_of_a_run() -> bytes:
    state = PageState()
    metrics = RunMetrics(state, count_labels=True)
    state.set_status(encode_status(Status(streams={"a": StreamStatus()}, nodes={"fusion": NodeStatus()})).decode())
    state.add(encode_emotion(emotion_message()).decode())
    return metrics.text()


def there() -> set[str]:
    """The names of all samples of a run."""
    families = text_string_to_metric_families(metrics_of_a_run().decode())
    return {sample.name for family in families for sample in family.samples}


def expressions_of_the_board() -> list[str]:
    board = json.loads((FOLDER / "grafana.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_the_board_and_the_rules_ask_for_metrics_that_there_are():
    board = json.loads((FOLDER / "grafana.json").read_text())
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
    asked = expressions_of_the_board() + [rule["expr"] for rule in rules]
    names = {name for expression in asked for name in re.findall(r"emostream_\w+", expression)}
    assert len(names) >= 10 and names <= there()
    assert len(rules) == 3 and all(rule["annotations"]["summary"] for rule in rules)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.process
@with_promtool
def test_promtool_finds_no_fault_in_the_metrics():
    promtool("check", "metrics", stdin=metrics_of_a_run())


@pytest.mark.process
@with_promtool
def test_promtool_understands_the_board(tmp_path):
    rules = [{"record": f"board:{i}", "expr": asked} for i, asked in enumerate(expressions_of_the_board())]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yml")


@pytest.mark.process
@with_promtool
def test_alerts_fire_when_they_should_and_not_before():
    promtool("check", "rules", FOLDER / "alerts.yml")
    promtool("test", "rules", FOLDER / "alerts_test.yml")


def test_every_label_is_counted_though_nobody_asks_in_between():
    state = PageState()
    metrics = RunMetrics(state)
    state.set_status(encode_status(Status()).decode())
    for _ in range(KEPT + 100):
        state.add(encode_emotion(emotion_message()).decode())
    families = {family.name: family for family in text_string_to_metric_families(metrics.text().decode())}
    counts = [
        sample.value
        for sample in families["emostream_label_latency_seconds"].samples
        if sample.name.endswith("_count") and sample.labels["part"] == "total"
    ]
    assert counts == [KEPT + 100]
