"""The alert rules and the dashboard that are shipped ask for metrics that there are, by labels that these have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from exposition import FACTS, STATUS, parse
from penstock.core import metrics
from penstock.core.metrics import METRICS

MONITORING = Path(__file__).parents[1] / "rules/monitoring"
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
BOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
TARGETS = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
EXPRESSIONS = [*(rule["expr"] for rule in ALERTS), *TARGETS]
FROM_SCRAPING = {"instance"}
"""Labels that Prometheus adds."""


def labels_of(metric: str) -> set[str]:
    """Those that its samples have."""
    samples = parse(metrics.text(STATUS, FACTS))[metric].samples
    return {name for labels in samples for name, _ in labels}


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_each_metric_and_label_exists(expr: str) -> None:
    named = re.findall(r"(penstock_\w+)(?:\{([^}]*)\})?", expr)
    assert named
    for metric, matchers in named:
        assert metric in METRICS
        assert set(re.findall(r"(\w+)=", matchers)) <= labels_of(metric) | FROM_SCRAPING
    there = {label for metric, _ in named for label in labels_of(metric)} | FROM_SCRAPING
    for grouped in re.findall(r"by \(([^)]*)\)", expr):
        assert set(grouped.split(", ")) <= there


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_counters_are_asked_for_their_rate(expr: str) -> None:
    for before, metric in re.findall(r"(\w*)\(?(penstock_\w+)", expr):
        assert (METRICS[metric][0] == "counter") == (before in ("rate", "increase")), metric


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_what_it_is(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    summary = rule["annotations"]["summary"]
    used = set(re.findall(r"\$labels\.(\w+)", summary))
    metric = re.findall(r"penstock_\w+", rule["expr"])[0]
    assert used <= labels_of(metric) | FROM_SCRAPING
    assert len(summary) < 120


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
