"""The steps of an uninstallation, and their order, in a directory that stands for the root of a host."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.enrol import dropin, installed, systemctl, uninstall
from penstock.enrol.installed import Places, Resident
from penstock.errors import PenstockError
from penstock.kernel import nft_removal

FILES = (
    "usr/lib/systemd/system/penstock.service",
    "usr/lib/systemd/system/penstock-floor.service",
    "usr/share/man/man8/penstock.8",
    "usr/lib/penstock/releases/1/complete",
    "usr/lib/penstock/floor",
    "etc/penstock/penstock.yaml",
    "var/lib/penstock/applied.json",
    "var/log/penstock/blocks.jsonl",
    "run/penstock/lock",
    "run/penstock-metrics/penstock.prom",
)
KEPT = ("etc/hosts", "usr/lib/systemd/system/ssh.service")


class Systemd:
    """Stands for systemctl: what it was told, and what it says of units."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.active = {"penstock.service", "penstock-floor.service", "penstock.slice", "penstock-ml.slice"}
        self.required_by: dict[str, str] = {"penstock.slice": '"penstock-a\\\\x2db.slice" penstock-ml.slice'}
        self.slices = ["penstock.slice", "penstock-ml.slice", "penstock-a\\x2db.slice"]
        self.main_pid = "1"
        self.table = True

    def run(self, *arguments: str, timeout: float = 0) -> str:
        if arguments[0] == "list-units":
            return "".join(f"{name} loaded active active text\n" for name in self.slices)
        self.calls.append(arguments)
        self.active.discard(arguments[-1])
        return ""

    def show(self, unit: str, properties: tuple[str, ...]) -> dict[str, str]:
        said = {
            "LoadState": "loaded" if unit in self.active else "not-found",
            "ActiveState": "active" if unit in self.active else "inactive",
            "RequiredBy": self.required_by.get(unit, ""),
            "MainPID": self.main_pid,
        }
        return {name: said[name] for name in properties}

    def daemon_reload(self) -> None:
        self.calls.append(("daemon-reload",))

    def delete_table(self) -> None:
        self.calls.append(("delete table",))
        self.table = False


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Systemd:
    made = Systemd()
    for name in ("run", "show", "daemon_reload"):
        monkeypatch.setattr(systemctl, name, getattr(made, name))
    monkeypatch.setattr(systemctl, "available", lambda: True)
    monkeypatch.setattr(nft_removal, "is_there", lambda: made.table)
    monkeypatch.setattr(nft_removal, "delete", made.delete_table)
    return made


@pytest.fixture
def places(tmp_path: Path, systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A host on which everything is installed, and one unit governed."""
    for name in (*FILES, *KEPT):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "usr/bin").mkdir()
    (tmp_path / "usr/bin/penstock").symlink_to("/usr/lib/penstock/current/bin/penstock")
    listed = [f"/{name}" for name in FILES if name.startswith("usr/")]
    (tmp_path / "usr/lib/penstock/manifest").write_text("\n".join(listed) + "\n/usr/share/man/man8/\n")
    units = tmp_path / "etc/systemd/system"
    (units / "multi-user.target.wants").mkdir(parents=True)
    (units / "multi-user.target.wants/penstock.service").symlink_to("/usr/lib/systemd/system/penstock.service")
    monkeypatch.setattr(dropin, "UNITS", units)
    dropin.write_pending("ml.service", "ml")
    dropin.arm({"ml"})
    (tmp_path / "sys/fs/cgroup/penstock.slice/penstock-ml.slice").mkdir(parents=True)
    systemd.calls.clear()
    return Places(tmp_path)


def take(places: Places, purge: bool = False) -> list[str]:
    """All steps; their texts."""
    made = uninstall.steps(places, purge)
    for step in made:
        step.do()
    return [step.text for step in made]


def left(places: Places) -> set[str]:
    found = {str(p.relative_to(places.root)) for p in places.root.rglob("*") if not p.is_dir() or p.is_symlink()}
    return found - set(KEPT)


def test_looking_changes_nothing(places: Places, systemd: Systemd) -> None:
    before = left(places)
    assert len(uninstall.steps(places, purge=True)) == 7
    assert (left(places), systemd.calls) == (before, [])


def test_everything_goes_but_what_the_operator_wrote(places: Places) -> None:
    take(places)
    assert left(places) == {"etc/penstock/penstock.yaml", "var/log/penstock/blocks.jsonl"}
    units = "etc/systemd/system"
    gone = ("usr/lib/penstock", "usr/share/man/man8", f"{units}/ml.service.d", "sys/fs/cgroup/penstock.slice")
    assert [name for name in gone if (places.root / name).exists()] == []
    assert all((places.root / name).exists() for name in KEPT)


def test_purge_removes_that_too(places: Places) -> None:
    take(places, purge=True)
    assert left(places) == set()


def test_the_drop_ins_of_a_fleet_stay(places: Places) -> None:
    theirs = "usr/lib/penstock/rules.d/fleet.yaml"
    (places.root / theirs).parent.mkdir()
    (places.root / theirs).write_text("x")
    texts = take(places, purge=True)
    assert texts[-1].endswith("but for rules.d in it")
    assert left(places) == {theirs}
    assert uninstall.steps(places, purge=True) == []


def test_the_order(places: Places, systemd: Systemd) -> None:
    """Nobody needs the floor, then nobody repairs the table, then nobody loads it again, then it goes."""
    take(places)
    assert systemd.calls == [
        ("daemon-reload",),
        ("stop", "--", "penstock.service"),
        ("daemon-reload",),
        ("stop", "--", "penstock-floor.service"),
        ("delete table",),
        ("stop", "--", "penstock-a\\x2db.slice"),
        ("stop", "--", "penstock-ml.slice"),
        ("stop", "--", "penstock.slice"),
    ]


@pytest.mark.parametrize("steps", range(1, 8))
def test_interrupted_after_any_step_it_is_completed_later(places: Places, steps: int) -> None:
    for step in uninstall.steps(places, purge=True)[:steps]:
        step.do()
    take(places, purge=True)
    assert left(places) == set()


def test_a_second_time_there_is_nothing(places: Places) -> None:
    take(places)
    assert uninstall.steps(places, purge=False) == []
    assert len(uninstall.steps(places, purge=True)) == 1, "what was kept"


def test_a_unit_that_needs_the_floor_by_itself_stops_it(places: Places, systemd: Systemd) -> None:
    systemd.required_by["penstock-floor.service"] = "ml.service mine.service"
    before = left(places)
    with pytest.raises(PenstockError, match=r"^mine\.service: requires penstock-floor\.service [^\n]*$"):
        uninstall.steps(places, purge=False)
    assert (left(places), systemd.calls) == (before, [])


def test_governed_units_need_the_floor_until_their_drop_in_goes(places: Places, systemd: Systemd) -> None:
    dropin.write_pending("many@.service", "ml")
    dropin.arm({"ml"})
    systemd.required_by["penstock-floor.service"] = "ml.service many@1.service"
    steps = uninstall.steps(places, purge=False)
    steps[0].do()
    with pytest.raises(PenstockError, match=r"requires penstock-floor\.service"):  # by a file of its own as well
        steps[2].do()
    assert (places.root / "usr/lib/systemd/system/penstock-floor.service").exists()


def test_a_slice_that_somebody_requires_is_not_stopped(places: Places, systemd: Systemd) -> None:
    """Its services would be stopped with it."""
    systemd.required_by["penstock-ml.slice"] = "mine.service"
    take(places)
    stopped = {call[-1] for call in systemd.calls if call[0] == "stop"}
    assert stopped.isdisjoint({"penstock-ml.slice", "penstock.slice"})


def test_what_is_occupied_is_removed_later(
    places: Places, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(path: str) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(os, "rmdir", busy)
    places.watch.mkdir(parents=True)
    uninstall._remove_cgroups(places)
    assert systemd.calls[-2:] == [
        ("start", "--", "penstock-leftovers.path"), ("start", "--", "penstock-leftovers.service")
    ]  # fmt: skip
    names = {path.name for path in places.watch.iterdir()}
    assert names == {"penstock-leftovers.path", "penstock-leftovers.service"}


def test_a_resolver_that_is_left_is_ended(places: Places, systemd: Systemd) -> None:
    with subprocess.Popen(["sleep", "60"]) as left, subprocess.Popen(["sleep", "60"]) as other:
        for name, process in (("resolver", left), ("penstock-ml.slice", other)):
            (places.cgroup / name).mkdir(parents=True, exist_ok=True)
            (places.cgroup / name / "cgroup.procs").write_text(f"{process.pid}\n")
        places.watch.mkdir(parents=True, exist_ok=True)
        uninstall._remove_cgroups(places)
        assert left.wait(5) == -signal.SIGKILL
        assert other.poll() is None
        other.kill()


@pytest.fixture
def held(places: Places) -> Iterator[None]:
    """As a daemon holds it."""
    descriptor = os.open(places.run / "lock", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


@pytest.mark.usefixtures("held")
def test_a_daemon_in_a_terminal_is_not_fought(places: Places, systemd: Systemd) -> None:
    systemd.main_pid = "0"
    with pytest.raises(PenstockError, match="no service; end it"):
        uninstall.steps(places, purge=False)


@pytest.mark.usefixtures("held")
def test_the_service_may_run(places: Places) -> None:
    assert uninstall.steps(places, purge=False)


def test_a_symbolic_link_is_not_followed(places: Places, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    (places.state / "applied.json").unlink()
    places.state.rmdir()
    places.state.symlink_to(precious)
    with pytest.raises(PenstockError, match="cannot be removed"):
        take(places)
    assert (precious / "file").exists()


def test_consequences() -> None:
    lines = uninstall.consequences([
        Resident("a.service", "a", 1, True), Resident("run-7.scope", "", 2, False)
    ])  # fmt: skip
    assert lines == [
        "a.service (workload a, 1 process) stays in its slice until its restart",
        "run-7.scope (workload none, 2 processes) stays in its slice until its end",
    ]


def test_places() -> None:
    assert installed.Places().cgroup == Path("/sys/fs/cgroup/penstock.slice")
