"""Names of cgroups, as systemd-escape makes them."""

from __future__ import annotations

from penstock.core.slices import restart_command, scope_of, slice_of


def test_each_workload_is_directly_in_our_slice() -> None:
    assert slice_of("ollama") == "penstock.slice/penstock-ollama.slice"
    assert slice_of("open-web-ui") == "penstock.slice/penstock-open\\x2dweb\\x2dui.slice"
    assert slice_of("a_b") == "penstock.slice/penstock-a_b.slice"


def test_the_scope_of_a_process() -> None:
    assert scope_of("w", 7) == "penstock.slice/penstock-w.slice/run-7.scope"


def test_how_to_restart() -> None:
    assert restart_command("ollama.service") == "systemctl restart ollama.service"
    assert restart_command("vllm@.service") == "systemctl restart 'vllm@*.service'"
    assert restart_command("a\\x2db.service") == "systemctl restart 'a\\x2db.service'"
