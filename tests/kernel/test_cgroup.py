"""Cgroups: on directories that only look like a tree, and on a real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.core.slices import RESOLVER, SLICE, scope_of, slice_of
from penstock.demo.lab import Lab
from penstock.errors import PenstockError
from penstock.kernel import cgroup

MOUNTINFO = (
    "25 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    "30 25 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n"
    "31 25 0:26 /sub\\040tree /mnt/a\\040b rw - cgroup2 none rw\n"
    "32 25 0:27 / /mnt/cgroup2 rw - tmpfs cgroup2 rw\n"
)


def test_mounts_of_cgroup2_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "m").write_text(MOUNTINFO)
    assert cgroup.mounts(str(tmp_path / "m")) == [
        cgroup.Mount("/", Path("/sys/fs/cgroup")),
        cgroup.Mount("/sub tree", Path("/mnt/a b")),
    ]


def test_the_level_is_counted_from_the_root() -> None:
    assert [cgroup.depth_of(path) for path in ("/", "/a", "/a/b")] == [1, 2, 3]


def test_the_path_of_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "in", tmp_path / "in/deep"):
        (place / "cgroup.procs").touch()
    found = [cgroup.Mount("/", tmp_path), cgroup.Mount("/x", tmp_path / "in")]
    monkeypatch.setattr(cgroup, "mounts", lambda: found)
    assert cgroup.path_of(tmp_path) == "/"
    assert cgroup.path_of(tmp_path / "in/deep") == "/x/deep", "the inner mount"
    with pytest.raises(PenstockError, match="not in a cgroup v2 tree"):
        cgroup.path_of(tmp_path / "none")
    found[:] = [cgroup.Mount("/../..", tmp_path)]
    with pytest.raises(PenstockError, match="outside of this process's cgroup namespace"):
        cgroup.path_of(tmp_path)


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ("/sys/fs/cgroup", "penstock.slice"),
        ("/sys/fs/cgroup/lab", "lab/penstock.slice"),
        ("/sys/fs/cgroup/unified", "unified/penstock.slice"),
        ("/mnt/a b", "../../../mnt/a b/penstock.slice"),
    ],
)
def test_the_slice_as_nft_finds_it(tree: str, path: str) -> None:
    assert cgroup.slice_for_nft(Path(tree)) == path


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\x1bb"])
def test_a_path_that_nft_cannot_read_is_refused(name: str) -> None:
    with pytest.raises(PenstockError, match="nft cannot read"):
        cgroup.slice_for_nft(Path("/sys/fs/cgroup") / name)


def test_slices_are_made_once_and_looked_up(tmp_path: Path) -> None:
    cgroup.make(tmp_path, ("a", "b-c"))
    before = cgroup.ids(tmp_path, ("a", "b-c", "gone"))
    cgroup.make(tmp_path, ("a", "b-c"))
    assert cgroup.ids(tmp_path, ("a", "b-c")) == before
    assert before.keys() == {SLICE, slice_of("a"), slice_of("b-c")}
    assert before[SLICE] == (tmp_path / SLICE).stat().st_ino


def test_the_resolvers_is_made_when_it_is_wanted(tmp_path: Path) -> None:
    cgroup.make(tmp_path, ("a",))
    assert not (tmp_path / RESOLVER).exists()
    cgroup.make(tmp_path, ("a",), resolver=True)
    found = cgroup.ids(tmp_path, ("a",))
    assert found.keys() == {SLICE, RESOLVER, slice_of("a")}
    assert found[RESOLVER] == (tmp_path / RESOLVER).stat().st_ino
    assert cgroup.our_slices(tmp_path) == found
    assert cgroup.foreign(tmp_path) == []


def test_slices_may_be_entered_by_users_whatever_our_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        cgroup.make(tmp_path, ("a",))
    finally:
        os.umask(before)
    assert [oct((tmp_path / path).stat().st_mode & 0o777) for path in (SLICE, slice_of("a"))] == ["0o755"] * 2


def test_a_slice_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / SLICE).touch()
    with pytest.raises(PenstockError, match="cannot be made: Not a directory"):
        cgroup.make(tmp_path, ("a",))


def test_strangers_in_our_slice(tmp_path: Path) -> None:
    assert cgroup.foreign(tmp_path) == []
    cgroup.make(tmp_path, ("a",))
    (tmp_path / SLICE / "proof-7").mkdir()
    (tmp_path / SLICE / "cgroup.procs").touch()
    assert cgroup.foreign(tmp_path) == []
    (tmp_path / SLICE / "mine").mkdir()
    assert cgroup.foreign(tmp_path) == ["mine"]


def test_processes_of_the_whole_subtree_and_no_more_than_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/cgroup.procs").write_text("1\n2\n")
    (tmp_path / "a/b/cgroup.procs").write_text("3\n")
    assert sorted(cgroup.processes(tmp_path / "a")) == [1, 2, 3]
    assert cgroup.processes(tmp_path / "gone") == []
    monkeypatch.setattr(cgroup, "MAX_PROCESSES", 2)
    assert cgroup.processes(tmp_path / "a") == [1, 2]


def test_scopes_of_the_dead_are_swept(tmp_path: Path) -> None:
    dead, alive = scope_of("w", 4194305), scope_of("w", os.getpid())
    other = f"{slice_of('w')}/mine"
    for path in (dead, alive, other):
        (tmp_path / path).mkdir(parents=True)
    cgroup.sweep(tmp_path, "w")
    cgroup.sweep(tmp_path, "none")
    assert [(tmp_path / path).exists() for path in (dead, alive, other)] == [False, True, True]


@pytest.mark.root
def test_a_real_tree(lab: Lab) -> None:
    def body(tree: Path) -> None:
        assert cgroup.path_of(tree) == f"/{tree.name}"
        cgroup.make(tree, ("w",))
        place = tree / slice_of("w")
        assert cgroup.ids(tree, ("w",))[slice_of("w")] == place.stat().st_ino
        (place / "cgroup.procs").write_text("0")
        assert len(cgroup.processes(place)) == 1
        scope = tree / scope_of("w", 4194305)
        scope.mkdir()
        cgroup.sweep(tree, "w")
        assert not scope.exists()
        assert place.exists()

    lab.host.call(body, lab.cgroup)


# --- units of the host ---


def names(tree: Path) -> set[str]:
    return {unit.path for unit in cgroup.units(tree)}


def test_units_are_in_slices_and_nowhere_else(tmp_path: Path) -> None:
    there = [
        "init.scope",
        "system.slice/x.service",
        "system.slice/system-vllm.slice/vllm@a.service",
        "user.slice/user-1000.slice/session-3.scope",
        "user.slice/user-1000.slice/user@1000.service",
        "machine.slice/machine-a.scope",
    ]
    not_units = [
        "user.slice/user-1000.slice/user@1000.service/app.slice/x.service",
        "user.slice/user-1000.slice/user@1000.service/x.service",
        "system.slice/x.service/y.service",
        "system.slice/x.service/y.slice/z.service",
        "machine.slice/machine-a.scope/system.slice/x.service",
        "docker/0123/x.service",
        "system.slice/x.mount",
        "penstock.slice/penstock-a.slice/x.service",
        "penstock.slice/run-1.scope",
    ]
    for path in (*there, *not_units):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
    (tmp_path / "system.slice/file.service").touch()
    (tmp_path / "system.slice/link.service").symlink_to(tmp_path / "docker")
    (tmp_path / "link.slice").symlink_to(tmp_path / "docker/0123")
    assert names(tmp_path) == set(there)
    found = {unit.path: unit for unit in cgroup.units(tmp_path)}[there[2]]
    assert (found.name, found.id) == ("vllm@a.service", (tmp_path / there[2]).stat().st_ino)


def test_a_name_that_systemd_had_to_change(tmp_path: Path) -> None:
    (tmp_path / "system.slice/_cgroup.service").mkdir(parents=True)
    [unit] = cgroup.units(tmp_path)
    assert (unit.name, unit.path) == ("cgroup.service", "system.slice/_cgroup.service")


def test_a_host_of_too_many_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        (tmp_path / f"{number}.slice/x.service").mkdir(parents=True)
    monkeypatch.setattr(cgroup, "MAX_SLICES", 4)
    assert len(cgroup.slices(tmp_path)) == 4
    monkeypatch.setattr(cgroup, "MAX_UNITS", 2)
    assert len(cgroup.units(tmp_path)) == 2


def test_our_slices(tmp_path: Path) -> None:
    assert cgroup.our_slices(tmp_path) == {}
    cgroup.make(tmp_path, ("a", "b-c"))
    (tmp_path / slice_of("a") / "x.service").mkdir()
    (tmp_path / SLICE / "proof-1").mkdir()
    found = cgroup.our_slices(tmp_path)
    assert found == cgroup.ids(tmp_path, ("a", "b-c"))
    (tmp_path / slice_of("b-c")).rmdir()
    (tmp_path / slice_of("b-c")).mkdir()
    assert cgroup.our_slices(tmp_path).keys() == found.keys()


def test_ids_of_places_that_are_there(tmp_path: Path) -> None:
    place = tmp_path / "system.slice/x.service"
    place.mkdir(parents=True)
    assert cgroup.ids(tmp_path, (), ["system.slice/x.service", "gone"]) == {
        "system.slice/x.service": place.stat().st_ino
    }


def test_containers_of_a_unit_and_as_a_unit(tmp_path: Path) -> None:
    number = "0123456789abcdef" * 4
    inside = f"x.service/libpod-payload-{number}/deeper"
    for name in (inside, "x.service/runtime", f"docker-{number}.scope", "y.service"):
        (tmp_path / "a.slice" / name).mkdir(parents=True)
    counts = {name: cgroup.containers(tmp_path, f"a.slice/{name}") for name in ("x.service", "y.service", "gone")}
    assert counts == {"x.service": 1, "y.service": 0, "gone": 0}
    assert cgroup.containers(tmp_path, f"a.slice/docker-{number}.scope") == 1


def test_groups_of_a_workload_and_who_owns_them(tmp_path: Path) -> None:
    assert cgroup.groups(tmp_path, "a") == []
    assert cgroup.owner(tmp_path, slice_of("a")) is None
    cgroup.make(tmp_path, ("a",))
    for name in ("x.service", "run-1.scope"):
        (tmp_path / slice_of("a") / name / "below").mkdir(parents=True)
    (tmp_path / slice_of("a") / "cgroup.procs").touch()
    assert cgroup.groups(tmp_path, "a") == [f"{slice_of('a')}/run-1.scope", f"{slice_of('a')}/x.service"]
    assert cgroup.owner(tmp_path, slice_of("a")) == os.geteuid()


@pytest.mark.root
def test_an_owner_who_is_not_root(tmp_path: Path) -> None:
    cgroup.make(tmp_path, ("a",))
    (tmp_path / slice_of("a") / "cgroup.procs").touch()
    os.chown(tmp_path / slice_of("a") / "cgroup.procs", 1000, 1000)
    assert cgroup.owner(tmp_path, slice_of("a")) == 1000
