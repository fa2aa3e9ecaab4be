"""The stand-in calls whom the model's name says, and says what came of it."""

from __future__ import annotations

import pytest

from penstock.demo import stand_in
from penstock.demo.lab import Lab
from penstock.demo.recorder import Recorder


@pytest.mark.root
@pytest.mark.parametrize("family", [4, 6])
def test_it_calls_the_host_in_the_name(lab: Lab, family: int) -> None:
    stranger = lab.remote["stranger"]
    recorder = Recorder(lab, stranger, ports=(8080,))
    address = stranger.address(family)
    shown = f"[{address}]" if family == 6 else address
    assert lab.host.call(stand_in.pull, f"{shown}:8080/acme/model:7b") == ""
    assert lab.host.call(stand_in.pull, f"http://{shown}:8080/acme/model") == ""
    first = recorder.arrivals("data")[0].data
    recorder.stop()
    assert first.startswith("GET /v2/acme/model/manifests/7b HTTP/1.1\r\n")
    assert lab.host.call(stand_in.pull, f"{shown}:8080/a/b") == "pull model manifest: Connection refused"


@pytest.mark.parametrize("model", ["", "model", "host:99999999/x", "host/x y", "host/x\r\nX: y"])
def test_a_name_that_is_none_calls_nobody(model: str) -> None:
    assert stand_in.pull(model) == "invalid model name"
