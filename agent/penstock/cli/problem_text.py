"""Problems that come as JSON from the daemon, in the words of `penstock check`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from penstock.core.policy import Place
from penstock.core.problems import Problem
from penstock.core.text import printable
from penstock.core.wire import Json
from penstock.files import find_file


def lines(problems: Iterable[Json], config: Path | None) -> list[str]:
    """One line each, with places as the files that `config`, a directory, is made of."""
    return [_problem(problem, config).line() for problem in problems]


def _problem(said: Json, config: Path | None) -> Problem:
    path = str(said["file"])
    if config is not None and not path.startswith("/"):
        path = str(find_file(config, path))
    place = Place(printable(path, 4096), int(said["line"]), int(said["column"]))
    message, hint = (printable(str(said[key]), 2000) for key in ("message", "hint"))
    return Problem(place, "error" if said["severity"] == "error" else "warning", str(said["code"]), message, hint)
