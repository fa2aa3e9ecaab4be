"""The words of status: nothing is called enforcing that was not checked.  Its keys are tested with the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest
from fake_host import START, Host, rules

from penstock.core import status
from penstock.core.events import Examined, Listener, Seen, Stray
from penstock.core.looks import take_in
from penstock.core.slices import slice_of
from penstock.core.view import InForce, View

FILES = {f"rules.d/{mode}.yaml": rules(mode, mode=mode) for mode in ("observe", "enforce", "lock")}
GOOD = {"observe": "observing", "enforce": "enforcing", "lock": "locked"}


def made() -> tuple[View, InForce, Host]:
    host = Host(FILES).start()
    assert host.engine.in_force
    return host.engine.view, host.engine.in_force, host


def words(view: View, in_force: InForce | None) -> dict[str, str]:
    workloads = made()[1].policy.workloads
    return {name: status.state_word(workload, view, in_force, frozenset()) for name, workload in workloads.items()}


def test_each_mode_has_its_word() -> None:
    view, in_force, _ = made()
    assert words(view, in_force) == GOOD


def test_without_a_policy_or_a_slice_nothing_is_enforced() -> None:
    view, in_force, _ = made()
    assert set(words(view, None).values()) == {"unenforced"}
    cgroups = {path: c for path, c in in_force.cgroups.items() if path != slice_of("lock")}
    assert words(view, replace(in_force, cgroups=cgroups)) == {**GOOD, "lock": "unenforced"}


def unsure(view: View) -> None:
    view.agrees = None


def disagrees(view: View) -> None:
    view.agrees = False


def unproven(view: View) -> None:
    view.proven = False


@pytest.mark.parametrize("spoil", [unsure, disagrees, unproven])
def test_a_doubt_degrades_all(spoil: Callable[[View], None]) -> None:
    view, in_force, _ = made()
    spoil(view)
    assert set(words(view, in_force).values()) == {"degraded"}
    assert status.ready(view, in_force, "lock")["ready"] is False


def test_a_stray_degrades_its_own_workload() -> None:
    view, in_force, _ = made()
    view.strays = (Stray(1, 2, "x", "enforce", "/"),)
    assert words(view, in_force) == {**GOOD, "enforce": "degraded"}


def test_pending_files_are_those_that_differ_either_way() -> None:
    host = made()[2]
    host.files["rules.d/new.yaml"] = rules("new")
    host.files["rules.d/lock.yaml"] += b"# changed\n"
    del host.files["rules.d/observe.yaml"]
    assert host.status()["policy"]["pending_files"] == 3


def test_a_preset_in_use_that_differs_is_pending() -> None:
    head = b"version: 1\ntitle: x\nsource: measured\ndate: 2026-01-01\negress: []\n"
    host = Host({"rules.d/a.yaml": rules("a", "[{use: mine}]")})
    host.presets = {f"{name}.yaml": head + f"preset: {name}\n".encode() for name in ("mine", "other")}
    host.start()
    host.presets["other.yaml"] += b"# of no policy\n"
    assert host.status()["policy"]["pending_files"] == 0
    host.presets["mine.yaml"] += b"# changed\n"
    assert host.status()["policy"]["pending_files"] == 1
    host.presets["mine.yaml"] += b"x: y\n"
    found = host.status()
    assert found["policy"]["pending_files"] == 1
    assert "files-broken" in [one["code"] for one in found["findings"]]
    host.presets["mine.yaml"] = head + b"preset: mine\nknown: []\n"
    host.apply()
    assert host.status()["policy"]["pending_files"] == 0
    host.files["rules.d/a.yaml"] = rules("a")
    assert host.status()["policy"]["pending_files"] == 1, "the file, and not what it uses no more"


@pytest.mark.parametrize("rule", ["{to: hub.example}", "{use: mine}", ""])
def test_whose_look_ups_are_answered_is_told(rule: str) -> None:
    """A preset is enough, also one that opens nothing."""
    host = Host({"rules.d/a.yaml": rules("a", f"[{rule}]")})
    head = "version: 1\npreset: mine\ntitle: x\nsource: measured\ndate: 2026-01-01\negress: []\n"
    host.presets = {"mine.yaml": head.encode()}
    found = host.start().status()["implicit"]
    told = [text for text in found if text.startswith("look-ups of workloads with rules by name or presets, to ")]
    assert len(told) == bool(rule)


def test_what_is_unknown_is_null_and_never_missing() -> None:
    host = Host()
    event = Examined(START, 1, 0, {}, {}, {}, ())
    found = status.build(event, View(START), None, host.engine.books)
    assert found["policy"] == {"hash": None, "applied": None, "pending_files": None, "confirm_until": None}
    assert found["kernel"] == {"backend": "nft", "agrees": None, "checked": None}
    assert found["daemon"]["since"] == "2026-03-01T12:00:00Z"
    assert found["workloads"] == []


def test_each_trouble_has_its_finding_and_what_helps() -> None:
    view, in_force, host = made()
    view.troubles.update({"Record": "full", "CommitState": "full", "SaveBooks": "full", "Other": "odd"})
    event = Examined(START, 1, 0, {}, {}, {}, ())
    found = status.build(event, view, in_force, host.engine.books)["findings"]
    told = {(f["code"], f["text"]) for f in found}
    assert {("log-unwritable", "full"), ("state-unwritable", "full"), ("trouble", "odd")} <= told
    assert any("penstock apply" in f["remedy"] for f in found if f["code"] == "state-unwritable")


def test_who_reaches_what_listens_is_told_by_workload() -> None:
    host = made()[2]
    any_address = ip_address("0.0.0.0")
    event = Examined(START, 1, 0, {}, {}, {}, (), listeners=(Listener("enforce", "tcp", any_address, 80),))
    take_in(host.engine.view, event)
    found = status.build(event, host.engine.view, host.engine.in_force, host.engine.books)
    listening = {one["name"]: one["listening"] for one in found["workloads"]}
    assert {name: len(some) for name, some in listening.items()} == {"enforce": 1, "lock": 0, "observe": 0}
    assert listening["enforce"][0]["reached_by"] == []
    assert [(f["code"], f["workload"]) for f in found["findings"]] == [("listens-without-rule", "enforce")]


def test_what_listens_is_not_known_unless_it_was_looked_at() -> None:
    host = made()[2]
    for request, listeners in ((1, None), (None, ())):
        event = Examined(START, request, 0, {}, {}, {}, (), listeners=listeners)
        take_in(host.engine.view, event)
        found = status.build(event, host.engine.view, host.engine.in_force, host.engine.books)
        assert [one["listening"] for one in found["workloads"]] == [None] * 3


def test_text_of_processes_is_made_safe() -> None:
    view, in_force, host = made()
    view.processes = {"enforce": (Seen(1, 1, "x", 0),)}
    view.strays = (Stray(1, 2, "\x1b]0;x\x07", "enforce", "/a\nb"),)
    event = Examined(START, 1, 0, {}, {}, {}, ())
    found = status.build(event, view, in_force, host.engine.books)["findings"]
    assert {"root", "outside"} <= {f["code"] for f in found}
    assert all(f["text"].isprintable() for f in found)
