"""Drop-ins in a directory that stands for /etc/systemd/system."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.enrol import dropin, systemctl
from penstock.enrol.dropin import Hide
from penstock.errors import PenstockError


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(dropin, "UNITS", tmp_path)
    return tmp_path


@pytest.fixture
def reloads(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each daemon-reload."""
    made: list[None] = []
    monkeypatch.setattr(systemctl, "daemon_reload", lambda: made.append(None))
    monkeypatch.setattr(systemctl, "available", lambda: True)
    return made


def files(units: Path) -> set[str]:
    return {str(path.relative_to(units)) for path in units.rglob("*")}


def test_text() -> None:
    lines = dropin.text("open-webui.service", "open-webui").splitlines()
    assert lines[0] == "# Written by `penstock protect`: open-webui.service belongs to the workload open-webui."
    assert "Slice=penstock-open\\x2dwebui.slice" in lines
    assert "CapabilityBoundingSet=~CAP_NET_RAW CAP_NET_ADMIN CAP_SYS_ADMIN" in lines
    assert "Requires=penstock-floor.service" in lines
    assert any(line.startswith("After=penstock-floor.service ") for line in lines)
    assert not any("penstock.service" in line for line in lines if not line.startswith("Wants="))


def hidden(text: str) -> dict[str, list[str]]:
    """The values of mount settings, by key."""
    settings = [line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#")]
    return {key: value.split() for key, value in settings if "Paths" in key or "System" in key}


def test_what_answers_look_ups_past_the_rules_is_hidden() -> None:
    assert hidden(dropin.text("a.service", "a")) == {
        "InaccessiblePaths": ["-/run/dbus", "-/run/nscd", "-/run/avahi-daemon"],
        "TemporaryFileSystem": ["/run/systemd/resolve:ro"],
        "BindReadOnlyPaths": ["-/run/systemd/resolve/resolv.conf", "-/run/systemd/resolve/stub-resolv.conf"],
    }


def test_nothing_is_made_where_it_is_not_or_may_fail() -> None:
    for hidden_lines in (Hide.OWN_ROOT, Hide.NO_RESOLVED):
        said = hidden(dropin.text("a.service", "a", hidden_lines))
        assert said.keys() == {"InaccessiblePaths"}
        paths = [path.removeprefix("-").removeprefix("+") for path in said["InaccessiblePaths"]]
        assert paths == ["/run/dbus", "/run/nscd", "/run/avahi-daemon", "/run/systemd/resolve/io.systemd.Resolve"]


def test_what_is_hidden_depends_on_unit_and_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropin, "RESOLVE", tmp_path / "resolve")
    assert (dropin.hide(False), dropin.hide(True)) == (Hide.NO_RESOLVED, Hide.OWN_ROOT)
    (tmp_path / "resolve").mkdir()
    assert (dropin.hide(False), dropin.hide(True)) == (Hide.RESOLVED, Hide.OWN_ROOT)


@pytest.mark.parametrize("armed", [False, True])
def test_one_of_another_version_is_written_anew_where_it_is(
    units: Path, reloads: list[None], armed: bool
) -> None:
    dropin.write_pending("a.service", "a")
    if armed:
        dropin.arm({"a"})
        reloads.clear()
    before = dropin.of_unit("a.service")
    assert before is not None
    assert not dropin.is_stale(before)
    assert dropin.is_stale(before, Hide.OWN_ROOT)
    before.path.write_text(before.path.read_text().splitlines(keepends=True)[0] + "[Service]\nNice=1\n")
    assert dropin.is_stale(before)
    dropin.renew(before)
    assert dropin.of_unit("a.service") == before
    assert before.path.read_text() == dropin.text("a.service", "a")
    assert len(reloads) == int(armed)


def test_it_waits_until_it_is_armed(units: Path, reloads: list[None]) -> None:
    assert dropin.write_pending("a.service", "a")
    assert dropin.write_pending("vllm@.service", "vllm")
    assert files(units) == {
        "a.service.d",
        "a.service.d/50-penstock.conf.pending",
        "vllm@.service.d",
        "vllm@.service.d/50-penstock.conf.pending",
    }
    assert dropin.arm({"other"}) == []
    assert reloads == []
    assert dropin.arm({"a", "vllm"}) == [("a.service", "a"), ("vllm@.service", "vllm")]
    assert len(reloads) == 1
    assert [(one.unit, one.workload, one.armed) for one in dropin.find()] == [
        ("a.service", "a", True),
        ("vllm@.service", "vllm", True),
    ]
    assert dropin.armed_path("a.service").read_text() == dropin.text("a.service", "a")
    assert dropin.armed_path("a.service").stat().st_mode & 0o777 == 0o644
    assert dropin.arm({"a", "vllm"}) == []
    assert len(reloads) == 1


def test_again_is_harmless(units: Path, reloads: list[None]) -> None:
    dropin.write_pending("a.service", "a")
    assert not dropin.write_pending("a.service", "a")
    dropin.arm({"a"})
    assert not dropin.write_pending("a.service", "a")
    assert files(units) == {"a.service.d", "a.service.d/50-penstock.conf"}


def test_a_unit_belongs_to_one_workload(units: Path) -> None:
    dropin.write_pending("a.service", "a")
    with pytest.raises(PenstockError, match=r"puts a\.service into the workload a"):
        dropin.write_pending("a.service", "b")


@pytest.mark.parametrize("name", ["50-penstock.conf", "50-penstock.conf.pending"])
@pytest.mark.parametrize("kind", ["file", "empty", "directory", "link"])
def test_somebody_elses_file_is_left_alone(units: Path, reloads: list[None], name: str, kind: str) -> None:
    place = units / "a.service.d" / name
    place.parent.mkdir()
    match kind:
        case "directory":
            place.mkdir()
        case "link":
            place.symlink_to("/nowhere")
        case _:
            place.write_text("# Written by penstock\n[Service]\nSlice=x.slice\n" if kind == "file" else "")
    before = files(units)
    with pytest.raises(PenstockError, match="is not from penstock") as caught:
        dropin.write_pending("a.service", "a")
    assert caught.value.where == str(place)
    assert [*dropin.find(), *dropin.arm({"a"}), *dropin.remove()] == []
    assert (files(units), reloads) == (before, [])


def test_arming_writes_over_nobody(units: Path, reloads: list[None]) -> None:
    dropin.write_pending("a.service", "a")
    dropin.armed_path("a.service").write_text("[Service]\n")
    with pytest.raises(PenstockError, match="is not from penstock"):
        dropin.arm({"a"})
    assert dropin.armed_path("a.service").read_text() == "[Service]\n"
    assert dropin.pending_path("a.service").exists()


def test_a_copy_under_another_unit_is_not_ours(units: Path) -> None:
    dropin.write_pending("a.service", "a")
    other = dropin.armed_path("b.service")
    other.parent.mkdir()
    other.write_text(dropin.text("a.service", "a"))
    assert [one.unit for one in dropin.find()] == ["a.service"]


def test_removed_is_what_is_ours(units: Path, reloads: list[None]) -> None:
    dropin.write_pending("a.service", "a")
    dropin.write_pending("b.service", "b")
    (units / "b.service.d/10-own.conf").write_text("[Service]\n")
    (units / "c.service.d").mkdir()
    dropin.arm({"a"})
    assert [(one.unit, one.armed) for one in dropin.remove()] == [("a.service", True), ("b.service", False)]
    assert files(units) == {"b.service.d", "b.service.d/10-own.conf", "c.service.d"}
    assert len(reloads) == 2
    assert dropin.remove() == []
    assert len(reloads) == 2


def test_no_directory_of_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropin, "UNITS", Path("/nowhere"))
    assert dropin.find() == []
