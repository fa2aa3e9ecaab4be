"""The floor as a file; what it does to packets is tested with packets."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from penstock.core import cgroup_maps, floor, label_bits
from penstock.core.compile import Live, compile_policy
from penstock.core.parse import parse
from penstock.core.policy import Policy

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
RULES = """\
version: 1
workload: open-webui
mode: enforce
egress:
  - {to: 198.51.100.10, ports: [443]}
  - {to: 198.51.100.11, ports: [443], expires: "2026-03-01T13:00:00Z", reason: for an hour}
ingress: []
"""


def made(now: datetime = NOW, below: str = "") -> bytes:
    policy = parse({"rules.d/a.yaml": RULES.encode()}).policy
    assert policy
    labels = {"open-webui": label_bits.FIRST_LABEL}
    return floor.text(compile_policy(policy, Live(now, labels, 1)), ("open-webui",), "0123abc", below)


def test_the_first_line_covers_the_rest(tmp_path: Path) -> None:
    first, _, body = made().partition(b"\n")
    (tmp_path / "floor").write_bytes(made())
    told = subprocess.run(
        f"tail -n +2 {tmp_path}/floor | sha256sum", shell=True, check=True, capture_output=True, text=True
    )
    assert first.decode() == f"# penstock floor 1 sha256:{told.stdout.split()[0]}"
    assert body


def test_it_says_its_policy_and_which_cgroups_must_exist() -> None:
    slices = ("penstock.slice", "penstock.slice/penstock-open\\x2dwebui.slice")
    assert floor.parse_header(made()) == floor.Header("0123abc", slices)
    within = floor.parse_header(made(below="some.slice"))
    assert within
    assert within.cgroups == tuple(f"some.slice/{path}" for path in slices)


def test_every_cgroup_is_bound_by_its_path() -> None:
    lines = [line for line in made().decode().splitlines() if line.startswith("add element") and '"' in line]
    slice_path = "penstock.slice/penstock-open\\x2dwebui.slice"
    assert lines == [
        f'add element inet penstock {name} {{ "{slice_path}" : {verb} {chain} }}'
        for name, verb, chain in cgroup_maps.bindings("open-webui")
    ]


def test_what_ends_is_left_out_and_the_moment_does_not_matter() -> None:
    found = made().decode()
    assert "198.51.100.10 . 6 . 443" in found
    assert "198.51.100.11" not in found
    assert " timeout " not in found.replace("flags interval, timeout", "")
    later = datetime(2027, 1, 1, tzinfo=UTC)
    assert made(later) == made()


def test_all_rules_and_elements_are_replaced_and_no_hook() -> None:
    commands = [line for line in made().decode().splitlines() if line and line[0] not in "#\t"]
    assert commands[0] == "add table inet penstock"
    assert not any(line.startswith("delete") for line in commands)
    flushed = [line for line in commands if line.startswith("flush")]
    assert flushed[0] == "flush table inet penstock"
    holders = [line.split()[1:5:3] for line in commands if line.startswith(("add map", "add set"))]
    assert sorted(line.split()[1:5:3] for line in flushed[1:]) == sorted(holders)
    start = commands.index(flushed[0])
    assert commands[start : start + len(flushed)] == flushed
    assert all(line.startswith(("add element", "add rule")) for line in commands[start + len(flushed) :])
    assert not any(line.startswith(("add element", "add rule")) for line in commands[:start])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"\n",
        lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
        lambda data: data.replace(b"floor 1", b"floor 2", 1),
        lambda data: data.replace(b"sha256:", b"sha256: ", 1),
        lambda data: data.partition(b"\n")[0],
        lambda data: data.partition(b"\n")[2],
        lambda data: b"",
        lambda data: b"\0" * len(data),
        lambda data: b"\xff\n" + data,
    ],
)
def test_a_damaged_file_is_noticed(damage: Callable[[bytes], bytes]) -> None:
    assert floor.verify(made())
    assert not floor.verify(damage(made()))
    assert floor.parse_header(damage(made())) is None


def test_the_header_ends_where_the_script_begins() -> None:
    body = b"# policy x\n# cgroup a\nadd table inet penstock\n# cgroup b\n"
    signed = b"# penstock floor 1 sha256:" + sha256(body).hexdigest().encode() + b"\n" + body
    assert floor.parse_header(signed) == floor.Header("x", ("a",))


def test_the_order_of_workloads_does_not_matter() -> None:
    nothing = compile_policy(Policy(), Live(NOW, {}, 1))
    assert floor.text(nothing, ("b", "a"), "x") == floor.text(nothing, ("a", "b"), "x")
