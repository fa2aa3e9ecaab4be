"""Who looks like an inference server, and who only talks about one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.servers import COMM, SERVERS, recognise

EXAMPLES = Path(__file__).parents[2] / "rules/examples"


def seen(command: str, comm: str | None = None) -> str | None:
    """The name of the server that this command line looks like."""
    argv = command.split(" ") if command else []
    found = recognise(argv[0].rpartition("/")[2][:COMM] if comm is None and argv else comm or "", argv)
    return found.name if found else None


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/usr/local/bin/ollama serve", "ollama"),
        ("/usr/local/bin/ollama runner --model /x --port 40001", "ollama"),
        ("/opt/vllm/bin/python3.12 /opt/vllm/bin/vllm serve facebook/opt-125m --port 8001", "vllm"),
        ("python3 -m vllm.entrypoints.openai.api_server --model m", "vllm"),
        ("python -u -X dev -W ignore -m vllm.entrypoints.openai.api_server", "vllm"),
        ("python -um vllm.entrypoints.openai.api_server", "vllm"),
        ("python -mvllm.entrypoints.openai.api_server", "vllm"),
        ("python /x/site-packages/vllm/entrypoints/openai/api_server.py", "vllm"),
        ("/usr/bin/llama-server -m /m.gguf", "llama-server"),
        ("python3 -m llama_cpp.server --model m", "llama-server"),
        ("tritonserver --model-repository=/models", "triton"),
        ("/x/ray/core/src/ray/raylet/raylet --raylet_socket_name=x", "ray"),
        ("/x/gcs_server --log_dir=x", "ray"),
        ("/x/bin/python /x/bin/ray start --head --block", "ray"),
        ("/x/python -u /x/site-packages/ray/dashboard/dashboard.py --host=127.0.0.1", "ray"),
        ("/x/bin/python /x/bin/litellm --config c.yaml", "litellm"),
        ("python3 -m sglang.launch_server --model-path m", "sglang"),
        ("/x/bin/python3 /x/bin/open-webui serve", "open-webui"),
        ("/x/bin/python3 /x/bin/transformers serve", "transformers"),
        ("/x/bin/python3 /x/bin/bentoml serve .", "bentoml"),
        ("/x/bin/python3 /x/bin/mlflow server", "mlflow"),
        ("/x/bin/python3 /x/bin/jupyter-lab --no-browser", "jupyter"),
        ("/x/bin/python3 -m jupyter lab", "jupyter"),
        ("/usr/bin/text-generation-launcher --model-id m", "text-generation-inference"),
    ],
)
def test_servers(command: str, name: str) -> None:
    assert seen(command) == name


@pytest.mark.parametrize(
    ("comm", "command", "name"),
    [
        ("VLLM::EngineCor", "VLLM::EngineCore", "vllm"),
        ("VLLM::Worker_TP", "VLLM::Worker_TP0", "vllm"),
        ("sglang::schedul", "sglang::scheduler_TP0", "sglang"),
        ("ray::IDLE", "ray::IDLE", "ray"),
        ("python3", "ray::Trainer.train", "ray"),
        ("ollama", "model-host serve", "ollama"),
        ("text-generation", "launcher --model-id m", "text-generation-inference"),
    ],
)
def test_those_that_go_by_another_name(comm: str, command: str, name: str) -> None:
    assert seen(command, comm) == name


@pytest.mark.parametrize(
    "command",
    [
        "vim /etc/penstock/rules.d/ollama.yaml",
        "nano vllm",
        "grep vllm serve",
        "journalctl -u ollama",
        "systemctl restart ollama.service",
        "tail -f /var/log/ollama",
        "sudo ollama serve",
        "bash -c ollama serve",
        "-bash",
        "ollama list",
        "ollama run llama3 serve",
        "ollama",
        "vllm bench serve",
        "docker run vllm/vllm-openai serve",
        "/x/bin/python /x/bin/pip install vllm",
        "python -m pip install vllm",
        "python -m pytest vllm",
        "python -c import_vllm -m vllm.entrypoints.openai.api_server",
        "python vllm.py",
        "python train.py /x/bin/vllm serve",
        "python -m vllm_tools.entrypoints",
        "python -m",
        "python -X",
        "python",
        "mlflow runs list",
        "bentoml build",
        "ray status",
        "/usr/bin/jupyter --version",
        "",
    ],
)
def test_those_that_are_none(command: str) -> None:
    assert seen(command) is None


@given(st.text(max_size=20), st.lists(st.text(max_size=20), max_size=6))
def test_any_text_is_taken(comm: str, argv: list[str]) -> None:
    recognise(comm, argv)
    recognise(comm, ["python", *argv])


def test_long_arguments_cost_nothing() -> None:
    """100,000 words and a word of 100 MB take no longer than short ones."""
    huge = "/" + "a" * 100_000_000
    many = ["python", *["-X"] * 100_000]
    start = time.perf_counter()
    assert recognise("a", [huge]) is None
    assert recognise("python", ["python", huge]) is None
    assert recognise("python", many) is None
    assert time.perf_counter() - start < 0.5


def test_it_is_cheap() -> None:
    """Asked for 10,000 processes of a host: 20 ms here, so the bound is for a machine that does much else."""
    argv = ["/usr/lib/postgresql/15/bin/postgres", "-D", "/var/lib/postgresql/15/main"]
    start = time.process_time()
    for _ in range(10_000):
        recognise("postgres", argv)
    assert time.process_time() - start < 0.5


def test_the_table_is_whole() -> None:
    assert len({server.name for server in SERVERS}) == len(SERVERS)
    for server in SERVERS:
        assert server.ports
        assert server.danger
        assert not server.example or (EXAMPLES / server.example).is_file(), server
    used = {server.example for server in SERVERS}
    assert {path.name for path in EXAMPLES.glob("*.yaml")} - used <= {"penstock.yaml", "my-server.yaml"}
