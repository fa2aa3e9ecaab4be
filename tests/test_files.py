"""Reading a configuration directory: what counts, and what must not hang."""

import os
from pathlib import Path

import pytest

from penstock import files
from penstock.core.language.yaml_nodes import MAX_BYTES
from penstock.core.parse import parse
from penstock.errors import PenstockError
from penstock.files import find_file, read_config, read_presets


def test_only_rule_files_are_read(tmp_path: Path) -> None:
    for name in ("penstock.yaml", "rules.d/b.yaml", "rules.d/a.yaml", "penstock.d/n.yaml", "rules.d/.x.yaml",
                 "rules.d/a.yaml.bak", "rules.d/sub/c.yaml", "other.yaml"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    files = read_config(tmp_path)
    assert list(files) == ["penstock.yaml", "penstock.d/n.yaml", "rules.d/a.yaml", "rules.d/b.yaml"]
    assert files["rules.d/a.yaml"] == b"rules.d/a.yaml"


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    rules = tmp_path / "rules.d"
    rules.mkdir()
    os.mkfifo(rules / "a.yaml")
    (rules / "b.yaml").mkdir()
    (rules / "c.yaml").symlink_to(rules / "c.yaml")
    (rules / "d.yaml").symlink_to("/dev/zero")
    (rules / "e.yaml").symlink_to(rules / "missing")
    wrong: list[PenstockError] = []
    assert read_config(tmp_path, wrong) == {}
    assert [Path(error.where).name for error in wrong] == ["a.yaml", "b.yaml", "c.yaml", "d.yaml", "e.yaml"]
    with pytest.raises(PenstockError, match="not a regular file"):
        read_config(tmp_path)


def test_size_is_bounded(tmp_path: Path) -> None:
    with (tmp_path / "penstock.yaml").open("wb") as file:
        file.truncate(MAX_BYTES * 4)
    assert len(read_config(tmp_path)["penstock.yaml"]) == MAX_BYTES + 1


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(PenstockError, match="no such directory"):
        read_config(tmp_path / "x")


def test_presets_of_the_host_win(tmp_path: Path) -> None:
    shipped = read_presets()
    assert {"ollama-registry.yaml", "huggingface.yaml"} <= set(shipped)
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/huggingface.yaml").write_text("mine")
    assert read_presets(tmp_path) == {**shipped, "huggingface.yaml": b"mine"}
    assert find_file(tmp_path, "presets/huggingface.yaml") == tmp_path / "presets/huggingface.yaml"
    assert find_file(tmp_path, "presets/ray.yaml").read_bytes() == shipped["ray.yaml"]
    assert find_file(tmp_path, "presets/none.yaml") == tmp_path / "presets/none.yaml"


# --- layers: the vendor's drop-ins below those of the host ---


@pytest.fixture
def layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A configuration directory, and the vendor's that belongs to it."""
    own, vendor = tmp_path / "etc", tmp_path / "lib"
    for directory in (own, vendor):
        for part in files.DROP_INS:
            (directory / part).mkdir(parents=True)
    monkeypatch.setattr(files, "VENDORS", {own: vendor})
    return own, vendor


def test_drop_ins_of_the_vendor_come_in(layers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    own, vendor = layers
    (vendor / "penstock.yaml").write_text("not a drop-in")
    (vendor / "penstock.d/fleet.yaml").write_text("fleet")
    (vendor / "rules.d/a.yaml").write_text("vendor's")
    (vendor / "rules.d/b.yaml").write_text("vendor's")
    (own / "rules.d/b.yaml").write_text("mine")
    expected = {"penstock.d/fleet.yaml": b"fleet", "rules.d/a.yaml": b"vendor's", "rules.d/b.yaml": b"mine"}
    assert read_config(own) == expected
    assert find_file(own, "rules.d/a.yaml") == vendor / "rules.d/a.yaml"
    assert find_file(own, "rules.d/b.yaml") == own / "rules.d/b.yaml"
    assert find_file(own, "penstock.yaml") == own / "penstock.yaml"
    assert find_file(own, "rules.d/gone.yaml") == own / "rules.d/gone.yaml"
    monkeypatch.chdir(own)
    assert read_config(Path()) == expected
    assert read_config(vendor / "rules.d") == {}


def test_another_directory_stands_alone_unless_told(layers: tuple[Path, Path], tmp_path: Path) -> None:
    _, vendor = layers
    (vendor / "rules.d/a.yaml").write_text("vendor's")
    other = tmp_path / "other"
    other.mkdir()
    assert read_config(other) == {}
    assert list(read_config(other, vendor=vendor)) == ["rules.d/a.yaml"]
    assert find_file(other, "rules.d/a.yaml", vendor) == vendor / "rules.d/a.yaml"


def test_an_empty_file_masks(layers: tuple[Path, Path]) -> None:
    own, vendor = layers
    for name in ("a", "b"):
        (vendor / f"rules.d/{name}.yaml").write_text("vendor's")
    (own / "rules.d/a.yaml").touch()
    (own / "rules.d/b.yaml").symlink_to(os.devnull)
    (own / "rules.d/c.yaml").symlink_to(os.devnull)
    assert read_config(own) == {}


def test_an_empty_file_that_masks_nothing_is_a_mistake(layers: tuple[Path, Path]) -> None:
    own, vendor = layers
    (own / "rules.d/a.yaml").touch()
    (vendor / "rules.d/b.yaml").touch()
    read = read_config(own)
    assert read == {"rules.d/a.yaml": b"", "rules.d/b.yaml": b""}
    assert {problem.code for problem in parse(read).problems} == {"empty"}


def test_what_cannot_be_read_is_named_where_it_is(layers: tuple[Path, Path]) -> None:
    own, vendor = layers
    os.mkfifo(vendor / "rules.d/a.yaml")
    wrong: list[PenstockError] = []
    assert read_config(own, wrong) == {}
    assert [error.where for error in wrong] == [str(vendor / "rules.d/a.yaml")]


def test_drop_ins_of_a_fleet_are_one_policy(layers: tuple[Path, Path]) -> None:
    own, vendor = layers
    (own / "penstock.yaml").write_text("version: 1\nnetworks:\n  clients: {cidr: 10.30.0.0/16}\n")
    (vendor / "penstock.d/fleet.yaml").write_text("version: 1\nnetworks:\n  admin: {cidr: 10.20.0.0/16}\n")
    (own / "penstock.d/ports.yaml").write_text("version: 1\nhost: {admin_ports: [22]}\n")
    ingress = "[{from: [admin, clients], ports: [80]}]"
    rules = f"version: 1\nworkload: w\nmode: enforce\negress: []\ningress: {ingress}\n"
    (vendor / "rules.d/w.yaml").write_text(rules)
    parsed = parse(read_config(own))
    assert parsed.policy, parsed.problems
    assert sorted(parsed.policy.networks) == ["admin", "clients"]
    assert parsed.policy.workloads["w"].place.file == "rules.d/w.yaml"
    (vendor / "penstock.d/other.yaml").write_text((own / "penstock.yaml").read_text())
    (problem,) = parse(read_config(own)).problems
    assert (problem.code, problem.place.file) == ("duplicate-network", "penstock.yaml")
