"""`penstock manual`: the pages that come with the program."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import penstock
from penstock.cli.context import CannotTell
from penstock.core.language.reading import near, shown

PAGES = Path(penstock.__file__).parent / "manual"


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in pages() if name.startswith(incomplete)]


@click.command()
@click.argument("page", required=False, shell_complete=_complete)
def manual(page: str | None) -> None:
    """List the pages of the manual, or show one: through $PAGER on a terminal, else as it is.

    \b
    penstock manual
    penstock manual rules

    Exit status: 0, or 2 when there is no such page.
    """
    found = pages()
    if page is None:
        width = max(map(len, found), default=0)
        for name, path in found.items():
            click.echo(f"{name:{width}}  {title(path)}")
        return
    if page not in found:
        hint = near(page, found) or f"there are {', '.join(found) or 'none'}"
        raise CannotTell(f"there is no page `{shown(page)}`", hint=hint)
    text = found[page].read_text("utf-8")
    if sys.stdout.isatty():
        click.echo_via_pager(text)
    else:
        click.echo(text, nl=False)


def pages(directory: Path = PAGES) -> dict[str, Path]:
    """The pages by name, sorted."""
    return {path.stem: path for path in sorted(directory.glob("*.md"))}


def title(path: Path) -> str:
    """The first heading of a page."""
    with path.open(encoding="utf-8") as lines:
        return next((line.lstrip("# ").strip() for line in lines if line.startswith("#")), "")
