"""`match:` and what a workload file may hold."""

import pytest

from penstock.core.parse import parse
from penstock.core.policy import Match


def matched(text: str) -> tuple[tuple[Match, ...] | None, list[str]]:
    data = f"version: 1\nworkload: w\nmode: observe\negress: []\ningress: []\nmatch: {text}\n"
    parsed = parse({"rules.d/w.yaml": data.encode()})
    found = parsed.policy.workloads["w"].match if parsed.policy else None
    return found, [f"{p.message}; {p.hint}" for p in parsed.problems]


def test_a_mapping_is_and_a_list_is_or() -> None:
    assert matched("{unit: 'a*.service', exe: /usr/bin/a}") == ((Match("a*.service", exe="/usr/bin/a"),), [])
    assert matched("[{container: a}, {bridge: br0}]") == ((Match(container="a"), Match(bridge="br0")), [])


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("{}", "match everything"),
        ("[]", "leave it out"),
        ("{unit: ollama}", "write ollama.service"),
        ("{unit: '*.service'}", "every unit"),
        ("{exe: python}", "/usr/bin/NAME"),
        ("{bridge: 'a/b'}", "ip link"),
        ("{container: '-x'}", "docker ps"),
        ("{port: 80}", "unit, container, bridge, exe"),
        ("[{unit: a.service}, {unit: a.service}]", "keep one"),
        ("ollama.service", "key: value"),
    ],
)
def test_wrong_matches(text: str, hint: str) -> None:
    found, told = matched(text)
    assert found is None
    assert any(hint in line for line in told)
