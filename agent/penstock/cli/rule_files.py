"""The rule files of a daemon, read to be changed: which file a workload is in, and putting a new text there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from penstock.cli.applied import no_such
from penstock.cli.context import CannotTell, place_of
from penstock.core.checking import examine
from penstock.core.edits import CannotEdit
from penstock.core.parse import Parsed, parse
from penstock.core.policy import Policy
from penstock.core.text import printable
from penstock.errors import PenstockError
from penstock.files import VENDORS, find_file, read_config, read_presets, rewrite

DEFAULT_CONFIG = Path("/etc/penstock")


@dataclass(frozen=True, slots=True)
class RuleFile:
    """The file of one workload: `name` below the directory, and what it held when it was read."""

    name: str
    path: Path
    data: bytes


@dataclass(frozen=True, slots=True)
class RuleFiles:
    """All files of a configuration directory, as they were read."""

    config: Path
    files: Mapping[str, bytes]
    presets: Mapping[str, bytes]

    def examined(self, now: datetime) -> Parsed:
        """What is right and wrong with them."""
        return examine(parse(self.files, self.presets), now)

    def with_file(self, name: str, data: bytes) -> RuleFiles:
        """With another content of one file."""
        return RuleFiles(self.config, {**self.files, name: data}, self.presets)

    def policy(self, now: datetime) -> Policy:
        """What they say.  PenstockError when there are mistakes, with the first of them."""
        parsed = self.examined(now)
        if parsed.policy is None:
            wrong = next(problem for problem in parsed.problems if problem.severity == "error")
            where = printable(str(find_file(self.config, wrong.place.file)), 4096)
            text = f"the rule files have mistakes, the first in line {wrong.place.line}: {wrong.message}"
            raise PenstockError(text, where=where, hint="see: penstock check")
        return parsed.policy

    def of(self, workload: str, policy: Policy) -> RuleFile:
        """The file of a workload.  CannotTell when there is no such workload."""
        if workload not in policy.workloads:
            raise no_such(workload, policy)
        name = policy.workloads[workload].place.file
        return RuleFile(name, find_file(self.config, name), self.files[name])


def read_rule_files(run: Path) -> RuleFiles:
    """Those of the daemon of `run`, or of the host.  CannotTell when they cannot be read."""
    config = place_of(run, "config") or DEFAULT_CONFIG
    try:
        return RuleFiles(config, read_config(config), read_presets(config))
    except PenstockError as e:
        raise CannotTell(e.message, where=e.where, hint=e.hint) from e


def edited(file: RuleFile, change: Callable[[str, bytes], bytes]) -> bytes:
    """The file's text after `change`, one of `core.edits`.  PenstockError when that cannot be done in place."""
    try:
        return change(file.name, file.data)
    except CannotEdit as e:
        hint = "change it with: penstock edit, or an editor"
        raise PenstockError(f"cannot be changed in place: {e}", where=str(file.path), hint=hint) from e


def write(files: RuleFiles, file: RuleFile, data: bytes, now: datetime) -> None:
    """Put `data` in the place of the file, if all files together pass `check` then.  PenstockError if not."""
    if any(file.path.is_relative_to(vendor) for vendor in VENDORS.values()):
        own = files.config / file.name
        hint = f"copy it to {own}, which wins over it"
        raise PenstockError("belongs to a package, which would write it again", where=str(file.path), hint=hint)
    files.with_file(file.name, data).policy(now)
    rewrite(file.path, data, file.data)
