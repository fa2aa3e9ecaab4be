"""Names of cgroups, as systemd-escape makes them."""

from __future__ import annotations

from penstock.core.slices import scope_of, slice_of


def test_each_workload_is_directly_in_our_slice() -> None:
    assert slice_of("ollama") == "penstock.slice/penstock-ollama.slice"
    assert slice_of("open-web-ui") == "penstock.slice/penstock-open\\x2dweb\\x2dui.slice"
    assert slice_of("a_b") == "penstock.slice/penstock-a_b.slice"


def test_the_scope_of_a_process() -> None:
    assert scope_of("w", 7) == "penstock.slice/penstock-w.slice/run-7.scope"
