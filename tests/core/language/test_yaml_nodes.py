"""YAML as texts with places: traps, bombs, encodings."""

import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.language import yaml_nodes
from penstock.core.language.yaml_nodes import MAX_BYTES, Items, Pairs, Scalar, read

MISTAKES = [
    ("a: *.hf.co", "f:1:4: error: an unquoted `*` is an alias in YAML; write \"*.hf.co\""),
    ("a: [x, *.hf.co]", "f:1:8: error: an unquoted `*` is an alias in YAML; write \"*.hf.co\""),
    ("a: *hf", "f:1:4: error: an unquoted `*hf` is an alias in YAML, and aliases are not supported; "
     'write "*hf" in quotes, or the values themselves'),
    ("a: [::1]", "f:1:5: error: YAML does not reliably read an unquoted text that starts with `:`; write \"::1\""),
    ("a: fe80::", 'f:1:9: error: a `:` that YAML takes for the end of a key; '
     'put the text in quotes, as in "fe80::", or check the indentation'),
    ("a:\n\tb: 1", "f:2:1: error: a tab, and YAML allows only spaces here; indent with spaces"),
    ("a: 1\nb: 2\na: 3", "f:3:1: error: `a` is there twice, first in line 1; keep one of them"),
    ("a: &x 1", "f:1:4: error: anchors (`&x`) are not supported; write the values out, or name them as a network"),
    ("a: !!python/object:os.system b", "f:1:4: error: tags (`tag:yaml.org,2002:python/object:os.syst…`) are not "
     'supported; leave the tag out; a text that starts with "!" must be quoted'),
    ("<<: {a: 1}", "f:1:1: error: merge keys (`<<`) are not supported; write the values out"),
    ("a: {{ x }}", "f:1:5: error: a key must be a plain text; is this a template that was not filled in?"),
    ("a: 1\n---\nb: 2", "f:2:1: error: a second document in one file; write one file each"),
    ("[" * 20, "f:1:17: error: nested more than 16 deep; the rules need four levels"),
    ("a: [1, 2", "f:1:4: error: a `[` without its `]`, or a missing comma; write `[a, b]`"),
    ("a: 'b", "f:1:4: error: a quote that is never closed; close the quote"),
    ("a: @b", "f:1:4: error: a text cannot start with `@`, `%` or a backtick in YAML; put the text in quotes"),
    ("a: b\x1b[2J", "f:1:5: error: a control character (U+001B) in the text; remove it"),
    ("a: b\n\0", "f:2:1: error: a control character (U+0000) in the text; save the file as UTF-8, not UTF-16"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "told"), MISTAKES)
def test_mistakes(text: str, told: str) -> None:
    assert [problem.line() for problem in read("f", text.encode()).problems] == [told]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("a: 1".encode("utf-16"), "f:1:1: error: the file is UTF-16; save it as UTF-8"),
        ("a: 1\nb: é".encode("latin-1"),
         "f:2:4: error: the byte 0xe9 is not UTF-8; save the file as UTF-8 (not Latin-1)"),
        ("a: 1".encode("utf-16-le"),
         "f:1:2: error: a control character (U+0000) in the text; save the file as UTF-8, not UTF-16"),
        (b"a" * (MAX_BYTES + 1), "f:1:1: error: the file has more than 8 MiB; split it"),
    ],
)  # fmt: skip
def test_encodings(data: bytes, told: str) -> None:
    assert [problem.line() for problem in read("f", data).problems] == [told]


def test_a_byte_order_mark_is_no_mistake() -> None:
    assert read("f", b"\xef\xbb\xbfa: b").root == Pairs({Scalar("a", True, 1, 1): Scalar("b", True, 1, 4)}, 1, 1)


def test_other_mistakes_are_told_beside_a_trap() -> None:
    told = read("f", b"a: *.hf.co\nb: '*.hf.co'\nb: &x ''").problems
    assert [(p.place.line, p.code) for p in told] == [(1, "yaml-quote"), (3, "yaml-anchor"), (3, "duplicate-key")]


def test_scalars_stay_as_written() -> None:
    root = read("f", b"[22:22, on, 1.10, 0x1F, ~, '1']").root
    assert isinstance(root, Items)
    assert [(s.text, s.plain) for s in root.items if isinstance(s, Scalar)] == [
        ("22:22", True), ("on", True), ("1.10", True), ("0x1F", True), ("~", True), ("1", False)]  # fmt: skip


def test_bombs_end_quickly() -> None:
    laughs = "a: &a [x]\n" + "".join(f"b{i}: &b{i} [*a, *a, *a, *a]\n" for i in range(200))
    started = time.process_time()
    assert {p.code for p in read("f", laughs.encode()).problems} == {"yaml-anchor", "yaml-alias"}
    assert read("f", b"[" * 1_000_000).problems[0].code in ("too-deep", "yaml-syntax")
    assert read("f", b"- a\n" * 300_000).problems[0].code == "too-many-nodes"
    assert time.process_time() - started < 5


def test_the_slow_parser_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_nodes, "_LOADER", yaml.BaseLoader)
    for text, told in MISTAKES:
        if "20" not in told and "quote that" not in told:
            assert [problem.line() for problem in read("f", text.encode()).problems][:1] == [told]


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200), st.text("ab:*&!{}[]-'\"|>#%@ \t\n\ue000\u2028", max_size=60).map(str.encode)
    )
)
def test_never_raises(data: bytes) -> None:
    document = read("f", data)
    for problem in document.problems:
        assert problem.place.line >= 1
        assert problem.place.column >= 1
        assert problem.line().isprintable()
