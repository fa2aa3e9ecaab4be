"""A real llama-server serves the model we write, and calls the hub when anybody asks it to."""

from __future__ import annotations

import pytest

from conftest import cannot_run
from penstock.demo import llama
from penstock.demo.lab import Lab
from penstock.demo.recorder import Recorder
from penstock.errors import PenstockError

pytestmark = pytest.mark.root


@pytest.mark.parametrize("family", [4, 6])
def test_one_post_makes_it_call_the_hub(lab: Lab, family: int) -> None:
    try:
        root = llama.fetch(print)
    except PenstockError as error:
        cannot_run(f"needs llama-server: {error}")
    stranger = lab.remote["stranger"]
    recorder = Recorder(lab, stranger, ports=(443,))
    lab.pin({llama.HUB: [stranger.address(family)]})
    server = llama.LlamaServer(lab, root, [], {})
    server.load(lab.host.address(family), "someone/repo")
    arrivals = recorder.arrivals()
    assert server.ended("someone/repo", 20)
    server.stop()
    recorder.stop()
    assert (arrivals[0].event, arrivals[0].family) == ("connect", family)
    assert llama.HUB in "".join(a.data for a in arrivals)
