"""Which workload a unit belongs to, by its name alone."""

from __future__ import annotations

import time

import pytest

from penstock.core.match import OURS, Claims, Unit, claims, places, workload_of
from penstock.core.parse import parse
from penstock.core.policy import Policy


def policy_of(**matches: str) -> Policy:
    """A workload for each, with that `match`."""
    text = "version: 1\nworkload: {}\nmode: enforce\negress: []\ningress: []\nmatch: {}\n"
    files = {f"rules.d/{name}.yaml": text.format(name, match).encode() for name, match in matches.items()}
    policy = parse(files).policy
    assert policy
    return policy


@pytest.mark.parametrize(
    ("glob", "unit", "fits"),
    [
        ("x.service", "x.service", True),
        ("x.service", "X.service", False),
        ("x.service", "x.scope", False),
        ("x.service", "ax.service", False),
        ("x.service", "x.service\n", False),
        ("x.service", "xyservice", False),
        ("vllm@*.service", "vllm@a.service", True),
        ("vllm@*.service", "vllm.service", False),
        ("vllm@*.service", "vllm@a.service\n", False),
        ("gpu[0-3].service", "gpu2.service", True),
        ("gpu[0-3].service", "gpu4.service", False),
        ("gpu?.service", "gpu.service", False),
    ],
)
def test_globs_and_names(glob: str, unit: str, fits: bool) -> None:
    assert claims(policy_of(a=f"{{unit: {glob!r}}}"), unit) == (["a"] if fits else [])


def test_a_mapping_that_says_more_is_not_about_units() -> None:
    also = "[{exe: /usr/bin/b}, {unit: b.service}]"
    policy = policy_of(a="{unit: a.service, exe: /usr/bin/a}", b=also, c="{container: c}")
    assert [claims(policy, f"{name}.service") for name in "abc"] == [[], ["b"], []]


def test_several_are_in_order_and_the_first_has_it() -> None:
    policy = policy_of(b="{unit: '*x.service'}", a="{unit: 'x*.service'}", c="{unit: c.service}")
    assert claims(policy, "x.service") == ["a", "b"]
    assert workload_of(policy, Unit("x.service", "system.slice/x.service", 7)) == "a"
    assert workload_of(policy, Unit("d.service", "system.slice/d.service", 7)) is None


def test_penstocks_own_are_never_a_workload() -> None:
    policy = policy_of(a="{unit: 'penstock*.service'}", b="{unit: 'pen*.service'}")
    assert [claims(policy, unit) for unit in OURS] == [[], [], []]
    assert claims(policy, "penstocks.service") == ["a", "b"]


def test_places() -> None:
    units = [Unit(f"{name}.service", f"system.slice/{name}.service", i) for i, name in enumerate("abc")]
    policy = policy_of(w="[{unit: a.service}, {unit: 'b*.service'}]")
    assert places(policy, units) == {"system.slice/a.service": "w", "system.slice/b.service": "w"}
    assert places(Policy(), units) == {}


def test_a_large_host_under_a_large_policy() -> None:
    """It is done whenever a unit comes or goes."""
    names = {f"w{n}": f"[{{unit: w{n}.service}}, {{unit: 'w{n}@*.service'}}]" for n in range(120)}
    policy = policy_of(**names)
    units = [Unit(f"u{n}.service", f"system.slice/u{n}.service", n) for n in range(500)]
    Claims(policy)
    began = time.process_time()
    assert places(policy, units) == {}
    seconds = time.process_time() - began
    print(f"500 units under 120 workloads with a glob each: {seconds * 1000:.0f} ms")
    assert seconds < 0.5
