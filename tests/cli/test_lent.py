"""Far ends with their ports, and what was saved of grants."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import cast

import click
import pytest

from cli.fake_daemon import FILES, FakeDaemon
from penstock.cli.lent import complete_destination, complete_grant, complete_source, lent, peer_and_port, with_lent
from penstock.cli.main import penstock
from penstock.core import grants, state
from penstock.core.grants import Grant, Saved
from penstock.core.parse import parse
from penstock.core.policy import AddressPeer, Direction, PortRange, Ports, Rule


def now() -> datetime:
    """Not the time when this file was read: others may have run for long since."""
    return datetime.now(UTC).replace(microsecond=0)


def saved(workload: str = "litellm", id: str = "grant-1a2b3c4d", left: int = 600) -> Grant:
    rule = Rule(
        id, Direction.OUT, (AddressPeer(ip_address("10.30.1.9")),), Ports((PortRange("tcp", 5432, 5432),))
    )
    until = now() + timedelta(seconds=left)
    return Grant(id, workload, "10.30.1.9:5432", (rule,), until, 9.0, "anna", "to see", now())


def write(daemon: FakeDaemon, *lent: Grant) -> None:
    data = grants.encode(Saved(now(), "boot", lent))
    (daemon.home / "state" / grants.FILE).write_bytes(data)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10.0.0.5:443", ("10.0.0.5", "443")),
        ("10.0.0.0/24:8000-8100/udp,53", ("10.0.0.0/24", "8000-8100/udp,53")),
        ("10.0.0.5", ("10.0.0.5", "")),
        ("10.0.0.5:icmp", ("10.0.0.5", "icmp")),
        ("10.0.0.5:any", ("10.0.0.5", "any")),
        ("[2001:db8::5]:53/udp", ("2001:db8::5", "53/udp")),
        ("[2001:db8::/48]:443", ("2001:db8::/48", "443")),
        ("[2001:db8::5]", ("2001:db8::5", "")),
        ("2001:db8::5", ("2001:db8::5", "")),
        ("2001:db8::5:443", ("2001:db8::5:443", "")),
        ("2001:db8::443", ("2001:db8::443", "")),
        ("*.example.org", ("*.example.org", "")),
        ("a.example.org:8443", ("a.example.org", "8443")),
        ("workload:vllm:8000", ("workload:vllm", "8000")),
        ("https://a.example.org:8443", ("https://a.example.org", "8443")),
        ("https://a.example.org/x", ("https://a.example.org/x", "")),
        ("metadata:80", ("metadata", "80")),
        ("a:b:80", ("a:b:80", "")),
        (":80", (":80", "")),
        ("a:", ("a:", "")),
        ("", ("", "")),
    ],
)
def test_a_far_end_with_its_port(text: str, found: tuple[str, str]) -> None:
    assert peer_and_port(text) == found


def test_what_was_saved_and_is_not_over(daemon: FakeDaemon) -> None:
    assert lent(daemon.run, now()) == ()
    write(daemon, saved(), saved(id="grant-00000000", left=0))
    found = lent(daemon.run, now())
    assert found
    assert [one.id for one in found] == ["grant-1a2b3c4d"]
    (daemon.home / "state" / grants.FILE).write_bytes(b"{")
    assert lent(daemon.run, now()) is None
    assert lent(Path("/nowhere"), now()) is None


def test_beside_a_policy(daemon: FakeDaemon) -> None:
    text = b"version: 1\nworkload: litellm\nmode: enforce\negress: []\ningress: []\n"
    policy = parse({"rules.d/litellm.yaml": text}).policy
    assert policy
    assert with_lent(policy, daemon.run, now()) is policy
    write(daemon, saved())
    assert len(with_lent(policy, daemon.run, now()).workloads["litellm"].egress) == 1


def test_ids_for_the_shell(daemon: FakeDaemon) -> None:
    write(daemon, saved(), saved(id="grant-2a2b3c4d"))
    context = click.Context(penstock)
    context.params["run"] = daemon.run
    for begun, expected in (
        ("", ["grant-1a2b3c4d", "grant-2a2b3c4d"]),
        ("grant-2", ["grant-2a2b3c4d"]),
        ("1a", ["1a2b3c4d"]),
        ("x", []),
    ):
        assert complete_grant(context, cast(click.Parameter, None), begun) == expected


def test_far_ends_for_the_shell(daemon: FakeDaemon) -> None:
    files = {**FILES, "penstock.yaml": b"version: 1\nnetworks: {clients: {cidr: 10.30.0.0/16}}\n"}
    data = state.encode(state.Applied("abcdef012345", 0.0, files, {"hub.yaml": b"", "ray.yaml": b""}))
    (daemon.home / "state" / state.FILE).write_bytes(data)
    context, parameter = click.Context(penstock), cast(click.Parameter, None)
    context.params["run"] = daemon.run
    known = ["clients", "workload:litellm", "workload:ollama"]
    assert complete_source(context, parameter, "") == known
    assert complete_destination(context, parameter, "") == sorted([*known, "hub", "ray"])
    assert complete_destination(context, parameter, "r") == ["ray"]
    (daemon.home / "state" / state.FILE).write_bytes(b"{")
    assert complete_destination(context, parameter, "") == []
