"""What is said of a rule that names a control port.  Which rules do, `test_lint` says."""

from __future__ import annotations

import pytest

from penstock.core import lint_literal
from penstock.core.parse import parse

RULES = "version: 1\nworkload: w\nmode: enforce\negress:\n  - {to: [10.0.0.1, a.org], ports: %s}\ningress: []\n"


@pytest.mark.parametrize(
    ("ports", "words"), [("[443, 10250]", "10250 is that of the kubelet"), ("[16509-16514]", ""), ("[any]", "")]
)
def test_a_control_port_by_itself(ports: str, words: str) -> None:
    policy = parse({"rules.d/w.yaml": (RULES % ports).encode()}).policy
    assert policy
    found = list(lint_literal.control_port(policy))
    assert [(p.place.line, p.severity, p.code) for p in found] == [(5, "warning", "control-port")] * bool(words)
    assert all(words in problem.message for problem in found)
