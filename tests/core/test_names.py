"""Domain names: one form, honest patterns."""

import pytest

from penstock.core.names import (
    BadName,
    is_shared_suffix,
    matches,
    normalise,
    normalise_pattern,
    shared_suffix,
)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("HF.co", "hf.co"),
        ("hf.co.", "hf.co"),
        ("_srv.example.org", "_srv.example.org"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("a" * 63 + ".org", "a" * 63 + ".org"),
        ("1.example.org", "1.example.org"),
    ],
)
def test_one_form(written: str, kept: str) -> None:
    assert normalise(written) == kept


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("localhost", "full name"),
        ("a..org", "one dot"),
        (".org", "one dot"),
        ("hf.co..", "one dot"),
        ("", "one dot"),
        ("-a.org", "check"),
        ("a-.org", "check"),
        ("a b.org", "check"),
        ("a/b.org", "check"),
        ("a" * 64 + ".org", "check"),
        ("a." * 127 + "org", "check"),
        ("foo.123", "address"),
        ("a.*.org", "*.example.org"),
        ("foo*.org", "*.example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("straße.de", "registrar"),
        ("\uff48f.co", "hf.co"),
        ("a\n.org", "check"),
    ],
)
def test_what_is_no_name(written: str, hint: str) -> None:
    with pytest.raises(BadName) as caught:
        normalise(written)
    assert hint in caught.value.hint


def test_patterns() -> None:
    assert normalise_pattern("*.HF.co.") == "*.hf.co"
    assert normalise_pattern("*.com") == "*.com"
    for wrong in ("*", "*.", "*.*.co", "**.hf.co", "*hf.co", "*.-a"):
        with pytest.raises(BadName):
            normalise_pattern(wrong)


@pytest.mark.parametrize(
    ("pattern", "name", "yes"),
    [
        ("*.hf.co", "a.hf.co", True),
        ("*.hf.co", "a.b.hf.co", True),
        ("*.hf.co", "hf.co", False),
        ("*.hf.co", "evilhf.co", False),
        ("*.hf.co", "a.hf.co.evil.org", False),
        ("hf.co", "hf.co", True),
        ("hf.co", "a.hf.co", False),
        ("*.com", "hf.com", True),
    ],
)
def test_matches(pattern: str, name: str, yes: bool) -> None:
    assert matches(pattern, name) is yes


def test_shared_suffixes() -> None:
    assert is_shared_suffix("com")
    assert is_shared_suffix("r2.cloudflarestorage.com")
    assert not is_shared_suffix("hf.co")
    for name in ("s3.eu-west-1", "s3-eu-west-1", "s3.dualstack.us-gov-west-1", "eu-west-1.elb", "cn-north-1"):
        assert is_shared_suffix(f"{name}.amazonaws.com"), name
    assert is_shared_suffix("westeurope.cloudapp.azure.com")
    assert not is_shared_suffix("github-cloud.s3.amazonaws.com")
    assert not is_shared_suffix("docs.aws.amazon.com")
    for name in ("a.run.app", "europe-west1.run.app", "z13.web.core.windows.net", "global.ssl.fastly.net"):
        assert is_shared_suffix(name), name
    for name in ("service-1.a.run.app", "my-service.run.app", "account.z13.web.core.windows.net"):
        assert not is_shared_suffix(name), name


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("cloudflarestorage.com", "r2.cloudflarestorage.com"),
        ("googleapis.com", "storage.googleapis.com"),
        ("azure.com", "cloudapp.azure.com"),
        ("ssl.fastly.net", "global.ssl.fastly.net"),
        ("core.windows.net", "core.windows.net"),
        ("xcloudflarestorage.com", ""),
        ("a.googleapis.com", ""),
        ("amazon.com", ""),
    ],
)
def test_what_lies_above_a_shared_suffix_is_shared(name: str, suffix: str) -> None:
    assert shared_suffix(name) == suffix
    assert is_shared_suffix(name) == bool(suffix)
