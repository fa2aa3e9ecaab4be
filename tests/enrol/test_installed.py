"""What is found of an installation, in a directory that stands for the root of a host."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.enrol import installed
from penstock.enrol.installed import Places, Resident

MANIFEST = """\
# Every path that penstock installed, one a line.  A directory ends with a slash.
/usr/bin/penstock
/usr/lib/penstock/current
/usr/lib/penstock/examples/
/usr/lib/systemd/system/penstock.service
/usr/share/fish/
/usr/share/fish/vendor_completions.d/
/usr/share/fish/vendor_completions.d/penstock.fish
/etc/passwd
/usr/../etc/shadow
usr/relative
"""


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """With every file of the list there, and some that are none of its business."""
    for line in MANIFEST.splitlines()[1:]:
        path = tmp_path / line.lstrip("/")
        if line.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (tmp_path / "etc/shadow").touch()
    (tmp_path / "usr/lib/penstock/manifest").write_text(MANIFEST)
    return Places(tmp_path)


def shown(places: Places, paths: list[Path]) -> list[str]:
    return [str(path.relative_to(places.root)) for path in paths]


def test_paths_of_the_list(places: Places) -> None:
    """Deepest first; the program and the library are for later, and nothing but what is below /usr counts."""
    files, directories = installed.paths(places)
    assert shown(places, files) == [
        "usr/share/fish/vendor_completions.d/penstock.fish",
        "usr/lib/systemd/system/penstock.service",
    ]
    assert shown(places, directories) == ["usr/share/fish/vendor_completions.d", "usr/share/fish"]


def test_without_the_list_units_are_known(places: Places) -> None:
    (places.library / "manifest").unlink()
    files, _ = installed.paths(places)
    assert sorted(shown(places, files)) == [
        "usr/lib/systemd/system/penstock.service",
        "usr/share/fish/vendor_completions.d/penstock.fish",
    ]


def test_nothing_there(tmp_path: Path) -> None:
    places = Places(tmp_path)
    assert installed.paths(places) == ([], [])
    assert installed.links(places) == ([], [])
    assert installed.residents(places) == []
    assert not installed.is_ours(places.program)


def test_links_are_ours_alone(tmp_path: Path) -> None:
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "penstock.service").symlink_to("/usr/lib/systemd/system/penstock.service")
    (wants / "ssh.service").symlink_to("/usr/lib/systemd/system/ssh.service")
    later = tmp_path / "etc/systemd/system/ufw.service.wants"
    later.mkdir()
    assert installed.links(Places(tmp_path)) == ([wants / "penstock.service"], [later])


@pytest.mark.parametrize(
    ("target", "ours"),
    [("/usr/lib/penstock/current/bin/penstock", True), ("/usr/lib/penstocked/x", False), ("/opt/penstock", False)],
)
def test_whose_the_program_is(tmp_path: Path, target: str, ours: bool) -> None:
    program = tmp_path / "penstock"
    program.symlink_to(target)
    assert installed.is_ours(program) == ours


def test_a_file_of_somebody_else_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "penstock").write_text("#!/bin/sh\n")
    assert not installed.is_ours(tmp_path / "penstock")


def test_residents(tmp_path: Path) -> None:
    places = Places(tmp_path)
    for path, pids in {
        "": "1\n",
        "penstock-open\\x2dwebui.slice": "",
        "penstock-open\\x2dwebui.slice/webui.service": "",
        "penstock-open\\x2dwebui.slice/webui.service/a": "2\n3\n",
        "penstock-open\\x2dwebui.slice/webui.service/b": "4\n",
        "penstock-open\\x2dwebui.slice/run-77.scope": "77\n",
        "penstock-ml.slice/gone.service": "",
        "resolver": "6\n",
        "penstock-ml.slice/\x1b[31m.service": "5\n",
    }.items():
        (places.cgroup / path).mkdir(parents=True, exist_ok=True)
        (places.cgroup / path / "cgroup.procs").write_text(pids)
    assert installed.residents(places) == [
        Resident("penstock.slice", "", 1, False),
        Resident("\\x1b[31m.service", "ml", 1, True),
        Resident("run-77.scope", "open-webui", 1, False),
        Resident("webui.service", "open-webui", 3, True),
    ]
