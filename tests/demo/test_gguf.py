"""The model file has the shape that GGUF 3 asks for; that a real server loads it, test_llama shows."""

from __future__ import annotations

import struct
from pathlib import Path

from penstock.demo.gguf import ALIGNMENT, tiny_model


def test_the_file_is_what_its_header_says(tmp_path: Path) -> None:
    tiny_model(tmp_path / "a.gguf")
    data = (tmp_path / "a.gguf").read_bytes()
    magic, version, tensors, pairs = struct.unpack_from("<4sIQQ", data)
    assert (magic, version, tensors, pairs) == (b"GGUF", 3, 12, 18)
    assert len(data) % ALIGNMENT == 0
    floats = 2 * 64 * 259 + 4 * 64 * 64 + 3 * 64 * 128 + 3 * 64
    assert 4 * floats < len(data) < 4 * floats + 20_000


def test_it_is_the_same_each_time(tmp_path: Path) -> None:
    tiny_model(tmp_path / "a")
    tiny_model(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
