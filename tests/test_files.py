"""Reading a configuration directory: what counts, and what must not hang."""

import os
from pathlib import Path

import pytest

from penstock.core.language.yaml_nodes import MAX_BYTES
from penstock.errors import PenstockError
from penstock.files import read_config, read_presets


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
