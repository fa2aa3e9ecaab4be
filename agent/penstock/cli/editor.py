"""The operator's own editor, on a draft of a rule file that stays until it is in force."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from penstock.cli.rule_files import RuleFile
from penstock.errors import PenstockError
from penstock.files import read_file, stage

FALLBACKS = ("sensible-editor", "editor", "vi", "nano")


def draft_of(file: RuleFile) -> Path:
    """Where its draft is: beside it, under a name that nobody reads as a rule file."""
    return file.path.with_name(f".{file.path.name}.draft")


def make_draft(file: RuleFile) -> Path:
    """A copy of the file, for its owner alone.  PenstockError when it cannot be written."""
    draft = draft_of(file)
    try:
        stage(draft, file.data, 0o600)
    except OSError as e:
        hint = "run it with sudo" if isinstance(e, PermissionError) else ""
        raise PenstockError(f"cannot be written: {e.strerror}", where=str(draft), hint=hint) from e
    return draft


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Whoever else edits in the directory must have ended.  PenstockError when not."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise PenstockError(f"cannot be read: {e.strerror}", where=str(directory)) from e
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise PenstockError("somebody else edits rules there now", where=str(directory)) from e
        yield
    finally:
        os.close(descriptor)


def command(environment: Mapping[str, str]) -> list[str]:
    """The editor: VISUAL, EDITOR, or what the host has.  PenstockError when there is none."""
    for name in ("VISUAL", "EDITOR"):
        try:
            words = shlex.split(environment.get(name, ""))
        except ValueError as e:
            raise PenstockError(f"{name} is no command: {e}") from e
        if words:
            return words
    found = next((path for name in FALLBACKS if (path := shutil.which(name))), None)
    if found is None:
        raise PenstockError("there is no editor", hint="set EDITOR")
    return [found]


def edit(draft: Path, environment: Mapping[str, str]) -> bytes:
    """Have the draft edited; what it holds afterwards.  PenstockError when the editor fails."""
    argv = [*command(environment), str(draft)]
    try:
        status = subprocess.run(argv, check=False).returncode
    except OSError as e:
        raise PenstockError(f"{argv[0]}: {e.strerror}", hint="set EDITOR") from e
    if status != 0:
        raise PenstockError(f"{argv[0]} ended with status {status}; the draft stays", where=str(draft))
    return read_file(draft)
