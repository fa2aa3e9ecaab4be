"""libnftables(3) in-process: the nft language without a fork.

A dozen calls of a stable C interface (libnftables.so.1 since nftables 0.9): a wrapper of our own is smaller
than any package that has one.
"""

from __future__ import annotations

import ctypes

from penstock.core.text import printable
from penstock.errors import PenstockError

_CHARS = ctypes.c_char_p
_HANDLE = ctypes.c_void_p


class Libnftables:
    """One context; its netlink socket belongs to the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL("libnftables.so.1")
        except OSError as e:
            raise PenstockError(
                "libnftables.so.1 cannot be loaded", hint="install nftables: apt-get install nftables"
            ) from e
        for name, result, arguments in (
            ("nft_ctx_new", _HANDLE, (ctypes.c_uint32,)),
            ("nft_ctx_free", None, (_HANDLE,)),
            ("nft_ctx_buffer_output", ctypes.c_int, (_HANDLE,)),
            ("nft_ctx_buffer_error", ctypes.c_int, (_HANDLE,)),
            ("nft_ctx_get_error_buffer", _CHARS, (_HANDLE,)),
            ("nft_ctx_get_output_buffer", _CHARS, (_HANDLE,)),
            ("nft_run_cmd_from_buffer", ctypes.c_int, (_HANDLE, _CHARS)),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self._library = library
        self._context = library.nft_ctx_new(0)
        if not self._context:
            raise PenstockError(
                "nf_tables is not available", hint="load it with: modprobe nf_tables, as root"
            )
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)

    def run(self, script: str) -> str:
        """Run `script` as one transaction and return what nft printed.

        PenstockError with nft's first error line, never with the script: it may be megabytes.
        """
        status = self._library.nft_run_cmd_from_buffer(self._context, script.encode())
        output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
        errors: bytes = self._library.nft_ctx_get_error_buffer(self._context)
        if status != 0:
            first = errors.decode("utf-8", "replace").strip().split("\n", 1)[0]
            raise PenstockError(f"nft refused the ruleset: {printable(first)}", hint=_hint(first))
        return output.decode("utf-8", "replace")

    def close(self) -> None:
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None


def _hint(error: str) -> str:
    """What to do about errors that have one known cause."""
    if "cgroupsv2" in error:
        return "matching by cgroup needs nftables 1.0 or newer"
    if "No such file or directory" in error or "Operation not supported" in error:
        return "matching by cgroup needs Linux 5.13 or newer, with nft_socket, nft_ct and nft_fib"
    return ""
