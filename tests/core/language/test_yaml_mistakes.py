"""Our words for YAML's syntax errors."""

import pytest
import yaml

from penstock.core.language.yaml_mistakes import explain


@pytest.mark.parametrize("loader", [yaml.CBaseLoader, yaml.BaseLoader])
@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("a:\n\tb: 1", 2, "spaces"),
        ("a: 1\nb: c: d", 2, "quotes"),
        ("a:\n - b\n- c", 3, "indentation"),
        ("a: - b", 1, "next line"),
        ("a: {b: 1", 1, "{key: value}"),
        ('a: "b', 1, "close"),
        ('a: "\\q"', 1, "single quotes"),
    ],
)
def test_explained(loader: type[yaml.BaseLoader], text: str, line: int, hint: str) -> None:
    with pytest.raises(yaml.MarkedYAMLError) as caught:
        list(yaml.parse(text, Loader=loader))
    found = explain(caught.value, text)
    assert (found[0], found[2]) == (line, "yaml-syntax")
    assert hint in found[4]
