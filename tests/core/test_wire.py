"""Messages of the control socket: exact, small, and whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core import wire
from penstock.core.wire import Message

ASKED = {"workload": "w", "direction": "out", "address": "192.0.2.1", "protocol": "tcp", "port": 443, "here": 0}
HOLDS = Message("holds", ASKED)
READY = Message("ready", {"workload": "w"})
APPLY = Message("apply", {"confirm": 60})
ROLLBACK = Message("rollback", {"to": ""})


@pytest.mark.parametrize("message", [Message("status"), Message("confirm"), APPLY, ROLLBACK, READY, HOLDS])
def test_a_request_is_one_line_and_comes_back(message: Message) -> None:
    line = wire.encode_request(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert wire.decode_request(line) == message


def changed(message: Message, **change: Any) -> bytes:
    return json.dumps({**json.loads(wire.encode_request(message)), **change}).encode()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "not JSON"),
        (b"[" * 10_000, "not JSON"),
        (b"[]", "not an object"),
        (b"x" * (wire.MAX_REQUEST + 1), "longer"),
        (changed(READY, v=2), "expected v"),
        (changed(READY, more=1), "expected v"),
        (changed(READY, command="halt"), "unknown command"),
        (changed(READY, command=["status"]), "unknown command"),
        (changed(READY, arguments=[]), "takes: workload"),
        (changed(READY, arguments={}), "takes: workload"),
        (changed(READY, arguments={"workload": "w", "x": 1}), "takes: workload"),
        (changed(READY, arguments={"workload": 1}), "must be text"),
        (changed(HOLDS, arguments={**HOLDS.arguments, "port": True}), "must be a number"),
        (changed(HOLDS, arguments={**HOLDS.arguments, "port": 1.5}), "must be a number"),
        (changed(HOLDS, arguments={**HOLDS.arguments, "port": 65536}), "port goes from 0 to 65535"),
        (changed(HOLDS, arguments={**HOLDS.arguments, "here": 2}), "here goes from 0 to 1"),
        (changed(Message("status"), arguments={"x": 1}), "takes: nothing"),
        (changed(APPLY, arguments={}), "takes: confirm"),
        (changed(APPLY, arguments={"confirm": True}), "must be a number"),
        (changed(APPLY, arguments={"confirm": -1}), "confirm goes from 0 to 86400"),
        (changed(APPLY, arguments={"confirm": 86401}), "confirm goes from 0 to 86400"),
        (changed(ROLLBACK, arguments={}), "takes: to"),
    ],
)
def test_what_is_no_request(line: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        wire.decode_request(line)


@given(st.binary(max_size=200))
def test_nothing_else_than_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        wire.decode_request(data)


def test_answers() -> None:
    assert wire.decode_answer(wire.encode_result({"a": [1]})) == ({"a": [1]}, "", "")
    assert wire.decode_answer(wire.encode_error("no", "do")) == (None, "no", "do")
    for line in (b"{}", b'{"ok":true}', b'{"ok":true,"result":[]}', b"3", b'{"ok":1,"result":{}}'):
        with pytest.raises(ValueError, match="not a"):
            wire.decode_answer(line)
