"""Finding a daemon's places."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.cli.context import find_daemon_json, place_of


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"config": 3}', '{"config": "relative"}', "[" * 50_000])
def test_what_makes_no_sense_is_not_believed(tmp_path: Path, text: str) -> None:
    assert place_of(tmp_path, "config") is None
    (tmp_path / "daemon.json").write_text(text)
    assert place_of(tmp_path, "config") is None


def test_places(tmp_path: Path) -> None:
    (tmp_path / "daemon.json").write_text('{"config": "/c", "pid": 3}')
    assert find_daemon_json(tmp_path) == {"config": "/c", "pid": 3}
    assert place_of(tmp_path, "config") == Path("/c")
