"""`penstock manual`."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from penstock.cli import manual as module
from penstock.cli.main import penstock
from penstock.cli.manual import pages, title


@pytest.fixture(autouse=True)
def _pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rules.md").write_text("\n# The rules\n\nText.\n")
    (tmp_path / "operating.md").write_text("# Operating\n")
    (tmp_path / "notes.txt").write_text("no page")
    found = pages(tmp_path)
    monkeypatch.setattr(module, "pages", lambda: found)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(penstock, ["manual", *arguments])


def test_list() -> None:
    assert call().stdout == "operating  Operating\nrules      The rules\n"


def test_a_page_is_shown_as_it_is() -> None:
    assert call("rules").stdout == "\n# The rules\n\nText.\n"


@pytest.mark.parametrize(
    ("name", "hint"), [("rule", "did you mean `rules`?"), ("../x", "there are operating, rules")]
)
def test_no_such_page(name: str, hint: str) -> None:
    done = call(name)
    assert (done.exit_code, done.stderr) == (2, f"penstock: there is no page `{name}`; {hint}\n")


def test_a_page_without_a_heading(tmp_path: Path) -> None:
    assert title(tmp_path / "notes.txt") == ""
