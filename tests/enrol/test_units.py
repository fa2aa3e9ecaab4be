"""Where the units of a host run: a tree of directories stands for the cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.core.restarts import Home
from penstock.core.slices import slice_of
from penstock.enrol import dropin
from penstock.enrol.units import look


def test_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "cgroup"
    for path in ("system.slice/a.service/inner.service", "user.slice/user-1.slice/user@1.service/a.service",
                 "system.slice/system-v.slice/v@1.service", f"{slice_of('b-c')}/b.service",
                 f"{slice_of('b-c')}/run-5.scope", f"{slice_of('other')}/o.service"):  # fmt: skip
        (tree / path).mkdir(parents=True)
    monkeypatch.setattr(dropin, "UNITS", tmp_path / "units")
    dropin.write_pending("v@.service", "v")
    dropin.write_pending("a.service", "a")
    dropin.pending_path("a.service").rename(dropin.armed_path("a.service"))

    found = look(tree, ["b-c", "gone"])
    assert {unit.path for unit in found.outside} == {
        "system.slice/a.service", "system.slice/system-v.slice/v@1.service",
        "user.slice/user-1.slice/user@1.service"}  # fmt: skip
    assert found.inside == {"b.service": "b-c"}
    assert found.homes == {"a.service": Home("a"), "v@.service": Home("v", pending=True)}
    assert found.home_of("v@1.service") == Home("v", pending=True)


def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropin, "UNITS", tmp_path / "none")
    found = look(tmp_path / "none", ["a"])
    assert (found.outside, found.inside, found.homes) == ((), {}, {})
