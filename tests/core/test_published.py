"""Lists of names that upstreams publish, as they are and as they must not be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.parse import parse_file
from penstock.core.presets import Preset
from penstock.core.published import MAX_BYTES, MAX_KEYS, MAX_NAMES, Difference, Published, compare, read

ROOT = Path(__file__).parents[2]
RECORDED = (ROOT / "tests/recorded/huggingface-meta.json").read_bytes()


def preset(egress: str) -> Preset:
    text = f"version: 1\npreset: hub\ntitle: t\nsource: s\ndate: 2026-11-01\negress: {egress}\n"
    part = parse_file("hub.yaml", text.encode()).part
    assert isinstance(part, Preset)
    return part


def test_a_recorded_list() -> None:
    listed = read(RECORDED)
    assert len(listed.names) == 17
    assert {"cdn-lfs.hf.co", "us.gcp.cdn.hf.co"} <= set(listed.names)
    assert listed.ignored == ("about",)


def test_the_shipped_preset_opens_the_recorded_list() -> None:
    part = parse_file("huggingface.yaml", (ROOT / "rules/presets/huggingface.yaml").read_bytes()).part
    assert isinstance(part, Preset)
    assert compare(part, read(RECORDED)) == Difference()
    moved = RECORDED.replace(b"us.aws.cdn.hf.co", b"us.aws.cdn.hf.example")
    assert compare(part, read(moved)) == Difference(("us.aws.cdn.hf.example",))


@pytest.mark.parametrize(
    ("egress", "expected"),
    [
        ("[{to: [a.org, b.org]}]", Difference()),
        ("[{to: ['*.org']}]", Difference()),
        ("[{to: a.org}]", Difference(("b.org",))),
        ("[{to: [a.org, b.org, c.org]}]", Difference((), ("c.org",))),
        ("[{to: [a.org, b.org]}, {to: c.org, source: seen elsewhere}]", Difference()),
        ("[{to: [a.org]}, {to: b.org, source: seen elsewhere}]", Difference()),
        ("[{to: ['*.a.org', b.org]}]", Difference(("a.org",), ("*.a.org",))),
        ("[]", Difference(("a.org", "b.org"))),
    ],
)
def test_differences(egress: str, expected: Difference) -> None:
    found = compare(preset(egress), Published(("a.org", "b.org")))
    assert found == expected
    assert found.same == (expected == Difference())


def test_a_published_pattern_is_opened_by_one_that_is_as_wide() -> None:
    listed = Published(("*.cdn.a.org",))
    assert compare(preset("[{to: '*.a.org'}]"), listed) == Difference()
    assert compare(preset("[{to: '*.cdn.a.org'}]"), listed) == Difference()
    assert compare(preset("[{to: x.cdn.a.org}]"), listed) == Difference(("*.cdn.a.org",))


def test_a_long_number_beside_the_names_is_nothing_to_us() -> None:
    assert read(b'{"aDomains": ["a.org"], "v": ' + b"1" * 5000 + b"}") == Published(("a.org",), ("v",))


def test_names_in_their_one_form_and_once() -> None:
    assert read(b'{"aDomains": ["B.org.", "*.a.org"], "bDomains": ["b.org"], "x": 1}') == Published(
        ("b.org", "*.a.org"), ("x",)
    )


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "it is not JSON"),
        (b"<html>", "it is not JSON"),
        (b"\xff{}", "it is not UTF-8"),
        (b"[" * 100_000, "it is not JSON"),
        (b'{"a": ' * 100_000, "it is not JSON"),
        (b'{"aDomains": [' + b"1" * 5000 + b"]}", "`aDomains` holds something that is no text"),
        (b"1" * 5000, "it is JSON, and no object"),
        (b'["a.org"]', "it is JSON, and no object"),
        (b"{}", "no key that ends in `Domains` holds names"),
        (b'{"aDomains": []}', "no key that ends in `Domains` holds names"),
        (b'{"domains": ["a.org"]}', "no key that ends in `Domains` holds names"),
        (b'{"aDomains": "a.org"}', "`aDomains` is no list"),
        (b'{"aDomains": [1]}', "`aDomains` holds something that is no text"),
        (b'{"aDomains": ["a.org"], "aDomains": ["b.org"]}', "a key is there twice"),
        (b'{"aDomains": ["https://a.org/"]}', "`aDomains` holds `https://a.org/`: "),
        (b'{"aDomains": ["\\u001b[31m.org"]}', "`aDomains` holds `\\x1b[31m.org`: "),
        (b" " * (MAX_BYTES + 1), "it has more than 1 MiB"),
        (json.dumps({f"k{n}": 1 for n in range(MAX_KEYS + 1)}).encode(), "it has more than 1,000 keys"),
        (json.dumps({"aDomains": [f"a{n}.org" for n in range(MAX_NAMES + 1)]}).encode(), "it holds more than"),
    ],
)
def test_what_is_no_list(data: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        read(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["aDomains", "b", "x\x1b"]), inner, max_size=3),
)


def refusal(data: bytes) -> str:
    try:
        read(data)
    except ValueError as error:
        return str(error)
    return ""


@given(JSON)
def test_any_json_is_taken_or_refused(value: object) -> None:
    assert refusal(json.dumps(value).encode()).isprintable()
