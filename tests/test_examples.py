"""What is shipped in rules/ is right, and says what the README says of it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from penstock.cli.check import check_files
from penstock.core.parse import parse, parse_file
from penstock.files import read_presets

RULES = Path(__file__).parents[1] / "rules"
EXAMPLES = {path.name: path.read_bytes() for path in sorted((RULES / "examples").glob("*.yaml"))}
NOW = datetime(2026, 12, 1, tzinfo=UTC)


def test_all_together_without_an_error() -> None:
    problems = check_files(EXAMPLES, read_presets(), NOW)
    assert {problem.severity for problem in problems} == {"warning"}
    assert {problem.code for problem in problems} == {"not-yet-enforced"}


@pytest.mark.parametrize("name", ["my-server.yaml", "llama-server.yaml"])
def test_in_force_today(name: str) -> None:
    files = {key: EXAMPLES[key] for key in ("penstock.yaml", name)}
    assert check_files(files, read_presets(), NOW) == ()


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - {"penstock.yaml"}))
def test_each_example_tests_itself_and_denies_metadata(name: str) -> None:
    policy = parse(EXAMPLES, read_presets()).policy
    assert policy is not None
    texts = [sentence.text for sentence in policy.workloads[name.removesuffix(".yaml")].sentences]
    assert "egress 169.254.169.254:80 deny" in texts


@pytest.mark.parametrize("path", sorted((RULES / "presets").glob("*.yaml")), ids=lambda path: path.name)
def test_presets(path: Path) -> None:
    result = parse_file(path.name, path.read_bytes())
    assert result.problems == ()
    assert f"preset: {path.stem}\n" in path.read_text()
