"""Numbers of interfaces and their names."""

from __future__ import annotations

import socket

from penstock.kernel import interfaces


def test_names() -> None:
    number = socket.if_nametoindex("lo")
    assert interfaces.names([number, number, None, 0, 2**31 - 1, 2**32 - 1]) == {
        number: "lo",
        None: "",
        0: "",
        2**31 - 1: "",
        2**32 - 1: "",
    }
