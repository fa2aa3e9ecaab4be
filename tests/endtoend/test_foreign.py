"""Another root works against the daemon: noticed, repaired, recorded; and nothing of others is touched."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.running import Running, timed
from governed import eventually
from pace import slow
from penstock.core.snapshot import Snapshot
from penstock.demo.probe import tcp

pytestmark = pytest.mark.root

RULES = '[{to: [198.51.100.10, "2001:db8:51::10"], ports: [80, 443]}]'
OTHERS = """
table inet other {
  set allowed { type ipv4_addr; flags timeout; elements = { 192.0.2.77 timeout 1h }; }
  chain output { type filter hook output priority 0; policy accept; ct state established counter accept; }
}
table ip filter {
  chain INPUT { type filter hook input priority 0; policy accept; tcp dport 22 accept; }
}
"""
CHANGES = {
    "an element less": "delete element inet penstock out4_a { 198.51.100.10 . 6 . 80 }",
    "an element more": "add element inet penstock out4_a { 203.0.113.66 . 6 . 80 }",
    "a chain emptied": "flush chain inet penstock out_a",
    "an accept in front": "insert rule inet penstock out_a accept",
    "a workload unbound": "flush map inet penstock MAP",
    "the table gone": "delete table inet penstock",
    "everything flushed": "flush ruleset",
    "the table emptied": "flush table inet penstock",
    "the table dormant": "add table inet penstock { flags dormant; }",
}
REPAIR = slow(1.0)  # seconds


def test_names_of_the_table(running: Running) -> None:
    """Those that the changes below use."""
    running.rules("a", RULES)
    running.up()
    held = running.snapshot()
    assert "out_a" in held.chains
    assert "out4_a" in held.sets


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_repaired(change: str, running: Running) -> None:
    running.rules("a", RULES)
    running.up()
    good = _table(running)
    script = CHANGES[change].replace("MAP", next(iter(good.bindings)))
    running.nft(script)
    start = time.monotonic()
    eventually(lambda: _table(running) == good)
    seconds = time.monotonic() - start
    eventually(lambda: "foreign-change" in running.findings())
    eventually(lambda: running.status()["egress"] == "enforcing")  # once the repair was read back
    print(f"{change}: repaired {seconds * 1000:.0f} ms after nft ended")
    assert seconds < REPAIR
    assert "'nft'" in running.messages()


@pytest.mark.parametrize("change", CHANGES)
def test_changes_while_no_daemon_runs(change: str, running: Running) -> None:
    running.rules("a", RULES)
    running.up()
    good = _table(running)
    running.stop()
    running.nft(CHANGES[change].replace("MAP", next(iter(good.bindings))))
    assert _table(running) != good
    running.up()
    assert _table(running) == good


def test_slices_made_again_while_no_daemon_runs(running: Running) -> None:
    running.rules("a", RULES)
    running.up()
    running.stop()
    for path in (running.path(), running.path().parent):
        running.asker(os.rmdir, path)
    running.up()
    assert running.cgroup_id() in _bound(running)
    assert len(_bound(running)) == 2


def test_one_rule_deleted(running: Running) -> None:
    running.rules("a", RULES)
    running.up()
    good = _table(running)
    listing = running.lab.host.run(["nft", "-a", "list", "chain", "inet", "penstock", "out_a"]).stdout
    last = next(line for line in reversed(listing.splitlines()) if "# handle" in line)
    running.nft(f"delete rule inet penstock out_a handle {last.rpartition(' ')[2]}")
    seconds, _ = timed(eventually, lambda: _table(running) == good)
    assert seconds < REPAIR
    eventually(lambda: "foreign-change" in running.findings())


def test_again_and_again(running: Running) -> None:
    """Whoever flushes once more right after the repair finds it repaired again."""
    running.rules("a", RULES)
    running.up()
    good = _table(running)
    worst = 0.0
    for _ in range(4):
        running.nft("flush ruleset")
        seconds, _ = timed(eventually, lambda: _table(running) == good)
        worst = max(worst, seconds)
    print(f"flushed four times in a row: repaired {worst * 1000:.0f} ms later at the latest")
    assert worst < REPAIR


def test_what_belongs_to_others_stays(running: Running) -> None:
    running.nft(OTHERS)
    before = _of_others(running)
    running.rules("a", RULES)
    running.up()
    running.rules("b", RULES)
    running.ask("apply")
    running.nft("delete table inet penstock")
    eventually(lambda: running.in_force() and "foreign-change" in running.findings())
    assert _of_others(running) == before
    assert running.stop() == 0
    assert _of_others(running) == before
    running.nft("delete table inet other; delete table ip filter")


def test_slice_made_again(running: Running) -> None:
    """A slice of the same name is another cgroup: until it is bound it may reach nothing, not everything."""
    running.rules("a", RULES)
    running.up()
    before = running.cgroup_id()
    running.asker(_make_again, running.path())
    assert running.cgroup_id() != before
    with running.actor() as workload:
        stranger = running.lab.remote["stranger"]
        outcomes = [workload(_call, stranger.address(family)) for family in (4, 6)]
    assert outcomes == ["ECONNREFUSED", "ECONNREFUSED"]
    seconds, _ = timed(eventually, lambda: running.cgroup_id() in _bound(running))
    print(f"a new slice is bound after {seconds:.2f} s")
    assert seconds < slow(3)
    eventually(running.in_force)
    assert "foreign-change" in running.findings()


@pytest.mark.parametrize("whole", [False, True], ids=["its slice", "all slices"])
def test_slice_removed(whole: bool, running: Running) -> None:
    running.rules("a", RULES)
    running.up()
    for path in (running.path(), *([running.path().parent] if whole else [])):
        running.asker(os.rmdir, path)
    seconds, _ = timed(eventually, lambda: running.asker(os.path.exists, running.path()))
    assert seconds < slow(3)
    eventually(running.in_force)
    assert "foreign-change" in running.findings()


def test_process_moved_out(running: Running) -> None:
    running.rules("a", RULES)
    running.up()
    with running.actor() as workload:
        eventually(lambda: running.status()["processes"] == 1)
        assert running.status()["enrolment"] == "slice"
        pid = workload(os.getpid)
        running.asker(_move, pid, running.lab.cgroup / "others.slice")
        seconds, _ = timed(eventually, lambda: running.status()["outside"] == 1)
        status = running.status()
        assert (status["egress"], status["ingress"], status["processes"]) == ("degraded", "degraded", 0)
        assert "outside" in running.findings()
        assert seconds < slow(3)
    eventually(lambda: running.status()["outside"] == 0)
    assert running.status()["egress"] == "enforcing"


def test_foreign_table_of_our_name(running: Running) -> None:
    running.nft("table inet penstock { chain mine { type filter hook output priority 0; counter; }; }")
    _refused_without_a_trace(running, "table `inet penstock`")


def test_foreign_cgroup(running: Running) -> None:
    place = running.lab.cgroup / "penstock.slice/other.service"
    running.asker(os.makedirs, place)
    _refused_without_a_trace(running, "other.service")


@pytest.mark.parametrize("which", ["state", "run"])
def test_foreign_file(which: str, running: Running) -> None:
    directory: Path = getattr(running, which)
    directory.mkdir(parents=True)
    (directory / "thesis.txt").write_text("mine")
    _refused_without_a_trace(running, "thesis.txt")
    assert (directory / "thesis.txt").read_text() == "mine"


def _refused_without_a_trace(running: Running, word: str) -> None:
    running.rules("a", RULES)
    before, cgroups = running.ruleset(), running.asker(_cgroups, running.lab.cgroup)
    text = running.refused()
    assert word in text
    assert text.count("\n") == 1
    assert ";" in text  # and what to do
    assert running.ruleset() == before
    assert running.asker(_cgroups, running.lab.cgroup) == cgroups


def _table(running: Running) -> Snapshot:
    return replace(running.snapshot(), generation=0)


def _of_others(running: Running) -> list[str]:
    tables = running.ruleset().split("\ntable ")
    lines = [table for table in tables if "penstock" not in table]
    return sorted(" ".join(word for word in table.split() if "ms" not in word) for table in lines)


def _bound(running: Running) -> set[int]:
    snapshot = running.snapshot()
    return {cgroup for held in snapshot.bindings.values() for cgroup in held} | {*snapshot.slices.values()}


# --- in actors ---


def _make_again(path: Path) -> None:
    path.rmdir()
    path.mkdir()


def _move(pid: int, cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(str(pid))


def _cgroups(tree: Path) -> list[str]:
    return sorted(place for place, _, _ in os.walk(tree))


def _call(address: str) -> str:
    return tcp(address, 80).outcome
