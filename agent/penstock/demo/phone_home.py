"""onnxruntime, which calls its vendor some seconds after `import`, installed into the cache and run in a lab."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from penstock.demo import cache
from penstock.demo.lab import Lab

VENDOR = "mobile.events.data.microsoft.com"
CALL_AFTER = 9
"""Seconds from the import to the first call; measured with onnxruntime 1.32."""

_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); import onnxruntime, time; time.sleep(60)"


def install(say: cache.Say) -> Path:
    """Return the directory with onnxruntime in it, installing it if need be; PenstockError if it cannot be had."""
    place = cache.directory(f"onnx-{sys.version_info.major}.{sys.version_info.minor}")
    packages = place / "site"
    with cache.only_one(place):
        if not (packages / "onnxruntime").exists():
            say("Installing onnxruntime into the cache (some 200 MB, once) ...")
            pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
            new = place / "new"
            argv = [*pip, "--no-input", "--upgrade", "--target", str(new), "onnxruntime"]
            cache.run(argv, lambda line: say(f"  {line}"))
            new.rename(packages)
            cache.give_to_owner(place)
    return packages


class OnnxProgram:
    """A program that imports onnxruntime and then sleeps; it ends after a minute by itself."""

    def __init__(self, lab: Lab, packages: Path, prefix: Sequence[str], env: Mapping[str, str]) -> None:
        self._process = lab.host.popen(
            [*prefix, sys.executable, "-c", _PROGRAM, str(packages)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self, until: Callable[[], bool], timeout: float) -> bool:
        """Wait until `until()`, looking four times a second; whether it came true in `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not until():
            if time.monotonic() > deadline or self._process.poll() is not None:
                return False
            time.sleep(0.25)
        return True

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
