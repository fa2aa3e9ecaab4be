"""The shape of the tree: tests mirror modules, modules and functions stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "agent/penstock"
LONGEST_MODULE = 400
LONGEST_FUNCTION = 60

MIRRORED = ("core", "blocklog", "kernel", "resolver", "enrol", "daemon", "cli", "demo")

MODULES = sorted(PACKAGE.glob("**/*.py"))
TESTS = sorted(path for folder in MIRRORED for path in (ROOT / "tests" / folder).glob("**/test_*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def long_functions(text: str) -> list[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        f"{node.name}, line {node.lineno}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, functions) and (node.end_lineno or 0) - node.lineno + 1 >= LONGEST_FUNCTION
    ]


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_each_test_file_mirrors_a_module(path: Path) -> None:
    relative = path.relative_to(ROOT / "tests")
    module = PACKAGE / relative.with_name(relative.name.removeprefix("test_"))
    assert module.exists(), f"{relative} tests {module.relative_to(ROOT)}, which is not there"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_modules_and_functions_are_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_MODULE
    assert long_functions(text) == []


def test_a_long_function_is_caught() -> None:
    body = "    pass\n" * (LONGEST_FUNCTION - 1)
    assert long_functions(f"def f():\n{body}") == ["f, line 1"]
    assert long_functions(f"def f():\n{body[9:]}") == []
