"""One file of a trace's tensors, in the format of safetensors, which can be read while it grows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tracer.tensors.leaves import dtype_name

# A shard is full when it holds this many bytes, or its table of contents has no room for another.
_SHARD_BYTES = 256 * 1024 * 1024
CONTENTS_BYTES = (4 * 1024, 16 * 1024, 64 * 1024)  # of the first, the second, all others
_LARGEST_ENTRY = 2048

# What safetensors calls the dtypes; complex numbers are stored as pairs of floats.
_CODES: Mapping[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "F32",
    torch.complex128: "F64",
}
DTYPES = {dtype_name(dtype): dtype for dtype in _CODES}


def can_store(dtype: torch.dtype) -> bool:
    """Whether tensors of this dtype have a place in a safetensors file."""
    return dtype in _CODES


class ShardWriter:
    """One file in safetensors' format: a length, a table of contents, the bytes of all tensors."""

    def __init__(self, path: Path, contents_bytes: int) -> None:
        self.file = path.open("xb", buffering=0)
        self._contents: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._contents_bytes = contents_bytes
        self._room = contents_bytes - len(json.dumps(self._contents))
        self._size = 0
        self._write_contents()

    @property
    def is_full(self) -> bool:
        """Whether no further tensor is to be added."""
        return self._size >= _SHARD_BYTES or self._room < _LARGEST_ENTRY

    def append(self, name: str, tensor: torch.Tensor, data: memoryview) -> int:
        """Writes a tensor's bytes, and returns where in the file they begin."""
        shape = [*tensor.shape, 2] if tensor.is_complex() else list(tensor.shape)
        offsets = [self._size, self._size + len(data)]
        entry = {"dtype": _CODES[tensor.dtype], "shape": shape, "data_offsets": offsets}
        at = 8 + self._contents_bytes + self._size
        self.file.seek(at)
        write_all(self.file, data)
        self._contents[name] = entry
        self._size += len(data)
        self._room -= len(json.dumps({name: entry}))
        return at

    def finish(self) -> None:
        """Writes the table of contents and closes the file."""
        self._write_contents()
        self.file.close()

    def _write_contents(self) -> None:
        text = json.dumps(self._contents, separators=(",", ":")).encode()
        assert len(text) <= self._contents_bytes
        self.file.seek(0)
        length = self._contents_bytes.to_bytes(8, "little")
        write_all(self.file, length + text.ljust(self._contents_bytes))


def write_all(file: Any, data: bytes | memoryview) -> None:
    """Writes all of it: the operating system may take less at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def shard_name(number: int) -> str:
    """The name of a file of tensors in the folder of a trace."""
    return f"values-{number:05}.safetensors"
