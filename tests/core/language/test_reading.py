"""Shapes, YAML's words for true and nothing, and the bound on problems."""

import pytest

from penstock.core.language.reading import Reader, near
from penstock.core.language.yaml_nodes import MAX_PROBLEMS, Items, Scalar


@pytest.mark.parametrize("word", ["on", "Yes", "NO", "off", "true", "y", "~", "null", ""])
def test_unquoted_words_that_yaml_takes_for_something_else(word: str) -> None:
    reader = Reader("f")
    assert reader.text(Scalar(word, True, 1, 1), "x") is None
    assert len(reader.problems) == 1
    if word:
        assert reader.text(Scalar(word, False, 1, 1), "x") is not None


def test_problems_are_bounded() -> None:
    reader = Reader("f")
    for line in range(2 * MAX_PROBLEMS):
        reader.text(Items([], line, 1), "x")
    assert len(reader.problems) == MAX_PROBLEMS + 1
    assert reader.problems[-1].code == "too-many-problems"


def test_near() -> None:
    assert near("klients", {"clients", "admin"}) == "did you mean `clients`?"
    assert near("zzz", {"clients"}) == ""
