"""Files: reading configuration directories, and replacing a file as a whole.

Below /etc/penstock lies /usr/lib/penstock, where packages of a distribution or a fleet put drop-ins: a file of
the same relative name in /etc wins as a whole, and an empty one, or a link to /dev/null, masks it, as with
systemd.  Who reads the result sees relative names; `find_file` says which file that was.

Of a configuration directory regular files of bounded size are read, and nothing else.
A device, a pipe or a directory under a rule file's name must not hang or fill a program that runs as root, so
every file is opened without waiting and looked at before it is read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import penstock
from penstock.core.language.yaml_nodes import MAX_BYTES
from penstock.errors import PenstockError

MAX_FILES = 1000
DROP_INS = ("penstock.d", "rules.d")
VENDORS: Mapping[Path, Path] = {Path("/etc/penstock"): Path("/usr/lib/penstock")}
"""Configuration directory -> where the drop-ins lie that it wins over.  Other directories stand alone."""

_PACKAGE = Path(penstock.__file__).parent
_PRESETS = (
    _PACKAGE.parent.parent / "rules" / "presets",  # a checkout
    _PACKAGE / "rules" / "presets",
    Path("/usr/lib/penstock/presets"),
)


def read_config(
    directory: Path,
    unreadable: list[PenstockError] | None = None,
    vendor: Path | None = None,
    parts: Sequence[str] = DROP_INS,
) -> dict[str, bytes]:
    """`penstock.yaml`, `penstock.d/*.yaml` and `rules.d/*.yaml` of a directory, by path relative to it.

    Drop-ins of `vendor` (default: the one that belongs to `directory`) come in where `directory` has no file of
    that name; only those of `parts` are read.  A missing `penstock.yaml` is fine.  Raises PenstockError for a
    missing directory and for the first file that cannot be read, or collects the latter in `unreadable`.  Of a
    file that is too big one byte more than the limit is returned: `parse` says it.
    """
    if not directory.is_dir():
        what = "is not a directory" if directory.exists() else "there is no such directory"
        raise PenstockError(
            what, where=str(directory), hint="name the directory that holds penstock.yaml and rules.d"
        )
    vendor = vendor or _vendor_of(directory)
    shipped = _layer(vendor, parts) if vendor else {}
    own = {"penstock.yaml": directory / "penstock.yaml"} if os.path.lexists(directory / "penstock.yaml") else {}
    own |= _layer(directory, parts)
    found: dict[str, bytes] = {}
    for name, path in {**own, **{name: shipped[name] for name in shipped if name not in own}}.items():
        try:
            if _is_null(path):
                continue
            data = read_file(path)
        except PenstockError as error:
            if unreadable is None:
                raise
            unreadable.append(error)
            continue
        if data or not (name in own and name in shipped):  # empty and masking nothing: `parse` says so
            found[name] = data
    return found


def find_file(directory: Path, name: str, vendor: Path | None = None) -> Path:
    """The file that `read_config` reads for the relative `name`; the one in `directory` when there is none.

    `presets/FILE` is the one that `read_presets` reads.
    """
    if name.startswith("presets/") and not os.path.lexists(directory / name):
        shipped = [place / name.removeprefix("presets/") for place in reversed(_PRESETS)]
        return next((path for path in shipped if path.exists()), directory / name)
    path, vendor = directory / name, vendor or _vendor_of(directory)
    if vendor is None or name.partition("/")[0] not in DROP_INS or os.path.lexists(path):
        return path
    return vendor / name if os.path.lexists(vendor / name) else path


def _vendor_of(directory: Path) -> Path | None:
    return VENDORS.get(Path(os.path.abspath(directory)))


def home_of(path: Path) -> Path | None:
    """The configuration directory that a file belongs to: beside it or one up; None when there is none."""
    for directory in path.resolve().parents[:2]:
        if (directory / "penstock.yaml").is_file() or (directory / "penstock.d").is_dir():
            return next((own for own, vendor in VENDORS.items() if vendor == directory), directory)
    return None


def _layer(directory: Path, parts: Sequence[str]) -> dict[str, Path]:
    """The drop-ins of one directory, by relative name."""
    return {f"{part}/{path.name}": path for part in parts for path in _yaml_files(directory / part)}


def _is_null(path: Path) -> bool:
    """Whether it is a link to /dev/null: the way to say that a file shall not be there."""
    try:
        return os.readlink(path) == os.devnull
    except OSError:
        return False


def read_presets(directory: Path | None = None) -> dict[str, bytes]:
    """Presets by file name: those of the configuration directory win over the shipped ones."""
    found: dict[str, bytes] = {}
    for place in (*_PRESETS, *((directory / "presets",) if directory else ())):
        found.update((path.name, read_file(path)) for path in _yaml_files(place))
    return found


def read_file(path: Path) -> bytes:
    """The content of a regular file, at most one byte over the limit.  Raises PenstockError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PenstockError("is not a regular file", where=str(path), hint="replace it by a file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(descriptor)


def stage(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write `data` to `path`, down to the disk.  OSError; then nothing of it is left."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def put(staged: Path, path: Path) -> None:
    """Put the staged file in the place of `path`, down to the disk.  Whoever reads sees the old or the new one."""
    os.rename(staged, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` by `data`: temp file, fsync, rename, fsync of the directory."""
    staged = path.with_name(path.name + ".new")
    stage(staged, data, mode)
    put(staged, path)


def rewrite(path: Path, data: bytes, before: bytes) -> None:
    """Replace a rule file that holds `before` as a whole; its mode and owner stay, and a link stays a link.

    PenstockError when it holds something else by now, or cannot be written; then it is as it was.
    """
    real = Path(os.path.realpath(path))
    if read_file(real) != before:
        raise PenstockError("was changed meanwhile", where=str(path), hint="look at it, then try again")
    staged = real.with_name(f".{real.name}.new")  # hidden: whoever reads the directory passes over it
    try:
        status = os.stat(real)
        stage(staged, data, stat.S_IMODE(status.st_mode))
        try:
            if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                os.chown(staged, status.st_uid, status.st_gid)
            os.chmod(staged, stat.S_IMODE(status.st_mode))  # as it is, whatever the umask is
            put(staged, real)
        except OSError:
            staged.unlink(missing_ok=True)
            raise
    except OSError as error:
        hint = "run it with sudo" if isinstance(error, PermissionError) else ""
        raise PenstockError(f"cannot be written: {error.strerror}", where=str(path), hint=hint) from error


def _unreadable(path: Path, error: OSError) -> PenstockError:
    hint = "run it as a user who may read it" if isinstance(error, PermissionError) else "check the file"
    return PenstockError(f"cannot be read: {error.strerror}", where=str(path), hint=hint)


def _yaml_files(directory: Path) -> Iterator[Path]:
    """The `*.yaml` of one directory, sorted, hidden ones left out."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".yaml") and name[0] != ".")
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise _unreadable(directory, error) from error
    if len(names) > MAX_FILES:
        raise PenstockError(f"more than {MAX_FILES} files", where=str(directory), hint="join some of them")
    for name in names:
        yield directory / name
