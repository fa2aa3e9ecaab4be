"""A real llama-server serves the model we write, and calls the hub when anybody asks it to."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

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


@pytest.mark.parametrize(("status", "ready"), [(503, False), (200, True)])
def test_a_server_that_is_still_starting_is_waited_for(lab: Lab, status: int, ready: bool) -> None:
    """It may answer 503 between its first listen() and its being ready; that is no failure."""
    assert lab.host.call(_asked_while_it_answers, status) is ready


def test_a_server_that_does_not_listen_yet_is_waited_for(lab: Lab) -> None:
    assert not lab.host.call(llama.healthy, "127.0.0.1")


def _asked_while_it_answers(status: int) -> bool:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", llama.PORT), Answer) as server:
        Thread(target=server.handle_request, daemon=True).start()
        return llama.healthy("127.0.0.1")
