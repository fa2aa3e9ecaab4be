"""A fake daemon with an applied policy, and a way to call the program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.fake_daemon import FakeDaemon, status
from penstock.cli.main import penstock

Call = Callable[..., Result]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    """Running, with a policy applied and everything in force."""
    made = FakeDaemon(tmp_path, {"status": status()})
    made.write()
    with made:
        yield made


@pytest.fixture
def call(daemon: FakeDaemon) -> Call:
    """Run `penstock` for that daemon, as the shell would."""

    def called(*arguments: object, **options: object) -> Result:
        argv = ["--run", str(daemon.run), *map(str, arguments)]
        result = CliRunner().invoke(penstock, argv, prog_name="penstock", **options)  # type: ignore[arg-type]
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return called
