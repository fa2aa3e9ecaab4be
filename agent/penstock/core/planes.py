"""Which ports of known servers are for whom: users of the model, or people and tools that run the host.

A workload is known by the words of its name and its `match`, and only for hints: whoever writes the rules chooses
them.  So a port that many programs use counts where the workload is known to be the one that it is for.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from penstock.core.policy import CONTROL_PORTS, Ports, Workload
from penstock.core.servers import SERVERS


@dataclass(frozen=True, slots=True)
class AdminPort:
    """A TCP port that no client of a model needs.  `of`: the server that must be known for it; empty: none."""

    port: int
    why: str
    of: str = ""


@dataclass(frozen=True, slots=True)
class Shared:
    """TCP ports of a server at which clients and administrators meet: the paths that are for the latter."""

    ports: tuple[int, ...]
    paths: str


ADMIN_PORTS: tuple[AdminPort, ...] = (
    # docs.ray.io/en/latest/ray-core/configure.html#ports-configurations; metrics: rules/presets/ray.yaml
    AdminPort(8265, "Ray's dashboard runs any command"),
    AdminPort(10001, "Ray's client port runs any code"),
    AdminPort(6379, "Ray's control store and Redis take any command"),
    AdminPort(52365, "Ray's agent on each node runs any command"),
    AdminPort(44217, "Ray's metrics tell what runs in the cluster"),
    AdminPort(44227, "Ray's metrics tell what runs in the cluster"),
    # jupyter-server.readthedocs.io/en/latest/operators/security.html
    AdminPort(8888, "Jupyter runs any code"),
    *(AdminPort(port, f"{what} commands this whole host") for port, what in CONTROL_PORTS.items()),
    # kubernetes.io/docs/reference/networking/ports-and-protocols
    AdminPort(2379, "etcd holds a cluster's secrets"),
    AdminPort(2380, "etcd holds a cluster's secrets"),
    # github.com/prometheus/prometheus/wiki/Default-port-allocations
    AdminPort(9100, "node_exporter tells all about this host"),
    AdminPort(9400, "DCGM's exporter tells what runs on which GPU"),
    AdminPort(9090, "Prometheus tells all about the hosts it watches", "prometheus"),
    # docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html
    AdminPort(8002, "Triton's metrics tell who uses which model", "triton"),
    # mlflow.org/docs/latest/cli.html#mlflow-server
    AdminPort(5000, "MLflow changes and deletes any model and any run", "mlflow"),
    # docs.pytorch.org/serve/management_api.html and metrics_api.html
    AdminPort(8081, "TorchServe's management API loads any model", "torchserve"),
    AdminPort(8082, "TorchServe's metrics tell who uses which model", "torchserve"),
    # docs.dask.org/en/stable/deploying-cli.html
    AdminPort(8786, "Dask's scheduler runs any code", "dask"),
    AdminPort(8787, "Dask's dashboard tells what runs in the cluster", "dask"),
    # docs.marimo.io/guides/deploying
    AdminPort(2718, "marimo runs any code", "marimo"),
)

SHARED: Mapping[str, Shared] = {
    # github.com/ollama/ollama/blob/main/docs/api.md
    "ollama": Shared((11434,), "/api/pull, /api/create and /api/delete"),
    # docs.vllm.ai/en/stable/usage/security
    "vllm": Shared((8000,), "what lies outside /v1, such as /metrics, /pause and /update_weights"),
    # docs.sglang.io: the native API
    "sglang": Shared((30000,), "/update_weights_from_disk and /flush_cache"),
    # github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
    "llama-server": Shared((8080,), "/slots, /props and /lora-adapters"),
    # docs.nvidia.com: the extensions model repository, logging and trace of Triton's protocol, HTTP and gRPC
    "triton": Shared((8000, 8001), "/v2/repository, which loads and unloads models, /v2/logging and /v2/trace"),
}

_OTHERS = ("prometheus", "torchserve", "dask")
"""Known here, and not to be looked for among processes."""
_WORDS: Mapping[str, str] = {
    **{word: word for word in _OTHERS},
    **{word: server.name for server in SERVERS for word in (server.name, *server.programs)},
}
_KNOWN = re.compile(
    "(?<![a-z0-9])(" + "|".join(map(re.escape, sorted(_WORDS, key=len, reverse=True))) + ")(?![a-z])"
)


def servers_of(workload: Workload) -> frozenset[str]:
    """The known servers that a workload calls itself by: `vllm-8b`, `ollama@*.service`, /opt/ray/bin/ray."""
    texts = (workload.name, *(text for m in workload.match for text in (m.unit, m.container, m.exe)))
    return frozenset(_WORDS[word] for text in texts for word in _KNOWN.findall(text.lower()))


class Known:
    """Which of some TCP ports a rule opens; asked of many rules."""

    def __init__(self, ports: Iterable[int]) -> None:
        self._ports = sorted(set(ports))

    def among(self, ports: Ports) -> list[int]:
        """Those in `ports`, in order."""
        found: set[int] = set()
        for one in ports.ranges:
            if one.protocol == "tcp":
                at = bisect_left(self._ports, one.first)
                while at < len(self._ports) and self._ports[at] <= one.last:
                    found.add(self._ports[at])
                    at += 1
        return sorted(found)


def admin_ports(servers: Iterable[str]) -> dict[int, str]:
    """Port -> why it is for administrators, for a workload that is known as these servers."""
    known = {"", *servers}
    return {one.port: one.why for one in ADMIN_PORTS if one.of in known}


def shared_ports(servers: Iterable[str]) -> dict[int, str]:
    """Port -> the paths behind it that are for administrators."""
    found = [SHARED[name] for name in sorted(servers) if name in SHARED]
    return {port: one.paths for one in found for port in one.ports}
