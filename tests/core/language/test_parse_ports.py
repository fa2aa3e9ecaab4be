"""`ports:` lists."""

import pytest

from penstock.core.language.parse_ports import BadPorts, merged, port_range, read_ports
from penstock.core.language.reading import Reader
from penstock.core.language.yaml_nodes import read
from penstock.core.policy import EVERY_PORT, PortRange, Ports


def ports(text: str) -> tuple[Ports | None, list[str]]:
    reader, root = Reader("f"), read("f", text.encode()).root
    assert root is not None
    return read_ports(reader, root), [problem.code for problem in reader.problems]


def test_lists() -> None:
    assert ports("[443, 53/udp, 8000-8100, icmp]") == (
        Ports((PortRange("tcp", 443, 443), PortRange("tcp", 8000, 8100), PortRange("udp", 53, 53)), icmp=True),
        [],
    )
    assert ports("[any]") == (Ports(EVERY_PORT), [])
    assert ports("[any, icmp]") == (Ports(EVERY_PORT, icmp=True), [])
    assert merged([PortRange("tcp", 5, 9), PortRange("tcp", 1, 6)]) == (PortRange("tcp", 1, 9),)


def test_a_control_port_that_stands_alone_is_not_lost_in_a_range_around_it() -> None:
    wide, alone = PortRange("tcp", 2000, 4000), PortRange("tcp", 2375, 2375)
    assert ports("[2375, 2000-3000, 2500-4000]")[0] == Ports((wide, alone))
    assert ports("[2000-4000, 2300]")[0] == Ports((wide,))
    assert ports("[2375/udp, 2000-3000/udp]")[0] == Ports((PortRange("udp", 2000, 3000),))


@pytest.mark.parametrize(
    ("text", "code"),
    [("443", "ports-scalar"), ("[]", "ports-empty"), ("[any, 1]", "ports-any"), ("[1, 1]", "ports-twice"),
     ("{a: 1}", "shape"), ("[[1]]", "shape"), ("[on]", "yaml-boolean"), ("[~]", "empty"), ("[x]", "ports")],
)  # fmt: skip
def test_wrong_lists(text: str, code: str) -> None:
    assert ports(text) == (None, [code])


@pytest.mark.parametrize(
    ("text", "hint"),
    [("0", "1 to 65535"), ("65536", "1 to 65535"), ("90-80/udp", "write 80-90/udp"), ("https", "write 443"),
     ("22:80", "[22, 80]"), ("1.10", "whole"), ("022", "without it"), ("0x16", "without it"), ("8_0", "digits"),
     ("443/sctp", "443/udp"), ("-1", "ports:"), ("٤٤٣", "ports:"), ("1-2-3", "ports:")],
)  # fmt: skip
def test_what_is_no_port(text: str, hint: str) -> None:
    with pytest.raises(BadPorts) as caught:
        port_range(text)
    assert hint in caught.value.hint
