"""Inference servers that we know by their look, for hints and first drafts of rules: never for a decision.

A process chooses its name and its arguments itself.  So this finds the honest server that somebody forgot, and no
attacker; nothing is ever allowed or denied by it.  A process is known by what it is, never by its parent: several
of these servers start their workers and leave them to pid 1.  A program that only has a server's name among its
arguments (an editor, grep, a package manager) is none, and neither is the client that the same program can be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MAX_WORDS = 64
MAX_WORD = 4096
COMM = 15
"""Bytes of a name that the kernel keeps."""

_PYTHON = re.compile(r"(?:python|pypy)[0-9]*(?:\.[0-9]+)?t?\Z")
_WITH_VALUE = frozenset("WX")

Verbs = tuple[str, ...]
"""First words behind the program with which it is a server; none: always."""


@dataclass(frozen=True, slots=True)
class Server:
    """One product.  `example` is its file in rules/examples, or empty; `ports` are its defaults, main one first.

    `modules` are for `python -m`, they and their submodules; `scripts` are ends of paths that Python is given;
    `titles` are what its processes rename themselves to begin with.
    """

    name: str
    ports: tuple[int, ...]
    danger: str
    programs: Mapping[str, Verbs]
    example: str = ""
    modules: Mapping[str, Verbs] = field(default_factory=dict)
    scripts: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()


SERVERS: tuple[Server, ...] = (
    Server(
        "ollama",
        (11434,),
        "whoever reaches its port may also pull, push, create and delete models",
        {"ollama": ("serve", "start", "runner")},
        "ollama.yaml",
    ),
    Server(
        "vllm",
        (8000,),
        "its API key guards only some paths: whoever reaches its port may pause it or change its weights",
        {"vllm": ("serve",)},
        "vllm.yaml",
        {"vllm.entrypoints": (), "vllm": ("serve",)},
        ("/vllm/entrypoints/openai/api_server.py", "/vllm/entrypoints/api_server.py"),
        ("VLLM::",),
    ),
    Server(
        "llama-server",
        (8080, 9931),
        "as a router it downloads any model that one request without a password names",
        {"llama-server": ()},
        "llama-server.yaml",
        {"llama_cpp.server": ()},
    ),
    Server(
        "triton",
        (8000, 8001, 8002),
        "it has no passwords: whoever reaches its ports may load and unload models",
        {"tritonserver": ()},
        "triton.yaml",
    ),
    Server(
        "ray",
        (8265, 10001, 6379, 8000),
        "its dashboard, client and control ports run any command without a password",
        {"ray": ("start", "up"), "raylet": (), "gcs_server": ()},
        "ray.yaml",
        {"ray.util.client.server": ()},
        ("/ray/dashboard/dashboard.py", "/ray/dashboard/agent.py", "/ray/autoscaler/_private/monitor.py"),
        ("ray::",),
    ),
    Server(
        "sglang",
        (30000,),
        "whoever reaches its port may change its weights and its logging unless it was given keys",
        {"sglang": ("serve",)},
        modules={"sglang.launch_server": (), "sglang_router": ()},
        titles=("sglang::",),
    ),
    Server(
        "litellm",
        (4000,),
        "it holds the keys of every provider it is configured for",
        {"litellm": ()},
        "litellm.yaml",
        {"litellm": ()},
    ),
    Server(
        "open-webui",
        (8080,),
        "the first who signs up is its administrator, and it fetches any URL that a user names",
        {"open-webui": ("serve", "dev")},
        modules={"open_webui": ()},
    ),
    Server(
        "transformers",
        (8000,),
        "it downloads and loads any model that a request names",
        {"transformers": ("serve",)},
    ),
    Server(
        "bentoml",
        (3000,),
        "it has no passwords, and reports to its vendor at start and twice a day",
        {"bentoml": ("serve", "serve-http", "serve-grpc", "start", "start-http-server", "start-grpc-server")},
        modules={"bentoml": ("serve",), "bentoml_cli.worker": (), "_bentoml_impl.worker": ()},
    ),
    Server(
        "mlflow",
        (5000,),
        "it has no passwords unless they were switched on, and reports to its vendor",
        {"mlflow": ("server", "ui")},
        modules={"mlflow": ("server", "ui")},
    ),
    Server(
        "jupyter",
        (8888,),
        "it runs any code for whoever has its token",
        {
            "jupyter": ("lab", "notebook", "server", "labhub", "nbclassic"),
            **dict.fromkeys(("jupyter-lab", "jupyter-notebook", "jupyter-server", "jupyterhub"), ()),
        },
        modules={
            "jupyter": ("lab", "notebook", "server"),
            **dict.fromkeys(("jupyterlab", "notebook", "jupyter_server", "jupyterhub"), ()),
        },
    ),
    Server(
        "text-generation-inference",
        (3000, 80),
        "it has no passwords",
        dict.fromkeys(("text-generation-launcher", "text-generation-router", "text-generation-server"), ()),
    ),
    Server("text-embeddings-inference", (3000, 80), "it has no passwords", {"text-embeddings-router": ()}),
    Server("lmdeploy", (23333,), "it has no passwords unless keys are given", {"lmdeploy": ("serve",)}),
    Server("tensorflow-serving", (8500, 8501), "it has no passwords", {"tensorflow_model_server": ()}),
    Server("whisper-server", (8080,), "it has no passwords", {"whisper-server": ()}),
    Server(
        "gradio",
        (7860,),
        "with `share` it opens a tunnel to everybody",
        {"gradio": ()},
    ),
    Server("streamlit", (8501,), "it asks a stranger for this host's address at start", {"streamlit": ("run",)}),
    Server("chroma", (8000,), "whoever reaches its port has all its data", {"chroma": ("run",)}),
    Server("phoenix", (6006, 4317), "it has no passwords, and shows what users asked", {"phoenix": ("serve",)}),
    Server("marimo", (2718,), "it runs any code for whoever has its token", {"marimo": ("edit", "run", "new")}),
    Server("chainlit", (8000,), "it has no passwords unless they were switched on", {"chainlit": ("run",)}),
)

_Known = tuple[Server, Verbs]
_PROGRAMS: Mapping[str, _Known] = {
    name: (server, verbs) for server in SERVERS for name, verbs in server.programs.items()
}
_COMMS: Mapping[str, _Known] = {name[:COMM]: known for name, known in _PROGRAMS.items()}
_MODULES: Mapping[str, _Known] = {
    name: (server, verbs) for server in SERVERS for name, verbs in server.modules.items()
}
_SCRIPTS: tuple[tuple[str, Server], ...] = tuple((end, server) for server in SERVERS for end in server.scripts)
_TITLES: tuple[tuple[str, Server], ...] = tuple((start, server) for server in SERVERS for start in server.titles)


def recognise(comm: str, argv: Sequence[str]) -> Server | None:
    """The server that a process looks like, by its name as the kernel has it and its arguments; None for others.

    Costs a few look-ups, so that it can be asked for each process of a host.
    """
    for start, server in _TITLES:
        if comm.startswith(start) or (argv and argv[0].startswith(start)):
            return server
    if not argv:
        return None  # a kernel thread, or a process that is dead already
    program, rest = _base(argv[0]), argv[1:MAX_WORDS]
    if _PYTHON.match(program):
        return _of_python(rest)
    # A program may be started under another name: the kernel has the one of its file, or what is left of it.
    return _if_serving(_PROGRAMS.get(program) or _COMMS.get(comm), rest)


def _of_python(words: Sequence[str]) -> Server | None:
    """What an interpreter runs: the module behind `-m`, or the first word that is no option."""
    at = 0
    while at < len(words):
        word = words[at]
        if not word.startswith("-") or word == "-":
            return _of_script(word, words[at + 1 :])
        if not word.startswith("--"):
            for place, letter in enumerate(word[1:MAX_WORD], 2):
                if letter == "c":
                    return None
                if letter == "m":
                    behind = word[place:]
                    module = behind or (words[at + 1] if at + 1 < len(words) else "")
                    return _of_module(module, words[at + (1 if behind else 2) :])
                if letter in _WITH_VALUE:
                    at += not word[place:]
                    break
        at += 1
    return None


def _of_script(path: str, rest: Sequence[str]) -> Server | None:
    path = path[:MAX_WORD]
    found = next((server for end, server in _SCRIPTS if path.endswith(end)), None)
    return found or _if_serving(_PROGRAMS.get(_base(path)), rest)


def _of_module(module: str, rest: Sequence[str]) -> Server | None:
    """Of the module, or the nearest package around it that is known."""
    name = module[:256]
    while name:
        if name in _MODULES:
            return _if_serving(_MODULES[name], rest)
        name = name.rpartition(".")[0]
    return None


def _if_serving(known: _Known | None, rest: Sequence[str]) -> Server | None:
    if known is None:
        return None
    server, verbs = known
    if not verbs:
        return server
    first = next((word for word in rest if not word.startswith("-")), "")
    return server if first in verbs else None


def _base(path: str) -> str:
    return path[:MAX_WORD].rpartition("/")[2]
