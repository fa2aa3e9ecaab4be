"""`penstock daemon`: from options to the daemon's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from penstock.cli.main import penstock
from penstock.daemon.options import Options

app = pytest.importorskip("penstock.daemon.app")


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("daemon",), Options()),
        (("--run", "/r", "daemon"), Options(run=Path("/r"))),
        (("--run", "/r", "daemon", "--run", "/s"), Options(run=Path("/s"))),
        (
            ("daemon", "--config=/c", "--state=/t", "--log=/l", "--cgroup=/g"),
            Options(config=Path("/c"), state=Path("/t"), log=Path("/l"), cgroup=Path("/g")),
        ),
    ],
)
def test_options(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], options: Options) -> None:
    seen: list[Options] = []

    def main(found: Options) -> int:
        seen.append(found)
        return 7

    monkeypatch.setattr(app, "main", main)
    assert CliRunner().invoke(penstock, arguments).exit_code == 7
    assert seen == [options]
