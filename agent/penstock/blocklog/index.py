"""Writing the index of the block log: whoever owns the log's directory may, and one at a time does.

The index is made from the log's files alone.  It may be removed at any time, and is made anew when it is missing,
damaged, of another version or about other files; what is committed is whole after a crash.  It is never needed:
who cannot use it reads the log.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from penstock.blocklog import schema
from penstock.blocklog.log_files import LogFile, close_all, lines_between, open_all
from penstock.blocklog.schema import Entry, Keys
from penstock.blocklog.segments import Coverage, Part, Segment, cover
from penstock.core.blocks import LOG_NAME, Block, from_json

DIRECTORY = "index"
FILE = "blocks.sqlite"
SMALL = 8 << 20
"""Bytes of the log that are read as fast as an index is opened: a smaller log has none."""

PORTION = 32 << 20
"""Bytes of the log that are committed at once: most of the index is written anew with each."""

_LOCK_FILE = "lock"
_BATCH = 1000
_KINDS_REMEMBERED = 100_000
_PATIENCE = 2.0
"""Seconds that a commit waits for readers."""


class Unusable(Exception):
    """There is no index that can be used, or made; the text says why."""


Told = Callable[[int, int], None]
"""Called with the bytes of the log that were indexed, and that are to be."""


def may_write(directory: Path) -> bool:
    """Whether the index in the log's directory is ours to write: the directory is our own, and nobody else's."""
    return _is_own(directory, stat.S_IFDIR, only_own=True) and os.access(directory, os.W_OK)


def path_in(directory: Path) -> Path:
    """Where the index of a log is, if there is one."""
    return directory / DIRECTORY / FILE


def is_trusted(directory: Path) -> bool:
    """Whether the index was written by root or by us, and nobody else could have."""
    path = path_in(directory)
    return _is_own(path.parent, stat.S_IFDIR) and _is_own(path, stat.S_IFREG)


def grow(
    directory: Path,
    budget: int | None = None,
    least: int = 0,
    cache: int = 64,
    told: Told | None = None,
    patience: float = 0.0,
) -> int:
    """Bring the index up to where the log is, by `budget` bytes of the log at most; the bytes that are left.

    Less than `least` bytes are left alone.  `cache` is in MiB, `patience` in seconds: how long another writer is
    waited for.  Nothing is made for a small log.  Raises Unusable and PenstockError.
    """
    if is_small(directory):
        return 0
    try:
        with _locked(directory, patience):
            files = open_all(directory)  # not before: what another has indexed meanwhile must be there
            try:
                return _grow(directory, files, budget, least, cache, told)
            except sqlite3.DatabaseError as e:
                if not _is_damage(e):
                    raise
                remove(directory)
                return _grow(directory, files, budget, least, cache, told)
            finally:
                close_all(files)
    except (OSError, sqlite3.Error) as e:
        raise Unusable(str(e)) from e


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Other errors are about the moment: a full disk, a reader who takes long."""
    return type(error) is sqlite3.DatabaseError or error.sqlite_errorcode == sqlite3.SQLITE_ERROR


def discard(directory: Path) -> None:
    """Remove an index that was found to be wrong, where that is ours to do: it is made anew."""
    with suppress(Unusable, OSError), _locked(directory, 0.0):
        remove(directory)


def is_small(directory: Path) -> bool:
    """Whether the log is read as fast as an index is opened.  PenstockError when it may not be read."""
    files = open_all(directory)
    close_all(files)
    return sum(file.end for file in files) <= SMALL


def remove(directory: Path) -> None:
    """Remove the index, not its lock."""
    path = path_in(directory)
    for one in (path, path.with_name(f"{FILE}-journal")):
        with suppress(FileNotFoundError):
            one.unlink()


def read_segments(db: sqlite3.Connection) -> list[Segment]:
    """Oldest first.  Unusable when it is no index of this version."""
    versions = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    if versions != [schema.APPLICATION, schema.VERSION]:
        raise Unusable("it is of another version")
    rows = db.execute("SELECT * FROM segments ORDER BY number").fetchall()
    if any(tuple(map(type, row)) != (int, int, int, int, bytes, bytes, int) for row in rows):
        raise Unusable("it is damaged")
    return [Segment(*row) for row in rows]


def read_keys(db: sqlite3.Connection) -> Keys:
    """The secret under which keys are made."""
    rows = db.execute("SELECT key FROM secret").fetchall()
    if len(rows) != 1 or type(rows[0][0]) is not bytes or len(rows[0][0]) != schema.KEY_SIZE:
        raise Unusable("it is damaged")
    return Keys(rows[0][0])


class Writer:
    """Puts lines into the tables `blocks` and `kinds` of a schema; in "temp" kinds of "main" are used as well."""

    def __init__(self, db: sqlite3.Connection, keys: Keys, schema_: str = "main", blocks: str = "blocks") -> None:
        self._db, self._keys = db, keys
        self._kinds: dict[schema.Shared, int] = {}
        self._insert_kind = f"INSERT INTO {schema_}.kinds VALUES (?, ?, ?, ?, ?, ?, ?)"
        self._insert = f"INSERT OR REPLACE INTO {schema_}.{blocks} VALUES (?, ?, ?, ?, ?, ?, ?)"
        self._known = " UNION ALL ".join(
            f"SELECT id FROM {name}.kinds WHERE digest = :digest" for name in dict.fromkeys(("main", schema_))
        )
        newest = " UNION ALL ".join(
            f"SELECT MAX(id) AS id FROM {name}.kinds" for name in dict.fromkeys(("main", schema_))
        )
        (self._last,) = db.execute(f"SELECT COALESCE(MAX(id), 0) FROM ({newest})").fetchone()

    def take(self, part: Part, end: int) -> int:
        """Put in the lines of a part up to `end`; how many were malformed."""
        malformed, batch = 0, list[Entry]()
        for offset, line in lines_between(part.file.fd, part.start, end):
            try:
                block = from_json(line)
            except ValueError:
                malformed += 1
                continue
            batch.append(schema.entry(block, schema.place(part.number, offset), self._kind(block)))
            if len(batch) == _BATCH:
                self._db.executemany(self._insert, batch)
                batch.clear()
        self._db.executemany(self._insert, batch)
        return malformed

    def _kind(self, block: Block) -> int:
        shared = schema.shared(block)
        kind = self._kinds.get(shared)
        if kind is None:
            columns = self._keys.kind(block)
            found = self._db.execute(self._known, {"digest": columns[0]}).fetchone()
            if found is None:
                self._last += 1
                self._db.execute(self._insert_kind, (self._last, *columns))
            kind = self._last if found is None else int(found[0])
            if len(self._kinds) >= _KINDS_REMEMBERED:
                self._kinds.clear()
            self._kinds[shared] = kind
        return kind


@contextmanager
def _locked(directory: Path, patience: float) -> Iterator[None]:
    """Two who write would not harm each other, but one who removes the file of the other would."""
    if not may_write(directory):
        raise Unusable("the log's directory is somebody else's")
    home = directory / DIRECTORY
    if not os.path.lexists(home):
        home.mkdir()
        _share(directory, home, 0o750)
    if not _is_own(home, stat.S_IFDIR, only_own=True):
        raise Unusable("its directory is somebody else's")
    lock = os.open(home / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _lock(lock, time.monotonic() + patience)
        yield
    finally:
        os.close(lock)


def _lock(descriptor: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as e:
            if time.monotonic() >= deadline:
                raise Unusable("somebody else writes it now") from e
        time.sleep(0.05)


def _grow(
    directory: Path, files: list[LogFile], budget: int | None, least: int, cache: int, told: Told | None
) -> int:
    path = path_in(directory)
    covered = None
    if _is_own(path, stat.S_IFREG, only_own=True):
        with suppress(Unusable), closing(_connected(path, cache)) as db:
            read_keys(db)
            covered = cover(read_segments(db), files)
    if covered is None:
        remove(directory)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640))
        _share(directory, path, 0o640)
    with closing(_connected(path, cache)) as db:
        if covered is None:
            _create(db)
            covered = cover((), files)
            assert covered is not None
        _drop_gone(db, covered)
        return _absorb(db, covered, budget, told) if covered.left >= least else covered.left


def _share(log: Path, path: Path, mode: int) -> None:
    """Whoever may read the log may read its index."""
    with suppress(OSError):
        os.chown(path, -1, (log / LOG_NAME).stat().st_gid)
    path.chmod(mode)


def _connected(path: Path, cache: int) -> sqlite3.Connection:
    """To write.  Transactions are begun by hand."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", _PATIENCE, isolation_level=None, uri=True)
    db.execute(f"PRAGMA cache_size = -{cache << 10}")
    return db


def _create(db: sqlite3.Connection) -> None:
    for statement in schema.TABLES:
        db.execute(statement)
    db.execute("INSERT INTO secret VALUES (?)", (os.urandom(schema.KEY_SIZE),))


def _drop_gone(db: sqlite3.Connection, covered: Coverage) -> None:
    (number, _) = schema.place_parts(covered.base)
    if db.execute("SELECT 1 FROM segments WHERE number < ?", (number,)).fetchone():
        db.execute("BEGIN IMMEDIATE")
        db.execute("DELETE FROM blocks WHERE place < ?", (covered.base,))
        db.execute("DELETE FROM kinds WHERE id NOT IN (SELECT kind FROM blocks)")
        db.execute("DELETE FROM segments WHERE number < ?", (number,))
        db.execute("COMMIT")


def _absorb(db: sqlite3.Connection, covered: Coverage, budget: int | None, told: Told | None) -> int:
    left, whole = covered.left, covered.left
    budget = whole if budget is None else budget
    writer = Writer(db, read_keys(db))
    waiting = list(reversed(covered.parts))
    while waiting and whole - left < budget:
        part = waiting.pop()
        end = _line_end(part, part.start + min(budget - (whole - left), PORTION))
        db.execute("BEGIN IMMEDIATE")
        malformed = part.malformed + writer.take(part, end)
        segment = Segment.of(part.number, part.file, end, malformed)
        db.execute("INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?, ?, ?)", segment.columns)
        db.execute("COMMIT")
        left -= end - part.start
        if end < part.file.end:
            waiting.append(Part(part.number, part.file, end, malformed))
        if told:
            told(whole - left, whole)
    return left


def _line_end(part: Part, about: int) -> int:
    """Where the line ends that `about` is in; the end of the part when there is none before."""
    while about < part.file.end:
        chunk = os.pread(part.file.fd, min(1 << 16, part.file.end - about), about)
        found = chunk.find(b"\n")
        if found >= 0:
            return about + found + 1
        if not chunk:
            break
        about += len(chunk)
    return part.file.end


def _is_own(path: Path, kind: int, *, only_own: bool = False) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    mine = {os.geteuid()} if only_own else {os.geteuid(), 0}
    return stat.S_IFMT(status.st_mode) == kind and status.st_uid in mine and not status.st_mode & 0o022
