"""The example board and alert rules ask for metrics that exist."""

from __future__ import annotations

import json
import re

import yaml
from prometheus_client.parser import text_string_to_metric_families

from emostream.stream.emotion import encode_emotion
from emostream.stream.page.metrics import RunMetrics
from emostream.stream.page.state import KEPT, PageState
from emostream.stream.status import NodeStatus, Status, StreamStatus, encode_status
from tests.emotions import emotion_message
from tests.processes import ROOT

FOLDER = ROOT / "examples/monitoring"


def there() -> set[str]:
    """The names of all samples of a run."""
    state = PageState()
    metrics = RunMetrics(state)
    state.set_status(encode_status(Status(streams={"a": StreamStatus()}, nodes={"fusion": NodeStatus()})).decode())
    state.add(encode_emotion(emotion_message()).decode())
    families = text_string_to_metric_families(metrics.text().decode())
    return {sample.name for family in families for sample in family.samples}


def test_the_board_and_the_rules_ask_for_metrics_that_there_are():
    board = json.loads((FOLDER / "grafana.json").read_text())
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [rule["expr"] for rule in rules]
    names = {name for expression in asked for name in re.findall(r"emostream_\w+", expression)}
    assert len(names) >= 10 and names <= there()
    assert len(rules) == 3 and all(rule["annotations"]["summary"] for rule in rules)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


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
