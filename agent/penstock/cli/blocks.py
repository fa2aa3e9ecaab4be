"""`penstock blocks`: what was blocked.  Reads the log's files, so it works when the daemon does not."""

from __future__ import annotations

import io
import select
import shutil
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TextIO

import click

from penstock.cli.block_log import BlockReader, Record, Wanted
from penstock.cli.block_source import Rows, Source, answer, log_directory
from penstock.cli.block_text import MAX_GROUPS, Look, Row, Widths, group_line, lines, oldest_first, rows
from penstock.cli.context import Context, drop_output
from penstock.cli.duration import when
from penstock.cli.format import colours, local
from penstock.core.block_keys import destination
from penstock.core.text import printable
from penstock.errors import PenstockError

_POLL = 0.2  # seconds
_BEFORE_FOLLOWING = 10  # blocks, unless --since or --limit says otherwise
_HINTS_REMEMBERED = 4096
MOST_ROWS = 40
"""Of a summary for people, unless --all or --limit says otherwise."""


@dataclass(frozen=True, slots=True)
class _Output:
    """Where to print, and how."""

    stream: TextIO
    look: Look
    as_json: bool

    def write(self, texts: Iterable[str]) -> None:
        self.stream.writelines(text + "\n" for text in texts)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What to print."""

    wanted: Wanted
    by: str | None
    limit: int | None
    all: bool


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on and print new blocks as they happen.")
@click.option("--since", type=when, metavar="T", help="From then on: 10m, 02:15, 2026-11-25T02:15:00Z.")
@click.option("--until", type=when, metavar="T", help="Up to then.")
@click.option("--workload", metavar="W", help="Of this workload only.")
@click.option("--direction", type=click.Choice(["in", "out"]), help="Into the workload, or out of it.")
@click.option(
    "--by",
    type=click.Choice(["destination", "workload", "process"]),
    help="Sum up, most packets first; packets that were counted but not logged are included.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only the newest N blocks; with --by the largest N.",
)
@click.option("--all", "everything", is_flag=True, help="Every destination, not only the newest 40.")
@click.option("--log", type=click.Path(path_type=Path), metavar="DIR", help="Where the log is.")
@click.option("--ids", is_flag=True, help="Show the id of each row's newest block, for `penstock why --block`.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def blocks(
    ctx: click.Context,
    follow: bool,
    since: datetime | None,
    until: datetime | None,
    workload: str | None,
    direction: str | None,
    by: str | None,
    limit: int | None,
    everything: bool,
    log: Path | None,
    ids: bool,
    as_json: bool,
) -> None:
    """Show what was blocked, or in observe mode would have been: oldest first, one line a destination.

    \b
    penstock blocks --since 1h --workload my-server
    penstock blocks --by destination --limit 20
    penstock blocks -f

    Exit status: 0, also when nothing was blocked; 2 when there is no log.
    """
    if follow and by:
        raise click.UsageError("--by sums up what there is, and -f has no end: give one of them")
    if everything and limit:
        raise click.UsageError("--all and --limit say two things: give one of them")
    wanted = Wanted(_seconds(since), _seconds(until), workload, direction)
    directory = log or log_directory((ctx.obj or Context()).run)
    try:
        reader = BlockReader(directory)
    except PenstockError as e:
        click.echo(f"penstock blocks: {e}", err=True)
        ctx.exit(2)
    output = _output(as_json, ids)
    asked = _Asked(wanted, by, limit, everything)
    try:
        if follow:
            _follow(reader, wanted, limit, output)
        elif not answer(directory, reader, lambda source: _show(source, asked, output)):
            _tell_none(wanted)
        output.stream.flush()
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        drop_output(output.stream)
    finally:
        reader.close()
        _tell_malformed(reader)


def _show(source: Source, asked: _Asked, output: _Output) -> bool:
    """Print what was asked for; whether there is any.  Unusable before anything is printed."""
    if asked.by:
        return _show_groups(source, asked.by, asked, output)
    if not output.as_json:
        return _show_rows(source, asked, output)
    any_found = False
    for record in source.records(asked.wanted, asked.limit):
        any_found = True
        output.write([_as_line(record)])
    return any_found


def _show_rows(source: Source, asked: _Asked, output: _Output) -> bool:
    most = MAX_GROUPS if asked.all else MOST_ROWS
    if asked.limit is None:
        found = source.rows(asked.wanted, most)
    else:
        newest_first = reversed(list(source.records(asked.wanted, asked.limit)))
        shown = oldest_first(rows(record.block for record in newest_first))
        found = Rows(shown, len(shown), 0)
    widths = Widths()
    for row in found.shown:
        widths = widths.with_room_for(row.latest)
    for row in found.shown:  # rules for what is observed are suggest's, and a screen is small
        hint = row.latest.verdict != "would-deny" or not output.look.columns
        output.write(lines(row, widths, output.look, hint=hint))
    if len(found.shown) < found.destinations:
        shown_packets = sum(row.packets for row in found.shown)
        output.write(
            [
                f"the newest {len(found.shown)} of {found.destinations:,} destinations,"
                f" {shown_packets:,} of {found.packets:,} packets; sums: --by destination, every one: --all"
            ]
        )
    newest = {row.latest.workload: row.latest.verdict for row in found.shown}
    observed = [name for name, verdict in newest.items() if verdict == "would-deny"]
    if observed and output.look.columns:
        name = printable(observed[-1])
        output.write([f"WOULD-DENY: only observed; the rules it needs: penstock suggest {name}"])
    return bool(found.shown)


def _show_groups(source: Source, by: str, asked: _Asked, output: _Output) -> bool:
    most = MAX_GROUPS if asked.all or output.as_json else MOST_ROWS
    found = source.groups(asked.wanted, by, asked.limit or most)
    if output.as_json:
        output.write(group.as_json(by) for group in found.shown)
        return bool(found.shown)
    output.write(group_line(group, by, output.look.today) for group in found.shown)
    if len(found.shown) < found.number and asked.limit is None:
        shown_packets = sum(group.count for group in found.shown)
        output.write(
            [
                f"the largest {len(found.shown)} of {found.number:,},"
                f" {shown_packets:,} of {found.packets:,} packets; every one: --all"
            ]
        )
    return bool(found.shown)


def _follow(reader: BlockReader, wanted: Wanted, limit: int | None, output: _Output) -> None:
    if limit is None and wanted.since is None:
        limit = _BEFORE_FOLLOWING
    printed = _live(output)
    printed(reversed(list(islice(reader.newest_first(wanted), limit))))
    wait = _waiter(output.stream)
    while wanted.until is None or time.time() <= wanted.until:
        printed(reader.grown(wanted))
        wait()


def _live(output: _Output) -> Callable[[Iterable[Record]], None]:
    """Prints blocks as they come: a block that grew is printed again, its hint is not."""
    hinted: OrderedDict[tuple[object, ...], None] = OrderedDict()
    widths = Widths()

    def texts(records: Iterable[Record]) -> Iterator[str]:
        nonlocal widths
        for record in records:
            block = record.block
            if output.as_json:
                yield _as_line(record)
                continue
            widths = widths.with_room_for(block)
            key = destination(block)
            row = Row(block, block.count + block.unlogged, block.unlogged)
            yield from lines(row, widths, output.look, hint=key not in hinted)
            hinted[key] = None
            if len(hinted) > _HINTS_REMEMBERED:
                hinted.popitem(last=False)

    def printed(records: Iterable[Record]) -> None:
        output.write(texts(records))
        output.stream.flush()

    return printed


def _as_line(record: Record) -> str:
    """The line as it stands, so that keys of a newer version stay; escaped if it is not as we write it."""
    text = record.line.decode("utf-8", "replace")
    return text if text.isascii() and text.isprintable() else record.block.as_json()


def _waiter(stream: TextIO) -> Callable[[], None]:
    """Waits for the next look at the log, or finds out at once that nobody reads our output any more."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # not a real file
        return lambda: time.sleep(_POLL)

    def wait() -> None:
        if poll.poll(_POLL * 1000):
            raise BrokenPipeError

    return wait


def _output(as_json: bool, ids: bool) -> _Output:
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks must not end us
        stream.reconfigure(errors="backslashreplace")
    terminal = stream.isatty()
    look = Look(
        today=_local(time.time()).split(" ")[0],
        colour=colours(),
        columns=shutil.get_terminal_size().columns if terminal else None,
        ids=ids,
    )
    return _Output(stream, look, as_json)


def _local(seconds: float) -> str:
    return local(datetime.fromtimestamp(seconds, UTC))


def _seconds(when: datetime | None) -> float | None:
    return None if when is None else when.timestamp()


def _tell_none(wanted: Wanted) -> None:
    since = "the log began" if wanted.since is None else _local(wanted.since)
    click.echo(f"no blocks since {since}", err=True)


def _tell_malformed(reader: BlockReader) -> None:
    if reader.malformed:
        lines_ = "line" if reader.malformed == 1 else "lines"
        with suppress(BrokenPipeError):
            print(f"skipped {reader.malformed} malformed {lines_}", file=sys.stderr, flush=True)
